# SPDX-License-Identifier: Apache-2.0
"""``materialize``: gives tensors private memory now instead of at the first write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchcow._native import _C
from torchcow.objects.tensors import is_within, named_tensors, subject


def materialize(obj: Any, names: Iterable[str] | None = None) -> None:
    """Give tensors of ``obj`` memory of their own, all of them or none.

    Use it before a CUDA graph is captured, before code takes raw pointers, or to find out early whether there is enough
    memory.

    Args:
        obj: a tensor, a module, or a container or an iterator of them.
        names: dotted names of tensors or of subtrees (``"encoder.layers.0"``); ``None`` for all.

    Raises:
        KeyError: a name that ``obj`` does not have; nothing was materialized.
        TypeError: ``obj`` is a plain value or code, which holds no tensor.
        RuntimeError: there is not enough memory; nothing was materialized, and all tensors still share.

    Example:
        >>> import torch, torchcow
        >>> variant = torchcow.clone(torch.nn.Linear(64, 64))
        >>> torchcow.materialize(variant, ["weight"])
        >>> torchcow.is_shared(variant.weight)
        False
    """
    obj = subject("torchcow.materialize", obj)
    named = list(named_tensors(obj))
    if names is None:
        selected = [tensor for _, tensor in named]
    else:
        selected = []
        for name in [names] if isinstance(names, str) else names:
            matches = [tensor for path, tensor in named if is_within(path, name)]
            if not matches:
                listed = ", ".join(path for path, _ in named[:20]) or "none"
                raise KeyError(f"there is no tensor {name!r} in this {type(obj).__name__}; it has: {listed}")
            selected += matches
    _C.materialize(selected)
