# SPDX-License-Identifier: Apache-2.0
"""The target network of Q-learning: after a hard update it shares all of its memory with the online one.

Deep Q-learning holds its targets still for a while, in a second network that takes over the weights of the online one
every so many steps. As a clone, the target takes memory only for the tensors that the online network has changed
since; encoders that are not trained exist once. ``target = torchcow.clone(online)`` copies nothing. If other objects
refer to the target, ``target.load_state_dict(online.state_dict())`` overwrites it in place, and
``torchcow.reshare(online, target)`` gives that memory back.

Look at the memory of both networks before, right after and some steps after an update, and at the path that it learns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

import torchcow

CELLS = 8


def step(cells: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Walk along a corridor, left (0) or right (1). The reward is at its right end, where the walk is over."""
    after = (cells + 2 * actions - 1).clamp(0, CELLS - 1)
    done = after == CELLS - 1
    return after, done.float(), done


def network() -> nn.Sequential:
    """Return one value for each action; the encoder of what is seen is not trained."""
    model = nn.Sequential(nn.Linear(CELLS, 512), nn.Tanh(), nn.Linear(512, 128), nn.Tanh(), nn.Linear(128, 2))
    model[:2].requires_grad_(False)
    return model


def main(
    steps: int = 600, every: int = 20, in_place: bool = False, discount: float = 0.9, seed: int = 0
) -> dict[str, Any]:
    """Learn the way, print memory around the updates, and return the ``path``, ``values`` and ``taken`` memory."""
    torch.manual_seed(seed)
    online = network()
    target = torchcow.clone(online)
    optimizer = torch.optim.Adam(online[2:].parameters(), lr=1e-3)
    seen = functional.one_hot(torch.arange(CELLS), CELLS).float()
    taken = []
    for index in range(1, steps + 1):
        cells, actions = torch.randint(0, CELLS - 1, (32,)), torch.randint(0, 2, (32,))
        after, reward, done = step(cells, actions)
        with torch.no_grad():
            wanted = reward + discount * ~done * target(seen[after]).amax(1)
        optimizer.zero_grad()
        functional.mse_loss(online(seen[cells]).gather(1, actions[:, None]).squeeze(1), wanted).backward()
        optimizer.step()
        if index % every == 0:
            optimizer.zero_grad()
            before = torchcow.memory(online, target).unique
            if in_place:
                target.load_state_dict(online.state_dict())
                torchcow.reshare(online, target)
            else:
                target = torchcow.clone(online)
            taken.append((before, torchcow.memory(online, target).unique))

    one = torchcow.memory(online).logical
    before, now = taken[-1]
    print(f"One network has {one / 1e3:.0f} kB. Online and target together, at the last update:")
    print(f"  before {before / 1e3:.0f} kB, right after {now / 1e3:.0f} kB; as copies always {2 * one / 1e3:.0f} kB")
    path = [0]
    with torch.no_grad():
        values = online(seen)
        while path[-1] != CELLS - 1 and len(path) < 2 * CELLS:
            cell = torch.tensor(path[-1:])
            path.append(int(step(cell, values[cell].argmax(1))[0]))
    print(f"The path that it learned: {' '.join(map(str, path))}")
    same = torchcow.diff(online, target).identical
    return {"path": path, "values": values, "taken": taken, "one": one, "same": same}


if __name__ == "__main__":
    main()
