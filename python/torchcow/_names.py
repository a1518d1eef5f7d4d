"""Dotted names for error messages: from a storage back to the module that holds it."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from torchcow._native import _C
from torchcow._tensors import named_tensors

# By identity: a module may define equality without a hash.
_roots: dict[int, weakref.ref[torch.nn.Module]] = {}


def remember(*objs: Any) -> None:
    """Keep (weakly) a module that was cloned, and its clone, to be searched for names."""
    for obj in objs:
        key = id(obj)
        # No isinstance: it would ask the object for its __class__, which runs foreign code.
        if issubclass(type(obj), torch.nn.Module) and key not in _roots:
            _roots[key] = weakref.ref(obj, lambda _, key=key: _roots.pop(key, None))  # type: ignore[misc]


def find(storage: int) -> str | None:
    """Return ``Class.dotted.name`` of a tensor over the storage with this identity, or None."""
    return find_all({storage}).get(storage)


def find_all(storages: set[int]) -> dict[int, str]:
    """Return the names of those storages that a cloned module, or a clone, has; each module is walked at most once."""
    names: dict[int, str] = {}
    missing = set(storages)
    for reference in list(_roots.values()) if missing else ():
        root = reference()
        if root is None:
            continue
        found = list(named_tensors(root))
        for (name, _), usage in zip(found, _C.usages(tensor for _, tensor in found), strict=True):
            if usage is not None and usage[0] in missing:
                missing.discard(usage[0])
                names[usage[0]] = f"{type(root).__name__}.{name}"
        if not missing:
            break
    return names


_C.set_name_finder(find)
_C.set_remember(remember)
