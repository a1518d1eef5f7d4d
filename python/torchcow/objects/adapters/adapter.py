# SPDX-License-Identifier: Apache-2.0
"""The protocol that tells torchcow of which parts the objects of a framework consist."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Reducer = Callable[[Any], Any]


class Adapter(Protocol):
    """The parts of objects of some classes, by name.

    :class:`torchcow.objects.adapters.attributes.Attributes` implements each method. An adapter derives from it and
    overrides what is different in its framework. :func:`torchcow.objects.adapters.register` registers it.
    """

    reducers: Sequence[tuple[type, Reducer]]
    """How prototypes copy the instances of classes whose own protocol does not do.

    Pairs of the class and a function that takes an instance and returns what ``__reduce_ex__`` may return. A sixth part
    is allowed, as in pickle: a function that puts the copied state into the copy. A string means that the object is its
    own copy, and ``NotImplemented`` that its own protocol copies it after all."""

    def accepts(self, obj: Any) -> bool:
        """Return whether this adapter is the one for ``obj``."""

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """Return the objects that ``obj`` holds, each under one name. Reports and the search for locks follow them."""

    def names(self, obj: Any) -> Sequence[str]:
        """Return all names that a path may use here: those of the parts, and further ones such as options."""

    def get(self, obj: Any, name: str) -> Any:
        """Return the object that one of the names stands for."""

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """Return why ``name`` does not take ``value``, as a sentence without a full stop, or None if it does."""

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Put ``value`` under ``name``."""

    def aliased(self, obj: Any, name: str, value: Any) -> bool:
        """Return whether :meth:`replace` would change an object that ``copy.copy(obj)`` shares with ``obj``."""
