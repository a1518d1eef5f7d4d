"""What does a clone cost, and what does it keep?

Prediction: sharing is some pointer moves and three small allocations per tensor, well below a microsecond; the
rest of a clone is deepcopy's walk over the modules.
"""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch

import models
import torchcow
from torchcow import _C


@pytest.mark.parametrize("name", models.MODELS)
def test_clone(name, tiny, compare):
    model, _ = models.MODELS[name](tiny)
    torchcow.clone(model)
    compare(
        deepcopy=(lambda: model, copy.deepcopy),
        clone=(lambda: model, torchcow.clone),
    )
    clone = torchcow.clone(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), clone.parameters(), strict=True))


def test_engine_per_tensor(tiny, compare, report):
    """The engine alone: all parameters of GPT-2, without the walk, in microseconds per tensor.

    `detach` makes as many tensors and Python objects and shares nothing: the difference is the engine's.
    """
    model, _ = models.gpt2()
    parameters = list(model.parameters())
    prototype = torchcow.clone(model)  # all are sharers already, as with any second clone

    def share(_):
        call = _C.SharingCall()
        return [call.share_parameter(parameter) for parameter in parameters]

    medians = compare(
        rounds=200,
        detach=(lambda: None, lambda _: [parameter.detach() for parameter in parameters]),
        share=(lambda: None, share),
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
