"""What is shared, what it takes, and why anything was copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from torchcow._native import _C
from torchcow._tensors import named_tensors


@dataclass(frozen=True)
class Event:
    """A tensor that got memory of its own: by a first write, or because ``clone`` copied it at once.

    ``kind`` is "materialize" or "eager"; ``way`` is "steal" (the last sharer took the memory: nothing copied),
    "copy", "skip" (the write overwrote everything: nothing copied) or "eager"; ``operator`` is what wrote;
    ``bytes`` the size of the storage; ``reason`` why it was copied when cloned, in one word, and ``explanation`` in a
    sentence.
    """

    kind: str
    way: str
    operator: str
    bytes: int
    reason: str
    explanation: str
    device: str


@dataclass(frozen=True)
class Ledger:
    """Sums over all live blocks of this process, in bytes where the name says so.

    ``logical_bytes`` is what deep copies of all sharers would take, ``unique_bytes`` what is allocated for them.
    A retired block has no sharers any more, but may still be read by an operator that is running. ``kept_bytes`` is
    freed memory on the host that waits for the next first write, 1 GiB at most; a system that runs short of memory
    takes it, and it is given back when nothing is shared any more.
    """

    blocks: int
    sharers: int
    logical_bytes: int
    unique_bytes: int
    retired_blocks: int
    retired_bytes: int
    kept_bytes: int
    forgotten_events: int


@dataclass(frozen=True)
class Memory:
    """What a set of objects takes, in bytes.

    ``logical`` is what deep copies would take; ``unique`` what is allocated for these objects, each block once;
    ``private`` the part that no other tensor shares; ``shared`` the blocks that are shared with anybody;
    ``fair_share`` private bytes plus each shared block's bytes divided by its sharers: over all sharers of the
    process, fair shares add up to what is allocated.
    """

    logical: int
    unique: int
    private: int
    shared: int
    fair_share: float


def events(clear: bool = False) -> list[Event]:
    """Return the recorded events, oldest first; ``clear`` forgets them afterwards.

    Example:
        >>> import torch, torchcow
        >>> _ = torchcow.events(clear=True)
        >>> source = torch.zeros(1000)
        >>> variant = torchcow.clone(source)
        >>> _ = variant.add_(1)
        >>> [(event.operator, event.way) for event in torchcow.events()]
        [('aten::add_.Tensor', 'copy')]
    """
    return [Event(*fields) for fields in _C.events(clear)]


def ledger() -> Ledger:
    """Return the sums over all live blocks."""
    return Ledger(**_C.totals())


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is shared with another tensor's storage, so that a write would materialize it."""
    usage = _C.usage(tensor)
    return usage is not None and usage[3] > 1


def memory(*objs: Any) -> Memory:
    """Return what ``objs`` take together; tensors that occur twice count once.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(1024, 1024, bias=False)
        >>> variants = [torchcow.clone(model) for _ in range(3)]
        >>> used = torchcow.memory(model, *variants)
        >>> used.logical // used.unique
        4
    """
    storages: dict[int, tuple[int, int, int, int, int]] = {}
    for _, tensor in named_tensors(objs):
        usage = _C.usage(tensor)
        if usage is not None:
            storages[usage[0]] = usage
    blocks: dict[int, int] = {}
    logical = private = 0
    fair_share = 0.0
    for _, block, block_bytes, sharers, size in storages.values():
        logical += size
        if block == 0 or sharers <= 1:
            private += block_bytes if block else size
            fair_share += block_bytes if block else size
        else:
            blocks[block] = block_bytes
            fair_share += block_bytes / sharers
    shared = sum(blocks.values())
    return Memory(logical, private + shared, private, shared, fair_share)
