# SPDX-License-Identifier: Apache-2.0
"""The tensors and arrays within an object, by dotted name."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator
from typing import Any

import torch

from torchcow._native import _C
from torchcow.objects.adapters.attributes import is_whole
from torchcow.objects.children import leaf_types, traverse

#: An integer type of each item size: a view or a copy through it keeps bits, whatever they stand for.
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_EMPTY: tuple[Any, ...] = ([], (), set(), {}.keys(), {}.values(), {}.items())
_ITERATORS: tuple[Any, ...] = (
    *(types.GeneratorType, map, filter, zip, enumerate, reversed, itertools.chain, itertools.islice),
    *(type(iter(empty)) for empty in _EMPTY),
    *(type(view) for view in _EMPTY[3:]),
)


def named_tensors(obj: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (dotted name, tensor) for modules, optimizers, mappings, sequences and attributes; each tensor once.

    No two tensors have the same name. The names are those of :func:`torchcow.objects.children.traverse`.
    """
    seen = set()
    for name, leaf in named_leaves(obj, prefix):
        if isinstance(leaf, torch.Tensor) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield name, leaf


def named_leaves(obj: Any, prefix: str = "", grads: bool = True) -> list[tuple[str, Any]]:
    """Return (dotted name, tensor or NumPy array) for all of them; one that has two names comes twice."""

    def of_tensor(tensor: torch.Tensor, key: str) -> bool:
        return grads if key == "grad" else not _is_wrapper(tensor)

    kinds = leaf_types()
    leaves: dict[str, Any] = {}
    for name, leaf, _ in traverse(obj, prefix, of_tensor=of_tensor):
        if isinstance(leaf, kinds):
            # Keys with dots can give two tensors one dotted name. The second is named as if it lay in the first, so a
            # name that is given for a subtree selects both.
            number, free = 1, name
            while leaves.get(free, leaf) is not leaf:
                number += 1
                free = f"{name}.#{number}"
            leaves[free] = leaf
    return list(leaves.items())


def _is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether a subclass answers for its operators, and its bytes are those of the tensors in its attributes."""
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def unwrap(obj: Any) -> Any:
    """Return what ``obj`` stands for: the snapshot of a :class:`torchcow.Prototype`, or the object itself."""
    snapshot = getattr(type(obj), "__torchcow_snapshot__", None)
    return obj if snapshot is None else snapshot(obj)


def contents(obj: Any) -> Any:
    """Return what :func:`unwrap` returns, or the items of an iterator.

    Pairs of a name and an object, as ``named_parameters()`` yields them, become a dict.
    """
    obj = unwrap(obj)
    if isinstance(obj, types.MappingProxyType):
        return dict(obj)
    if not isinstance(obj, _ITERATORS):
        return obj
    items = list(obj)
    pairs = all(type(item) is tuple and len(item) == 2 and type(item[0]) is str for item in items)
    named = dict(items) if pairs else {}
    return named if items and len(named) == len(items) else items


def subject(function: str, obj: Any) -> Any:
    """Return :func:`contents` of the argument ``obj`` of a function.

    Raises:
        TypeError: a plain value or code, which holds no tensor.
    """
    obj = contents(obj)
    if is_whole(obj):
        raise TypeError(
            f"{function}: expected a tensor, or an object that holds tensors (a module, an optimizer, a container or "
            f"an iterator of them), got {obj!r:.60} of type {type(obj).__name__}"
        )
    return obj


def is_within(path: str, name: str) -> bool:
    """Return whether a dotted path is that of the tensor or of a tensor in the subtree with this name."""
    return path == name or path.startswith(f"{name}.")


def placed(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Return where the tensor's bytes are: (identity of its block or storage, offset in bytes)."""
    usage = _C.usage(tensor)
    if usage is None:
        return None
    return usage.memory, usage.offset + int(tensor.storage_offset()) * tensor.element_size()


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors read the same bytes in the same way, which shows at no cost that they are equal."""
    place = placed(a)
    return place is not None and place == placed(b) and _way(a) == _way(b)


def _way(tensor: torch.Tensor) -> tuple[Any, ...]:
    strides = () if tensor.is_nested else (tensor.shape, tensor.stride())
    return tensor.dtype, tensor.device, tensor.layout, tensor.is_conj(), tensor.is_neg(), *strides


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same bits as integers, for a comparison that tells 0.0 from -0.0, and finds a NaN equal to itself."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(INTEGERS[tensor.element_size()])
