# SPDX-License-Identifier: Apache-2.0
"""``reading``: a scope in which raw pointers only read, so that asking for one un-shares nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from torchcow._native import _C
from torchcow.errors import IsolationError
from torchcow.objects.tensors import named_tensors, subject


@contextmanager
def reading(obj: Any, *, checksum: bool = False) -> Iterator[None]:
    """Let code take raw pointers to the tensors of ``obj`` without un-sharing them, on its word that it only reads.

    Compiled kernels (``torch.compile``, Triton) and whatever writes files (``torch.save``, safetensors,
    ``save_pretrained``) ask torch for pointers through which one could write, and so would each cost a copy. In this
    scope they cost none. Operators that write materialize as ever.

    On leaving, the scope proves what can be proved. A tensor whose version counter moved while it still shares its
    memory was written by a kernel that no operator announced (or had its sizes changed in place, by ``as_strided_`` and
    the like). With ``checksum`` all bytes that ``obj`` shared are compared instead, which reads them twice. It is an
    error, as everybody who shares the tensor now holds what was written.
    If an array, a DLPack tensor or a live autograd graph still refers to a tensor, the tensor is isolated: it keeps its
    memory and its address, and all others that shared it move to a copy. That costs memory, so leave the scope when
    graphs are gone (``torch.no_grad``, or ``backward`` within). A bare integer from ``data_ptr()`` must not be used
    after the scope, nor after a write to the tensor.

    What is shared when the scope begins is covered. Where two tensors of ``obj`` would show the same address without
    being tied, one of them un-shares when it is read, as code that saves models takes equal addresses for ties. Scopes
    may be nested, and used in several threads at once.

    Args:
        obj: a tensor, a module, an optimizer, a :class:`torchcow.Prototype`, or a container or an iterator of them.
        checksum: compare all bytes as well.

    Raises:
        TypeError: ``obj`` is a plain value or code, which holds no tensor.
        IsolationError: on leaving: shared memory was written in the scope. The message names the tensors.
        RuntimeError: on leaving: no memory to isolate a tensor that is still referenced from those that share it.

    Example:
        >>> import io, torch, torchcow
        >>> model = torch.nn.Linear(64, 64)
        >>> variant = torchcow.clone(model)
        >>> with torchcow.reading(variant):
        ...     torch.save(variant.state_dict(), io.BytesIO())
        >>> torchcow.is_shared(variant.weight)
        True
    """
    names, tensors = _named(obj)
    scope = _C.begin_reading(tensors, checksum)
    covered = scope.covered()
    states = [_State(tensor) if one else None for tensor, one in zip(tensors, covered, strict=True)]
    try:
        yield
    finally:
        _end(scope, names, tensors, None if checksum else states)


def _named(obj: Any) -> tuple[list[str], list[torch.Tensor]]:
    pairs = list(named_tensors(subject("torchcow.reading", obj)))
    return [name or "the tensor" for name, _ in pairs], [tensor for _, tensor in pairs]


class _State:
    """The version counter, which each write moves, and the sizes, which ``t_`` and the like change without a write."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.version = None if tensor.is_inference() else tensor._version
        self.shape = tensor.shape, tensor.stride(), tensor.storage_offset()

    def written_by(self, now: _State) -> bool:
        if self.version is None or now.version is None or now.version == self.version:
            return False
        return now.version > self.version + 1 or now.shape == self.shape


def _end(
    scope: _C.ReadingScope, names: list[str], tensors: list[torch.Tensor], states: list[_State | None] | None
) -> None:
    written = {}
    referenced = []
    for index, outcome in enumerate(scope.end()):
        before = states[index] if states else None
        if before and outcome.stayed and before.written_by(now := _State(tensors[index])):
            written[names[index]] = f"its version counter moved from {before.version} to {now.version}, by no operator"
        if outcome.damaged:
            written[names[index]] = "its bytes have another checksum"
        if outcome.referenced:
            referenced.append(index)
    try:
        stuck = [names[index] for index in scope.isolate(referenced)] if referenced else []
    except RuntimeError as error:
        if written:
            raise IsolationError(_explain(written, [])) from error
        raise
    if written or stuck:
        raise IsolationError(_explain(written, stuck))


def _explain(written: dict[str, str], stuck: list[str]) -> str:
    parts = []
    if written:
        what = "; ".join(f"{name}: {how}" for name, how in written.items())
        parts.append(
            f"shared memory was written within torchcow.reading, past the operators: {what}. All that share it hold "
            "what was written. Call torchcow.materialize on what such code writes, before the scope. If you doubt that "
            "it was written, checksum=True compares the bytes."
        )
    if stuck:
        parts.append(
            f"{', '.join(stuck)}: still referenced by a NumPy array, a DLPack tensor or an autograd graph after "
            "torchcow.reading ended, and could not be isolated from the tensors that share the memory. Release such "
            "views inside the scope, or copy them."
        )
    return " ".join(parts)
