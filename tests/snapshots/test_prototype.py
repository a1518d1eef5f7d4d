# SPDX-License-Identifier: Apache-2.0
"""A prototype keeps what it was made of: nothing that happens to the source or to a clone reaches its snapshot.

Catches: a snapshot that is the source, an optimizer that drives somebody else's parameters, clones that share what they
write, an ``each`` that is forgotten, and arguments that are taken in silence.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys

import pytest
import torch
from torch import nn

import torchcow
from support.oracle import SIDE, assert_same, freeze


@dataclasses.dataclass
class Experiment:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: object
    mean: torch.Tensor
    metrics: dict


def experiment(kind=dict):
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.BatchNorm1d(SIDE), nn.Dropout(0.1), nn.Linear(SIDE, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    made = kind(model=model, optimizer=optimizer, scheduler=scheduler, mean=torch.rand(SIDE), metrics={"loss": []})
    train(made)
    return made


def part(obj, name):
    return obj[name] if isinstance(obj, dict) else getattr(obj, name)


def train(obj, steps=3):
    model, optimizer = part(obj, "model"), part(obj, "optimizer")
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(torch.rand(8, SIDE, generator=torch.Generator().manual_seed(step))).square().mean()
        loss.backward()
        optimizer.step()
        part(obj, "scheduler").step()
        part(obj, "metrics")["loss"].append(loss.item())
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", [dict, Experiment])
def test_later_writes_to_the_source_do_not_reach_it(kind):
    source = experiment(kind)
    want = freeze(copy.deepcopy(source))
    prototype = torchcow.Prototype(source)
    train(source)
    part(source, "mean").zero_()
    assert_same(want, prototype.clone(), "a clone, after the source was trained")


@pytest.mark.parametrize("kind", [dict, Experiment])
def test_clones_train_alone_and_alike(kind):
    prototype = torchcow.Prototype(experiment(kind))
    want = freeze(prototype._snapshot)
    oracle = copy.deepcopy(prototype._snapshot)
    first, second = prototype.clone(), prototype.clone()
    for one in (first, oracle, second):
        torch.manual_seed(0)
        train(one)
        assert_same(want, prototype._snapshot, "the snapshot")
    assert_same(oracle, first, "the first clone")
    assert_same(oracle, second, "the second clone")
    assert len(part(prototype.clone(), "metrics")["loss"]) == 3


def test_the_optimizer_of_a_clone_drives_its_model():
    clone = torchcow.Prototype(experiment()).clone()
    driven = [p for group in clone["optimizer"].param_groups for p in group["params"]]
    assert [id(p) for p in driven] == [id(p) for p in clone["model"].parameters()]
    assert set(clone["optimizer"].state) == set(driven)
    assert clone["scheduler"].optimizer is clone["optimizer"]


@pytest.mark.sharing
def test_snapshot_source_and_clones_share_until_somebody_writes():
    source = nn.Linear(SIDE, SIDE)
    prototype = torchcow.Prototype(source)
    clones = prototype.spawn(5)
    assert torchcow.memory(source, prototype._snapshot, *clones).unique == torchcow.memory(source).logical
    with torch.no_grad():
        clones[0].weight.zero_()
    assert [torchcow.is_shared(one.weight) for one in clones] == [False, True, True, True, True]


def test_name_and_metadata_are_kept_as_a_copy():
    metadata = {"score": 0.9, "tags": ["a"]}
    prototype = torchcow.Prototype(nn.Linear(2, 2), "linear", metadata)
    metadata["tags"].append("b")
    assert (prototype.name, dict(prototype.metadata)) == ("linear", {"score": 0.9, "tags": ["a"]})
    with pytest.raises(TypeError):
        prototype.metadata["score"] = 1
    with pytest.raises(AttributeError):
        prototype.name = "other"
    assert repr(prototype) == "Prototype('linear', Linear, 2 tensors, 24 bytes)"
    assert repr(torchcow.Prototype([1])) == "Prototype(list, 0 tensors, 0 bytes)"


def test_each_is_called_last_and_its_result_is_ignored():
    seen = []
    prototype = torchcow.Prototype(nn.Dropout(0.1), each=lambda clone: seen.append(clone.p))
    clone = prototype.clone(p=0.4)
    assert isinstance(clone, nn.Dropout) and seen == [0.4]
    prototype.spawn(2, lambda one, index: seen.append(index))
    assert seen == [0.4, 0.1, 0, 0.1, 1]


def test_spawn_reports_progress_to_a_function():
    calls = []
    assert len(torchcow.Prototype([1]).spawn(3, progress=lambda done, total: calls.append((done, total)))) == 3
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_progress_bar_is_drawn_when_asked_for(capsys):
    torchcow.Prototype([1], "mine").spawn(2, progress=True)
    assert "cloning mine" in capsys.readouterr().err
    torchcow.Prototype([1]).spawn(2)
    torchcow.Prototype([1]).spawn(2, progress=False)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_when_it_takes_long(monkeypatch, capsys):
    prototype = torchcow.Prototype([1], "mine")
    monkeypatch.setattr(torchcow.snapshots.progress, "DELAY", 0.0)
    prototype.spawn(2)
    assert capsys.readouterr().err == "", "no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    prototype.spawn(2)
    assert "cloning mine" in capsys.readouterr().err
    monkeypatch.setattr(torchcow.snapshots.progress, "DELAY", 100.0)
    prototype.spawn(2)
    assert capsys.readouterr().err == "", "not long"
    with pytest.raises(TypeError, match="progress: expected True, False, None or a function, got 'bar'"):
        prototype.spawn(2, progress="bar")


def test_without_rich_a_bar_that_was_asked_for_is_an_error_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match="progress=True needs the package rich: pip install rich"):
        torchcow.Prototype([1]).spawn(2, progress=True)
    monkeypatch.setattr(torchcow.snapshots.progress, "DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert torchcow.Prototype([1]).spawn(2) == [[1], [1]]


@pytest.mark.parametrize("n", [-1, True, 2.0, "3", None])
def test_a_bad_count_is_refused(n):
    with pytest.raises((TypeError, ValueError), match="n: expected a whole number of at least 0, got"):
        torchcow.Prototype([1]).spawn(n)


def test_bad_arguments_are_refused():
    for arguments, words in [
        ({"name": 3}, "name: expected a string or None, got 3 of type int"),
        ({"metadata": [1]}, "metadata: expected a mapping or None, got a list"),
        ({"each": 3}, "each: expected a function that takes a clone, got 3"),
        ({"rebuild": {"0": 3}}, r"rebuild\['0'\]: expected a function without arguments, got 3"),
    ]:
        with pytest.raises(TypeError, match=words):
            torchcow.Prototype([1], **arguments)
    with pytest.raises(TypeError, match=r"deep: expected True or False, got {'a': 1}; changes are given by name"):
        torchcow.Prototype({"a": 0}).clone({"a": 1})


def test_copies_of_a_prototype_are_prototypes_of_the_same_snapshot():
    prototype = torchcow.Prototype(nn.Linear(SIDE, SIDE), "linear", {"a": 1})
    shallow = prototype.clone(deep=False)
    for other in (copy.copy(prototype), copy.deepcopy(prototype), torchcow.clone({"p": prototype})["p"]):
        assert other is not prototype and other.name == "linear" and other.metadata == {"a": 1}
        assert_same(prototype.clone(), other.clone(), "a clone of the copy")
        assert other.clone(deep=False).weight is not shallow.weight


def test_no_path_leads_into_a_prototype():
    inner = torchcow.Prototype(nn.Dropout(0.1))
    with pytest.raises(torchcow.PathError, match=r"there is no '_snapshot' in 'inner' .Prototype"):
        torchcow.Prototype({"inner": inner}).clone(**{"inner._snapshot.p": 0.5})


def test_a_prototype_is_not_pickled():
    with pytest.raises(TypeError, match="a Prototype cannot be pickled"):
        pickle.dumps(torchcow.Prototype([1]))


def test_a_prototype_of_what_is_its_own_copy():
    assert torchcow.Prototype(3).clone() == 3
    assert torchcow.Prototype(max).clone() is max


def test_an_error_of_a_users_method_passes_unchanged():
    class Moody:
        def __deepcopy__(self, memo):
            raise ZeroDivisionError("not today")

    with pytest.raises(torchcow.CloneError, match=r"'a.moody' .*Moody.*: ZeroDivisionError: not today") as caught:
        torchcow.Prototype({"a": {"moody": Moody()}})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_can_be_copied_only_once_is_refused_at_once():
    class Once:
        copies = 0

        def __deepcopy__(self, memo):
            if self.copies:
                raise RuntimeError("copied before")
            new = Once()
            new.copies = 1
            return new

    with pytest.raises(torchcow.CloneError, match="a copy of this list has a component that cannot be cloned:\n  '0'"):
        torchcow.Prototype([Once()])
