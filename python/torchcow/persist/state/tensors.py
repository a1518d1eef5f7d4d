# SPDX-License-Identifier: Apache-2.0
"""Which tensors a file can hold, and what it notes of them beside dtype, shape and bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from torchcow.errors import StateError
from torchcow.persist.state import introspect
from torchcow.persist.state.messages import label
from torchcow.persist.tensor_file import NAMES


def unfit(tensor: torch.Tensor) -> str | None:
    """Return why a tensor cannot be written down, or None if it can."""
    checks: Iterable[tuple[Callable[[], bool], str]] = (
        (lambda: torch.nn.parameter.is_lazy(tensor), "it is not initialized yet"),
        (lambda: tensor.is_meta, "it is on the meta device and has no content"),
        (lambda: tensor.is_nested, "it is nested"),
        (lambda: tensor.layout != torch.strided, f"its layout is {tensor.layout}"),
        (lambda: tensor.is_quantized, "it is quantized"),
        (lambda: tensor.dtype not in NAMES, f"safetensors has no dtype {tensor.dtype}"),
        (
            lambda: type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__,
            f"it is a {type(tensor).__qualname__}, which answers for its own operators",
        ),
        (
            lambda: any(True for _ in introspect.hidden_tensors(vars(tensor))),
            f"it has attributes with tensors ({', '.join(vars(tensor))}), which would be lost",
        ),
        (
            lambda: not isinstance(tensor, torch.nn.Parameter) and tensor.is_leaf and tensor.grad is not None,
            "it has a gradient, which would be lost; set .grad = None",
        ),
    )
    return next((problem for check, problem in checks if check()), None)


def layout(tensor: torch.Tensor) -> dict[str, Any]:
    """Return the strides of a dense tensor that is not in C order, such as channels_last or transposed weights."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    if tensor.is_contiguous() or not tensor.permute(order).is_contiguous():
        return {}
    return {"stride": list(tensor.stride())}


def from_numpy(path: str, array: Any) -> torch.Tensor:
    """Return a copy of an array as a tensor."""
    import numpy as np

    if type(array) is not np.ndarray:
        raise StateError(f"{label(path)}: a {type(array).__qualname__} cannot be written down; use a plain array")
    try:
        # A copy: the array may change, may be read-only, and has strides that torch does not take.
        return torch.from_numpy(np.array(array, order="C", copy=True))
    except TypeError:
        raise StateError(
            f"{label(path)}: an array of dtype {array.dtype} cannot be written down; torch has no such dtype"
        ) from None
