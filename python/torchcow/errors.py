# SPDX-License-Identifier: Apache-2.0
"""All exceptions that torchcow defines for its users.

``StateError`` and its subclasses are about files and registries, and all of them are a ``ValueError``. ``CloneError``
and ``PathError`` are about the objects in a prototype. ``IsolationError`` is the worst one: it reports wrong values.
``InternalError`` reports a defect of the engine. Other errors have a class of Python or torch: ``TypeError`` and
``ValueError`` for arguments, ``torch.OutOfMemoryError`` or ``RuntimeError`` for memory.
"""

from __future__ import annotations


class IsolationError(AssertionError):
    """Shared memory was written in a way that the engine cannot detect; all tensors that share it hold wrong values."""


class InternalError(AssertionError):
    """The engine found one of its own invariants broken: a defect of torchcow, whose message names the invariant."""


class CloneError(TypeError, RuntimeError):
    """An object contains components that cannot be cloned; the message names the dotted path of each.

    It is a ``TypeError`` and a ``RuntimeError``, because ``copy.deepcopy`` raises one or the other for such components.
    """


class PathError(LookupError):
    """A dotted path leads nowhere, or to a component that cannot be replaced; the message says what exists there."""


class StateError(ValueError):
    """An object cannot be saved, or a saved object does not fit; the message names the dotted paths."""


class FileError(StateError):
    """A file is damaged, truncated or not one of torchcow; the message names the file and the fault."""


class RegistryError(StateError):
    """A registry does not contain the requested version or tag, or refuses the request."""
