# SPDX-License-Identifier: Apache-2.0
"""Population-based training: the worst become clones of the best, with other hyperparameters.

Each member trains on its own for a while. Then the worst members *exploit* the best: each becomes a clone of its model
and optimizer. And they *explore*: a factor multiplies their learning rate. So training itself finds hyperparameters.

Look at the learning rates and losses of the generations: the good ones take over within a few of them. A clone of the
best costs nothing until it trains, and then only the tensors that it trains; the frozen encoder exists once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import torchcow


def start() -> dict[str, Any]:
    """Return a model with an encoder that is not trained, and the optimizer of the rest."""
    encoder = nn.Sequential(nn.Linear(16, 512), nn.Tanh(), nn.Linear(512, 256), nn.Tanh()).requires_grad_(False)
    model = nn.Sequential(encoder, nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 1))
    return {"model": model, "optimizer": torch.optim.SGD(model[1:].parameters(), lr=0.1, momentum=0.9)}


def main(
    population: int = 6, generations: int = 5, steps: int = 25, factors: tuple[float, ...] = (0.5, 2.0), seed: int = 0
) -> dict[str, Any]:
    """Train the population and return the best ``losses`` and the ``rates`` by generation."""
    torch.manual_seed(seed)
    x = torch.randn(256, 16)
    y = torch.tanh(x @ torch.randn(16, 1))
    prototype = torchcow.Prototype(start(), "start")
    members = [prototype.clone(**{"optimizer.lr": 10.0 ** -(1 + index)}) for index in range(population)]
    losses, rates, same = [], [], []

    def loss_of(member: dict[str, Any]) -> torch.Tensor:
        return functional.mse_loss(member["model"](x), y)

    def score(member: dict[str, Any]) -> float:
        loss = loss_of(member).item()
        return loss if math.isfinite(loss) else math.inf  # a NaN would disturb the order

    for generation in range(generations):
        for member in members:
            for _ in range(steps):
                member["optimizer"].zero_grad()
                loss_of(member).backward()
                member["optimizer"].step()
            member["optimizer"].zero_grad()
        members.sort(key=score)
        losses.append([score(member) for member in members])
        rates.append([member["optimizer"].param_groups[0]["lr"] for member in members])
        line = "  ".join(f"{loss:.3g} ({rate:g})" for loss, rate in zip(losses[-1], rates[-1], strict=True))
        print(f"generation {generation}, losses and (learning rates): {line}")
        best = torchcow.Prototype(members[0], "best")
        for place, factor in enumerate(factors, start=population - len(factors)):
            members[place] = best.clone(**{"optimizer.lr": rates[-1][0] * factor})
            same.append(torchcow.diff(best, members[place]).identical)
    memory = torchcow.memory(*members)
    print(f"\nThe population, models and optimizers:\n{memory}")
    return {"losses": losses, "rates": rates, "same": same, "memory": memory}


if __name__ == "__main__":
    main()
