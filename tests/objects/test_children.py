# SPDX-License-Identifier: Apache-2.0
"""What objects consist of: one enumeration, whose names are unique in their holder, for reports, paths and files.

Catches: two children with one name, a tensor that a report passes over, a report that runs the code of a user's class
or leaves the object, and a name that differs between two functions of the package.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import logging
import types
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchcow
from support import generated_objects
from support.oracle import SIDE
from torchcow.objects.children import children, traverse
from torchcow.objects.paths import PathError, locate, look_up
from torchcow.objects.tensors import named_leaves, named_tensors
from torchcow.persist.state import capture, restore


def tensor(value=1.0):
    return torch.full((SIDE, SIDE), float(value))


Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Config:
    scale: torch.Tensor
    inner: object = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    scale: torch.Tensor


class Slots:
    __slots__ = ("__private", "values")

    def __init__(self):
        self.values, self.__private = tensor(), tensor(2)


class WithBoth(Slots):
    def __init__(self):
        super().__init__()
        self.other = tensor(3)


class Policy:
    """Can be called, and holds tensors."""

    def __init__(self):
        self.net = nn.Linear(SIDE, SIDE, bias=False)

    def __call__(self, x):
        return self.net(x)

    def act(self, x):
        return self.net(x)


class MyDict(dict):
    pass


class MyList(list):
    pass


class MyTuple(tuple):
    pass


def with_attribute(obj):
    obj.extra = tensor(9)
    return obj


def trained(name, frozen=False, **options):
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE))
    if frozen:
        model[0].weight.requires_grad_(False)  # so that the state's positions are not the parameters' indices
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1, **options)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, SIDE)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()
    return model, optimizer


def training(name, order=("model", "optimizer", "scheduler"), **options):
    model, optimizer = trained(name, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    return {part: parts[part] for part in order}


def with_shadow():
    module = nn.Linear(SIDE, SIDE)
    module.__dict__["weight"] = tensor(5)
    return module


def nested(depth):
    inner = nn.Linear(SIDE, SIDE, bias=False)
    for _ in range(depth):
        inner = nn.Sequential(inner)
    return inner


CASES = {
    "module": lambda: nn.Sequential(nn.Linear(SIDE, SIDE), nn.BatchNorm1d(SIDE)),
    "lists in a module": lambda: with_attribute(nn.Linear(SIDE, SIDE)),
    "AdamW": lambda: training("AdamW"),
    "optimizer first": lambda: training("AdamW", order=("scheduler", "optimizer", "model")),
    "optimizer with frozen parameters": lambda: training("AdamW", frozen=True),
    "optimizer alone": lambda: trained("AdamW")[1],
    "LBFGS": lambda: training("LBFGS"),
    "SGD": lambda: training("SGD", momentum=0.9),
    "colliding keys": lambda: {1: tensor(1), "1": tensor(2)},
    "colliding keys, the other order": lambda: {"1": tensor(2), 1: tensor(1), "'1'": tensor(3), None: tensor(4)},
    "keys of all kinds": lambda: {(1, None): tensor(), 2.5: tensor(), b"x": tensor(), True: tensor(), "": tensor()},
    "keys with dots": lambda: {"a.b": {"c.d": tensor()}},
    "named tuple": lambda: {"pair": Pair(tensor(1), [tensor(2)])},
    "dataclasses": lambda: [Config(tensor(), Frozen(tensor(2)))],
    "slots": lambda: {"a": Slots(), "b": WithBoth()},
    "partial": lambda: {"f": functools.partial(torch.add, tensor(1), other=tensor(2))},
    "bound method": lambda: {"act": Policy().act},
    "callable": lambda: {"policy": Policy()},
    "deque": lambda: {"buffer": collections.deque([tensor(1), {"x": tensor(2)}])},
    "set": lambda: {"set": {tensor(1)}, "frozen": frozenset([tensor(2)])},
    "subclasses": lambda: [MyDict(a=tensor()), MyList([tensor()]), MyTuple([tensor()])],
    "subclasses with attributes": lambda: [
        with_attribute(MyDict(a=tensor(), extra=tensor())),
        with_attribute(MyList([tensor()])),
        with_attribute(MyTuple([tensor()])),
    ],
    "mappings": lambda: [collections.UserDict(a=tensor()), collections.ChainMap({"k": tensor()})],
    "ordered": lambda: collections.OrderedDict(b=tensor(), a=tensor()),
    "namespace": lambda: types.SimpleNamespace(a=tensor(), b=[tensor()]),
    "ties": lambda: {"a": {"w": (shared := tensor())}, "b": shared, "c": [shared]},
    "gradients": lambda: _with_gradients(nn.Linear(SIDE, SIDE)),
    "attribute of a tensor": lambda: {"x": with_attribute(tensor())},
    "shadowed parameter": with_shadow,
    "arrays": lambda: {"array": np.zeros(3), "x": tensor()},
    "traced module": lambda: torch.jit.trace(nn.Sequential(nn.Linear(SIDE, SIDE)), torch.ones(1, SIDE)),
    "scripted module": lambda: torch.jit.script(nn.Sequential(nn.Linear(SIDE, SIDE), nn.BatchNorm1d(SIDE))),
    "tensors as keys": lambda: {"table": {nn.Parameter(tensor(1)): tensor(2), nn.Parameter(tensor(3)): tensor(4)}},
    "objects as keys": lambda: {"table": {object(): tensor(1), nn.ReLU(): tensor(2), len: tensor(3)}},
    "a tensor": tensor,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


def _with_gradients(model):
    model(torch.ones(2, SIDE)).sum().backward()
    return model


each_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


def names_in(obj):
    return {id(tensor): name for name, tensor in named_tensors(obj)}


@each_case
def test_names_are_unique_and_all_children_are_there(make):
    case = make()
    for _, part, first in traverse(case):
        if first:
            keys = [key for key, _ in children(part)]
            assert len(set(keys)) == len(keys)
    names = names_in(case)
    assert names and len(set(names.values())) == len(names)


@each_case
def test_each_path_leads_to_its_tensor(make):
    case = make()
    for name, leaf in named_tensors(case):
        if name:
            assert look_up(case, name) is leaf


@each_case
def test_the_functions_give_one_name_to_one_tensor(make):
    case = make()
    names = names_in(case)
    assert {id(leaf): name for name, leaf in reversed(named_leaves(case)) if isinstance(leaf, torch.Tensor)} == names
    explained = torchcow.explain(case)
    assert sorted(explained.unshared) == sorted(names.values())
    holdings = {holding.name for holding in torchcow.memory(case)._holdings}
    assert {name for name in holdings if not name.endswith("array")} <= set(names.values())
    compared = torchcow.diff(case, case)
    assert set(compared.tensors) >= {name for name in names.values() if "grad" not in name.split(".")}
    with torchcow.reading(case):
        pass


@pytest.mark.sharing
@each_case
def test_materialize_reaches_each_tensor_by_its_name(make):
    case = make()
    if isinstance(case, torch.jit.ScriptModule):
        pytest.skip("a deep copy of it shares nothing")
    clone = torchcow.clone(case)
    shared = {name: leaf for name, leaf in named_tensors(clone) if torchcow.is_shared(leaf)}
    assert torchcow.worst_case(clone) >= sum(leaf.nbytes for leaf in shared.values()) > 0
    for name, leaf in shared.items():
        if name:
            torchcow.reserve(clone, names=[name]).release()
            torchcow.materialize(clone, [name])
            assert not torchcow.is_shared(leaf), name
    again = torchcow.clone(case)
    torchcow.materialize(again)
    assert not any(torchcow.is_shared(leaf) for _, leaf in named_tensors(again))


@each_case
def test_files_have_the_same_names(make):
    case = make()
    names = names_in(case)
    try:
        state = capture(case)
    except torchcow.StateError:
        return
    for name, leaf in state.tensors.items():
        if id(leaf) in names:  # what state_dict or an array made is not in the object
            assert names[id(leaf)] == name
    restored = restore(case, state.nodes, lambda name: state.tensors[name].clone())
    kept = {name for name in names.values() if not name.endswith(".grad")}
    assert {name for name, _ in named_tensors(restored)} == kept
    assert torchcow.diff(case, restored).identical


@each_case
def test_clone_errors_have_the_same_names(make):
    """A node of a graph cannot be cloned, wherever a tensor can be."""
    case = make()
    blocked = {}
    for name, leaf in named_tensors(case):
        place = locate(case, name) if name else None
        if place and type(place.holder) in (dict, list) and not isinstance(leaf, nn.Parameter) and not vars(leaf):
            blocked[name] = torch.ones(2, requires_grad=True) * 2
            place.replace(blocked[name])
    if not blocked:
        return
    expected = {name for name, leaf in named_tensors(case) if any(leaf is one for one in blocked.values())}
    with pytest.raises(torchcow.CloneError) as error:
        torchcow.Prototype(case)
    lines = str(error.value).splitlines()[1:-1]
    assert len(max(lines, key=len)) < 250, "a name is no repr of a tensor"
    found = {line[2 : line.rindex(" (torch.Tensor")] for line in lines if " (torch.Tensor" in line}
    assert found <= {repr(name) for name in expected} and found


def test_events_and_traces_have_the_same_names():
    model, optimizer = trained("AdamW", frozen=True)
    model_copy, optimizer_copy = torchcow.clone((model, optimizer))
    torchcow.events(clear=True)
    with torchcow.trace() as writes:
        optimizer_copy.state[model_copy[1].weight]["exp_avg"].zero_()
    assert [write.name for write in writes.materializations] == ["AdamW.state.2.exp_avg"]
    assert named_in(optimizer_copy, optimizer_copy.state[model_copy[1].weight]["exp_avg"]) == "state.2.exp_avg"


def named_in(obj, leaf):
    return next(name for name, one in named_tensors(obj) if one is leaf)


@pytest.mark.sharing
def test_a_dict_whose_keys_collide_is_materialized_and_compared_as_a_whole():
    source = {1: tensor(1), "1": tensor(2)}
    clone = torchcow.clone(source)
    clone["1"].add_(1)
    assert torchcow.diff(source, clone).names("different") == ["'1'"]
    assert torchcow.diff(source, clone).names("shared") == ["1"]
    clone = torchcow.clone(source)
    torchcow.materialize(clone)
    assert not torchcow.is_shared(clone[1]) and not torchcow.is_shared(clone["1"])


def test_keys_with_dots_do_not_hide_a_tensor():
    obj = {"a": {"b": tensor(1)}, "a.b": tensor(2)}
    assert [name for name, _ in named_tensors(obj)] == ["a.b", "a.b.#2"]
    assert len(torchcow.diff(obj, obj).tensors) == len(torchcow.explain(obj).unshared) == 2
    clone = torchcow.clone(obj)
    torchcow.materialize(clone, ["a.b"])
    assert not torchcow.is_shared(clone["a"]["b"]) and not torchcow.is_shared(clone["a.b"])


def test_a_file_holds_a_dict_whose_keys_collide():
    obj = {1: torch.ones(2), "1": torch.zeros(2)}
    state = capture(obj)
    assert list(state.tensors) == ["1", "'1'"]
    restored = restore({1: torch.ones(2), "1": torch.ones(2)}, state.nodes, lambda name: state.tensors[name].clone())
    assert bool(restored[1].all()) and not bool(restored["1"].any())


def test_a_subclass_of_list_with_attributes_is_no_silent_loss():
    with pytest.raises(torchcow.StateError, match=r"'0': a MyList has attributes \(extra\) beside its items"):
        capture([with_attribute(MyList([tensor()]))])
    with pytest.raises(torchcow.StateError, match=r"'m': a RecursiveScriptModule cannot be written down"):
        capture({"m": torch.jit.script(nn.Linear(2, 2))})


class Exploding(Mapping):
    """Raises when it is read, as a mapping that loads from a file which is gone."""

    def __init__(self):
        self.loaded = {"a": tensor()}

    def __getitem__(self, key):
        raise KeyError(key)

    def __iter__(self):
        raise RuntimeError("not now")

    def __len__(self):
        return 1


class ExplodingDict(dict):
    def items(self):
        raise RuntimeError("not now")

    __iter__ = keys = values = items

    def __getitem__(self, key):
        raise KeyError(key)


class ExplodingList(list):
    def __iter__(self):
        raise RuntimeError("not now")


def test_no_code_of_a_users_container_runs():
    obj = [Exploding(), ExplodingDict(a=tensor()), ExplodingList([tensor()])]
    assert [name for name, _ in named_tensors(obj)] == ["0.loaded.a", "1.a", "2.0"]
    assert torchcow.memory(obj).logical == 3 * tensor().nbytes
    assert len(torchcow.explain(obj).unshared) == 3


def test_the_walk_stays_within_the_object():
    """It enters no module of Python, no class and no function, and not what all loggers have in common."""
    strangers = types.ModuleType("strangers")
    strangers.tensor = tensor()
    logger = logging.getLogger("torchcow.strangers")
    logger.tensor = tensor()

    class Holder:
        attribute = tensor()

        def __init__(self):
            self.module, self.cls, self.logger = strangers, Holder, logger
            self.function = lambda: Holder.attribute
            self.function.tensor = tensor()
            self.builtin, self.method = torch.relu, tensor().add
            self.own = tensor()

    assert [name for name, _ in named_tensors(Holder())] == ["own"]
    del logger.tensor


def test_deep_nesting_is_no_limit():
    model = nested(3000)
    name = ".".join(["0"] * 3000) + ".weight"
    assert [one for one, _ in named_tensors(model)] == [name]
    assert torchcow.memory(model).logical == tensor().nbytes
    assert list(torchcow.explain(model).unshared) == [name]


def test_a_traced_module_is_seen():
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.ReLU())
    traced = torch.jit.trace(model, torch.ones(1, SIDE))
    assert [name for name, _ in named_tensors(traced)] == ["0.weight", "0.bias"]
    assert torchcow.memory(traced).logical == sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.sharing
@pytest.mark.parametrize(
    "iterate",
    [
        lambda model: model.parameters(),
        lambda model: (parameter for parameter in model.parameters()),
        lambda model: iter(list(model.parameters())),
        lambda model: model.named_parameters(),
        lambda model: dict(model.named_parameters()).values(),
        lambda model: types.MappingProxyType(dict(model.named_parameters())),
        lambda model: map(torch.Tensor.detach, model.parameters()),
    ],
)
def test_iterators_are_taken(iterate):
    source = nn.Linear(SIDE, SIDE)
    clone = torchcow.clone(source)
    size = sum(parameter.nbytes for parameter in source.parameters())
    assert torchcow.memory(iterate(clone)).logical == torchcow.worst_case(iterate(clone)) == size
    assert torchcow.explain(iterate(clone)).shared == 2
    assert torchcow.reserve(iterate(clone), fraction=1.0).bytes == size
    assert len(torchcow.diff(iterate(source), iterate(clone)).names("shared")) == 2
    with torchcow.reading(iterate(clone)):
        torch.save(clone.state_dict(), io.BytesIO())
    assert torchcow.is_shared(clone.weight)
    torchcow.materialize(iterate(clone))
    assert not torchcow.is_shared(clone.weight) and not torchcow.is_shared(clone.bias)
    assert torchcow.reshare(iterate(source), iterate(clone)).tensors == 2


@pytest.mark.parametrize("value", ["x", 3, None, nn.Linear, len, torch], ids=repr)
def test_what_holds_no_tensor_is_refused(value):
    def read():
        with torchcow.reading(value):
            pass

    for name, call in {
        "materialize": lambda: torchcow.materialize(value),
        "memory": lambda: torchcow.memory(value),
        "explain": lambda: torchcow.explain(value),
        "worst_case": lambda: torchcow.worst_case(value),
        "reserve": lambda: torchcow.reserve(value),
        "diff": lambda: torchcow.diff(value, value),
        "reading": read,
    }.items():
        with pytest.raises(TypeError, match=f"^torchcow.{name}: expected a tensor, or an object that holds tensors"):
            call()


def test_an_object_without_tensors_is_none_that_cannot_hold_any():
    assert torchcow.memory(nn.ReLU(), [], {}).logical == torchcow.worst_case(nn.ReLU()) == 0
    torchcow.materialize([])


def test_prototypes_in_a_container_show_their_snapshots():
    prototypes = [torchcow.Prototype(nn.Linear(SIDE, SIDE, bias=False)) for _ in range(2)]
    assert [name for name, _ in named_tensors(prototypes)] == ["0._snapshot.weight", "1._snapshot.weight"]


recipes = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.lists(st.integers(0, 1 << 20), max_size=4)), min_size=1, max_size=12
)


@given(recipes)
@settings(max_examples=100, deadline=None)
def test_generated_objects_have_one_name_for_each_tensor(recipe):
    obj = generated_objects.graph(recipe)
    names = names_in(obj)
    assert len(set(names.values())) == len(names)
    for name, leaf in named_tensors(obj):
        if name:
            try:
                assert look_up(obj, name) is leaf
            except PathError as error:
                assert "several places" in str(error)
    if names:
        assert sorted(torchcow.explain(obj).unshared) == sorted(
            name for name, leaf in named_tensors(obj) if not torchcow.is_shared(leaf)
        )
