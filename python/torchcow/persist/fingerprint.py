# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of a tensor: SHA-256 over dtype, shape and bytes, read in small pieces by operators."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from torchcow.objects.tensors import INTEGERS

#: Elements in a piece: as many as torch copies in the calling thread. Waiting for its other threads at each piece
#: costs more than the hash when the cores are busy.
PIECE = 1 << 15


def fingerprint(tensor: torch.Tensor) -> str:
    """Return 64 hexadecimal digits that identify dtype, shape and content of a tensor, bit by bit.

    Memory layout, device and ``requires_grad`` do not count. Operators read the tensor piece by piece, so it
    stays shared.

    Example:
        >>> import torch
        >>> from torchcow.persist.fingerprint import fingerprint
        >>> x = torch.arange(6.0).view(2, 3)
        >>> fingerprint(x) == fingerprint(x.t().contiguous().t())
        True
        >>> fingerprint(x) == fingerprint(x.view(3, 2))
        False
    """
    digest = begin(tensor.dtype, tensor.shape)
    for piece in pieces(tensor):
        digest.update(piece)
    return digest.hexdigest()


def begin(dtype: torch.dtype, shape: tuple[int, ...]) -> hashlib._Hash:
    """Return the digest of a tensor of which no byte has been added yet."""
    return hashlib.sha256(f"{str(dtype).removeprefix('torch.')}{list(shape)}\n".encode())


def pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in C order; each piece is valid until the next one is requested."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    # An expanded or transposed tensor is copied block by block, never as a whole.
    bits = plain.view(INTEGERS[plain.element_size()])
    if bits.numel() == 0:
        return
    buffer = bytearray(min(PIECE, bits.numel()) * bits.element_size())
    target = torch.frombuffer(buffer, dtype=bits.dtype)
    view = memoryview(buffer)
    with torch.no_grad():
        for block in _blocks(bits, PIECE):
            target[: block.numel()].view(block.shape).copy_(block)
            yield view[: block.numel() * block.element_size()]


def _blocks(tensor: torch.Tensor, limit: int) -> Iterator[torch.Tensor]:
    if tensor.numel() <= limit:
        yield tensor
        return
    if tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), limit)
        return
    rows = limit // (tensor.numel() // tensor.shape[0])
    if rows:
        yield from torch.split(tensor, rows)
    else:
        for row in tensor.unbind():
            yield from _blocks(row, limit)


def fill(tensor: torch.Tensor, offset: int, piece: memoryview) -> None:
    """Copy ``piece`` to byte ``offset`` of a contiguous tensor, by an operator."""
    bits = tensor.view(INTEGERS[tensor.element_size()]).view(-1)
    size = tensor.element_size()
    with torch.no_grad():
        source = torch.frombuffer(piece, dtype=bits.dtype)
        bits[offset // size : offset // size + source.numel()].copy_(source)
