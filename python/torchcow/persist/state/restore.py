# SPDX-License-Identifier: Apache-2.0
"""``restore``: put a state into a structure. It checks everything before it changes anything."""

from __future__ import annotations

import collections
import types
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from torchcow.engine.clone import clone
from torchcow.errors import StateError
from torchcow.objects.adapters.attributes import attributes_of
from torchcow.objects.adapters.keys import keys_by_name
from torchcow.objects.adapters.torch import TABLES
from torchcow.objects.tensors import named_tensors
from torchcow.persist.state import introspect
from torchcow.persist.state.capture import Node
from torchcow.persist.state.messages import describe, join, kind_in, kind_of, label
from torchcow.persist.state.plain import NotPlainError, decode, encode
from torchcow.persist.state.plan import Plan, Read
from torchcow.persist.state.replay import StateDictReplay

_MISSING = object()
_NONE: Node = {"kind": "value", "value": None}
_SHOWN = 20


def restore(structure: Any, nodes: dict[str, Node], read: Read) -> Any:
    """Return a clone of ``structure`` with the content of a state. The structure itself does not change.

    The structure needs the parts of the saved object: the same tensors by name, dtype and shape, the same ties, and
    classes and functions of the same names. Tensors stay on the structure's devices. Plain values come from the state.
    Plain attributes that only the structure has stay, and those that only the state has are added.

    Args:
        structure: an object that is built like the one that was captured; its values do not matter.
        nodes: those of a :class:`State`.
        read: called with the name of each tensor after all checks. It returns a tensor, which the clone takes over, or
            None to keep the structure's tensor.

    Raises:
        StateError: the structure does not fit; the message lists all differences.

    Example:
        >>> import torch
        >>> from torchcow.persist.state import capture, restore
        >>> state = capture(torch.nn.Linear(3, 2).eval())
        >>> again = restore(torch.nn.Linear(3, 2), state.nodes, lambda name: state.tensors[name].clone())
        >>> torch.equal(again.weight, state.tensors["weight"]), again.training
        (True, False)
    """
    restored, actions = _planned(clone(structure), nodes, read)
    while actions:  # each refers to the list of all, which would keep the structure alive
        actions.popleft()()
    return restored


def check(structure: Any, nodes: dict[str, Node]) -> None:
    """Raise what :func:`restore` raises if the state does not fit the structure. Nothing changes."""
    _planned(structure, nodes, lambda _: None)[1].clear()


def _planned(structure: Any, nodes: dict[str, Node], read: Read) -> tuple[Any, collections.deque[Callable[[], object]]]:
    plan = Plan(read)
    restored = _Restore(nodes, plan).place("", structure)
    if plan.problems:
        plan.actions.clear()
        shown = plan.problems[:_SHOWN]
        if len(plan.problems) > _SHOWN:
            shown.append(f"and {len(plan.problems) - _SHOWN} more")
        raise StateError(
            f"the saved state does not fit the structure, a {type(structure).__qualname__}:\n  " + "\n  ".join(shown)
        )
    return restored, plan.actions


class _Restore:
    """Walks over the structure and the nodes together, and plans what to do at each path."""

    def __init__(self, nodes: dict[str, Node], plan: Plan):
        self._nodes = nodes
        self._plan = plan
        self._current: dict[str, Any] = {}  # what the structure has, by path
        self._restored: dict[str, Any] = {}  # the same objects, but for tuples with other content
        self._paths: dict[int, str] = {}

    def place(self, path: str, current: Any) -> Any:
        """Plan what to do at a path of the structure, and return the object that will be there."""
        node = self._nodes.get(path)
        if not node:
            self._plan.problem(path, "is missing in the saved state, which is damaged")
            return current
        kind = node["kind"]
        if kind == "value":
            return self._value(path, decode(node["value"]), current)
        if kind == "same":
            if current is not self._current.get(node["path"], _MISSING):
                self._plan.problem(path, f"is the same object as {label(node['path'])} in the saved state, not here")
            return self._restored.get(node["path"], current)
        if current is _MISSING and kind == "array":
            return self._new_array(path, node)
        if current is _MISSING:
            self._plan.problem(path, f"is missing in the structure; the saved state has {kind_in(node)}")
            return current
        if kind == "given":
            if introspect.given(current) != node["description"]:
                self._plan.problem(path, f"expected {node['description']}, got {kind_of(current)}")
            return current
        if id(current) in self._paths:
            other = label(self._paths[id(current)])
            self._plan.problem(path, f"is the same object as {other} here, not in the saved state")
            return current
        self._paths[id(current)] = path
        self._current[path] = current
        self._restored[path] = self._place[kind](self, path, node, current)
        return self._restored[path]

    def _value(self, path: str, value: Any, current: Any) -> Any:
        if current is _MISSING:
            return value
        try:
            if encode(current) == encode(value):
                return current
        except NotPlainError:
            if introspect.given(current) is not None or isinstance(current, torch.nn.Module):
                self._plan.problem(path, f"expected {value!r:.60}, got {kind_of(current)}")
            for name, tensor in named_tensors(current):
                self._plan.problem(join(path, name) if name else path, f"{describe(tensor)} is not in the saved state")
            return value
        if type(current) is type(value) and isinstance(value, (list, dict, set)):
            self._plan.actions.append(lambda: _refill(current, value))
            return current
        return value

    def _new_array(self, path: str, node: Node) -> Any:
        """Return an array that the structure lacks, because it was never fitted."""
        import numpy as np

        array = np.empty(node["shape"], dtype=node["numpy dtype"])
        self._current[path] = array
        return self._plan.array(path, node, array)

    def _module(self, path: str, node: Node, current: Any) -> Any:
        if not self._same_class(path, node["class"], current) or not isinstance(current, torch.nn.Module):
            return current
        for table in TABLES:
            content = getattr(current, table)
            self._extra(path, {name: content[name] for name in content if name not in node[table[1:]]})
            for name in node[table[1:]]:
                item = content.get(name, _MISSING)
                if item is None and self._nodes.get(join(path, name)) != _NONE:
                    self._plan.problem(join(path, name), "is None in the structure and not in the saved state")
                else:
                    self._set_if_new(self.place(join(path, name), item), item, self._set_item(content, name))
        attributes = attributes_of(current)
        others = {name: attributes[name] for name in attributes if name not in TABLES and name not in introspect.HOOKS}
        return self._attributes(path, node, current, others)

    def _object(self, path: str, node: Node, current: Any) -> Any:
        if not self._same_class(path, node["class"], current):
            return current
        return self._attributes(path, node, current, attributes_of(current))

    def _attributes(self, path: str, node: Node, current: Any, attributes: dict[str, Any]) -> Any:
        def set_here(name: str) -> Callable[[Any], object]:
            return lambda value: introspect.set_attribute(current, name, value)

        names = set(node["plain"]) | set(node["attributes"])
        self._extra(path, {name: value for name, value in attributes.items() if name not in names})
        for name, plain in node["plain"].items():
            old = attributes.get(name, _MISSING)
            self._set_if_new(self._value(join(path, name), decode(plain), old), old, set_here(name))
        for name in node["attributes"]:
            old = attributes.get(name, _MISSING)
            self._set_if_new(self.place(join(path, name), old), old, set_here(name))
        return current

    def _dict(self, path: str, node: Node, current: Any) -> Any:
        if not self._same_class(path, node["class"], current):
            return current
        keys = keys_by_name(map(decode, node["keys"]))
        saved = set(keys.values())
        extra = [key for key in current if key not in saved]
        self._extra(path, {name: current[key] for name, key in keys_by_name(extra).items()})
        for name, key in keys.items():
            item = current.get(key, _MISSING)
            self._set_if_new(self.place(join(path, name), item), item, self._set_item(current, key))
        self._plan.actions.append(lambda: [current.pop(key) for key in extra])
        return current

    def _sequence(self, path: str, node: Node, current: Any) -> Any:
        if not self._same_class(path, node["class"], current):
            return current
        if len(current) != node["length"]:
            self._plan.problem(path, f"expected {node['length']} items, got {len(current)}")
            return current
        items = [self.place(join(path, index), item) for index, item in enumerate(current)]
        if all(new is old for new, old in zip(items, current, strict=True)):
            return current
        if isinstance(current, (list, collections.deque)):
            self._plan.actions.append(lambda: [current.__setitem__(i, item) for i, item in enumerate(items)])
            return current
        return current._make(items) if hasattr(current, "_make") else type(current)(items)

    def _method(self, path: str, node: Node, current: Any) -> Any:
        if not isinstance(current, types.MethodType) or current.__func__.__qualname__ != node["function"]:
            self._plan.problem(path, f"expected the method {node['function']}, got {kind_of(current)}")
        else:
            self.place(join(path, "__self__"), current.__self__)
        return current

    def _stateful(self, path: str, node: Node, current: Any) -> Any:
        if not self._same_class(path, node["class"], current) or not introspect.has_state_dict(current):
            return current
        replay = StateDictReplay(self._nodes, self._plan.read, path)
        example = current.state_dict()
        replay.build(path, example, True)
        self._plan.problems += replay.problems

        def load() -> None:
            try:
                current.load_state_dict(replay.build(path, example, False))
            except Exception as error:
                raise StateError(f"{label(path)}: load_state_dict of a {node['class']} failed: {error}") from error
            replay.check(current)

        self._plan.actions.append(load)
        return current

    def _same_class(self, path: str, name: str, current: Any) -> bool:
        if type(current).__qualname__ == name:
            return True
        self._plan.problem(path, f"expected a {name}, got {kind_of(current)}")
        return False

    def _extra(self, path: str, values: dict[Any, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, torch.nn.Module):
                self._plan.problem(join(path, key), f"(a {type(value).__qualname__}) is not in the saved state")
            for name, tensor in named_tensors(value, join(path, key)):
                self._plan.problem(name, f"{describe(tensor)} is not in the saved state")

    def _set_if_new(self, new: Any, old: Any, setter: Callable[[Any], object]) -> None:
        if new is not old:
            self._plan.actions.append(lambda: setter(new))

    @staticmethod
    def _set_item(container: Any, key: Any) -> Callable[[Any], object]:
        return lambda value: container.__setitem__(key, value)

    _place: ClassVar[dict[str, Callable[[_Restore, str, Node, Any], Any]]] = {
        "tensor": lambda self, *place: self._plan.tensor(*place),
        "array": lambda self, *place: self._plan.array(*place),
        "generator": lambda self, *place: self._plan.generator(*place),
        "module": _module,
        "object": _object,
        "dict": _dict,
        "sequence": _sequence,
        "method": _method,
        "stateful": _stateful,
    }


def _refill(container: Any, value: Any) -> None:
    """Replace the content of a container, and keep its identity."""
    container.clear()
    if isinstance(container, list):
        container.extend(value)
    else:
        container.update(value)
