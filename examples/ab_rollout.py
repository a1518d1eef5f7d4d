# SPDX-License-Identifier: Apache-2.0
"""An A/B rollout: a candidate serves a tenth of the users, is promoted, and is rolled back after an incident.

The server keeps one object, the proxy of the tag ``production``. It never notices that models change: promote and
rollback move the tag between two calls. The trial assigns users, so that each user always sees the same model.

Look at the accuracy of both sides of the trial, and at the history of the tag. After the rollback, production gives the
same answers as before, bit by bit. The versions share each tensor that the fine-tuning did not write.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import torchcow


def fine_tune(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 60) -> nn.Module:
    """Train the last layer."""
    optimizer = torch.optim.Adam(model[-1].parameters(), lr=1e-2)
    for _ in range(steps):
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model


def main(users: int = 400, seed: int = 0) -> dict[str, Any]:
    """Run the trial and the incident, and return what was seen."""
    torch.manual_seed(seed)
    x = torch.randn(users, 32)
    old_taste, new_taste = (x @ torch.randn(32, 3)).argmax(1), (x @ torch.randn(32, 3)).argmax(1)
    network = nn.Sequential(nn.Linear(32, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 3))

    registry = torchcow.Registry()  # in memory; with the path of a folder it is stored
    first = registry.add("recommender", fine_tune(network, x, old_taste), tags=["production"])
    serve = registry.proxy("recommender:production")
    before = serve(x).detach()

    # The taste of users has changed. The candidate is a clone of production that learns from half of the users.
    clone = registry.get("recommender:production").clone()
    learnt = fine_tune(clone, x[: users // 2], new_taste[: users // 2])
    candidate = registry.add("recommender", learnt, parent=first, tags=["candidate"], metadata={"trained on": "May"})

    trial = registry.split({"recommender:production": 0.9, "recommender:candidate": 0.1}, seed=seed)
    hits = defaultdict(list)
    for user in range(users):
        answer = trial(x[user], key=user).argmax()
        hits[trial.choose(key=user)].append(float(answer == new_taste[user]))
    accuracy = {side: sum(hit) / len(hit) for side, hit in hits.items()}
    for side, share in accuracy.items():
        print(f"{side}: {trial.counts[side]} users, {share:.0%} of the answers are right")

    registry.promote(candidate, "production")
    promoted = serve(x).detach()
    print(f"\nPromoted {candidate}. {(promoted.argmax(1) == new_taste).float().mean():.0%} of all answers are right.")

    restored = registry.rollback("recommender:production")
    after = serve(x).detach()
    print(f"Rolled back to {restored}; answers as before: {torch.equal(before, after)}")
    for line in registry.history("recommender:production"):
        print(f"  {line.version} was promoted{' and rolled back' if line.rolled_back else ''}")

    print("\nDifferences of the candidate from the first version:")
    print(registry.diff(first, candidate))
    memory = torchcow.memory(registry.get(first), registry.get(candidate))
    print(f"\n{memory}")
    return {
        "accuracy": accuracy,
        "counts": trial.counts,
        "before": before,
        "promoted": promoted,
        "after": after,
        "expected": registry.get(candidate).clone()(x).detach(),
        "lineage": [str(version) for version in registry.lineage(candidate)],
        "memory": memory,
    }


if __name__ == "__main__":
    main()
