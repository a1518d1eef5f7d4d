# SPDX-License-Identifier: Apache-2.0
"""How does it scale: with depth, tensors, bytes, live clones, and threads?

Prediction: the cost per unit is flat. A clone looks at each object once, whatever is alive beside it; a block knows the
number of its sharers and no list of them. Clones in threads take turns, as all Python does; the copies of their first
writes do not. Curves bend where objects no longer fit into the caches of the processor.
"""

from __future__ import annotations

import copy
import threading
import time

import pytest
import torch
from torch import nn

import models
import torchcow
from resident import resident

TURN = 0.02
MOST_AT_ONCE = 10_000  #: tensors that one operator writes for the first time; more would take minutes


@pytest.fixture
def measure(compare):
    """As ``compare``, with rows of the table ``per_unit``, in seconds per unit; ``at`` is the number that grows."""

    def run(unit, count, what, at=None, **candidates):
        labels = {"what": what, "at": count if at is None else at, "unit": unit}
        compare(3.0, TURN, labels, "per_unit", units=count, **candidates)

    return run


@pytest.fixture
def count(request, form):
    """How many; numbers that only larger forms measure are skipped."""
    if request.param > form.choose(100, 10_000, 1_000_000):
        pytest.skip("measured by a larger form")
    return request.param


def sizes(*values):
    return pytest.mark.parametrize("count", values, indirect=True)


def both(obj):
    return {"copy.deepcopy": (lambda: obj, copy.deepcopy), "torchcow.clone": (lambda: obj, torchcow.clone)}


@sizes(10, 100, 1000, 10_000)
def test_layers(count, measure):
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(count)))
    kept = torchcow.clone(model)
    measure("layer", count, "layers in a row", **both(model))
    assert torch.equal(kept[-1].weight, model[-1].weight)
    del kept


@sizes(10, 100, 1000, 10_000)
def test_nesting(count, measure):
    """Each level is a module within a module; ``copy.deepcopy`` fails at a few hundred."""
    model = nn.Linear(32, 32)
    for _ in range(count):
        model = nn.Sequential(model)
    measure("level", count, "levels of nesting", **{"torchcow.clone": (lambda: model, torchcow.clone)})
    while isinstance(model, nn.Sequential):  # unnest, as freeing it would take one C frame per level
        model = model[0]


@sizes(10, 100, 1000, 10_000, 100_000)
def test_tensors(count, measure):
    tensors = [torch.ones(1024) for _ in range(count)]
    kept = torchcow.clone(tensors)

    def write(clones):
        for tensor in clones:
            tensor.add_(1)

    def foreach(clones):
        torch._foreach_add_(clones, 1.0)

    candidates = {
        **both(tensors),
        "detach": (lambda: tensors, lambda all_of_them: [tensor.detach() for tensor in all_of_them]),
        "first write": (lambda: torchcow.clone(tensors), write),
        "write": (lambda: copy.deepcopy(tensors), write),
    }
    if count <= MOST_AT_ONCE:
        candidates["first write by _foreach_add_"] = (lambda: torchcow.clone(tensors), foreach)
        candidates["_foreach_add_"] = (lambda: copy.deepcopy(tensors), foreach)
    measure("tensor", count, "tensors of 4 KiB in a list", **candidates)
    assert all(bool((tensor == 1).all()) for tensor in kept)


@sizes(1, 16, 256, 4096, 32_768)
def test_bytes(count, measure):
    """A hundred tensors of so many KiB. The unit is a tensor: a clone touches no byte of it."""
    tensors = [torch.ones(count * 256) for _ in range(100)]
    kept = torchcow.clone(tensors)
    measure("tensor", 100, "KiB of 100 tensors", count, **both(tensors))
    del kept


@sizes(1, 10, 100, 1000)
def test_live_clones(count, form, measure):
    """One more clone, and one more first write, of a model of 100 layers that has so many clones."""
    model, _ = models.perceptron(tiny=form == "tiny")
    parameters = len(list(model.parameters()))
    alive = [torchcow.clone(model) for _ in range(count)]

    def write(clone):
        with torch.no_grad():
            for parameter in clone.parameters():
                parameter.add_(1)

    measure(
        "tensor",
        parameters,
        "clones alive",
        count,
        **{
            "torchcow.clone": (lambda: model, torchcow.clone),
            "first write": (lambda: torchcow.clone(model), write),
            "drop": (lambda: [torchcow.clone(model)], list.clear),
        },
    )
    assert all(torch.equal(a, b) for a, b in zip(alive[-1].parameters(), model.parameters(), strict=True))
    del alive


def in_threads(count, act):
    """Seconds until so many threads, which start together, have all run ``act``."""
    together, errors = threading.Barrier(count + 1), []

    def run(number):
        try:
            together.wait()
            act(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    together.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - begin


@pytest.mark.parametrize("name", ["torchcow.clone", "copy.deepcopy"])
def test_threads(name, form, report, record):
    """Threads clone one model of 26 MB and write a tenth of it, again and again: seconds per clone, of all together."""
    copier = {"torchcow.clone": torchcow.clone, "copy.deepcopy": copy.deepcopy}[name]
    model, _ = models.perceptron(tiny=form == "tiny")
    before = copy.deepcopy(model.state_dict())
    each, rounds = form.choose(2, 20, 50), form.choose(1, 5, 11)

    def act(number):
        for turn in range(each):
            clone = copier(model)
            with torch.no_grad():
                for layer in list(clone)[::10]:
                    layer.weight.fill_(number + turn)
            assert all(bool((layer.weight == number + turn).all()) for layer in list(clone)[::50])

    for count in (1, 2, 4, 8):
        in_threads(count, act)
        times = sorted(in_threads(count, act) / (count * each) for _ in range(rounds))
        middle = {"lower": times[rounds // 4], "median": times[rounds // 2], "upper": times[-1 - rounds // 4]}
        what = "threads that clone and write"
        record("per_unit", what=what, at=count, unit="clone", candidate=name, rounds=rounds, seconds=middle)
        report(**{f"{count} threads, us per clone": middle["median"] * 1e6})
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_memory_of_a_clone(form, report, record):
    """Memory of a clone of GPT-2 that was not written: the Python objects of 90 modules."""
    model, _ = models.gpt2(form == "tiny")
    count = form.choose(5, 100, 300)
    clones = [torchcow.clone(model) for _ in range(count)]  # these fill the holes that are in the heap
    before = resident()
    clones += [torchcow.clone(model) for _ in range(count)]
    each = (resident() - before) / count
    modules = sum(1 for _ in model.modules())
    report(bytes_per_clone=each, bytes_per_module=each / modules)
    record(model="GPT-2 124M", clones=count, modules=modules, bytes_per_clone=each)
    assert torchcow.memory(model, *clones).unique < 2 * torchcow.memory(model).unique
