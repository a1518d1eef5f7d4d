"""The protocol that tells torchcow of which parts the objects of a framework consist."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Reducer = Callable[[Any], Any]


class Adapter(Protocol):
    """The parts of objects of some classes, by name.

    :class:`torchcow.objects.adapters.attributes.Attributes` has an answer to each question; an adapter derives from it
    and gives other answers where its framework is different. :func:`torchcow.objects.adapters.register` makes it known.
    """

    reducers: Sequence[tuple[type, Reducer]]
    """How prototypes copy the instances of some classes, where that is not by the class's own protocol.

    Pairs of the class and a function that takes an instance and returns what ``__reduce_ex__`` may return. A sixth part
    is allowed, as in pickle: a function that puts the copied state into the copy. A string means that the object is its
    own copy, and ``NotImplemented`` that it is copied by its own protocol after all."""

    def accepts(self, obj: Any) -> bool:
        """Whether this adapter answers for ``obj``."""

    def parts(self, obj: Any) -> Mapping[str, Any]:
        """The objects that ``obj`` holds, each under one name. A search for tensors or for locks follows them."""

    def names(self, obj: Any) -> Sequence[str]:
        """All names that a path may use here: those of the parts, and names that stand for something computed."""

    def get(self, obj: Any, name: str) -> Any:
        """What one of the names stands for."""

    def refuse(self, obj: Any, name: str, value: Any) -> str | None:
        """Why ``value`` cannot be put under ``name``, as a sentence without a full stop, or None if it can be."""

    def replace(self, obj: Any, name: str, value: Any) -> None:
        """Put ``value`` under ``name``."""

    def aliased(self, obj: Any, name: str, value: Any) -> bool:
        """Whether :meth:`replace` would change something that ``copy.copy(obj)`` has in common with ``obj``."""
