"""The tensors within an object, by dotted name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def named_tensors(obj: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (dotted name, tensor) for modules, optimizers, mappings, sequences and attributes; each tensor once."""
    yield from _walk(obj, prefix, {})


def _join(prefix: str, name: object) -> str:
    return f"{prefix}.{name}" if prefix else str(name)


def _walk(obj: Any, prefix: str, seen: dict[int, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    if id(obj) in seen or isinstance(obj, (type, str, bytes, int, float, bool, type(None))):
        return
    seen[id(obj)] = obj  # kept alive: the identity of a temporary could come again
    if isinstance(obj, torch.Tensor):
        yield prefix, obj
        if obj.is_leaf and obj.grad is not None:
            yield from _walk(obj.grad, _join(prefix, "grad"), seen)
    elif isinstance(obj, torch.nn.Module):
        for table in (obj._parameters, obj._buffers, obj._modules):
            for name, value in table.items():
                yield from _walk(value, _join(prefix, name), seen)
        for name, value in vars(obj).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _walk(value, _join(prefix, name), seen)
    elif isinstance(obj, torch.optim.Optimizer):
        yield from _walk(obj.param_groups, _join(prefix, "param_groups"), seen)
        yield from _walk(list(obj.state.values()), _join(prefix, "state"), seen)
    elif isinstance(obj, Mapping):
        for key, value in obj.items():
            yield from _walk(value, _join(prefix, key), seen)
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for index, value in enumerate(obj):
            yield from _walk(value, _join(prefix, index), seen)
    elif hasattr(obj, "__dict__") and not callable(obj):
        for name, value in vars(obj).items():
            yield from _walk(value, _join(prefix, name), seen)
