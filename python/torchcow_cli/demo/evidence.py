# SPDX-License-Identifier: Apache-2.0
"""Evidence: models compared bit by bit. Nothing here uses the accounts of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from torchcow.objects.tensors import bits
from torchcow.persist.fingerprint import pieces


def fingerprint(model: nn.Module, names: Iterable[str] | None = None) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of the tensors of ``model``, or of those in ``names``."""
    selected = None if names is None else frozenset(names)
    digest = hashlib.sha256()
    for name, tensor in _tensors(model):
        if selected is None or name in selected:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            for piece in pieces(tensor):
                digest.update(piece)
    return digest.hexdigest()


def changed(base: nn.Module, variant: nn.Module) -> frozenset[str]:
    """Return the names of the tensors of ``variant`` that are not bit-identical to those of ``base``."""
    originals = dict(_tensors(base))
    return frozenset(name for name, tensor in _tensors(variant) if not torch.equal(bits(tensor), bits(originals[name])))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
