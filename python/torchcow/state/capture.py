"""``capture``: take an object apart into named tensors and JSON-able nodes."""

from __future__ import annotations

import collections
import itertools
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from torchcow.errors import StateError
from torchcow.state import parts
from torchcow.state.plain import NotPlainError, encode
from torchcow.tensor_file import NAMES

Node = dict[str, Any]


@dataclass(frozen=True)
class State:
    """What an object is made of.

    ``nodes`` is JSON-able: what is at each dotted path, in the order of the walk. ``tensors`` holds each tensor once,
    by the first of its names; they are the object's own tensors, or share memory with them. ``code`` holds what the
    structure has to bring.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    code: dict[str, Any] = field(default_factory=dict)


def capture(obj: Any) -> State:
    """Take an object apart; the object is not changed, and no tensor is read or un-shared.

    Args:
        obj: a module, or modules, optimizers, schedulers, metrics, arrays and plain data in dicts, lists, dataclasses
            or other plain objects.

    Raises:
        StateError: something in it cannot be written down, or only with a loss.

    Example:
        >>> import torch
        >>> from torchcow.state import capture
        >>> state = capture({"model": torch.nn.Linear(3, 2), "epoch": 4})
        >>> list(state.tensors)
        ['model.weight', 'model.bias']
        >>> state.nodes["epoch"]
        {'value': 4}
    """
    walk = _Capture()
    try:
        walk.visit("", obj)
    except RecursionError:
        raise StateError(f"{walk.latest}: nested too deep to be written down") from None
    walk.check_memory()
    walk.check_hidden()
    return walk.state


def join(path: str, name: object) -> str:
    """Return the dotted path of a part."""
    return f"{path}.{name}" if path else str(name)


def label(path: str) -> str:
    """Return a path for a message."""
    return repr(path) if path else "the object itself"


class _Capture:
    def __init__(self) -> None:
        self.state = State()
        self.latest = ""
        self._seen: dict[int, str] = {}
        self._alive: list[Any] = []
        self._hidden: list[tuple[str, torch.Tensor]] = []
        self._answered: set[str] = set()  # tensors that came out of a state_dict, which may be aliases

    def visit(self, path: str, value: Any) -> None:
        if path in self.state.nodes:
            raise StateError(f"{label(path)}: two parts have this dotted path; rename one of them")
        self.latest = label(path)
        self.state.nodes[path] = {}  # its place in the order
        self.state.nodes[path] = self._node(path, value)

    def _node(self, path: str, value: Any) -> Node:
        try:
            return {"value": encode(value)}
        except NotPlainError:
            pass
        if (described := parts.given(value)) is not None:
            self.state.code[path] = value
            self._hide(path, value)
            return {"given": described}
        if id(value) in self._seen:
            return {"same": self._seen[id(value)]}
        self._alive.append(value)
        self._seen[id(value)] = path
        cls = type(value).__qualname__
        if isinstance(value, torch.Tensor):
            return {"tensor": self._tensor(path, value), "grad": value.requires_grad} | _layout(value)
        if isinstance(value, torch.Generator):
            return {"generator": self._tensor(path, value.get_state())}
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            return {"array": self._tensor(path, _from_numpy(path, value)), "dtype": value.dtype.str}
        if isinstance(value, torch.nn.Module):
            return {"module": cls} | self._module(path, value)
        if parts.has_state_dict(value):
            return {"stateful": cls} | self._stateful(path, value)
        if isinstance(value, dict):
            return {"dict": cls} | self._dict(path, value)
        if isinstance(value, (list, tuple, collections.deque)):
            for index, item in enumerate(value):
                self.visit(join(path, index), item)
            return {"sequence": cls, "length": len(value)}
        if isinstance(value, types.MethodType):
            self.visit(join(path, "__self__"), value.__self__)
            return {"method": value.__func__.__qualname__}
        if not isinstance(value, (set, frozenset)) and parts.is_transparent(value):
            return {"object": cls} | self._attributes(path, parts.attributes(value))
        raise StateError(
            f"{label(path)}: a {cls} cannot be written down; keep it out of the object, or give the object that holds "
            "it the methods state_dict and load_state_dict"
        )

    def _module(self, path: str, module: torch.nn.Module) -> Node:
        names: Node = {}
        for table in parts.TABLES:
            content = getattr(module, table)
            names[table[1:]] = list(content)
            for name, item in content.items():
                self.visit(join(path, name), item)
        for hooks in parts.HOOKS:
            self._hide(join(path, hooks), vars(module).get(hooks))
        rest = {k: v for k, v in vars(module).items() if k not in parts.TABLES and k not in parts.HOOKS}
        return names | self._attributes(path, rest)

    def _attributes(self, path: str, found: dict[str, Any]) -> Node:
        plain, others = {}, []
        for name, value in found.items():
            try:
                plain[name] = encode(value)
            except NotPlainError:
                others.append(name)
                self.visit(join(path, name), value)
        return {"plain": plain, "attributes": others}

    def _dict(self, path: str, value: dict[Any, Any]) -> Node:
        if getattr(value, "__dict__", None):
            raise StateError(
                f"{label(path)}: a {type(value).__qualname__} has attributes ({', '.join(vars(value))}) beside its "
                "keys; use a plain dict"
            )
        keys = []
        for key, item in value.items():
            try:
                keys.append(encode(key))
            except NotPlainError:
                raise StateError(
                    f"{label(path)}: a key of type {type(key).__qualname__} cannot be written down"
                ) from None
            self.visit(join(path, key), item)
        return {"keys": keys}

    def _stateful(self, path: str, value: Any) -> Node:
        answer = value.state_dict()
        if not isinstance(answer, dict):
            raise StateError(f"{label(path)}: state_dict() returned a {type(answer).__qualname__}, not a dict")
        # Names that are one tensor are found within this answer only: load_state_dict gets whole tensors.
        outside, self._seen = self._seen, {}
        before = set(self.state.tensors)
        self._alive.append(answer)
        found = self._dict(path, dict(answer))
        self._answered |= set(self.state.tensors) - before
        self._seen = outside
        return found

    def _tensor(self, path: str, tensor: torch.Tensor) -> list[Any]:
        if problem := _unfit(tensor):
            raise StateError(f"{label(path)}: {describe(tensor)} cannot be written down: {problem}")
        self.state.tensors[path] = tensor
        return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]

    def _hide(self, path: str, value: Any) -> None:
        if value:
            self._hidden += [(path, tensor) for tensor in parts.hidden_tensors(value)]

    def check_hidden(self) -> None:
        """Refuse tensors that only code refers to: they would be lost."""
        known = {id(tensor) for tensor in self.state.tensors.values()}
        for path, tensor in self._hidden:
            if id(tensor) not in known:
                raise StateError(
                    f"{label(path)}: code refers to {describe(tensor)}, which is no part of the object and would be "
                    "lost; make it a buffer or an attribute"
                )

    def check_memory(self) -> None:
        """Refuse tensors that overlap in memory: in files each is by itself, so a write would no longer reach both."""
        spans: dict[int, list[tuple[int, int, str]]] = {}
        for path, tensor in self.state.tensors.items():
            if isinstance(tensor, torch.nn.Parameter) or path in self._answered or tensor.numel() == 0:
                continue  # parameters are separated by a clone, too
            first = int(tensor.storage_offset()) * tensor.element_size()
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            span = (first, first + (last + 1) * tensor.element_size(), path)
            spans.setdefault(tensor.untyped_storage()._cdata, []).append(span)
        for together in spans.values():
            together.sort()
            for (_, end, one), (begin, _, other) in itertools.pairwise(together):
                if begin < end:
                    raise StateError(
                        f"{label(one)} and {label(other)} are views of the same memory, and a file holds each by "
                        "itself; give one of them memory of its own with .clone()"
                    )


def describe(tensor: torch.Tensor) -> str:
    """Return dtype, shape, bytes and device of a tensor for a message."""
    if torch.nn.parameter.is_lazy(tensor) or tensor.is_nested:
        return f"a {type(tensor).__qualname__}"
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    try:
        size = f"{tensor.numel() * tensor.element_size()} bytes, "
    except (RuntimeError, ValueError):
        size = ""
    return f"a tensor ({str(tensor.dtype).removeprefix('torch.')}, {shape}, {size}{tensor.device})"


def _unfit(tensor: torch.Tensor) -> str | None:
    checks: Iterable[tuple[Callable[[], bool], str]] = (
        (lambda: torch.nn.parameter.is_lazy(tensor), "it is not initialized yet"),
        (lambda: tensor.is_meta, "it is on the meta device and has no content"),
        (lambda: tensor.is_nested, "it is nested"),
        (lambda: tensor.layout != torch.strided, f"its layout is {tensor.layout}"),
        (lambda: tensor.is_quantized, "it is quantized"),
        (lambda: tensor.dtype not in NAMES, f"safetensors has no dtype {tensor.dtype}"),
        (
            lambda: type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__,
            f"it is a {type(tensor).__qualname__}, which answers for its own operators",
        ),
        (
            lambda: not isinstance(tensor, torch.nn.Parameter) and tensor.is_leaf and tensor.grad is not None,
            "it has a gradient, which would be lost; set .grad = None",
        ),
    )
    return next((problem for check, problem in checks if check()), None)


def _layout(tensor: torch.Tensor) -> Node:
    """The strides of a tensor that is not in C order, but dense: channels_last or transposed weights."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    if tensor.is_contiguous() or not tensor.permute(order).is_contiguous():
        return {}
    return {"stride": list(tensor.stride())}


def _from_numpy(path: str, array: Any) -> torch.Tensor:
    import numpy as np

    if type(array) is not np.ndarray:
        raise StateError(f"{label(path)}: a {type(array).__qualname__} cannot be written down; use a plain array")
    try:
        # A copy: the array may change, may be read-only, and has strides that torch does not take.
        return torch.from_numpy(np.array(array, order="C", copy=True))
    except TypeError:
        raise StateError(
            f"{label(path)}: an array of dtype {array.dtype} cannot be written down; torch has no such dtype"
        ) from None
