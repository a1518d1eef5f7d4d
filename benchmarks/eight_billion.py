# SPDX-License-Identifier: Apache-2.0
"""The shapes of a language model with 8 billion parameters, as a dict of tensors, and an edit of one percent of it."""

from __future__ import annotations

import torch

WIDTH, INNER, LAYERS, VOCABULARY, KEYS = 4096, 14336, 32, 128256, 1024


def shapes(layers: int = LAYERS, width: int = WIDTH, inner: int = INNER, vocabulary: int = VOCABULARY) -> dict:
    """Dotted names and shapes; with the defaults 8.03e9 parameters, those of Llama 3."""
    keys = KEYS * width // WIDTH
    shapes_by_name: dict[str, tuple[int, ...]] = {"embed": (vocabulary, width)}
    for layer in range(layers):
        parts = {"q": (width, width), "k": (keys, width), "v": (keys, width), "o": (width, width)}
        parts |= {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        parts |= {"norm1": (width,), "norm2": (width,)}
        shapes_by_name |= {f"layers.{layer}.{name}": shape for name, shape in parts.items()}
    return shapes_by_name | {"norm": (width,), "head": (vocabulary, width)}


def build(device: str, **size: int) -> dict[str, torch.Tensor]:
    return {name: torch.ones(shape, dtype=torch.bfloat16, device=device) for name, shape in shapes(**size).items()}


def part(model: dict[str, torch.Tensor], fraction: float, start: int) -> list[str]:
    """Names of tensors with no more than this fraction of all bytes, names from layer ``start`` on, largest first."""
    room = fraction * sum(tensor.nbytes for tensor in model.values())
    layers = sum(name.endswith(".q") for name in model)
    names = []
    for offset in range(layers):
        prefix = f"layers.{(start + offset) % layers}."
        for name in sorted((n for n in model if n.startswith(prefix)), key=lambda n: -model[n].nbytes):
            if model[name].nbytes <= room:
                room -= model[name].nbytes
                names.append(name)
    return names
