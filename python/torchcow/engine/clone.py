"""``clone``: what ``copy.deepcopy`` returns, with tensor memory shared until somebody writes."""

from __future__ import annotations

from typing import Any, TypeVar

import torchcow.engine.cuda_graphs  # the engine is told of CUDA graphs
import torchcow.engine.names  # noqa: F401 - and asks for names
from torchcow._native import _C

T = TypeVar("T")


def clone(obj: T, memo: dict[int, Any] | None = None, *, strict: bool = False) -> T:
    """Return what ``copy.deepcopy(obj, memo)`` returns, sharing tensor memory copy-on-write.

    Source and clone are equals: whoever writes first, in whatever way, gets memory of its own for the tensor
    that is written, and nobody else notices. Tensors that cannot be shared safely are copied at once;
    :func:`torchcow.events` says which and why.

    Args:
        obj: anything that ``copy.deepcopy`` takes; typically an ``nn.Module``, or a tuple of model and optimizer.
        memo: as for ``copy.deepcopy``.
        strict: also copy every tensor whose memory is referenced from outside of ``obj``, by a view for example.

    Returns:
        The clone.

    Raises:
        Exception: whatever ``copy.deepcopy`` raises for ``obj``; the source is unchanged then.

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
