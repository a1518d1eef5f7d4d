# SPDX-License-Identifier: Apache-2.0
"""Components that cannot be cloned: all are named at once, and can be shared, dropped or made anew.

Catches: a component that is found only by the first clone, one that is blamed although something inside of it is at
fault, references to one component that become two, and a component that a clone takes from the snapshot.
"""

from __future__ import annotations

import concurrent.futures
import queue
import socket
import sqlite3
import threading

import pytest
import torch
from torch import nn

import torchcow
import torchcow.objects.adapters.attributes
from support.oracle import SIDE


def graph_node():
    return torch.ones(3, requires_grad=True) * 2


def of_a_file(tmp_path):
    return (tmp_path / "file").open("w")


KINDS = {
    "lock": lambda path: threading.Lock(),
    "reentrant lock": lambda path: threading.RLock(),
    "event": lambda path: threading.Event(),
    "condition": lambda path: threading.Condition(),
    "thread": lambda path: threading.Thread(),
    "local": lambda path: threading.local(),
    "queue": lambda path: queue.Queue(),
    "pool": lambda path: concurrent.futures.ThreadPoolExecutor(1),
    "file": of_a_file,
    "socket": lambda path: socket.socket(),
    "database": lambda path: sqlite3.connect(":memory:"),
    "generator": lambda path: (i for i in [1]),
    "module": lambda path: torch.nn.functional,
    "memory view": lambda path: memoryview(b"a"),
    "dict view": lambda path: {}.keys(),
    "node of a graph": lambda path: graph_node(),
    "grad_fn": lambda path: graph_node().grad_fn,
    "store": lambda path: torch.distributed.HashStore(),
    "process group": lambda path: torch.distributed.ProcessGroupGloo(torch.distributed.HashStore(), 0, 1),
    "event of torch": lambda path: torch.Event(),
    "future": lambda path: torch.futures.Future(),
    "sparse": lambda path: torch.eye(3).to_sparse_csr(),
    "iterator of data": lambda path: iter(torch.utils.data.DataLoader([1, 2])),
}


pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


class Holder:
    def __init__(self, component):
        self.component = component
        self.me = self
        self.again = {"x": component}


@pytest.fixture(params=KINDS)
def component(request, tmp_path):
    made = KINDS[request.param](tmp_path)
    yield made
    if isinstance(made, concurrent.futures.Executor):
        made.shutdown()
    elif hasattr(made, "close"):
        made.close()


def test_each_kind_is_named_with_its_remedies(component):
    model = nn.Linear(SIDE, SIDE)
    model.helper = component
    for obj, path in [({"a": [1, component]}, "a.1"), (Holder(component), "component"), (model, "helper")]:
        with pytest.raises(torchcow.CloneError) as caught:
            torchcow.Prototype(obj)
        text = str(caught.value)
        assert text.startswith(f"this {type(obj).__name__} has a component that cannot be cloned:\n  '{path}' (")
        assert f"share={{'{path}'}}" in text and f"rebuild={{'{path}': function}}" in text
        assert isinstance(caught.value, TypeError) and isinstance(caught.value, RuntimeError)
        assert caught.value.__cause__ is not None


def test_each_kind_can_be_shared_dropped_or_made_anew(component):
    source = Holder(component)
    shared = torchcow.Prototype(source, share={"component"}).clone()
    assert shared.component is shared.again["x"] is component and shared.me is shared
    dropped = torchcow.Prototype(source, drop="component").clone()
    assert dropped.component is dropped.again["x"] is None
    prototype = torchcow.Prototype(source, rebuild={"component": object})
    first, second = prototype.spawn(2)
    assert first.component is first.again["x"] and type(first.component) is object
    assert second.component is second.again["x"] is not first.component
    assert source.component is source.again["x"] is component


def test_all_components_are_named_at_once():
    obj = {"lock": threading.Lock(), "model": nn.Linear(2, 2), "deep": {"er": [threading.Event(), graph_node()]}}
    obj["model"].lock = threading.Lock()
    with pytest.raises(torchcow.CloneError) as caught:
        torchcow.Prototype(obj)
    lines = str(caught.value).splitlines()
    assert lines[0] == "this dict has 4 components that cannot be cloned:"
    assert [line.split("'")[1] for line in lines[1:-1]] == ["lock", "model.lock", "deep.er.0", "deep.er.1"]
    assert lines[4].endswith(
        "(torch.Tensor, torch.float32, shape (3,), cpu): it was computed from others and belongs to their graph, so "
        "detach() it"
    )
    paths = {"lock", "model.lock", "deep.er.0"}
    with pytest.raises(torchcow.CloneError, match=r"has a component that cannot be cloned:\n  'deep.er.1'"):
        torchcow.Prototype(obj, share=paths)
    assert torchcow.Prototype(obj, share=paths, drop={"deep.er.1"}).clone()["deep"]["er"][1] is None


def test_a_component_in_the_state_of_an_optimizer_has_a_short_path():
    model = nn.Linear(SIDE, SIDE)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, SIDE)).sum().backward()
    optimizer.step()
    optimizer.state[model.bias]["lock"] = threading.Lock()
    obj = {"model": model, "optimizer": optimizer}
    with pytest.raises(torchcow.CloneError) as caught:
        torchcow.Prototype(obj)
    lines = str(caught.value).splitlines()
    assert lines[1] == "  'optimizer.state.1.lock' (_thread.lock): TypeError: cannot pickle '_thread.lock' object"
    assert len(str(caught.value)) < 600
    clone = torchcow.Prototype(obj, share={"optimizer.state.1.lock"}).clone()
    assert clone["optimizer"].state[clone["model"].bias]["lock"] is optimizer.state[model.bias]["lock"]


def test_a_long_list_of_components_is_shortened():
    with pytest.raises(torchcow.CloneError) as caught:
        torchcow.Prototype([threading.Lock() for _ in range(100)])
    lines = str(caught.value).splitlines()
    assert lines[0] == "this list has 100 components that cannot be cloned:"
    assert (len(lines), lines[21]) == (23, "  and 80 more")


def test_the_object_itself_is_the_component():
    with pytest.raises(torchcow.CloneError, match=r"this lock cannot be cloned:\n  it .*\nPut it into a dict"):
        torchcow.Prototype(threading.Lock())


@pytest.mark.parametrize("deep", [True, False])
def test_functions_are_called_once_for_each_clone(deep):
    calls = []
    prototype = torchcow.Prototype(Holder(threading.Lock()), rebuild={"component": lambda: calls.append(1) or [1]})
    assert calls == [], "no call before the first clone"
    prototype.clone(deep=deep)
    prototype.clone(deep=deep)
    assert len(calls) == (2 if deep else 1), "shallow clones have it in common"


def test_a_holder_that_looks_at_its_component_when_it_is_copied():
    class Careful(Holder):
        def __setstate__(self, state):
            assert state["component"] is not None
            self.__dict__.update(state)

    source = Careful(threading.Lock())
    assert torchcow.Prototype(source, rebuild={"component": list}).clone().component == []
    assert torchcow.Prototype(source, share={"component"}).clone().component is source.component
    with pytest.raises((AssertionError, torchcow.CloneError)):
        torchcow.Prototype(source, drop={"component"})


def test_what_can_be_cloned_may_be_named_as_well():
    source = Holder([1])
    assert torchcow.Prototype(source, share="component").clone().again["x"] is source.component
    assert torchcow.Prototype(source, rebuild={"component": dict}).clone().again["x"] == {}


def test_constants_are_replaced_by_path_and_others_like_them_stay():
    source = {"a": None, "b": None, "c": {"d": 1}, "e": 1}
    clone = torchcow.Prototype(source, rebuild={"a": list}, drop={"c.d"}, share={"e"}).clone()
    assert clone == {"a": [], "b": None, "c": {"d": None}, "e": 1}
    with pytest.raises(torchcow.PathError, match=r"'0.0' cannot be set: a tuple cannot be changed"):
        torchcow.Prototype([(1,)], drop={"0.0"})


def test_a_shared_module_is_shared_with_all_that_refers_to_it():
    backbone, head = nn.Linear(SIDE, SIDE), nn.Linear(SIDE, 1)
    model = nn.Sequential(backbone, head)
    obj = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    clone = torchcow.Prototype(obj, share={"model.0"}).clone()
    driven = clone["optimizer"].param_groups[0]["params"]
    assert clone["model"][0] is backbone and driven[0] is backbone.weight
    assert clone["model"][1] is not head and driven[2] is clone["model"][1].weight is not head.weight


def test_changes_and_components():
    model = nn.Sequential(nn.Dropout(0.1), nn.ReLU())
    model.lock = threading.Lock()
    prototype = torchcow.Prototype(model, share={"0", "lock"})
    with pytest.raises(torchcow.PathError, match=r"'0.p' cannot be set: '0' is not cloned but in share="):
        prototype.clone(**{"0.p": 0.5})
    other = prototype.clone(**{"0": nn.Dropout(0.5)})
    assert other[0].p == 0.5 and prototype.clone()[0] is model[0]
    assert model[0].p == 0.1


def test_wrong_paths_and_contradictions():
    source = Holder([1])
    with pytest.raises(torchcow.PathError, match="there is no 'componnt' in this Holder; it has: component"):
        torchcow.Prototype(source, share={"componnt"})
    with pytest.raises(ValueError, match="'component' is in both share and drop; name it in one of them"):
        torchcow.Prototype(source, share={"component"}, drop={"component"})
    with pytest.raises(ValueError, match=r"'component' in share and 'again.x' in drop are one object"):
        torchcow.Prototype(source, share={"component"}, drop={"again.x"})
    torchcow.Prototype(source, share={"component", "again.x"})


def test_a_shared_component_is_kept_alive():
    class Component:
        def __reduce_ex__(self, protocol):
            raise TypeError("not this one")

    prototype = torchcow.Prototype({"a": Component()}, share={"a"})
    assert isinstance(prototype.clone()["a"], Component)


def test_the_search_leaves_the_source_alone_and_blames_no_holder():
    """Break: the parts of what is tried count as their own copies. A holder that ties its parts to itself then ties the
    source's."""

    class Parent:
        def __init__(self):
            self.child, self.lock = Child(self), threading.Lock()

        def __setstate__(self, state):
            self.__dict__.update(state)
            self.child.parent = self
            with self.lock:
                pass

    class Child:
        def __init__(self, parent):
            self.parent, self.event = parent, threading.Event()

    class Refusing:
        def __init__(self, other):
            self.other = other

        def __reduce_ex__(self, protocol):
            raise TypeError("not this one")

    source = Parent()
    holder = Child(None)
    holder.parent = Refusing(holder)
    with pytest.raises(torchcow.CloneError) as caught:
        torchcow.Prototype({"parent": source, "cycle": [holder]})
    paths = [line.split("'")[1] for line in str(caught.value).splitlines()[1:-1]]
    assert sorted(paths) == ["cycle.0.event", "cycle.0.parent", "parent.child.event", "parent.lock"]
    assert source.child.parent is source and holder.parent.other is holder


def test_an_adapter_that_fails_does_not_hide_what_cannot_be_cloned(monkeypatch):
    class Sealed:
        def __deepcopy__(self, memo):
            raise ZeroDivisionError("not me")

    class Broken(torchcow.objects.adapters.attributes.Attributes):
        def accepts(self, obj):
            return isinstance(obj, Sealed)

        def parts(self, obj):
            raise AttributeError("an adapter's own mistake")

    monkeypatch.setattr(torchcow.objects.adapters, "_registered", [])
    torchcow.objects.adapters.register(Broken())
    with pytest.raises(ZeroDivisionError, match="not me"):
        torchcow.Prototype([Sealed()])
