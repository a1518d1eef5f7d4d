# SPDX-License-Identifier: Apache-2.0
"""``capture``: take an object apart into named tensors and JSON-able nodes."""

from __future__ import annotations

import collections
import itertools
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import torch

from torchcow.errors import StateError
from torchcow.objects.adapters.containers import keys_of
from torchcow.objects.adapters.torch import TABLES
from torchcow.objects.children import children
from torchcow.persist.state import introspect
from torchcow.persist.state.messages import describe, join, label
from torchcow.persist.state.plain import NotPlainError, encode
from torchcow.persist.state.tensors import from_numpy, layout, unfit

#: One part of an object, as JSON. ``"kind"`` says what it is; the other keys depend on the kind.
Node = dict[str, Any]


@dataclass(frozen=True)
class State:
    """What an object consists of.

    ``nodes`` is JSON-able: what is at each dotted path, in the order of the walk. ``tensors`` holds each tensor once,
    by the first of its names. They are the object's own tensors, or share memory with them. ``code`` holds the objects
    that the structure has to bring.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    code: dict[str, Any] = field(default_factory=dict)


def capture(obj: Any) -> State:
    """Take an object apart. The object does not change, and no tensor is read or un-shared.

    Args:
        obj: a module, or modules, optimizers, schedulers, metrics, arrays and plain data in dicts, lists, dataclasses
            or other plain objects.

    Raises:
        StateError: a part of it cannot be written down, or not without a loss.

    Example:
        >>> import torch
        >>> from torchcow.persist.state import capture
        >>> state = capture({"model": torch.nn.Linear(3, 2), "epoch": 4})
        >>> list(state.tensors)
        ['model.weight', 'model.bias']
        >>> state.nodes["epoch"]
        {'kind': 'value', 'value': 4}
    """
    walk = _Capture()
    try:
        walk.visit("", obj)
    except RecursionError:
        raise StateError(f"{walk.latest}: nested too deep to be written down") from None
    walk.check_memory()
    walk.check_hidden()
    return walk.state


class _Capture:
    def __init__(self) -> None:
        self.state = State()
        self.latest = ""
        self._seen: dict[int, str] = {}
        self._alive: list[Any] = []
        self._hidden: list[tuple[str, torch.Tensor]] = []
        self._replayed: set[str] = set()  # tensors that came out of a state_dict, which may be aliases

    def visit(self, path: str, value: Any) -> None:
        if path in self.state.nodes:
            raise _two_parts(path)
        self.latest = label(path)
        self.state.nodes[path] = {}  # its place in the order
        self.state.nodes[path] = self._node(path, value)

    def _node(self, path: str, value: Any) -> Node:
        try:
            return {"kind": "value", "value": encode(value)}
        except NotPlainError:
            pass
        if (described := introspect.given(value)) is not None:
            self.state.code[path] = value
            self._hide(path, value)
            return {"kind": "given", "description": described}
        if id(value) in self._seen:
            return {"kind": "same", "path": self._seen[id(value)]}
        self._alive.append(value)
        self._seen[id(value)] = path
        cls = type(value).__qualname__
        if isinstance(value, torch.Tensor):
            return {"kind": "tensor", **self._tensor(path, value), "grad": value.requires_grad, **layout(value)}
        if isinstance(value, torch.Generator):
            return {"kind": "generator", **self._tensor(path, value.get_state())}
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            facts = self._tensor(path, from_numpy(path, value))
            return {"kind": "array", **facts, "numpy dtype": value.dtype.str}
        if isinstance(value, torch.nn.Module) and not isinstance(value, torch.jit.ScriptModule):
            return {"kind": "module", "class": cls, **self._module(path, value)}
        if introspect.has_state_dict(value) and not isinstance(value, torch.nn.Module):
            return {"kind": "stateful", "class": cls, **self._stateful(path, value)}
        if isinstance(value, dict):
            return {"kind": "dict", "class": cls, **self._dict(path, value)}
        if isinstance(value, (list, tuple, collections.deque)):
            self._refuse_attributes(path, value, "list or tuple")
            for name, item in children(value, registered=False):
                self.visit(join(path, name), item)
            return {"kind": "sequence", "class": cls, "length": len(value)}
        if isinstance(value, types.MethodType):
            for name, item in children(value, registered=False):
                self.visit(join(path, name), item)
            return {"kind": "method", "function": value.__func__.__qualname__}
        if not isinstance(value, (set, frozenset, torch.nn.Module)) and introspect.is_transparent(value):
            attributes = dict(children(value, registered=False))
            return {"kind": "object", "class": cls, **self._attributes(path, attributes)}
        raise StateError(
            f"{label(path)}: a {cls} cannot be written down; keep it out of the object, or give the object that holds "
            "it the methods state_dict and load_state_dict"
        )

    def _module(self, path: str, module: torch.nn.Module) -> Node:
        names: Node = {table[1:]: list(getattr(module, table)) for table in TABLES}
        tabled = {name for table in names.values() for name in table}
        attributes = {}
        for name, item in children(module, registered=False):
            where, _, shadowed = name.partition(".")
            if name in tabled:
                self.visit(join(path, name), item)
            elif name in introspect.HOOKS:
                self._hide(join(path, name), item)
            elif where in ("__dict__", *TABLES):
                raise _two_parts(join(path, shadowed))
            else:
                attributes[name] = item
        return names | self._attributes(path, attributes)

    def _attributes(self, path: str, attributes: dict[str, Any]) -> Node:
        plain, others = {}, []
        for name, value in attributes.items():
            try:
                plain[name] = encode(value)
            except NotPlainError:
                others.append(name)
                self.visit(join(path, name), value)
        return {"plain": plain, "attributes": others}

    def _dict(self, path: str, value: dict[Any, Any]) -> Node:
        self._refuse_attributes(path, value, "dict")
        keys = []
        for name, key in keys_of(value).items():
            try:
                keys.append(encode(key))
            except NotPlainError:
                raise StateError(
                    f"{label(path)}: a key of type {type(key).__qualname__} cannot be written down"
                ) from None
            self.visit(join(path, name), dict.__getitem__(value, key))
        return {"keys": keys}

    def _refuse_attributes(self, path: str, value: Any, plain: str) -> None:
        if getattr(value, "__dict__", None):
            raise StateError(
                f"{label(path)}: a {type(value).__qualname__} has attributes ({', '.join(vars(value))}) beside its "
                f"items; use a plain {plain}"
            )

    def _stateful(self, path: str, value: Any) -> Node:
        returned = value.state_dict()
        if not isinstance(returned, dict):
            raise StateError(f"{label(path)}: state_dict() returned a {type(returned).__qualname__}, not a dict")
        # Ties are noted only within what state_dict returned: load_state_dict gets whole tensors.
        outside, self._seen = self._seen, {}
        before = set(self.state.tensors)
        self._alive.append(returned)
        node = self._dict(path, dict(returned))
        self._replayed |= set(self.state.tensors) - before
        self._seen = outside
        return node

    def _tensor(self, path: str, tensor: torch.Tensor) -> Node:
        if problem := unfit(tensor):
            raise StateError(f"{label(path)}: {describe(tensor)} cannot be written down: {problem}")
        self.state.tensors[path] = tensor
        return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}

    def _hide(self, path: str, value: Any) -> None:
        if value:
            self._hidden += [(path, tensor) for tensor in introspect.hidden_tensors(value)]

    def check_hidden(self) -> None:
        """Refuse tensors that only code refers to: a file would lose them."""
        known = {id(tensor) for tensor in self.state.tensors.values()}
        for path, tensor in self._hidden:
            if id(tensor) not in known:
                raise StateError(
                    f"{label(path)}: code refers to {describe(tensor)}, which is no part of the object and would be "
                    "lost; make it a buffer or an attribute"
                )

    def check_memory(self) -> None:
        """Refuse tensors that overlap in memory: a file holds each by itself, so a write would no longer reach both."""
        spans: dict[int, list[tuple[int, int, str]]] = {}
        for path, tensor in self.state.tensors.items():
            if isinstance(tensor, torch.nn.Parameter) or path in self._replayed or tensor.numel() == 0:
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


def _two_parts(path: str) -> StateError:
    return StateError(f"{label(path)}: two parts have this dotted path; rename one of them")
