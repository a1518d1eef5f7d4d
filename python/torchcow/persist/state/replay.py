# SPDX-License-Identifier: Apache-2.0
"""``StateDictReplay``: what ``state_dict`` returned when it was saved, for ``load_state_dict``."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch

from torchcow.errors import StateError
from torchcow.objects.adapters.keys import keys_by_name
from torchcow.persist.state import introspect
from torchcow.persist.state.capture import Node, capture
from torchcow.persist.state.messages import join, label, title
from torchcow.persist.state.plain import decode

_CLASSES: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "list": list,
    "tuple": tuple,
    "deque": collections.deque,
}


def _array(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


class StateDictReplay:
    """Builds for ``load_state_dict`` of one object what its ``state_dict`` returned when it was saved.

    It needs no structure, because objects often make such state late, in a first step.
    """

    def __init__(self, nodes: dict[str, Node], read: Callable[[str, Node, Any], torch.Tensor], path: str):
        self.problems: list[str] = []
        self._nodes = nodes
        self._read = read
        self._path = path
        self._built: dict[str, Any] = {}

    def build(self, path: str, like: Any, dry: bool) -> Any:
        """Return what belongs at a path. A dry run reads no tensor, and finds the problems."""
        node = self._nodes.get(path, {"kind": "nothing"})
        kind = node["kind"]
        if kind == "value":
            return decode(node["value"])
        if kind == "same":
            return self._built.get(node["path"])
        if kind == "given" and introspect.given(like) == node["description"]:
            return like
        built: Any = None
        if kind in ("tensor", "array"):
            if not dry:
                value = self._read(path, node, like)
                built = value.requires_grad_(node["grad"]) if kind == "tensor" else _array(value)
        elif kind == "stateful" or (kind in ("dict", "sequence") and node["class"] in _CLASSES):
            built = self._container(path, node, kind, like, dry)
        else:
            self.problems.append(
                f"{label(path)} is something that load_state_dict of {label(self._path)} cannot be given "
                f"({title(node)})"
            )
        self._built[path] = built
        return built

    def _container(self, path: str, node: Node, kind: str, like: Any, dry: bool) -> Any:
        if kind == "sequence":
            likes = list(like) if isinstance(like, (list, tuple, collections.deque)) else []
            likes += [None] * (node["length"] - len(likes))
            items = [self.build(join(path, i), likes[i], dry) for i in range(node["length"])]
            return _CLASSES[node["class"]](items)
        values = {}
        for name, key in keys_by_name(map(decode, node["keys"])).items():
            values[key] = self.build(join(path, name), like.get(key) if isinstance(like, dict) else None, dry)
        return _CLASSES["dict" if kind == "stateful" else node["class"]](values)

    def check(self, obj: Any) -> None:
        """Refuse an object that did not keep the tensors it was given, but converted them to another dtype, say."""
        now = {join(self._path, path) if path else self._path: node for path, node in capture(obj).nodes.items()}
        for path, node in self._nodes.items():
            inside = path.startswith(f"{self._path}.") if self._path else True
            if not inside or node["kind"] != "tensor":
                continue
            kept = now.get(path, {"kind": "nothing"})
            if any(kept.get(fact) != node[fact] for fact in ("kind", "dtype", "shape")):
                raise StateError(
                    f"{label(path)}: load_state_dict of a {type(obj).__qualname__} was given a tensor "
                    f"({node['dtype']}, {node['shape']}) and did not keep it as it was"
                )
