"""``Proxy``: is called like the model that a tag points to, whatever that is at the moment."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NoReturn

from torchcow.registry.version import Reference

if TYPE_CHECKING:
    from torchcow.registry.registry import Registry

#: The version that is served, and the one before it, for a rollback.
_KEPT = 2


class Proxy:
    """Calls go to a clone of the version where a tag is; each call looks once, and ends with the version it began with.

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

    def __init__(self, registry: Registry, target: Reference):
        self.__dict__.update(_registry=registry, _target=target, _lock=threading.Lock(), _clones={})

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
        # Protocols of Python are the proxy's own affair; asking a model for them would copy or pickle it unseen.
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
        identity = self._registry._identity(self._target)
        found = clones.get(identity)
        if found is None:
            with self._lock:
                if identity not in clones:
                    clones[identity] = self._registry._prototype(identity).clone()
                found = clones[identity]
                for old in list(clones)[:-_KEPT]:
                    del clones[old]
        return found
