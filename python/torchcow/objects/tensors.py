"""The tensors and arrays within an object, by dotted name."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from torchcow._native import _C

_TABLES = ("_parameters", "_buffers", "_modules")
_PLAIN = frozenset({dict, OrderedDict, set, list, tuple})
_ATOMIC = frozenset({str, bytes, int, float, bool, complex, type(None), torch.dtype, torch.device})

#: An integer type of each item size: a view or a copy through it keeps bits, whatever they stand for.
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def named_tensors(obj: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (dotted name, tensor) for modules, optimizers, mappings, sequences and attributes; each tensor once."""
    seen = set()
    for name, leaf in named_leaves(obj, prefix):
        if isinstance(leaf, torch.Tensor) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield name, leaf


def named_leaves(obj: Any, prefix: str = "", grads: bool = True) -> list[tuple[str, Any]]:
    """Return (dotted name, tensor or NumPy array) for all of them; one that has two names comes twice."""
    walk = _Walk(grads)
    walk.visit(obj, prefix)
    return walk.leaves


def unwrap(obj: Any) -> Any:
    """Return what a :class:`torchcow.Prototype` keeps, or the object itself."""
    prototype = sys.modules.get("torchcow.snapshots.prototype")
    return obj._snapshot if prototype is not None and isinstance(obj, prototype.Prototype) else obj


def placed(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Where the tensor's bytes are: (identity of its block or storage, offset in bytes). No two memories look alike."""
    usage = _C.usage(tensor)
    if usage is None:
        return None
    storage, block, _, _, _, offset = usage
    return block or storage, offset + int(tensor.storage_offset()) * tensor.element_size()


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors read the same bytes in the same way, which says at no cost that they are equal."""
    place = placed(a)
    return place is not None and place == placed(b) and _way(a) == _way(b)


def _way(tensor: torch.Tensor) -> tuple[Any, ...]:
    strides = () if tensor.is_nested else (tensor.shape, tensor.stride())
    return tensor.dtype, tensor.device, tensor.layout, tensor.is_conj(), tensor.is_neg(), *strides


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same bits as integers, for a comparison that tells 0.0 from -0.0, and in which a NaN equals itself."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(INTEGERS[tensor.element_size()])


def slots(cls: type) -> Iterator[str]:
    """Yield the names of the slots of a class and its bases."""
    for base in cls.__mro__:
        names = base.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                private = name.startswith("__") and not name.endswith("__")
                yield f"_{base.__name__.lstrip('_')}{name}" if private else name


class _Walk:
    """One walk; recursion that fills a list, as nested generators take longer than the walk."""

    def __init__(self, grads: bool) -> None:
        self.grads = grads
        self.leaves: list[tuple[str, Any]] = []
        # Kept alive: the identity of a temporary could come again.
        self.seen: dict[int, Any] = {}
        numpy = sys.modules.get("numpy")
        self.array: tuple[type, ...] = (numpy.ndarray,) if numpy is not None else ()

    def visit(self, obj: Any, name: str) -> None:
        kind = type(obj)
        if kind in _ATOMIC:
            return
        if issubclass(kind, torch.Tensor):
            self.leaves.append((name, obj))
            if id(obj) not in self.seen:
                self.seen[id(obj)] = obj
                if self.grads and obj.is_leaf and obj.grad is not None:
                    self.visit(obj.grad, f"{name}.grad" if name else "grad")
            return
        if issubclass(kind, self.array):
            self.leaves.append((name, obj))
            return
        if id(obj) in self.seen or issubclass(kind, type):
            return
        self.seen[id(obj)] = obj
        start = f"{name}." if name else ""
        if issubclass(kind, torch.nn.Module):
            self.module(obj, start)
        elif issubclass(kind, torch.optim.Optimizer):
            for index, group in enumerate(obj.param_groups):
                # Its parameters have better names in the module, if that is here as well.
                own = [one for one in group["params"] if id(one) not in self.seen]
                self.visit({**group, "params": own}, f"{start}param_groups.{index}")
            self.visit(list(obj.state.values()), f"{start}state")
        elif issubclass(kind, Mapping):
            for key, value in obj.items():
                self.visit(value, f"{start}{key}")
        elif issubclass(kind, (list, tuple, set, frozenset)):
            for index, value in enumerate(obj):
                self.visit(value, f"{start}{index}")
        elif not callable(obj):
            self.attributes(obj, start)

    def module(self, module: torch.nn.Module, start: str) -> None:
        attributes = module.__dict__
        for table in _TABLES:
            for key, value in attributes[table].items():
                if value is not None:
                    self.visit(value, start + key)
        for key, value in attributes.items():
            kind = type(value)
            # Tables of hooks are nearly always empty, and there are eleven of them.
            if kind in _ATOMIC or key in _TABLES or (kind in _PLAIN and not value):
                continue
            self.visit(value, start + key)

    def attributes(self, obj: Any, start: str) -> None:
        for key, value in getattr(obj, "__dict__", {}).items():
            self.visit(value, start + key)
        for key in slots(type(obj)):
            if hasattr(obj, key):
                self.visit(getattr(obj, key), start + key)
