"""The ledger: what is shared in this process, and what got memory of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchcow._native import _C
from torchcow.engine import names as _names


@dataclass(frozen=True)
class Event:
    """A tensor that got memory of its own: by a first write, or because ``clone`` copied it at once.

    ``kind`` is "materialize" or "eager"; ``way`` is "steal" (the last sharer took the memory: nothing copied),
    "copy", "skip" (the write overwrote everything: nothing copied) or "eager"; ``operator`` is what wrote;
    ``bytes`` the size of the storage; ``reason`` why it was copied when cloned, in one word, and ``explanation`` in a
    sentence; ``name`` the dotted name in a module that was cloned, if the tensor still lives there.
    """

    kind: str
    way: str
    operator: str
    bytes: int
    reason: str
    explanation: str
    device: str
    name: str | None = None


@dataclass(frozen=True)
class Ledger:
    """Sums over all live blocks of this process, in bytes where the name says so.

    ``logical_bytes`` is what deep copies of all sharers would take, ``unique_bytes`` what is allocated for them.
    A retired block has no sharers any more, but may still be read by an operator that is running. ``kept_bytes`` is
    freed memory on the host that waits for the next first write, 1 GiB at most; a system that runs short of memory
    takes it, and it is given back when nothing is shared any more. ``reserved_bytes`` is what :func:`torchcow.reserve`
    has set aside.
    """

    blocks: int
    sharers: int
    logical_bytes: int
    unique_bytes: int
    retired_blocks: int
    retired_bytes: int
    kept_bytes: int
    reserved_bytes: int
    forgotten_events: int


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
    found = _C.events(clear)
    names = _names.find_all({storage for *_, storage in found if storage})
    return [Event(*event[:-1], names.get(event[-1])) for event in found]


def ledger() -> Ledger:
    """Return the sums over all live blocks."""
    return Ledger(**_C.totals())


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is shared with another tensor's storage, so that a write would materialize it."""
    usage = _C.usage(tensor)
    return usage is not None and usage[3] > 1
