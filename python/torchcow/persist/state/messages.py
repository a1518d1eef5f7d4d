# SPDX-License-Identifier: Apache-2.0
"""What messages say about dotted paths, and about the objects that are there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from torchcow.persist.state import introspect


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
    try:
        size = f"{tensor.numel() * tensor.element_size()} bytes, "
    except (RuntimeError, ValueError):
        size = ""
    return f"a tensor ({str(tensor.dtype).removeprefix('torch.')}, {shape_of(tensor.shape)}, {size}{tensor.device})"


def shape_of(sizes: Iterable[int]) -> str:
    """Return a shape for a message: ``3x4``, or ``scalar``."""
    return "x".join(map(str, sizes)) or "scalar"


def kind_of(current: Any) -> str:
    """Return what an object is."""
    if isinstance(current, torch.Tensor):
        return describe(current)
    return introspect.given(current) or ("None" if current is None else f"a {type(current).__qualname__}")


def kind_in(node: dict[str, Any]) -> str:
    """Return what a node stands for."""
    if node["kind"] in ("tensor", "array", "generator"):
        return f"a tensor ({node['dtype']}, {shape_of(node['shape'])})"
    return str(node["description"]) if node["kind"] == "given" else f"a {_subject(node)}"


def title(node: dict[str, Any]) -> str:
    """Return the kind of a node and what it is called: ``module Linear``, ``tensor``."""
    return f"{node['kind']} {_subject(node)}".rstrip()


def _subject(node: dict[str, Any]) -> str:
    return str(next((node[fact] for fact in ("class", "function", "description", "path") if fact in node), ""))
