"""The errors of what is written to files and read from them, one family, all ``ValueError``; and the worst one."""

from __future__ import annotations


class IsolationError(AssertionError):
    """Shared memory was written where the barrier could not see it; all that share it hold wrong values."""


class StateError(ValueError):
    """An object cannot be written down, or what was written does not fit; the message names the dotted paths."""


class FileError(StateError):
    """A file is damaged, cut off, or not one of torchcow; the message names it and says what is wrong with it."""


class RegistryError(StateError):
    """A registry does not have what was asked for, or refuses what was asked of it."""
