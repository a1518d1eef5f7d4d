"""The errors of what is written to files and read from them: one family, all of them ``ValueError``."""

from __future__ import annotations


class StateError(ValueError):
    """An object cannot be written down, or what was written does not fit; the message names the dotted paths."""


class FileError(StateError):
    """A file is damaged, cut off, or not one of torchcow; the message names it and says what is wrong with it."""


class RegistryError(StateError):
    """A registry does not have what was asked for, or refuses what was asked of it."""
