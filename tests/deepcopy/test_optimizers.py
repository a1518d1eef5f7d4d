# SPDX-License-Identifier: Apache-2.0
"""Every optimizer of torch.optim, for-loop, foreach and fused: a clone trains as a deep copy does, and trains alone.

Catches: fused and foreach kernels whose lists escape the barrier, optimizer state shared but not marked, a tuple clone
that loses the identity between model parameters and optimizer state.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import torchcow
import torchcow.testing
from support.oracle import assert_adds_up, assert_same, attempt, freeze, seed

STEPS = 3
VARIANTS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}, "default": {}}
OPTIMIZERS = {
    name: cls
    for name, cls in sorted(vars(torch.optim).items())
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
}
EXTRA = {
    "SGD": [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "Adam": [{"amsgrad": True}, {"lr": torch.tensor(0.01)}],
    "AdamW": [{"amsgrad": True, "weight_decay": 0.1}, {"maximize": True}],
    "RMSprop": [{"momentum": 0.9, "centered": True}],
    "Adagrad": [{"initial_accumulator_value": 0.1}],
}


class Net(nn.Module):
    def __init__(self, sparse=False):
        super().__init__()
        self.table = nn.Embedding(64, 64, sparse=sparse)
        self.a = nn.Linear(64, 64, bias=not sparse)
        self.norm = nn.BatchNorm1d(64)
        self.b = nn.Linear(64, 64)

    def forward(self):
        return self.b(self.norm(torch.tanh(self.a(self.table(torch.arange(16))))))


def parameters_for(name, model):
    if name == "SparseAdam":
        return [model.table.weight]
    if name == "Muon":
        return [p for p in model.parameters() if p.dim() == 2]
    return list(model.parameters())


def pair(name, options):
    seed(0)
    model = Net(sparse=name == "SparseAdam")
    options = {"lr": 0.01, **{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}}
    return model, OPTIMIZERS[name](parameters_for(name, model), **options)


def train(pair, steps=STEPS):
    model, optimizer = pair

    def closure():
        optimizer.zero_grad()
        loss = model().pow(2).sum()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def cases():
    for name, (variant, options) in itertools.product(OPTIMIZERS, VARIANTS.items()):
        for extra in [{}, *EXTRA.get(name, [])]:
            label = "-".join([name, variant, *map(str, extra)])
            try:
                pair(name, {**options, **extra})
            except (TypeError, RuntimeError, ValueError):
                continue  # this optimizer has no such form on CPU
            yield pytest.param(name, {**options, **extra}, id=label)


CASES = list(cases())


def outcome(trainee):
    """(what training did, the trained pair as plain data)"""
    done = attempt(train, trainee)
    return done, freeze(list(trainee))


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "with state"])
def test_training(name, options, warm):
    """Clones train first, then the source; each ends where its deep copy ends, and nobody else moves."""

    def make():
        both = pair(name, options)
        if warm:
            attempt(train, both, 1)
        return both

    for order in (("source", "first", "second"), ("second", "first", "source")):
        source = make()
        family = {"source": source, "first": torchcow.clone(source), "second": torchcow.clone(source)}
        frozen = {relative: freeze(list(copy.deepcopy(make()))) for relative in family}
        frozen["source"] = freeze(list(make()))
        for relative in order:
            oracle = make() if relative == "source" else copy.deepcopy(make())
            want, after = outcome(oracle)
            got = attempt(train, family[relative])
            assert got == want
            frozen[relative] = after
            for other in family:
                assert_same(
                    frozen[other], freeze(list(family[other])), f"{order}, trained {relative}, looking at {other}"
                )
            torchcow.testing.verify()
        assert_adds_up(*family.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_clone_of_a_pair_keeps_its_identities(name):
    source = pair(name, {})
    attempt(train, source, 1)
    model, optimizer = torchcow.clone(source)
    mine = {id(p) for p in model.parameters()}
    assert all(id(p) in mine for group in optimizer.param_groups for p in group["params"])
    assert all(id(p) in mine for p in optimizer.state if isinstance(p, torch.Tensor))
    theirs = {id(p) for p in source[0].parameters()}
    assert not mine & theirs


def test_in_any_container_and_order():
    source = pair("AdamW", {})
    train(source, 1)
    for shape in (lambda m, o: [o, m], lambda m, o: {"o": o, "nested": (m,)}, lambda m, o: (m.a, o, m)):
        want, got = copy.deepcopy(shape(*source)), torchcow.clone(shape(*source))
        assert_same(freeze(want), freeze(got), "the container")


def test_zero_grad_in_place_and_gradient_accumulation():
    source = pair("SGD", {"momentum": 0.9})
    train(source, 1)
    clone = torchcow.clone(source)
    want = freeze(list(source))
    clone[0]().sum().backward()
    clone[0]().sum().backward()
    clone[1].step()
    clone[1].zero_grad(set_to_none=False)
    assert_same(want, freeze(list(source)), "the source")


@pytest.mark.parametrize("variant", ["for-loop", "foreach", "fused"])
def test_optimizer_made_after_the_clone(variant):
    seed(0)
    source = Net()
    clone, oracle = torchcow.clone(source), copy.deepcopy(source)
    want = freeze(source)
    for model in (clone, oracle):
        train((model, torch.optim.AdamW(model.parameters(), **VARIANTS[variant])))
    assert_same(freeze(oracle), freeze(clone), "the trained clone")
    assert_same(want, freeze(source), "the source")


def test_grad_scaler_unscales_only_its_own():
    source = pair("SGD", {})
    scaler = torch.amp.GradScaler("cpu")
    clone = torchcow.clone((*source, scaler))
    want = freeze(list(source))
    model, optimizer, scaler = clone
    scaler.scale(model().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_same(want, freeze(list(source)), "the source")
