# SPDX-License-Identifier: Apache-2.0
"""``Cache``: the stored versions that this process has in memory. It provides structures and shares equal tensors.

Invariants:

- ``_prototypes`` and ``_tensors`` are weak: the cache alone keeps no version alive through them.
- A tensor in ``_tensors`` belongs to a snapshot. No code writes a snapshot, so the tensor keeps its fingerprint.
- Each version that was added in this process and not removed is in exactly one build. A build keeps one prototype, the
  structure of all its versions, and ends with the last of them.
- ``_latest`` keeps the version of each name that was added last in this process.

Threads: one lock guards all four tables. It is held only for look-ups, never while tensors are read or cloned.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torchcow.engine.clone import clone
from torchcow.errors import RegistryError
from torchcow.objects.tensors import same_memory, unwrap
from torchcow.persist.fingerprint import fingerprint
from torchcow.persist.state import State, capture
from torchcow.registry.backend import Structure
from torchcow.registry.fork import Lock
from torchcow.snapshots.prototype import Prototype


@dataclass(frozen=True)
class _Build:
    """Versions that have the same parts and the same code, so that one prototype is the structure of all of them."""

    structure: Prototype
    code: Mapping[str, Any]  # kept alive, because builds are told apart by the identity of their code
    version_ids: set[int]


class Cache:
    """What one process has in memory of a registry in a folder."""

    def __init__(self, structures: Mapping[str, Structure] | None):
        self._lock = Lock()
        self._structures_by_name = dict(structures or {})
        self._prototypes: weakref.WeakValueDictionary[int, Prototype] = weakref.WeakValueDictionary()
        self._tensors: weakref.WeakValueDictionary[str, torch.Tensor] = weakref.WeakValueDictionary()
        self._builds: dict[Any, _Build] = {}
        self._latest: dict[str, tuple[int, Prototype]] = {}

    def get(self, version_id: int) -> Prototype | None:
        """Return a prototype that is in memory."""
        with self._lock.held():
            return self._prototypes.get(version_id)

    def put(self, version_id: int, prototype: Prototype, state: State, fingerprints: Mapping[str, str]) -> None:
        """Remember a prototype while the program refers to it. ``state`` is that of its snapshot."""
        with self._lock.held():
            self._prototypes[version_id] = prototype
            for name, tensor in state.tensors.items():
                self._tensors.setdefault(fingerprints[name], tensor)

    def keep(self, version_id: int, name: str, prototype: Prototype, state: State) -> None:
        """Keep a version that was added here as the latest of its name, and as a structure if it is the first such."""
        # Code is compared by identity: two lambdas have one name.
        code = frozenset((path, id(value)) for path, value in state.code.items())
        key = (json.dumps(_skeleton(state)), code)
        with self._lock.held():
            self._latest[name] = (version_id, prototype)
            self._builds.setdefault(key, _Build(prototype, state.code, set())).version_ids.add(version_id)

    def structure(self, version_id: int, name: str, title: str, structure: Structure | None) -> Any:
        """Return the object that a version is to be put into: the caller's, that of its build, or that of its name."""
        if structure is None:
            with self._lock.held():
                builds = (build.structure for build in self._builds.values() if version_id in build.version_ids)
                structure = next(builds, self._structures_by_name.get(name))
        if structure is None:
            raise RegistryError(
                f"{title} was not added in this process, so its structure has to be given: "
                f"get({title!r}, structure=...) or Registry(path, structures={{{name!r}: ...}}) with a module of the "
                "same build, or a function that makes one"
            )
        if callable(structure) and not isinstance(structure, (torch.nn.Module, Prototype)):
            return structure()
        return unwrap(structure)

    def share(self, fingerprint: str) -> torch.Tensor | None:
        """Return a copy-on-write clone of a tensor with this fingerprint, if there is one in memory."""
        with self._lock.held():
            tensor = self._tensors.get(fingerprint)
        return None if tensor is None else clone(tensor.detach())

    def forget(self, version_id: int) -> weakref.ref[Prototype] | None:
        """Forget a version that was removed; return a reference that tells whether the program still has it."""
        with self._lock.held():
            prototype = self._prototypes.pop(version_id, None)
            self._latest = {name: latest for name, latest in self._latest.items() if latest[0] != version_id}
            for key, build in list(self._builds.items()):
                build.version_ids.discard(version_id)
                if not build.version_ids:
                    del self._builds[key]
            return None if prototype is None else weakref.ref(prototype)


def fingerprints(state: State, base: Prototype | None, base_fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Return the fingerprints of a state; tensors that share memory with those of ``base`` are not read."""
    base_tensors = {} if base is None else capture(unwrap(base)).tensors
    result = {}
    for name, tensor in state.tensors.items():
        shared = name in base_tensors and name in base_fingerprints and same_memory(tensor, base_tensors[name])
        result[name] = base_fingerprints[name] if shared else fingerprint(tensor)
    return result


def _skeleton(state: State) -> list[Any]:
    """What has to agree for one version to be the structure of another: everything but values."""
    stateful = [path for path, node in state.nodes.items() if node["kind"] == "stateful"]
    inside_stateful = tuple(f"{path}." if path else "" for path in stateful)
    lines = []
    for path, node in state.nodes.items():
        if node["kind"] == "stateful":
            node = {"kind": "stateful", "class": node["class"]}
        elif inside_stateful and path.startswith(inside_stateful):
            continue
        if node["kind"] == "value":
            node = {"kind": "value"}
        if "plain" in node:
            node = node | {"plain": sorted(node["plain"])}
        lines.append([path, {key: value for key, value in node.items() if key not in ("grad", "stride")}])
    return lines
