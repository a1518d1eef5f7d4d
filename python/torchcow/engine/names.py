# SPDX-License-Identifier: Apache-2.0
"""Dotted names for errors and reports: from a storage back to the module or optimizer that holds it."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from torchcow._native import _C

# Keyed by identity, because a module may define equality without a hash.
_roots: dict[int, weakref.ref[Any]] = {}


def remember(obj: Any) -> None:
    """Keep a weak reference to a module or optimizer that was cloned, or to its clone, to search it for names."""
    key = id(obj)
    if key not in _roots:
        _roots[key] = weakref.ref(obj, lambda _: _roots.pop(key, None))


def find(storage: int) -> str | None:
    """Return ``Class.dotted.name`` of a tensor over the storage with this identity, or None."""
    return find_all({storage}).get(storage)


def find_all(storages: set[int]) -> dict[int, str]:
    """Return the names of storages by identity, where there is one; each module is walked at most once."""
    from torchcow.objects.tensors import named_tensors  # loads the adapters, which a clone does not need

    names: dict[int, str] = {}
    missing = set(storages)
    roots = [reference() for reference in list(_roots.values())] if missing else []
    # Modules come first, because an optimizer names its parameters by index only.
    for root in sorted(roots, key=lambda root: not isinstance(root, torch.nn.Module)):
        if root is None:
            continue
        found = list(named_tensors(root))
        for (name, _), usage in zip(found, _C.usages(tensor for _, tensor in found), strict=True):
            if usage is not None and usage.storage in missing:
                missing.discard(usage.storage)
                names[usage.storage] = f"{type(root).__name__}.{name}"
        if not missing:
            break
    return names
