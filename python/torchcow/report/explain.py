# SPDX-License-Identifier: Apache-2.0
"""``explain``: the tensors that are not shared, and the reason for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from torchcow._native import _C
from torchcow.objects.tensors import named_tensors, subject
from torchcow.report.table import Table, Tabular, size

_WAYS = {
    "copy": "written by {}: its bytes were copied first",
    "skip": "written by {}, which overwrote every byte: nothing was copied",
    "steal": "written by {} when no other tensor shared it any more: nothing was copied",
}


@dataclass(frozen=True)
class Unshared:
    """A tensor that is not shared: ``operator`` wrote it, or ``clone`` copied it eagerly for ``reason``.

    ``cause`` is "written", "copied", "alone" (all tensors that shared it are gone) or "never" (it was not cloned, or
    its clone was copied eagerly). ``why`` says the cause in a sentence; ``bytes`` is the size of the storage.
    """

    cause: str
    why: str
    operator: str
    reason: str
    bytes: int
    device: str


@dataclass(frozen=True)
class Explanation(Tabular):
    """The tensors of an object that are not shared, by dotted name, and the number of those that are."""

    unshared: dict[str, Unshared]
    shared: int
    shared_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        tensors = {name: vars(tensor).copy() for name, tensor in self.unshared.items()}
        return {"unshared": tensors, "shared": self.shared, "shared_bytes": self.shared_bytes}

    def _table(self) -> Table:
        listed = {name: tensor for name, tensor in self.unshared.items() if tensor.reason != "tiny"}
        tiny = len(self.unshared) - len(listed)
        return Table(
            ["tensor", "cause", "size", "why"],
            caption=f"{self.shared} other tensors are shared ({size(self.shared_bytes)}), "
            f"{tiny} are too small to share.",
            rows=[(name, t.cause, size(t.bytes), t.why) for name, t in listed.items()],
            left=frozenset({"cause", "why"}),
        )


def explain(obj: Any) -> Explanation:
    """Say why tensors of ``obj`` are not shared: which operator wrote them, or why ``clone`` copied them eagerly.

    Args:
        obj: a module, an optimizer, a container, a tensor or a :class:`torchcow.Prototype`.

    Example:
        >>> import torch, torchcow
        >>> model = torch.nn.Linear(64, 64)
        >>> variant = torchcow.clone(model)
        >>> with torch.no_grad():
        ...     _ = variant.weight.mul_(2)
        >>> {name: (tensor.cause, tensor.operator) for name, tensor in torchcow.explain(variant).unshared.items()}
        {'weight': ('written', 'aten::mul_.Tensor'), 'bias': ('copied', 'torchcow.clone')}
        >>> torchcow.explain(variant).unshared["bias"].why
        'copied when cloned: a copy is cheaper than sharing'
    """
    unshared = {}
    shared = shared_bytes = 0
    for name, tensor in named_tensors(subject("torchcow.explain", obj)):
        usage = _C.usage(tensor)
        if usage is not None and usage.shared:
            shared += 1
            shared_bytes += tensor.nbytes
        else:
            unshared[name] = _why(tensor, usage)
    return Explanation(unshared, shared, shared_bytes)


def _why(tensor: torch.Tensor, usage: _C.Usage | None) -> Unshared:
    cause, why, operator, reason = "never", "there is no storage to share (meta, sparse or nested)", "", ""
    event = _C.cause(tensor)
    if usage is not None and usage.block:  # it still reads a block, as the only one
        cause, why = "alone", "all tensors that shared it are gone: the next write copies nothing"
    elif event is not None:
        operator, reason = event.operator, event.reason
        if event.way == "eager":
            cause, why = "copied", f"copied when cloned: {event.explanation}"
        else:
            cause, why = "written", _WAYS[event.way].format(operator)
    elif usage is not None:
        why = "it was not cloned, or its clone was copied eagerly"
    return Unshared(cause, why, operator, reason, usage.bytes if usage is not None else 0, str(tensor.device))
