"""Evidence: models compared bit by bit. Nothing here asks the engine what it believes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from torchcow.persist.fingerprint import pieces

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: nn.Module, names: Iterable[str] | None = None) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor in ``model``, or of those in ``names`` only."""
    wanted = None if names is None else frozenset(names)
    digest = hashlib.sha256()
    for name, tensor in _tensors(model):
        if wanted is None or name in wanted:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            for piece in pieces(tensor):
                digest.update(piece)
    return digest.hexdigest()


def changed(base: nn.Module, variant: nn.Module) -> frozenset[str]:
    """The names of the tensors of ``variant`` that are not bit-identical to those of ``base``."""
    originals = dict(_tensors(base))
    return frozenset(
        name for name, tensor in _tensors(variant) if not torch.equal(_bits(tensor), _bits(originals[name]))
    )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _bits(tensor: Tensor) -> Tensor:
    """``tensor`` as integers of the same size, so that -0.0 differs from 0.0 and a NaN equals itself."""
    return tensor.detach().contiguous().view(_INTEGER_OF_SIZE[tensor.element_size()])
