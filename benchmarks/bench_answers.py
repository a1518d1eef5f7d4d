# SPDX-License-Identifier: Apache-2.0
"""What do reports cost: memory, diff, explain and reshare of many variants?

Prediction: all of them walk over the modules in Python, 3 us per tensor; `memory` of 50 variants of GPT-2 stays below
100 ms. `diff` of shared tensors reads no bytes; `reshare` reads each tensor that may be equal to another one twice.
"""

from __future__ import annotations

import torch

import models
import torchcow


def test_fifty_variants_of_gpt2(tiny, compare, report):
    model, _ = models.gpt2(tiny)
    variants = [torchcow.clone(model) for _ in range(50)]
    with torch.no_grad():
        for index, variant in enumerate(variants):
            parameters = list(variant.parameters())
            parameters[index % len(parameters)].add_(1)

    compare(
        seconds=12.0,
        memory=(lambda: None, lambda _: torchcow.memory(model, *variants)),
        memory_table=(lambda: None, lambda _: str(torchcow.memory(model, *variants))),
        explain=(lambda: None, lambda _: torchcow.explain(variants)),
        diff_of_one=(lambda: None, lambda _: torchcow.diff(model, variants[7])),
    )
    used = torchcow.memory(model, *variants)
    assert used.logical > (4 if tiny else 20) * used.unique
    report(logical_megabytes=used.logical / 1e6, unique_megabytes=used.unique / 1e6)


def test_reshare_after_a_rollback(tiny, compare):
    """A variant was written and set back: 124 M parameters are compared and joined. `copy` is the time to read and
    write all of them once."""
    model, _ = models.gpt2(tiny)

    def rolled_back():
        variant = torchcow.clone(model)
        with torch.no_grad():
            for mine, original in zip(variant.parameters(), model.parameters(), strict=True):
                mine.add_(1).copy_(original)
        return variant

    def reshare(variant):
        saved = torchcow.reshare(model, variant)
        # All but tiny tensors; beyond that, biases that are zero share with one another.
        assert saved.bytes >= 0.95 * torchcow.memory(variant).logical

    compare(
        seconds=12.0,
        copy=(lambda: None, lambda _: [parameter.detach().clone() for parameter in model.parameters()]),
        reshare=(rolled_back, reshare),
    )
