# SPDX-License-Identifier: Apache-2.0
"""``Proxy``: is called like the model that a tag points to at that moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torchcow.registry.fork import Lock
from torchcow.registry.version import Reference
from torchcow.snapshots.prototype import Prototype

#: The version that is served, and the one before it, for a rollback.
_KEPT_CLONES = 2


class Proxy:
    """Calls a clone of the version that a tag points to. Each call looks once, and ends with the version it began with.

    The proxy makes one copy-on-write clone of each version that it serves, at the first call, and keeps the two latest.
    Attributes are read from that clone, so what a call or a method changes (running statistics, ``eval()``) stays in
    the clone, and never reaches the prototype. Attributes cannot be set. Made by :meth:`torchcow.Registry.proxy`.

    Example:
        >>> import torch, torchcow
        >>> registry = torchcow.Registry()
        >>> _ = registry.add("double", torch.nn.Linear(1, 1), tags=["production"])
        >>> model = registry.proxy("production")
        >>> model(torch.zeros(5, 1)).shape, model.in_features
        (torch.Size([5, 1]), 1)
    """

    def __init__(self, target: Reference, find: Callable[[Reference], int], load: Callable[[int], Prototype]):
        self.__dict__.update(_target=target, _find=find, _load=load, _lock=Lock(), _clones={})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        model = self._model()
        if not callable(model):
            raise TypeError(
                f"{self!r} serves a {type(model).__qualname__}, which cannot be called; add the model by itself, or an "
                "object with __call__"
            )
        return model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # The proxy itself takes part in Python's protocols. Passed on, these would copy or pickle the model unseen.
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"{type(self).__qualname__!r} object has no attribute {name!r}")
        return getattr(self._model(), name)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(
            f"{self!r} cannot be changed, {name!r} was not set: clone a version, change the clone and add it, "
            f"for instance registry.add({self._target.name!r}, clone), then promote that"
        )

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(self._model())})

    def __repr__(self) -> str:
        return f"Proxy({str(self._target)!r})"

    def _model(self) -> Any:
        clones: dict[int, Any] = self._clones
        version_id = self._find(self._target)
        model = clones.get(version_id)
        if model is None:
            with self._lock.held():
                if version_id not in clones:
                    clones[version_id] = self._load(version_id).clone()
                model = clones[version_id]
                for old_id in list(clones)[:-_KEPT_CLONES]:
                    del clones[old_id]
        return model
