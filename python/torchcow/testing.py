# SPDX-License-Identifier: Apache-2.0
"""Tools for tests of isolation: checksums over shared blocks, and failing allocations.

Importing this module turns checksums on: the engine sums each block when it makes it, which reads its memory once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torchcow._native import _C
from torchcow.errors import IsolationError

__all__ = ["IsolationError", "fail_allocations", "load_test_operators", "verify"]


# On import, as a test relies on `verify` without another call: it can compare only blocks that were summed before.
_C.arm_checksums(True)


def verify() -> int:
    """Check that no shared block has changed since it was made; return how many were checked.

    Raises:
        IsolationError: a block has changed, and all tensors that share it hold wrong values.

    Example:
        >>> import torch, torchcow, torchcow.testing
        >>> variant = torchcow.clone(torch.ones(1000))
        >>> torchcow.testing.verify() >= 1
        True
    """
    verification = _C.verify()
    if verification.damages:
        blocks = "; ".join(
            f"block {damage.block}: {damage.bytes} bytes on {damage.device}" for damage in verification.damages
        )
        raise IsolationError(
            f"shared memory was written behind the barrier: {blocks}. The write went through a pointer that was taken "
            "before the clone. Clone with strict=True, or call torchcow.materialize before taking pointers."
        )
    return verification.blocks


@contextmanager
def fail_allocations(after: int) -> Iterator[None]:
    """Let one allocation for a materialization fail within the block: number ``after``, counted from 0."""
    _C.fail_allocation(after)
    try:
        yield
    finally:
        _C.fail_allocation(-1)


def load_test_operators() -> None:
    """Define ``torch.ops.torchcow_test``: operators that write through const pointers, as CUDA's foreach kernels do."""
    _C.load_test_operators()
