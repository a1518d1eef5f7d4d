# SPDX-License-Identifier: Apache-2.0
"""A frozen reference policy for preference training (DPO): a clone, not a second model.

Preference training compares the policy that learns with a frozen copy of its beginning. As a clone, the reference
takes memory only for the tensors that the policy changes: here the last block and the head are trained, and the rest
exists once. Trainers of the trl library take such a clone as ``ref_model=torchcow.clone(model)``.

Look at the margin, by how much more than the reference the policy prefers the chosen answers; and at the tensors that
differ in the end: those that were trained, and no others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

import torchcow


class Policy(nn.Module):
    """A small causal transformer: ids (batch, time) to logits (batch, time, words)."""

    def __init__(self, words: int = 64, width: int = 64, blocks: int = 4):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True) for _ in range(blocks)
        )
        self.head = nn.Linear(width, words)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of each next word."""
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(x)


def log_likelihood(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the probability of each text, of shape (batch,)."""
    logits = model(ids[:, :-1]).log_softmax(-1)
    return logits.gather(-1, ids[:, 1:, None]).squeeze(-1).sum(1)


def main(steps: int = 30, beta: float = 0.1, seed: int = 0) -> dict[str, Any]:
    """Train, print how the policy moves away from the reference, and return margins and differences."""
    torch.manual_seed(seed)
    policy = Policy()
    reference = torchcow.clone(policy).requires_grad_(False)  # no write to the values: all stays shared
    policy.requires_grad_(False)
    for part in (policy.blocks[-1], policy.head):
        part.requires_grad_(True)

    # People prefer texts of the first half of the words.
    chosen, rejected = torch.randint(0, 32, (16, 12)), torch.randint(32, 64, (16, 12))
    with torch.no_grad():
        before = log_likelihood(reference, chosen), log_likelihood(reference, rejected)

    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    margins = []
    for step in range(steps + 1):
        ratio = [log_likelihood(policy, ids) - log_likelihood(reference, ids) for ids in (chosen, rejected)]
        margin = beta * (ratio[0] - ratio[1])
        margins.append(margin.mean().item())
        if step % 10 == 0:
            print(f"step {step:2} loss {-functional.logsigmoid(margin).mean().item():.3f} margin {margins[-1]:.3f}")
        optimizer.zero_grad()
        (-functional.logsigmoid(margin).mean()).backward()
        optimizer.step()
    optimizer.zero_grad()

    with torch.no_grad():
        after = log_likelihood(reference, chosen), log_likelihood(reference, rejected)
    found = torchcow.diff(reference, policy)
    memory = torchcow.memory(reference, policy)
    print(f"\nReference against policy:\n{found}\n\n{memory}")
    frozen = all(map(torch.equal, before, after))
    return {"margins": margins, "frozen": frozen, "diff": found, "memory": memory}


if __name__ == "__main__":
    main()
