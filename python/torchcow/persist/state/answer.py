"""What ``state_dict`` returned, made again from nodes and tensors for ``load_state_dict``."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch

from torchcow.errors import StateError
from torchcow.persist.state import parts
from torchcow.persist.state.capture import Node, capture
from torchcow.persist.state.plain import decode
from torchcow.persist.state.words import join, label

_CLASSES: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "list": list,
    "tuple": tuple,
    "deque": collections.deque,
}


def _array(made: Any) -> Any:
    return made.numpy() if isinstance(made, torch.Tensor) else made


class Answer:
    """The answer of one object. It needs no structure, because such state is often made late, by a first step."""

    def __init__(self, nodes: dict[str, Node], read: Callable[[str, Node, Any], torch.Tensor], path: str):
        self.problems: list[str] = []
        self._nodes = nodes
        self._read = read
        self._path = path
        self._made: dict[str, Any] = {}

    def build(self, path: str, like: Any, dry: bool) -> Any:
        """Make what belongs at a path; a dry run reads no tensor, and finds the problems."""
        node = self._nodes.get(path, {"nothing": None})
        kind = next(iter(node))
        if kind == "value":
            return decode(node["value"])
        if kind == "same":
            return self._made.get(node["same"])
        if kind == "given" and parts.given(like) == node["given"]:
            return like
        made: Any = None
        if kind in ("tensor", "array"):
            if not dry:
                made = self._read(path, node, like)
                made = made.requires_grad_(node["grad"]) if kind == "tensor" else _array(made)
        elif kind == "stateful" or (kind in ("dict", "sequence") and node[kind] in _CLASSES):
            made = self._container(path, node, kind, like, dry)
        else:
            self.problems.append(
                f"{label(path)} is something that load_state_dict of {label(self._path)} cannot be given "
                f"({kind} {node[kind]})"
            )
        self._made[path] = made
        return made

    def _container(self, path: str, node: Node, kind: str, like: Any, dry: bool) -> Any:
        if kind == "sequence":
            likes = list(like) if isinstance(like, (list, tuple, collections.deque)) else []
            likes += [None] * (node["length"] - len(likes))
            items = [self.build(join(path, i), likes[i], dry) for i in range(node["length"])]
            return _CLASSES[node[kind]](items)
        made = {}
        for key in map(decode, node["keys"]):
            made[key] = self.build(join(path, key), like.get(key) if isinstance(like, dict) else None, dry)
        return _CLASSES["dict" if kind == "stateful" else node[kind]](made)

    def check(self, obj: Any) -> None:
        """Refuse an object that has made other tensors of what it was given, of a smaller dtype for instance."""
        now = {join(self._path, path) if path else self._path: node for path, node in capture(obj).nodes.items()}
        for path, node in self._nodes.items():
            inside = path.startswith(f"{self._path}.") if self._path else True
            if inside and "tensor" in node and now.get(path, {}).get("tensor") != node["tensor"]:
                raise StateError(
                    f"{label(path)}: load_state_dict of a {type(obj).__qualname__} was given a tensor "
                    f"({node['tensor'][0]}, {node['tensor'][1]}) and did not keep it as it was"
                )
