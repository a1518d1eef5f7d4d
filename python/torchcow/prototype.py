"""``Prototype``: a private snapshot of an object, from which everything else is cloned."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torchcow.clone import clone


class Prototype:
    """A private copy-on-write snapshot of any object.

    Args:
        obj: anything that can be cloned.
        name: what it is called in reports.
        metadata: what else is known about it; kept as a read-only copy.
        each: called with each clone before it is handed out.

    Example:
        >>> import torch, torchcow
        >>> prototype = torchcow.Prototype(torch.nn.Linear(64, 64), "linear")
        >>> torchcow.is_shared(prototype.clone().weight)
        True
    """

    def __init__(
        self,
        obj: Any,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        each: Callable[[Any], object] | None = None,
        share: Iterable[str] = (),
        drop: Iterable[str] = (),
        rebuild: Mapping[str, Callable[[], Any]] | None = None,
    ):
        self._name = name
        self._metadata = MappingProxyType(dict(metadata or {}))
        self._each = each
        self._lock = threading.Lock()
        self._shallow: list[Any] = []
        self._snapshot = clone(obj)

    @property
    def name(self) -> str | None:
        """What it is called in reports."""
        return self._name

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was given as metadata, read-only."""
        return self._metadata

    def clone(self, deep: bool = True, **changes: Any) -> Any:
        """Return a clone of the snapshot."""
        if changes:
            raise NotImplementedError("changes")
        if deep:
            made = clone(self._snapshot)
        else:
            with self._lock:
                if not self._shallow:
                    self._shallow.append(clone(self._snapshot))
            made = copy.copy(self._shallow[0])
        if self._each is not None:
            self._each(made)
        return made

    def spawn(
        self,
        n: int,
        each: Callable[[Any, int], object] | None = None,
        progress: bool | Callable[[int, int], object] | None = None,
    ) -> list[Any]:
        """Return ``n`` clones."""
        clones = []
        for index in range(n):
            made = self.clone()
            if each is not None:
                each(made, index)
            clones.append(made)
        return clones
