# SPDX-License-Identifier: Apache-2.0
"""Early stopping: the best state so far is kept as a clone, not as a copy.

The model memorizes a small data set: validation improves at first and then gets worse. At each new best, the usual
``best = copy.deepcopy(state)`` copies all of the model and the optimizer. With a clone, the next step copies the
tensors that it writes, and only while the checkpoint is needed. The frozen encoder and a restored checkpoint are never
copied.

Look at which operators made the copies (the trace names operator and line), and at the last table: after the restore,
the running state and the best one share all of their memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

import torchcow


def main(patience: int = 15, steps: int = 300, seed: int = 0) -> dict[str, Any]:
    """Train until nothing gets better, restore the best state, and return what it took."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    model[:4].requires_grad_(False)  # an encoder that is not trained
    optimizer = torch.optim.Adam(model[4:].parameters(), lr=3e-3)
    state = {"model": model, "optimizer": optimizer}
    x = torch.randn(128, 64)
    y = x[:, :4].sum(1, keepdim=True) + torch.randn(128, 1)

    def validate() -> float:
        with torch.no_grad():
            return functional.mse_loss(model(x[64:]), y[64:]).item()

    best, best_step, losses, checkpoints = state, 0, [], 0
    with torchcow.trace() as writes:
        for step in range(steps):
            losses.append(validate())
            if losses[-1] <= min(losses):
                best, best_step, checkpoints = torchcow.clone(state), step, checkpoints + 1
                before = len(writes.materializations)
            elif step - best_step >= patience:
                break
            optimizer.zero_grad()
            functional.mse_loss(model(x[:64]), y[:64]).backward()
            optimizer.step()
    print(f"Validation was best at step {best_step} ({losses[best_step]:.3f}); stopped at {step} ({losses[-1]:.3f}).")

    copied = sum(write.bytes for write in writes.materializations)
    whole = checkpoints * torchcow.memory(best).logical
    print(f"For {checkpoints} checkpoints {copied / 1e6:.1f} MB were copied; deep copies: {whole / 1e6:.1f} MB.")
    print(f"\nThe first writes after the last checkpoint:\n{torchcow.Trace(writes.materializations[before:])}")

    # Restored in place, for all references to the model. An optimizer keeps the tensors that it loads: give it clones.
    model.load_state_dict(best["model"].state_dict())
    optimizer.load_state_dict(torchcow.clone(best["optimizer"].state_dict()))
    optimizer.zero_grad()
    saved = torchcow.reshare(state, best)
    memory = torchcow.memory(state, best)
    print(f"\nRestored; validation is {validate():.3f}. Sharing again gave back {saved.bytes / 1e3:.0f} kB:\n{memory}")
    return {
        "losses": losses,
        "best_step": best_step,
        "restored": validate(),
        "same": torchcow.diff(state, best).identical,
        "copied": copied,
        "whole": whole,
        "memory": memory,
    }


if __name__ == "__main__":
    main()
