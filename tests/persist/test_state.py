# SPDX-License-Identifier: Apache-2.0
"""What an object is made of: it comes back exactly, through JSON and tensors, or is refused with its dotted path.

Catches: a tie, a flag, a stride or a dtype that is lost on the way, a structure that is changed, state that is dropped
without a word, a difference that is not told.
"""

from __future__ import annotations

import copy
import dataclasses
import threading

import numpy as np
import pytest
import torch
from torch import nn

import torchcow
from support.oracle import assert_same, freeze
from support.states import CASES, Metric, Net, seen, through_json
from torchcow import StateError
from torchcow.persist.state import capture, restore


@pytest.mark.parametrize("name", CASES)
def test_an_object_comes_back_exactly(name):
    saved, structure = CASES[name](True), CASES[name](False)
    want, before_saved, before = freeze(seen(copy.deepcopy(saved))), freeze(saved), freeze(structure)
    again = through_json(saved, structure)
    assert_same(want, seen(again), name)
    assert_same(before_saved, saved, "the saved object")
    assert_same(before, structure, "the structure")
    assert list(capture(again).tensors) == list(capture(saved).tensors)


@pytest.mark.sharing
@pytest.mark.parametrize("name", ["net", "Adam", "plain"])
def test_taking_apart_reads_and_unshares_nothing(name):
    saved = CASES[name](True)
    clone = torchcow.clone(saved)
    torchcow.events(clear=True)
    shared = {path for path, tensor in capture(saved).tensors.items() if torchcow.is_shared(tensor)}
    assert len(shared) >= 3
    capture(clone)
    assert not torchcow.events()


def test_ties_and_identities_are_those_of_the_saved_object():
    again = through_json(Net(), Net(False))
    assert again.tied.weight is again.head.weight
    assert again.again is again.head
    optimizer = through_json(CASES["Adam"](True), CASES["Adam"](False))
    assert optimizer["optimizer"].param_groups[0]["params"][0] is optimizer["model"].weight


def fit(saved, structure):
    with pytest.raises(StateError) as error:
        through_json(saved, structure)
    return str(error.value)


def test_all_differences_are_listed_and_the_structure_is_left_alone():
    saved, structure = Net(), Net(False)
    structure.body[0] = nn.Conv2d(3, 5, 3)
    structure.head.weight = nn.Parameter(torch.rand(4, 4).double())
    structure.extra = nn.Linear(1, 1)
    structure.activation = torch.tanh
    del structure._buffers["steps"]
    before = freeze(structure)
    text = fit(saved, structure)
    for part in (
        "'body.0.weight' expected a tensor (float32, 4x3x3x3), got a tensor (float32, 5x3x3x3, 540 bytes, cpu)",
        "'head.weight' expected a tensor (float32, 4x4), got a tensor (float64, 4x4, 128 bytes, cpu)",
        "'tied.weight' is the same object as 'head.weight' in the saved state, not here",
        "'extra' (a Linear) is not in the saved state",
        "'extra.bias' a tensor (float32, 1, 4 bytes, cpu) is not in the saved state",
        "'activation' expected builtin_function_or_method",
        "'steps' is missing in the structure; the saved state has a tensor (int64, scalar)",
    ):
        assert part in text
    assert_same(before, structure, "the structure")


MISFITS = [
    (lambda: (nn.ReLU(), nn.GELU()), "the object itself expected a ReLU, got a GELU"),
    (lambda: (nn.Linear(2, 2, bias=False), nn.Linear(2, 2)), "'bias' .* is not in the saved state"),
    (lambda: (nn.Linear(2, 2), nn.Linear(2, 2, bias=False)), "'bias' is None in the structure"),
    (lambda: ([torch.zeros(1)], [torch.zeros(1)] * 2), "expected 1 items, got 2"),
    (lambda: ([torch.zeros(1), torch.zeros(1)], [torch.zeros(1)] * 2), "'1' is the same object as '0' here"),
    (lambda: ({"a": None}, {"a": torch.zeros(1)}), "'a' a tensor .* is not in the saved state"),
    (lambda: ({"a": 1, "x": torch.zeros(1)}, {"b": torch.zeros(1), "x": torch.zeros(1)}), "'b' a tensor .* is not in"),
    (lambda: (np.zeros(2), np.zeros(3)), "expected an array"),
    (lambda: (np.zeros(2), np.zeros(2, "f4")), "expected an array"),
    (lambda: (nn.Linear(2, 2), nn.Linear(2, 2, device="meta")), "has no memory in the structure"),
    (lambda: ({"f": torch.relu, "x": torch.zeros(1)}, {"f": 3, "x": torch.zeros(1)}), "'f' expected builtin_function"),
    (
        lambda: ({"d": torch.int8, "x": torch.zeros(1)}, {"d": torch.int16, "x": torch.zeros(1)}),
        "'d' expected torch.int8",
    ),
]


@pytest.mark.parametrize(("make", "text"), MISFITS)
def test_a_structure_that_does_not_fit(make, text):
    with pytest.raises(StateError, match=text):
        through_json(*make())


def default(x=torch.zeros(2)):  # noqa: B008
    return x


class Holder:
    def __init__(self, value):
        self.inner = [value]


def closure():
    hidden = torch.zeros(2)
    return lambda: hidden


def with_hook():
    hidden = torch.zeros(2)
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda *_: hidden.add_(1))
    return model


def views():
    base = torch.zeros(4)
    return {"a": base[:3], "b": base[2:]}


def with_attribute():
    made = torch.zeros(2)
    made.scale = torch.ones(1)
    return made


def with_gradient():
    leaf = torch.zeros(2, requires_grad=True)
    leaf.sum().backward()
    return leaf


@dataclasses.dataclass
class Wrapped(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return NotImplemented


REFUSED = {
    "lock": (lambda: Holder(threading.Lock()), r"'inner\.0': a lock cannot be written down"),
    "iterator": (lambda: Holder(iter([torch.zeros(1)])), r"'inner\.0': a list_iterator"),
    "sparse": (lambda: Holder(torch.eye(3).to_sparse()), r"'inner\.0': .* its layout is torch.sparse_coo"),
    "meta": (lambda: Holder(torch.zeros(2, 3, device="meta")), "float32, 2x3, 24 bytes, meta.* no content"),
    "nested": (lambda: Holder(torch.nested.nested_tensor([torch.zeros(2)])), "it is nested"),
    "quantized": (lambda: Holder(torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)), "quantized"),
    "complex128": (lambda: Holder(torch.zeros(2, dtype=torch.complex128)), "no dtype torch.complex128"),
    "subclass": (lambda: Holder(torch.zeros(2).as_subclass(Wrapped)), "answers for its own operators"),
    "gradient": (lambda: Holder(with_gradient()), r"'inner\.0': .* it has a gradient"),
    "lazy": (lambda: nn.LazyLinear(2), "'weight': a UninitializedParameter .* not initialized"),
    "views": (views, "'a' and 'b' are views of the same memory"),
    "closure": (closure, "code refers to a tensor .* would be lost"),
    "default": (lambda: default, "code refers to a tensor"),
    "hook": (with_hook, "'_forward_hooks': code refers to a tensor"),
    "builtin": (lambda: Holder(torch.zeros(2).add), r"'inner\.0': code refers to a tensor"),
    "attribute": (lambda: Holder(with_attribute()), r"'inner\.0': .* attributes with tensors \(scale\)"),
    "set": (lambda: Holder({torch.zeros(1)}), r"'inner\.0': a set"),
    "key": (lambda: {nn.ReLU(): torch.zeros(1)}, "a key of type ReLU"),
    "paths": (lambda: {"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)}, r"'a\.b': two parts"),
    "objects": (lambda: np.array([None, "a"]), "an array of dtype object"),
    "bytearray": (lambda: Holder(bytearray(b"a")), "a bytearray"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_down_is_refused_with_its_path(name):
    make, text = REFUSED[name]
    with pytest.raises(StateError, match=text):
        capture(make())


class Forgetful(Metric):
    def load_state_dict(self, state):
        self.counts = {name: value.half() for name, value in state["counts"].items()}


class Failing(Metric):
    def load_state_dict(self, state):
        raise KeyError("a")


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (
            Forgetful,
            r"'m\.counts\.a': load_state_dict of a Forgetful was given a tensor \(float32, \[3\]\) and did not",
        ),
        (Failing, "'m': load_state_dict of a Failing failed: 'a'"),
    ],
)
def test_an_object_that_does_not_keep_its_own_state(cls, text):
    with pytest.raises(StateError, match=text):
        through_json({"m": cls(True)}, {"m": cls(False)})


def test_no_tensor_is_read_when_something_does_not_fit():
    state = capture(Net())
    structure = Net(False)
    structure.tied = nn.Linear(3, 3)

    def read(name):
        raise AssertionError(name)

    with pytest.raises(StateError):
        restore(structure, state.nodes, read)
