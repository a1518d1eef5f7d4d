# SPDX-License-Identifier: Apache-2.0
"""How long does a clone take, against other methods?

Prediction: a module is 17 Python objects (its dict and the tables in it), at 50 to 80 ns each: about 1 us. A
tensor is a Python object, a TensorImpl, a StorageImpl and a sharer: below 0.5 us. Nothing depends on bytes. An object
without tensors is bound by the allocator of Python. Dicts for ``functional_call`` make no modules, and are faster.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import gc
import random

import pytest
import torch
from torch import nn

import baselines
import torchcow
import zoo

TURN = 0.02  # seconds


def test_methods(benchmark, record):
    for title, baseline in baselines.available().items():
        record(candidate=title, isolated=baseline.isolated, limits=baseline.limits)
    assert benchmark(lambda: torchcow.clone([1])) == [1]


@pytest.mark.parametrize("name", zoo.CASES)
def test_models(name, form, compare, record):
    if form == "quick" and name in zoo.LARGE:
        pytest.skip("measured by the full form")
    case = zoo.CASES[name](form == "tiny")
    # torch's lazy clones refuse memory that torchcow shares, and pickling materializes it: each has a model of its own.
    plain = copy.deepcopy(case.model)
    candidates = {}
    for title, baseline in baselines.available().items():
        own = plain
        if title in ("torchcow.clone", "_lazy_clone in the memo"):
            own = case.model if title == "torchcow.clone" else copy.deepcopy(case.model)
        make = baseline.prepare(case, own)
        baselines.agree(title, baseline, case, own, make)
        candidates[title] = (lambda: None, lambda _, make=make: make())
        del make
        gc.collect()
    seconds = 60.0 if name in ("llama", "gpt2_medium") else 30.0
    compare(seconds, TURN, {"model": case.name}, warm=True, **candidates)
    tensors = [*case.model.parameters(), *case.model.buffers()]
    memo: dict = {}
    kept = copy.deepcopy(case.model, memo)
    record(
        table="sizes",
        model=case.name,
        modules=sum(1 for _ in case.model.modules()),
        objects=len(memo) - 1,  # the memo itself keeps one list more
        tensors=len(tensors),
        bytes=sum(tensor.nbytes for tensor in tensors),
    )
    del kept


def configuration(depth, rng):
    if depth == 0:
        return rng.choice([1, 2.5, "text", None, True, (1, 2)])
    if rng.random() < 0.5:
        return [configuration(depth - 1, rng) for _ in range(6)]
    return {f"key{index}": configuration(depth - 1, rng) for index in range(6)}


@dataclasses.dataclass
class Record:
    number: int
    name: str
    values: list
    other: object = None


@dataclasses.dataclass(slots=True)
class Slotted:
    number: int
    name: str
    values: list


def plain_objects(name, tiny):
    many = 10 if tiny else 10_000
    return {
        "configuration": lambda: [configuration(3 if tiny else 6, random.Random(seed)) for seed in (0, 1)],
        "dataclasses": lambda: [Record(i, "x", [i], Record(1, "y", [])) for i in range(many)],
        "slotted_dataclasses": lambda: [Slotted(i, "x", [i]) for i in range(many)],
        "sets": lambda: [{i, i + 1} for i in range(many)],
        "ordered_dicts": lambda: [collections.OrderedDict(a=i) for i in range(many)],
    }[name]()


@pytest.mark.parametrize("name", ["configuration", "dataclasses", "slotted_dataclasses", "sets", "ordered_dicts"])
def test_objects_without_tensors(name, tiny, compare):
    obj = plain_objects(name, tiny)
    expected = copy.deepcopy(obj)
    candidates = {"copy.deepcopy": copy.deepcopy, "torchcow.clone": torchcow.clone}
    if baselines.copium is not None:
        candidates["copium.deepcopy"] = baselines.copium.deepcopy
    assert all(act(obj) == expected for act in candidates.values())
    compare(
        seconds=4.0,
        turn=TURN,
        labels={"objects": name.replace("_", " ")},
        **{title: (lambda: obj, act) for title, act in candidates.items()},
    )


def test_where_the_time_goes(tiny, compare, report):
    """Modules without tensors, tensors without modules, and the allocations that each copy of a module needs."""
    many = 10 if tiny else 1000
    relus = [nn.ReLU() for _ in range(many)]
    tensors = [nn.Parameter(torch.zeros(1024)) for _ in range(many)]
    prototype = torchcow.clone(tensors)
    tables = [value for value in vars(relus[0]).values() if isinstance(value, (dict, set))]

    def allocate(_):
        make = [type(table) for table in tables]
        new, cls = object.__new__, nn.ReLU
        return [(new(cls), dict.fromkeys(vars(relus[0])), [one() for one in make]) for _ in relus]

    times = compare(
        seconds=4.0,
        turn=TURN,
        modules=(lambda: relus, torchcow.clone),
        allocations=(lambda: None, allocate),
        tensors=(lambda: tensors, torchcow.clone),
        detach=(lambda: tensors, lambda all_of_them: [tensor.detach() for tensor in all_of_them]),
    )
    report(**{f"{name}_us_each": times[name] / many * 1e6 for name in times.seconds})
    del prototype
