"""``materialize``: take the memory now instead of at the first write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchcow._native import _C
from torchcow.objects.tensors import named_tensors


def materialize(obj: Any, names: Iterable[str] | None = None) -> None:
    """Give tensors of ``obj`` memory of their own, all of them or none.

    Useful before a CUDA graph is captured, before raw pointers are handed out, or to find out now rather than
    later whether the memory is there.

    Args:
        obj: a tensor, a module, or a container of them.
        names: dotted names of tensors or of subtrees (``"encoder.layers.0"``); ``None`` for all.

    Raises:
        KeyError: a name that ``obj`` does not have; nothing was materialized.
        RuntimeError: no memory; nothing was materialized, and everything still shares.

    Example:
        >>> import torch, torchcow
        >>> variant = torchcow.clone(torch.nn.Linear(64, 64))
        >>> torchcow.materialize(variant, ["weight"])
        >>> torchcow.is_shared(variant.weight)
        False
    """
    found = dict(named_tensors(obj))
    if names is None:
        wanted = list(found.values())
    else:
        if isinstance(names, str):
            names = [names]
        wanted = []
        for name in names:
            matches = [tensor for key, tensor in found.items() if key == name or key.startswith(name + ".")]
            if not matches:
                known = ", ".join(list(found)[:20]) or "none"
                raise KeyError(f"there is no tensor {name!r} in this {type(obj).__name__}; it has: {known}")
            wanted += matches
    _C.materialize(wanted)
