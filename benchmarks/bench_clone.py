"""What does a clone cost, against ``copy.deepcopy`` and against the best that can be put together from public parts?

The public parts: copium, a deepcopy in C, with every tensor in its memo already, made by ``torch._lazy_clone``.

Prediction: a module is 15 Python objects (its dict and the tables in it), at 50 to 80 ns each: about 1 us. A
tensor is a Python object, a TensorImpl, a StorageImpl and a sharer: below 0.5 us. Nothing depends on bytes. An object
without tensors is bound by the allocator of Python.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import random

import pytest
import torch
from torch import nn

import models
import torchcow

copium = pytest.importorskip("copium", reason="make bench installs it")


TURN = 0.02  # seconds


def gpt2_of_transformers(tiny):
    transformers = pytest.importorskip("transformers", reason="make test-models or make demo installs it")
    size = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 257} if tiny else {}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size))


def llama_1b(tiny):
    """The shapes of a Llama-style model with 1.1 billion parameters, in bfloat16."""
    transformers = pytest.importorskip("transformers", reason="make test-models or make demo installs it")
    config = transformers.LlamaConfig(
        hidden_size=64 if tiny else 2048,
        intermediate_size=128 if tiny else 5632,
        num_hidden_layers=2 if tiny else 22,
        num_attention_heads=4 if tiny else 32,
        num_key_value_heads=4,
        vocab_size=257 if tiny else 32000,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    return model


def deep_perceptron(tiny):
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(10 if tiny else 1000)))


MODELS = {
    "gpt2": lambda tiny: models.gpt2(tiny)[0],
    "gpt2_of_transformers": gpt2_of_transformers,
    "llama_1b_bfloat16": llama_1b,
    "perceptron_of_1000_layers": deep_perceptron,
}


def public_parts(model):
    memo = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch._lazy_clone(parameter.data), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch._lazy_clone(buffer)
    return copium.deepcopy(model, memo)


@pytest.mark.parametrize("name", MODELS)
def test_models(name, tiny, compare, report):
    model = MODELS[name](tiny)
    prototype = torchcow.clone(model)  # all are sharers already, as with any second clone
    medians = compare(
        turn=TURN,
        deepcopy=(lambda: model, copy.deepcopy),
        public_parts=(lambda: None, public_parts_of_another(model)),
        clone=(lambda: model, torchcow.clone),
    )
    report(
        modules=sum(1 for _ in model.modules()),
        tensors=sum(1 for _ in model.parameters()) + sum(1 for _ in model.buffers()),
        deepcopy_over_clone=medians["deepcopy"] / medians["clone"],
        public_parts_over_clone=medians["public_parts"] / medians["clone"],
    )
    del prototype


def public_parts_of_another(model):
    """torch's own lazy clones refuse memory that is shared by us: they get a model of their own."""
    own = copy.deepcopy(model)
    public_parts(own)
    return lambda _: public_parts(own)


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
def test_objects_without_tensors(name, tiny, compare, report):
    obj = plain_objects(name, tiny)
    medians = compare(
        turn=TURN,
        deepcopy=(lambda: obj, copy.deepcopy),
        copium=(lambda: obj, copium.deepcopy),
        clone=(lambda: obj, torchcow.clone),
    )
    report(
        deepcopy_over_clone=medians["deepcopy"] / medians["clone"],
        copium_over_clone=medians["copium"] / medians["clone"],
    )


def test_where_the_time_goes(tiny, compare, report):
    """Modules without tensors, tensors without modules, and the allocations that no copy of a module can do without."""
    many = 10 if tiny else 1000
    relus = [nn.ReLU() for _ in range(many)]
    tensors = [nn.Parameter(torch.zeros(1024)) for _ in range(many)]
    prototype = torchcow.clone(tensors)
    tables = [value for value in vars(relus[0]).values() if isinstance(value, (dict, set))]

    def allocate(_):
        make = [type(table) for table in tables]
        new, cls = object.__new__, nn.ReLU
        return [(new(cls), dict.fromkeys(vars(relus[0])), [one() for one in make]) for _ in relus]

    medians = compare(
        turn=TURN,
        modules=(lambda: relus, torchcow.clone),
        allocations=(lambda: None, allocate),
        tensors=(lambda: tensors, torchcow.clone),
        detach=(lambda: tensors, lambda all_of_them: [tensor.detach() for tensor in all_of_them]),
    )
    report(**{f"{name}_us_each": seconds / many * 1e6 for name, seconds in medians.items()})
    del prototype
