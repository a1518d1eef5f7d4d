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
    for reference in list(_roots.values()):
        root = reference()
        if root is None:
            continue
        for name, tensor in named_tensors(root):
            usage = _C.usage(tensor)
            if usage is not None and usage[0] == storage:
                return f"{type(root).__name__}.{name}"
    return None


_C.set_name_finder(find)
_C.set_remember(remember)
