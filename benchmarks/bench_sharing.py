"""What does sharing cost, and what does a clone keep?

Prediction: sharing is some pointer moves and three small allocations per tensor, well below a microsecond.
"""

from __future__ import annotations

import gc
from pathlib import Path

import models
import torchcow


def test_engine_per_tensor(tiny, compare, report):
    """All parameters of GPT-2 in a list, in microseconds per tensor: next to nothing of that is the walk.

    `detach` makes as many tensors and Python objects and shares nothing: the difference is the engine's.
    """
    model, _ = models.gpt2()
    parameters = list(model.parameters())
    prototype = torchcow.clone(model)  # all are sharers already, as with any second clone

    medians = compare(
        rounds=200,
        detach=(lambda: None, lambda _: [parameter.detach() for parameter in parameters]),
        share=(lambda: None, lambda _: torchcow.clone(parameters)),
    )
    report(**{f"{name}_us_per_tensor": seconds / len(parameters) * 1e6 for name, seconds in medians.items()})
    del prototype


def test_fifty_clones_of_gpt2(tiny, report):
    model, _ = models.gpt2(tiny)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    torchcow.clone(model)
    gc.collect()
    before = resident()
    clones = [torchcow.clone(model) for _ in range(50)]
    gc.collect()
    report(megabytes_per_clone=(resident() - before) / 50 / 1e6)
    used = torchcow.memory(model, *clones)
    report(logical_megabytes=used.logical / 1e6, unique_megabytes=used.unique / 1e6)
