# SPDX-License-Identifier: Apache-2.0
"""Changes of a clone: all are checked before anything is made, and none reaches the snapshot or a sibling.

Catches: a value that siblings have in common, a change that is made although another one is refused, a shallow clone
whose aliasing is not that of ``copy.copy``, or that reaches the snapshot.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchcow
from support.oracle import SIDE, assert_same, freeze


def pair():
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Dropout(0.1))
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), "classes": ["a"]}


def test_changes_are_those_of_one_clone():
    prototype = torchcow.Prototype(pair())
    changed = prototype.clone(**{"model.1.p": 0.3, "optimizer.lr": 0.01, "classes.0": "b"})
    assert (changed["model"][1].p, changed["classes"]) == (0.3, ["b"])
    assert changed["optimizer"].param_groups[0]["lr"] == changed["optimizer"].defaults["lr"] == 0.01
    assert_same(freeze(prototype._snapshot), prototype.clone(), "another clone")
    assert prototype.clone()["model"][1].p == 0.1


def test_a_changed_clone_is_what_assignments_to_a_deep_copy_make():
    prototype = torchcow.Prototype(pair())
    weight, head = nn.Parameter(torch.rand(SIDE, SIDE)), nn.Sequential(nn.ReLU(), nn.Linear(SIDE, 2))
    want = copy.deepcopy(prototype._snapshot)
    want["model"][0].weight = weight
    want["model"][1] = head
    got = prototype.clone(**{"model.0.weight": weight, "model.1": head})
    assert_same(want, got, "the clone")


@pytest.mark.sharing
def test_values_are_cloned_for_each_clone():
    prototype = torchcow.Prototype(pair())
    weight = nn.Parameter(torch.rand(SIDE, SIDE))
    first, second = (prototype.clone(**{"model.0.weight": weight}) for _ in range(2))
    assert torchcow.is_shared(first["model"][0].weight)
    with torch.no_grad():
        first["model"][0].weight.zero_()
    assert weight.any() and torch.equal(second["model"][0].weight, weight)
    classes = [1]
    prototype.clone(classes=classes)["classes"].append(2)
    assert classes == [1]


def test_values_that_are_one_object_stay_one():
    tied = nn.Parameter(torch.rand(SIDE, SIDE))
    prototype = torchcow.Prototype([nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE)])
    clone = prototype.clone(**{"0.weight": tied, "1.weight": tied})
    assert clone[0].weight is clone[1].weight is not tied


def test_nothing_is_made_if_one_change_is_refused():
    made = []
    prototype = torchcow.Prototype(pair(), each=made.append)
    for changes, words in [
        ({"model.1.p": 0.3, "model.1.q": 1}, "there is no 'q' in 'model.1' \\(Dropout\\)"),
        ({"model.1.p": 0.3, "model.0.weight": torch.ones(1)}, "takes a torch.nn.Parameter or None, got a Tensor"),
        ({"model.1.p": 0.3, "model.0.bias": torch.nn}, "takes a torch.nn.Parameter or None, got a module"),
    ]:
        with pytest.raises(torchcow.PathError, match=words):
            prototype.clone(**changes)
    with pytest.raises(torchcow.CloneError, match=r"the dict of changes has a component .*\n  'classes' .generator"):
        prototype.clone(classes=(i for i in [1]))
    with pytest.raises(ValueError, match=r"the change of 'model.1.p' lies inside of the change of 'model.1'"):
        prototype.clone(**{"model.1": nn.ReLU(), "model.1.p": 0.3})
    assert made == []


def test_frozen_parameters_in_one_clone():
    prototype = torchcow.Prototype(pair())
    clone = prototype.clone(**{"model.0.weight.requires_grad": False})
    assert not clone["model"][0].weight.requires_grad
    assert prototype.clone()["model"][0].weight.requires_grad


class Plain:
    def __init__(self):
        self.sizes, self.inner, self.number = [1, 2], {"a": [torch.rand(SIDE)]}, 3


def module():
    made = nn.Sequential(nn.Linear(SIDE, SIDE), nn.BatchNorm1d(SIDE))
    made.note = ["a"]
    return made


KINDS = {
    "dict": pair, "list": lambda: [[1], {"a": torch.rand(SIDE)}], "module": module, "object": Plain,
    "tensor": lambda: torch.rand(SIDE), "tuple": lambda: ([1], 2), "number": lambda: 3,
    "optimizer": lambda: torch.optim.SGD(module().parameters(), lr=0.1),
}  # fmt: skip


def aliases(one, other):
    """Which members two objects have in common."""
    if isinstance(one, torch.Tensor):
        return one.untyped_storage()._cdata == other.untyped_storage()._cdata
    if isinstance(one, (list, tuple)):
        return [a is b for a, b in zip(one, other, strict=True)]
    one, other = (obj if isinstance(obj, dict) else vars(obj) for obj in (one, other))
    return {key: one[key] is other[key] for key in one}


@pytest.mark.parametrize("kind", KINDS)
def test_shallow_clones_alias_what_copies_do(kind):
    source = copy.deepcopy(KINDS[kind]())  # an optimizer leaves attributes behind, the first time
    prototype = torchcow.Prototype(source)
    first, second, deep = prototype.clone(deep=False), prototype.clone(deep=False), prototype.clone()
    assert_same(copy.copy(source), first, "a shallow clone")
    assert (first is second) == (copy.copy(source) is source)
    if kind != "number":
        assert aliases(first, second) == aliases(source, copy.copy(source))
        wanted = aliases(copy.deepcopy(source), source)
        assert aliases(first, prototype._snapshot) == wanted
        assert aliases(first, deep) == wanted


def test_writes_to_a_shallow_clone_reach_its_siblings_and_nobody_else():
    prototype = torchcow.Prototype(module())
    first, second, deep = prototype.clone(deep=False), prototype.clone(deep=False), prototype.clone()
    with torch.no_grad():
        first[0].weight.zero_()
    first.note.append("b")
    first.note = []
    assert not second[0].weight.any() and second.note == ["a", "b"]
    assert deep[0].weight.any() and prototype._snapshot[0].weight.any() and deep.note == ["a"]
    assert not prototype.clone(deep=False)[0].weight.any()


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("module", "0", nn.ReLU()), ("module", "0.weight", None), ("module", "note.0", 1), ("dict", "model.1.p", 0.5),
        ("dict", "classes.0", 1), ("optimizer", "lr", 0.5), ("object", "inner.a", 1),
    ],
)  # fmt: skip
def test_a_change_that_would_reach_other_shallow_clones_is_refused(kind, path, value):
    prototype = torchcow.Prototype(KINDS[kind]())
    want = freeze(prototype.clone(deep=False))
    with pytest.raises(torchcow.PathError, match=f"'{path}' cannot be set in a shallow clone: all shallow"):
        prototype.clone(deep=False, **{path: value})
    assert_same(want, prototype.clone(deep=False), "a sibling")
    prototype.clone(**{path: value})


@pytest.mark.parametrize(
    ("kind", "path"), [("module", "note"), ("dict", "classes"), ("object", "number"), ("list", "0")]
)
def test_a_change_of_the_top_object_alone_is_made(kind, path):
    prototype = torchcow.Prototype(KINDS[kind]())
    want = freeze(prototype.clone(deep=False))
    changed = prototype.clone(deep=False, **{path: "new"})
    assert torchcow.objects.paths.look_up(changed, path) == "new"
    assert_same(want, prototype.clone(deep=False), "a sibling")


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c.d"]), st.integers(), st.booleans()), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_changed_clones_leaves_the_snapshot_alone(steps):
    source = {"a": [torch.zeros(SIDE)], "b": 2, "c.d": {"e": torch.ones(SIDE)}}
    prototype = torchcow.Prototype(source)
    for name, value, deep in steps:
        oracle = copy.deepcopy(source)
        oracle[name] = [torch.full((SIDE,), value % 7.0)]
        clone = prototype.clone(deep=deep, **{name: oracle[name]})
        assert_same(oracle, clone, "a changed clone")
        clone[name][0].fill_(3.0)
    assert_same(source, prototype.clone(), "a clone at the end")
    assert_same(source, prototype.clone(deep=False), "a shallow clone at the end")
