# SPDX-License-Identifier: Apache-2.0
"""Many threads clone, change and write at once, without a lock of their own.

Catches: state of a call that is kept in the prototype, two deep clones behind the shallow ones, a function of
``rebuild`` that is called for another clone, and a write that reaches the snapshot.
"""

from __future__ import annotations

import threading
import time

import torch
from torch import nn

import torchcow
import torchcow.testing
from support.oracle import SIDE, assert_same, freeze
from support.threads import THREADS, no_hang, together  # noqa: F401 - a fixture

SECONDS = 1.0


def pair():
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Dropout(0.1), nn.Linear(SIDE, SIDE))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(2, SIDE)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "lock": threading.Lock()}


def test_threads_clone_change_and_write():
    prototype = torchcow.Prototype(pair(), rebuild={"lock": lambda: [threading.get_ident()]})
    want = freeze(prototype.clone()["model"])
    start = prototype.clone()["model"][0].weight.detach().clone()

    def work():
        mark = float(threading.get_ident() % 1000)
        mine = prototype.clone(**{"model.1.p": mark / 1000, "optimizer.lr": mark})
        assert mine["lock"] == [threading.get_ident()]
        assert mine["model"][1].p == mark / 1000 and mine["optimizer"].param_groups[0]["lr"] == mark
        assert torch.equal(mine["model"][0].weight, start)
        mine["model"](torch.rand(2, SIDE)).sum().backward()
        mine["optimizer"].step()
        with torch.no_grad():
            for p in mine["model"].parameters():
                p.mul_(0).add_(mark)
        assert all(bool((p == mark).all()) for p in mine["model"].parameters())

    together(*[work] * THREADS, seconds=SECONDS)
    assert_same(want, prototype.clone()["model"], "the model of a clone")
    torchcow.testing.verify()


def test_the_source_is_trained_while_prototypes_are_made_and_cloned():
    """A prototype is made between two steps; the clones of each are of one moment."""
    source = nn.Linear(SIDE, SIDE)
    step = threading.Lock()
    made = [torchcow.Prototype(source)]

    def write():
        with step, torch.no_grad():
            value = float(source.weight[0, 0]) + 1
            source.weight.fill_(value)
            source.bias.fill_(value)

    def snapshot():
        with step:
            made.append(torchcow.Prototype(source))
            del made[:-5]

    def clone():
        one = made[-1].clone()
        if one.weight[0, 0] == one.weight[1, 1]:  # not the very first, which is random
            assert (one.weight == one.bias[0]).all()

    with torch.no_grad():
        source.weight.fill_(1)
        source.bias.fill_(1)
    together(write, snapshot, *[clone] * THREADS, seconds=SECONDS)
    torchcow.testing.verify()


def test_all_threads_get_shallow_clones_of_one_deep_clone():
    for _ in range(10):
        calls = []
        prototype = torchcow.Prototype(
            [nn.Linear(SIDE, SIDE), None], rebuild={"1": lambda calls=calls: calls.append(time.sleep(0.001))}
        )
        found = []
        together(*[lambda prototype=prototype, found=found: found.append(prototype.clone(deep=False))] * THREADS)
        assert len({id(one[0]) for one in found}) == len(calls) == 1
        assert len({id(one) for one in found}) == THREADS


def test_a_function_may_clone_the_prototype_that_calls_it():
    prototype = torchcow.Prototype({"a": None, "b": [1]}, rebuild={"a": lambda: other.clone(deep=False)["b"]})
    other = torchcow.Prototype({"b": [2]}, each=lambda clone: prototype.name)
    assert prototype.clone(deep=False) == {"a": [2], "b": [1]}


def test_a_prototype_that_is_made_within_a_clone():
    inner = []

    class Curious:
        def __deepcopy__(self, memo):
            inner.append(torchcow.Prototype(nn.Linear(SIDE, SIDE)).clone())
            return Curious()

    torchcow.Prototype([Curious(), nn.Linear(SIDE, SIDE)]).clone()
    assert len(inner) == 3
