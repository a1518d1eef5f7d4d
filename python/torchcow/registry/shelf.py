"""``Shelf``: the prototypes that are in memory. It lends structures, and lets equal tensors share memory."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torchcow.engine.clone import clone
from torchcow.errors import RegistryError
from torchcow.objects.tensors import same_memory
from torchcow.persist.fingerprint import fingerprint
from torchcow.persist.state import State, capture
from torchcow.snapshots.prototype import Prototype

Structure = Callable[[], Any] | torch.nn.Module | Prototype | Any


class Shelf:
    """What one process has in memory of a durable registry.

    Prototypes are held weakly: one that nobody uses is read again when it is asked for. Of the versions that were added
    in this process, the latest of each name is kept, and one for each build (the same parts, and the same functions),
    for the structure.
    """

    def __init__(self, structures: Mapping[str, Structure] | None):
        self._lock = threading.Lock()
        self._given = dict(structures or {})
        self._versions: weakref.WeakValueDictionary[int, Prototype] = weakref.WeakValueDictionary()
        self._tensors: weakref.WeakValueDictionary[str, torch.Tensor] = weakref.WeakValueDictionary()
        self._builds: dict[str, list[tuple[dict[str, Any], Prototype]]] = {}
        self._structures: dict[int, Prototype] = {}
        self._latest: dict[str, tuple[int, Prototype]] = {}

    def get(self, identity: int) -> Prototype | None:
        """Return a prototype that is in memory."""
        with self._lock:
            return self._versions.get(identity)

    def put(self, identity: int, prototype: Prototype, prints: Mapping[str, str]) -> None:
        """Remember a prototype as long as somebody holds it, and its tensors by what they contain."""
        tensors = capture(prototype._snapshot).tensors
        with self._lock:
            self._versions[identity] = prototype
            for name, tensor in tensors.items():
                self._tensors.setdefault(prints[name], tensor)

    def keep(self, identity: int, name: str, prototype: Prototype, state: State) -> None:
        """Keep a version that was added here, as the latest, and as the structure of all that are built alike."""
        skeleton = json.dumps(_skeleton(state))
        with self._lock:
            self._latest[name] = (identity, prototype)
            alike = self._builds.setdefault(skeleton, [])
            for code, known in alike:
                # By identity: two lambdas have one name.
                if all(code[path] is value for path, value in state.code.items()):
                    self._structures[identity] = known
                    return
            alike.append((state.code, prototype))
            self._structures[identity] = prototype

    def structure(self, identity: int, name: str, title: str, given: Structure | None) -> Any:
        """Return the object that a version is to be put into."""
        found = given
        if found is None:
            with self._lock:
                found = self._structures.get(identity, self._given.get(name))
        if found is None:
            raise RegistryError(
                f"{title} was not added in this process, so its structure has to be given: "
                f"get({title!r}, structure=...) or Registry(path, structures={{{name!r}: ...}}) with a module of the "
                "same build, or a function that makes one"
            )
        if isinstance(found, Prototype):
            return found._snapshot
        if callable(found) and not isinstance(found, torch.nn.Module):
            return found()
        return found

    def shared(self, wanted: str) -> torch.Tensor | None:
        """Return a copy-on-write clone of a tensor with this fingerprint, if there is one in memory."""
        with self._lock:
            tensor = self._tensors.get(wanted)
        return None if tensor is None else clone(tensor.detach())

    def forget(self, identity: int) -> None:
        """Forget a version that was removed."""
        with self._lock:
            self._versions.pop(identity, None)
            self._latest = {name: kept for name, kept in self._latest.items() if kept[0] != identity}
            kept = self._structures.pop(identity, None)
            if kept is not None and kept not in self._structures.values():
                for skeleton, alike in list(self._builds.items()):
                    alike[:] = [pair for pair in alike if pair[1] is not kept]
                    if not alike:
                        del self._builds[skeleton]


def fingerprints(state: State, near: Prototype | None, prints: Mapping[str, str]) -> dict[str, str]:
    """Return the fingerprints of a state; those of tensors that share memory with ``near`` are known already."""
    known = capture(near._snapshot).tensors if near is not None else {}
    found = {}
    for name, tensor in state.tensors.items():
        same = name in known and name in prints and same_memory(tensor, known[name])
        found[name] = prints[name] if same else fingerprint(tensor)
    return found


def _skeleton(state: State) -> list[Any]:
    """What has to agree for one version to be the structure of another: all but values."""
    answers = tuple(f"{path}." if path else "" for path, node in state.nodes.items() if "stateful" in node)
    lines = []
    for path, node in state.nodes.items():
        if "value" in node:
            node = {"value": None}
        if "stateful" in node:
            node = {"stateful": node["stateful"]}
        elif path.startswith(answers) and answers:
            continue
        if "plain" in node:
            node = node | {"plain": sorted(node["plain"])}
        lines.append([path, {key: value for key, value in node.items() if key not in ("grad", "stride")}])
    return lines
