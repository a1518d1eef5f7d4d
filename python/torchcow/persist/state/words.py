"""Dotted paths, and what is at them, in words for messages."""

from __future__ import annotations

from typing import Any

import torch

from torchcow.persist.state import parts


def join(path: str, name: object) -> str:
    """Return the dotted path of a part."""
    return f"{path}.{name}" if path else str(name)


def label(path: str) -> str:
    """Return a path for a message."""
    return repr(path) if path else "the object itself"


def describe(tensor: torch.Tensor) -> str:
    """Return dtype, shape, bytes and device of a tensor for a message."""
    if torch.nn.parameter.is_lazy(tensor) or tensor.is_nested:
        return f"a {type(tensor).__qualname__}"
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    try:
        size = f"{tensor.numel() * tensor.element_size()} bytes, "
    except (RuntimeError, ValueError):
        size = ""
    return f"a tensor ({str(tensor.dtype).removeprefix('torch.')}, {shape}, {size}{tensor.device})"


def kind_of(current: Any) -> str:
    """Return what an object is."""
    if isinstance(current, torch.Tensor):
        return describe(current)
    return parts.given(current) or ("None" if current is None else f"a {type(current).__qualname__}")


def kind_in(node: dict[str, Any]) -> str:
    """Return what a node stands for."""
    kind, content = next(iter(node.items()))
    if kind in ("tensor", "array", "generator"):
        return f"a tensor ({content[0]}, {'x'.join(map(str, content[1])) or 'scalar'})"
    return f"{'' if kind == 'given' else 'a '}{content}"
