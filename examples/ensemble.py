# SPDX-License-Identifier: Apache-2.0
"""An ensemble: noise and bootstrap make members that disagree where the data says nothing.

A network is trained once. Each member is a clone of it: noise disturbs its last layer, and a bootstrap sample of the
data trains it. Where the members agree, their mean can be trusted; their spread is the uncertainty.

Look at the uncertainty inside and outside of the range of the data, and at the memory of the members against deep
copies: they share all but the last layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

import torchcow


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    """Fit what requires gradients to the data."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.mse_loss(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()  # gradients would stay, and are private


def main(members: int = 8, steps: int = 150, noise: float = 0.1, seed: int = 0) -> dict[str, Any]:
    """Train the ensemble, print what it says, and return ``error``, ``inside``, ``outside`` and ``memory``."""
    torch.manual_seed(seed)
    x = torch.rand(200, 1) * 4 - 2
    y = torch.sin(2 * x) + 0.1 * torch.randn_like(x)
    base = nn.Sequential(nn.Linear(1, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))
    train(base, x, y, 2 * steps)
    base[:-1].requires_grad_(False)

    def become_a_member(model: nn.Module, _: int) -> None:
        with torch.no_grad():
            model[-1].weight.add_(noise * torch.randn_like(model[-1].weight))
        sample = torch.randint(len(x), (len(x),))
        train(model, x[sample], y[sample], steps)

    ensemble = torchcow.Prototype(base, "sine").spawn(members, become_a_member)

    grid = torch.linspace(-4, 4, 81).unsqueeze(1)
    with torch.no_grad():
        answers = torch.stack([member(grid) for member in ensemble])
    mean, spread = answers.mean(0), answers.std(0)
    known = grid.abs() < 1.8
    error = (mean - torch.sin(2 * grid))[known].square().mean().sqrt().item()
    inside, outside = spread[known].mean().item(), spread[grid.abs() > 3].mean().item()
    print(f"The mean of {members} members is off by {error:.3f} where there is data.")
    print(f"They differ by {inside:.3f} there, and by {outside:.3f} far from all data.")
    for value in (0.0, 1.0, 3.0, 4.0):
        row = (grid - value).abs().argmin()
        print(f"  f({value:g}) = {mean[row].item():6.2f} +- {spread[row].item():.2f}")

    memory = torchcow.memory(base, *ensemble)
    print(f"\nThe network and its members:\n{memory}")
    return {"error": error, "inside": inside, "outside": outside, "memory": memory, "base": base, "members": ensemble}


if __name__ == "__main__":
    main()
