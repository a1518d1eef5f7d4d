# SPDX-License-Identifier: Apache-2.0
"""A GPT over bytes with less than a million parameters: the demo's model that needs no download.

A short training on five sentences lets it continue a prompt with readable text.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 128
HEADS = 4
LAYERS = 3
CONTEXT = 128
BYTES = 256

TEXT = (
    "The secret of good bread is time. The flour drinks the water and the dough grows slowly. "
    "The oven must be hot before the loaf goes in. A good crust sings when it cools. "
    "The baker who waits has the better bread."
)


class Attention(nn.Module):
    """Causal self-attention. Shape: (batch, time, WIDTH) in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        heads = self.qkv(x).view(batch, time, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return cast(Tensor, self.out(mixed.transpose(1, 2).reshape(batch, time, WIDTH)))


class Block(nn.Module):
    """One transformer block: attention, then a two-layer MLP, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm_mlp = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return cast(Tensor, x + self.mlp(self.norm_mlp(x)))


class TinyGPT(nn.Module):
    """Byte ids (batch, time) to logits (batch, time, 256); the output layer is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, BYTES, bias=False)
        self.head.weight = self.embed.weight
        for table in (self.embed, self.position):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.head(self.norm(x)))


class ByteLanguage:
    """Text as UTF-8 bytes, one token each."""

    def encode(self, text: str, device: torch.device) -> Tensor:
        """Return ``text`` as ids of shape (1, time)."""
        return torch.tensor([list(text.encode())], device=device)

    def logits(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Return the next-token logits of ``model`` for ``ids``: (1, time, 256)."""
        return cast(Tensor, model(ids))

    @torch.no_grad()
    def generate(self, model: nn.Module, prompt: str, tokens: int) -> str:
        """Return how ``model`` continues ``prompt``: ``tokens`` bytes, each the most likely one."""
        ids = self.encode(prompt, next(model.parameters()).device)
        start = ids.shape[1]
        for _ in range(tokens):
            best = self.logits(model, ids[:, -CONTEXT:])[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], dim=1)
        return bytes(ids[0, start:].tolist()).decode(errors="replace")


def build(seed: int, steps: int = 120) -> TinyGPT:
    """Train a TinyGPT for ``steps`` on TEXT. The same ``seed`` gives the same weights on the same machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyGPT()
        text = torch.tensor(list(TEXT.encode()))
        span = 64
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.99), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            starts = torch.randint(len(text) - span, (8,))
            batch = torch.stack([text[start : start + span + 1] for start in starts.tolist()])
            logits = model(batch[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()
    return model.eval()
