# SPDX-License-Identifier: Apache-2.0
"""``diff``: which tensors of two objects are shared, equal or different."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from torchcow.objects.tensors import bits, named_leaves, same_memory, subject
from torchcow.report.table import Table, Tabular, size

Status = Literal["shared", "equal", "different", "added", "removed"]


@dataclass(frozen=True)
class TensorDiff:
    """The difference of one tensor: ``status``, and the figures below.

    ``bytes`` is the size of the tensor's elements in the second object (in the first, if it was removed). ``norm`` is
    the Euclidean norm of second minus first, ``relative`` that norm divided by the norm of the first. Both are NaN
    where the shapes or kinds of number differ, or where there is only one tensor. ``change`` describes other
    differences in words.
    """

    status: Status
    bytes: int
    norm: float = 0.0
    relative: float = 0.0
    change: str = ""


@dataclass(frozen=True)
class Diff(Tabular):
    """The tensors of two objects by dotted name. ``print(diff)`` shows a table of those that are not shared."""

    tensors: Mapping[str, TensorDiff]

    def names(self, status: Status) -> list[str]:
        """Return the dotted names with this status."""
        return [name for name, tensor in self.tensors.items() if tensor.status == status]

    @property
    def identical(self) -> bool:
        """Whether all tensors are there on both sides, with the same bits."""
        return all(tensor.status in ("shared", "equal") for tensor in self.tensors.values())

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain values by dotted name."""
        return {name: vars(tensor).copy() for name, tensor in self.tensors.items()}

    def _table(self) -> Table:
        counts = {status: len(self.names(status)) for status in ("shared", "equal", "different", "added", "removed")}
        table = Table(
            ["tensor", "status", "size", "norm", "relative", "change"],
            caption=", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no tensors",
            left=frozenset({"status", "change"}),
        )
        for name, tensor in self.tensors.items():
            if tensor.status in ("shared", "equal"):
                continue
            norms = ["" if math.isnan(norm) else f"{norm:.3g}" for norm in (tensor.norm, tensor.relative)]
            table.rows.append((name, tensor.status, size(tensor.bytes), *norms, tensor.change))
        return table


def diff(a: Any, b: Any) -> Diff:
    """Compare the tensors of two objects by dotted name. Shared tensors stay shared.

    The cheapest test comes first: tensors over the same block at the same place are *shared*, and no byte is read. Then
    bits are compared: *equal* or *different* (so a NaN equals the same NaN, and 0.0 differs from -0.0). Gradients are
    left out, as a clone of a parameter has none; an optimizer's parameters are listed where a module has them.

    Args:
        a: a module, an optimizer, a container, a tensor or a :class:`torchcow.Prototype`.
        b: the object to compare with ``a``; ``added`` tensors are only in ``b``, ``removed`` ones only in ``a``.

    Raises:
        TypeError: ``a`` or ``b`` is a plain value or code, which holds no tensor.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(64, 64)
        >>> edited = torchcow.clone(model)
        >>> with torch.no_grad():
        ...     _ = edited.bias.add_(3.0)
        >>> found = torchcow.diff(model, edited)
        >>> found.names("shared"), found.names("different"), round(found.tensors["bias"].norm, 3)
        (['weight'], ['bias'], 24.0)
    """
    left, right = (_tensors(subject("torchcow.diff", obj)) for obj in (a, b))
    tensors = {}
    for name in [*left, *(name for name in right if name not in left)]:
        if name not in right:
            tensors[name] = TensorDiff("removed", _size(left[name]), math.nan, math.nan)
        elif name not in left:
            tensors[name] = TensorDiff("added", _size(right[name]), math.nan, math.nan)
        else:
            tensors[name] = compare(left[name], right[name])
    return Diff(tensors)


def _tensors(obj: Any) -> dict[str, torch.Tensor]:
    return {name: leaf for name, leaf in named_leaves(obj, grads=False) if isinstance(leaf, torch.Tensor)}


def compare(a: torch.Tensor, b: torch.Tensor) -> TensorDiff:
    """Compare two tensors."""
    if a is b or same_memory(a, b):
        return TensorDiff("shared", _size(b))
    if same_form(a, b) and bits_equal(a, b):
        return TensorDiff("equal", _size(b))
    change = "; ".join(
        f"{what} {old} became {new}"
        for what, old, new in (
            ("shape", _shape(a), _shape(b)),
            ("dtype", a.dtype, b.dtype),
            ("device", a.device, b.device),
            ("layout", a.layout, b.layout),
        )
        if old != new
    )
    norm, relative = _norms(a, b)
    return TensorDiff("different", _size(b), norm, relative, change)


def _shape(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(map(_shape, tensor.unbind())) if tensor.is_nested else tuple(tensor.shape)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def same_form(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the two have the same shape, kind of number, device and layout."""
    return (
        _shape(a) == _shape(b)
        and a.dtype == b.dtype
        and a.device == b.device
        and a.layout == b.layout
        and a.is_conj() == b.is_conj()
        and a.is_neg() == b.is_neg()
    )


def bits_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of the same form have the same bits. Quantized and sparse ones are compared by value."""
    if a.is_meta:
        return True
    if a.layout != torch.strided or a.is_quantized or a.is_nested:
        return _values_equal(a, b)
    return torch.equal(bits(a), bits(b))


def _values_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_quantized:
        return a.qscheme() == b.qscheme() and torch.equal(a.dequantize(), b.dequantize())
    if a.is_nested:
        return all(map(bits_equal, a.unbind(), b.unbind()))
    return bits_equal(a.detach().to_dense(), b.detach().to_dense())


def _has_plain_numbers(tensor: torch.Tensor) -> bool:
    odd = tensor.is_meta or tensor.is_quantized or tensor.is_nested
    return tensor.layout == torch.strided and not odd


def _norms(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    if _shape(a) != _shape(b) or not all(map(_has_plain_numbers, (a, b))):
        return math.nan, math.nan
    with torch.no_grad():
        kind = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        first = a.detach().to(kind)
        norm = float(torch.linalg.vector_norm(b.detach().to(a.device, kind) - first))
        whole = float(torch.linalg.vector_norm(first))
    return norm, norm / whole if whole else math.inf if norm else 0.0
