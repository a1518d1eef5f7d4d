# SPDX-License-Identifier: Apache-2.0
"""How much memory do N variants take, if a fraction f of the weights is written in each?

Prediction: S (1 + N f), where S is the size of the model; deep copies take S (1 + N). The process takes that, and
the Python objects of each variant, some 2 KB per module. Tensors below 1 KB are copied eagerly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

import baselines
import machine
import models
import torchcow
from resident import resident
from zoo import Case

BUDGET = 16e9  # bytes


def everything(model: models.GPT) -> Iterable[nn.Parameter]:
    return model.parameters()


def head(model: models.GPT) -> Iterable[nn.Parameter]:
    return [model.head.weight]


def one_layer(model: models.GPT) -> Iterable[nn.Parameter]:
    return model.blocks[-1].parameters()


def one_norm(model: models.GPT) -> Iterable[nn.Parameter]:
    return model.blocks[-1].ln_2.parameters()


def merged(model: models.GPT) -> Iterable[nn.Parameter]:
    """The weights that change when a LoRA adapter on the attention of a third of the layers is merged."""
    return [block.attention.weight for block in model.blocks[::3]]


PARTS: dict[str, Callable[[models.GPT], Iterable[nn.Parameter]]] = {
    "nothing": lambda model: [],
    "one norm": one_norm,
    "one layer": one_layer,
    "head": head,
    "LoRA merged into a third of the layers": merged,
    "everything": everything,
}


def small() -> models.GPT:
    return models.GPT(layers=12, width=256, heads=4, vocabulary=4096, context=256, tied=False)


MODELS: dict[str, Callable[[], models.GPT]] = {
    "GPT-2 124M": models.GPT,
    "GPT of 11.7M, head not tied": small,
}


@torch.no_grad()
def write(parameters: Iterable[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        if parameter.ndim == 2 and min(parameter.shape) > 8:  # as merging does: the product of two thin matrices
            up, down = (torch.randn(size, 4, generator=generator) for size in parameter.shape)
            parameter.addmm_(up, down.T, alpha=1e-3)
        else:
            parameter.add_(1e-3)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", MODELS)
def test_variants(name, part, form, report, record):
    torch.manual_seed(0)
    model = models.gpt2(tiny=True)[0] if form == "tiny" else MODELS[name]()
    before = copy.deepcopy(model.state_dict())
    size = torchcow.memory(model).unique
    written = sum(parameter.nbytes for parameter in PARTS[part](model))
    room = form.choose(1e9, 2.5e9, 0.45 * machine.memory())
    torchcow.clone(model)  # allocates what all clones have in common
    for count in form.choose((1, 3), (1, 10, 50), (1, 10, 50, 200)):
        row = {"model": name, "written": part, "variants": count, "fraction": written / size}
        row |= {"size": size, "predicted": size + count * written, "deep copies": size * (1 + count)}
        if row["predicted"] > room:
            record(**row)  # a row without a measurement: it does not fit here
            continue
        start = resident()
        variants = [torchcow.clone(model) for _ in range(count)]
        for seed, variant in enumerate(variants):
            write(PARTS[part](variant), seed)
        resident_bytes = size + resident() - start
        memory = torchcow.memory(model, *variants)
        record(**row, resident=resident_bytes, unique=memory.unique)
        assert memory.logical == row["deep copies"]
        assert 0 <= memory.unique - row["predicted"] <= count * 1024 * len(before)  # the difference is tiny tensors
        del variants, variant, memory
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    report(written_megabytes=written / 1e6)


@pytest.mark.parametrize("part", ["nothing", "one norm", "one layer", "head", "everything"])
def test_budget(part, form, report, record):
    """Bytes that one more variant takes by each method, and how many fit into a budget (computed from that)."""
    if form == "quick" and part in ("one norm", "head"):
        pytest.skip("measured by the full form")
    for method in ("copy.deepcopy", "_lazy_clone in the memo", "functional_call", "torchcow.clone"):
        small = part in ("nothing", "one norm") and method != "copy.deepcopy"
        count = form.choose(2, 50, 200) if small else form.choose(2, 2, 6)
        model = models.gpt2(form == "tiny")[0]
        case = Case("GPT-2 124M", model, type(model), {})
        size = torchcow.memory(model).unique
        make = baselines.BASELINES[method].prepare(case, model)
        variants = []

        def more(make=make, model=model, variants=variants, count=count):
            for seed in range(count):
                variants.append(make())
                edit(variants[-1], model, PARTS[part], seed)
            return resident()

        filled = more()  # these fill the holes that are in the heap
        each = max(more() - filled, 0) / count
        record(
            model="GPT-2 124M",
            written=part,
            candidate=method,
            bytes_per_variant=each,
            budget=BUDGET,
            fit=int((BUDGET - size) / max(each, 4096)),
        )
        del variants, more, make, model, case
    report(variants=count)


def edit(variant: object, model: models.GPT, part: Callable, seed: int) -> None:
    """Write the part: in place, or for a dict of shared tensors by putting written copies into it."""
    if not isinstance(variant, baselines.Functional):
        write(part(variant), seed)
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in part(model):
        own = variant.tensors[names[id(parameter)]] = nn.Parameter(parameter.detach().clone())
        write([own], seed)
