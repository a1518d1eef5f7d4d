# SPDX-License-Identifier: Apache-2.0
"""Is reading free?

Prediction: yes. Operators that only read have no kernel of torchcow, and a shared tensor is a plain tensor whose
storage has another deleter. Operators that write pass one more kernel: 0 to 30 ns for those that loops over small
tensors call most, a quarter of a microsecond for the others.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import models
import operators
import torchcow
import zoo
from times import spread


@pytest.mark.parametrize("name", models.MODELS)
def test_forward(name, tiny, compare):
    model, inputs = models.MODELS[name](tiny)
    plain, other = copy.deepcopy(model), copy.deepcopy(model)
    clone = torchcow.clone(model)
    with torch.no_grad():
        assert torch.equal(plain(inputs), clone(inputs))
        compare(
            seconds=12.0,
            labels={"model": name},
            **{
                "deep copy": (lambda: plain, lambda m: m(inputs)),
                "another deep copy": (lambda: other, lambda m: m(inputs)),
                "source": (lambda: model, lambda m: m(inputs)),
                "clone": (lambda: clone, lambda m: m(inputs)),
            },
        )
    assert all(torchcow.is_shared(p) for p in clone.parameters() if p.nbytes >= 1024)


def test_generate(tiny, compare):
    case = zoo.gpt2(tiny)
    model = case.model
    plain, other, clone = copy.deepcopy(model), copy.deepcopy(model), torchcow.clone(model)
    tokens = 3 if tiny else 16

    def generate(one):
        ids = case.inputs["input_ids"]
        options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
        return one.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)

    assert torch.equal(generate(plain), generate(clone))
    compare(
        seconds=45.0,
        labels={"model": case.name},
        **{
            "deep copy": (lambda: plain, generate),
            "another deep copy": (lambda: other, generate),
            "source": (lambda: model, generate),
            "clone": (lambda: clone, generate),
        },
    )
    assert all(torchcow.is_shared(p) for p in clone.parameters() if p.nbytes >= 1024)


def step(model, inputs, optimizer):
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", models.MODELS)
def test_training_step(name, tiny, compare):
    """A step of AdamW. A clone's first step makes the copies; the later ones write private memory."""
    model, inputs = models.MODELS[name](tiny)
    plain, clone = copy.deepcopy(model), torchcow.clone(model)

    def trainer(one):
        return one, inputs, torch.optim.AdamW(one.parameters(), lr=1e-4)

    own, shared = trainer(plain), trainer(clone)
    step(*own)
    step(*shared)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), clone.parameters(), strict=True))
    compare(
        seconds=20.0,
        labels={"model": name},
        **{
            "deep copy": (lambda: own, lambda one: step(*one)),
            "clone": (lambda: shared, lambda one: step(*one)),
            "deep copy, first step": (lambda: trainer(copy.deepcopy(model)), lambda one: step(*one)),
            "clone, first step": (lambda: trainer(torchcow.clone(model)), lambda one: step(*one)),
        },
    )


SMALL = {
    "add": lambda t: t + t,
    "sum": lambda t: t.sum(),
    "matmul": lambda t: t @ t,
    "view": lambda t: t.view(-1),
}


@pytest.mark.parametrize("name", SMALL)
def test_reading_a_small_tensor(name, tiny, compare):
    """A thousand calls on a 32 x 32 tensor.

    The baseline is a deep copy: reading ``tensor.__dict__``, as deep copies do with its source and its result, makes
    Python look up methods 60 ns slower from then on.
    """
    act = SMALL[name]
    plain, source = copy.deepcopy(torch.rand(32, 32)), torch.rand(32, 32)
    clone = torchcow.clone(source)
    assert torchcow.is_shared(clone)

    def loop(tensor):
        for _ in range(1000):
            act(tensor)

    compare(
        seconds=4.0,
        labels={"operator": name},
        **{"deep copy": (lambda: plain, loop), "clone": (lambda: clone, loop)},
    )
    assert torchcow.is_shared(clone)


def test_operators_with_and_without_torchcow(form, report, record):
    """The cost of the barrier where nothing is shared: two processes in turn, one of which has imported torchcow."""
    script = Path(operators.__file__)
    times = {}
    rounds = form.choose(1, 3, 9)
    for _ in range(rounds):
        for option in ("--without", "--with"):
            options = [option, *(["--tiny"] if form == "tiny" else [])]
            run = subprocess.run([sys.executable, script, *options], check=True, capture_output=True, text=True)
            for name, nanoseconds in json.loads(run.stdout).items():
                times.setdefault(name, {}).setdefault(option, []).append(nanoseconds)
    for name, (kind, _) in operators.OPERATORS.items():
        without, with_ = times[name]["--without"], times[name]["--with"]
        added = spread([b - a for a, b in zip(without, with_, strict=True)])
        record(operator=name, kind=kind, rounds=rounds, without=spread(without), added=added)
        report(**{f"{name}, added ns": added["median"]})
