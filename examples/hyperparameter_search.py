# SPDX-License-Identifier: Apache-2.0
"""Hyperparameter search: every trial is a clone of one prototype, with other hyperparameters.

A trained encoder gets a new head for a new task, and the search looks for a learning rate and a dropout. Model and
optimizer are in one prototype, so that each clone has an optimizer that drives its own model. Hyperparameters are set
by dotted path, and a path that does not exist is refused before a clone is made.

Look at the table: the trials share the encoder, and only the heads and the optimizer's moments are private.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import torchcow


def new_task() -> dict[str, Any]:
    """Return the model with its encoder frozen, and the optimizer of its head."""
    encoder = nn.Sequential(nn.Linear(32, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh()).requires_grad_(False)
    model = nn.Sequential(OrderedDict(encoder=encoder, dropout=nn.Dropout(0.1), head=nn.Linear(256, 4)))
    return {"model": model, "optimizer": torch.optim.AdamW(model.head.parameters(), lr=1e-3)}


def train(trial: dict[str, Any], x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    """Train the model of a trial with the optimizer of that trial."""
    model, optimizer = trial["model"].train(), trial["optimizer"]
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def main(
    rates: Sequence[float] = (1e-4, 1e-3, 1e-2), dropouts: Sequence[float] = (0.0, 0.3), steps: int = 40, seed: int = 0
) -> dict[str, Any]:
    """Search, print what was found, and return it: ``losses`` by hyperparameters, the ``best`` trial, ``memory``."""
    torch.manual_seed(seed)
    prototype = torchcow.Prototype(new_task(), "new task")
    x = torch.randn(512, 32)
    y = (x @ torch.randn(32, 4)).argmax(1)

    trials, losses = {}, {}
    for rate, dropout in itertools.product(rates, dropouts):
        trial = prototype.clone(**{"optimizer.lr": rate, "model.dropout.p": dropout})
        torch.manual_seed(seed)  # the same dropout masks for each trial
        train(trial, x[:384], y[:384], steps)
        with torch.no_grad():
            losses[rate, dropout] = functional.cross_entropy(trial["model"].eval()(x[384:]), y[384:]).item()
        trials[rate, dropout] = trial
        print(f"learning rate {rate:<6g} dropout {dropout:<4g} validation loss {losses[rate, dropout]:.3f}")

    memory = torchcow.memory(prototype, *trials.values())
    print(f"\nThe prototype and {len(trials)} trials, model and optimizer together:\n{memory}")

    best = min(losses, key=losses.__getitem__)
    kept = trials[best]
    trials.clear()  # the other trials free their private memory
    print(f"\nKept: learning rate {best[0]:g}, dropout {best[1]:g}. It differs from the prototype in:")
    print(torchcow.diff(prototype, kept))
    return {"losses": losses, "best": best, "kept": kept, "prototype": prototype, "memory": memory}


if __name__ == "__main__":
    main()
