# SPDX-License-Identifier: Apache-2.0
"""``clone``: a ``copy.deepcopy`` that shares tensor memory until the first write."""

from __future__ import annotations

from typing import Any, TypeVar

from torchcow._native import _C

T = TypeVar("T")


def clone(obj: T, memo: dict[int, Any] | None = None, *, strict: bool = False) -> T:
    """Return what ``copy.deepcopy(obj, memo)`` returns, sharing tensor memory copy-on-write.

    Source and clone are equals. The first write to a tensor of either, by an operator or through a pointer, gives that
    tensor memory of its own; all other tensors keep their values. Tensors that cannot be shared safely are copied
    eagerly; :func:`torchcow.events` says which and why.

    Args:
        obj: an object that ``copy.deepcopy`` accepts; typically an ``nn.Module``, or a tuple of model and optimizer.
        memo: as for ``copy.deepcopy``.
        strict: also copy each tensor whose memory is referenced from outside of ``obj``, for example by a view.

    Returns:
        The clone.

    Raises:
        Exception: the exception that ``copy.deepcopy`` raises for ``obj``; the source is unchanged.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(64, 64)
        >>> variant = torchcow.clone(model)
        >>> torchcow.is_shared(variant.weight)
        True
        >>> with torch.no_grad():
        ...     _ = variant.weight.zero_()
        >>> bool(model.weight.any()), torchcow.is_shared(variant.weight)
        (True, False)
    """
    result: T = _C.clone(obj, memo, strict)
    return result
