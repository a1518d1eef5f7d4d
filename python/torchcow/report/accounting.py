# SPDX-License-Identifier: Apache-2.0
"""The ledger: the memory that this process shares, and the tensors that got memory of their own."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from torchcow._native import _C
from torchcow.engine import names as _names


@dataclass(frozen=True)
class Event:
    """A tensor that got memory of its own, by a first write or because ``clone`` copied it eagerly.

    ``kind`` is "materialize" or "eager". ``way`` is "steal" (the last sharer took the memory, nothing was copied),
    "copy", "skip" (the write overwrote every byte, nothing was copied) or "eager". ``operator`` is the operator that
    wrote, ``bytes`` the size of the storage. ``reason`` says in one word why ``clone`` copied the tensor eagerly, and
    ``explanation`` in a sentence. ``name`` is the dotted name in a module that was cloned, if it still has the tensor.
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
    """Sums over all live blocks of this process; names that end in ``bytes`` are in bytes.

    ``logical_bytes`` is the size of deep copies of all sharers, ``unique_bytes`` the memory that is allocated for them.
    A retired block has no sharers left, but a running operator may still read it. ``kept_bytes`` is freed memory on the
    host, at most 1 GiB, that is kept for the next first write; the system takes it when it runs short of memory, and it
    is freed when nothing is shared any more. ``reserved_bytes`` is the memory that :func:`torchcow.reserve` holds.
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
    records = _C.events(clear)
    names = _names.find_all({record.storage for record in records if record.storage})
    return [_event(record, names.get(record.storage)) for record in records]


def ledger() -> Ledger:
    """Return the sums over all live blocks."""
    totals = _C.totals()
    return Ledger(**{field.name: getattr(totals, field.name) for field in fields(Ledger)})


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is shared with another tensor's storage, so that a write would materialize it."""
    usage = _C.usage(tensor)
    return usage is not None and usage.shared


def _event(record: _C.Event, name: str | None) -> Event:
    return Event(
        kind="eager" if record.way == "eager" else "materialize",
        way=record.way,
        operator=record.operator,
        bytes=record.bytes,
        reason=record.reason,
        explanation=record.explanation,
        device=record.device,
        name=name,
    )
