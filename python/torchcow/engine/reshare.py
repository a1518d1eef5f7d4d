# SPDX-License-Identifier: Apache-2.0
"""``reshare``: tensors that hold the same bits share again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from torchcow._native import _C
from torchcow.engine.clone import clone
from torchcow.objects.tensors import contents, named_tensors, placed

_SAMPLE = 32
# Where a deep copy would begin at an aligned address, a clone must as well (csrc/deepcopy/tensors.cpp).
_ALIGNMENT = 16


@dataclass(frozen=True)
class Reshared:
    """The result of :func:`reshare`: the number of tensors that share again, and the bytes that were freed."""

    tensors: int
    bytes: int


def reshare(*objs: Any) -> Reshared:
    """Let tensors of ``objs`` that hold the same bits share memory again, as if they had just been cloned.

    Frees the memory that accidental writes, rollbacks and checkpoints loaded into clones have taken. Values, views,
    ties and gradients do not change, and the next write to any of the tensors is isolated as usual. Tensors that are
    too small to share, and tensors whose memory other code may reference, stay as they are. Other threads may read
    meanwhile; a tensor that one of them writes stays as it is. On CUDA, ``reshare`` first waits for the device.

    Args:
        objs: modules, optimizers, containers, iterators or tensors. Tensors of one object share with each other, too.

    Returns:
        The number of tensors that share now and did not before, and the bytes that were freed.

    Raises:
        RuntimeError: a CUDA graph is being captured; nothing was changed.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(1024, 1024, bias=False)
        >>> variant = torchcow.clone(model)
        >>> with torch.no_grad():
        ...     _ = variant.weight.add_(1).copy_(model.weight)  # written, and rolled back
        >>> torchcow.is_shared(variant.weight)
        False
        >>> torchcow.reshare(model, variant)
        Reshared(tensors=1, bytes=4194304)
        >>> torchcow.is_shared(variant.weight)
        True
    """
    saved = _reshare(objs)
    _C.totals()  # frees the retired memory, which nothing here reads any more
    return saved


def _reshare(objs: tuple[Any, ...]) -> Reshared:
    spans = _spans(tensor for obj in objs for _, tensor in named_tensors(contents(obj)))
    _wait_for_devices(spans)
    before = _allocated(spans)
    joined = 0
    groups = [group for group in _alike(spans) if len(group) > 1]
    # The clones keep the bytes from changing while they are compared. One call: it looks once for pointers that left.
    clones = iter(clone([span.bytes for group in groups for span in group]))
    for group in groups:
        joined += _join([(span, next(clones)) for span in group])
    return Reshared(joined, before - _allocated(spans))


def _wait_for_devices(spans: Iterable[_Span]) -> None:
    """Wait until all queued work is done: a later write would invalidate the comparison of bytes."""
    for device in {span.bytes.device for span in spans if span.bytes.is_cuda}:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "reshare: a CUDA graph is being captured, and tensors on a device can be compared only when all its "
                "streams have finished; nothing was changed. Call reshare before the capture."
            )
        torch.cuda.synchronize(device)


class _Span:
    """The bytes of one tensor, or those of a whole storage; only a whole storage can join another block."""

    def __init__(self, tensor: torch.Tensor, start: int, length: int, usage: _C.Usage) -> None:
        self.whole = length == usage.bytes
        self.memory = usage.memory
        self.sharers = usage.sharers
        with torch.no_grad():
            flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            flat.set_(tensor.untyped_storage(), start, (length,), (1,))
        # A parameter, as a clone of one shares its own span only.
        self.bytes = torch.nn.Parameter(flat, requires_grad=False)

    def signature(self) -> tuple[int, torch.device, tuple[int, ...]]:
        """Values that equal spans have in common: length, device and a sample of bytes."""
        length = len(self.bytes)
        sample = self.bytes[:: max(1, length // _SAMPLE)][:_SAMPLE]
        return length, self.bytes.device, tuple(sample.tolist())


def _spans(tensors: Iterable[torch.Tensor]) -> list[_Span]:
    found: dict[tuple[int, int, int], _Span] = {}
    for tensor in tensors:
        usage = _C.usage(tensor)
        if usage is None or usage.bytes == 0 or tensor.is_quantized:
            continue
        whole = (usage.storage, 0, usage.bytes)
        if whole not in found:
            found[whole] = _Span(tensor, 0, usage.bytes, usage)
        start = int(tensor.storage_offset()) * tensor.element_size()
        part = (usage.storage, start, tensor.nbytes)
        dense = torch.ops.aten.is_non_overlapping_and_dense(tensor)
        if part not in found and dense and tensor.nbytes and start % _ALIGNMENT == 0:
            found[part] = _Span(tensor, start, tensor.nbytes, usage)
    return list(found.values())


def _alike(spans: Iterable[_Span]) -> Iterable[list[_Span]]:
    sizes: dict[tuple[int, torch.device], list[_Span]] = {}
    for span in spans:
        sizes.setdefault((len(span.bytes), span.bytes.device), []).append(span)
    groups: dict[Any, list[_Span]] = {}
    for same_size in sizes.values():
        if len({span.memory for span in same_size}) > 1:
            for span in same_size:
                groups.setdefault(span.signature(), []).append(span)
    return groups.values()


def _join(group: list[tuple[_Span, torch.Tensor]]) -> int:
    """Let the members that hold equal bytes share the block that has the most sharers already."""
    joined = 0
    keepers: list[torch.Tensor] = []
    places: dict[Any, torch.Tensor | None] = {}
    for span, held in sorted(group, key=lambda member: (member[0].whole, -member[0].sharers)):
        place = placed(held)
        if place not in places:
            places[place] = next((keeper for keeper in keepers if torch.equal(keeper, held)), None)
            if places[place] is None:
                keepers.append(held)
        keeper = places[place]
        if keeper is not None:
            joined += _C.join(span.bytes, held, keeper)  # which moves whole storages only
    return joined


def _allocated(spans: Iterable[_Span]) -> int:
    memories = {}
    for span in spans:
        usage = _C.usage(span.bytes)
        if usage is not None:
            memories[usage.memory] = usage.allocated
    return sum(memories.values())
