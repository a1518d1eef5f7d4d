# SPDX-License-Identifier: Apache-2.0
"""The registry: versions, tags and lineage, in memory and in a folder with one body of tests.

Catches: a number given twice, a tag that is lost, a rollback to the wrong version, a prune that removes what is needed,
a proxy or a split that calls the wrong model, a later write that reaches a version.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import subprocess
import sys

import pytest
import torch
from torch import nn

import torchcow
from support.oracle import STARTS_PROCESSES
from torchcow import Prototype, RegistryError


def model(value=1.0):
    made = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        made[0].weight.fill_(value)
        made[0].bias.zero_()
    return made.eval()


def value(prototype):
    return prototype._snapshot[0].weight[0, 0].item()


def texts(versions):
    return [str(version) for version in versions]


def chain(registry, count, name="m"):
    for number in range(1, count + 1):
        registry.add(name, model(float(number)), parent=f"{name}@{number - 1}" if number > 1 else None)


def test_versions_are_numbered_and_got(registry):
    before = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017
    first = registry.add("m", model(1.0), metadata={"loss": float("inf"), "tags": ("a", 2)})
    second = registry.add("m", Prototype(model(2.0), metadata={"a": 1}), parent=first, tags="best", metadata={"b": 2})
    other = registry.add("other", model(3.0))
    assert texts([first, second, other]) == ["m@1", "m@2", "other@1"]
    assert before <= first.created <= second.created
    assert (first.parent, second.parent, second.tags) == (None, "m@1", ("best",))
    assert first.metadata == {"loss": float("inf"), "tags": ("a", 2)}
    assert second.metadata == {"a": 1, "b": 2}
    for text, want in (("m", 2.0), ("m@1", 1.0), ("m@2", 2.0), ("m:best", 2.0), (first, 1.0), ("other", 3.0)):
        assert value(registry.get(text)) == want
    assert registry.names() == ["m", "other"]
    assert texts(registry.versions("m")) == ["m@1", "m@2"]
    assert texts(registry.versions()) == ["m@1", "m@2", "other@1"]
    assert registry.version("m:best") == second
    assert hash(first) == hash(dataclasses.replace(first, tags=("x",)))
    assert registry.get("m@1").name == "m"


def test_later_writes_reach_no_version(registry):
    source = model(1.0)
    registry.add("m", source)
    clone = registry.get("m").clone()
    with torch.no_grad():
        source[0].weight.fill_(5.0)
        clone[0].weight.fill_(6.0)
    assert value(registry.get("m")) == 1.0


def test_tags_move_and_go_back(registry):
    chain(registry, 4)
    registry.promote("m@1", "production")
    registry.promote("m@2", "production")
    registry.promote("m@2", "production")  # a second time changes nothing
    assert registry.promote("m@3", "production").tags == ("production",)
    assert str(registry.rollback("production")) == "m@2"
    assert str(registry.promote("m@4", "production")) == "m@4"
    assert str(registry.rollback("m:production")) == "m@2"
    assert str(registry.rollback("production")) == "m@1"
    with pytest.raises(RegistryError, match="'m:production' is at m@1, and there is no earlier version"):
        registry.rollback("production")
    assert registry.tags("m") == {"production": registry.version("m@1")}
    history = registry.history("production")
    assert [one.version for one in history] == ["m@1", "m@2", "m@3", "m@4"]
    assert [one.rolled_back is None for one in history] == [True, False, False, False]
    assert all(one.rolled_back is None or one.rolled_back >= one.at for one in history)


def test_a_tag_is_new_or_taken(registry):
    chain(registry, 2)
    registry.tag("m@1", "best")
    registry.tag("m@1", "best")
    with pytest.raises(RegistryError, match=r"'m:best' is at m@1; promote\(\) moves it"):
        registry.tag("m@2", "best")
    registry.untag("best")
    assert registry.tags("m") == {}
    assert registry.tag("m@2", "best").tags == ("best",)
    with pytest.raises(RegistryError, match="no earlier version"):
        registry.rollback("best")


def test_a_tag_of_several_names_has_to_be_told_apart(registry):
    chain(registry, 2, "a")
    chain(registry, 2, "b")
    for name in "ab":
        for number in (1, 2):
            registry.promote(f"{name}@{number}", "production")
    with pytest.raises(RegistryError, match=r"several names .*; say which: 'a:production', 'b:production'"):
        registry.rollback("production")
    assert str(registry.rollback("b:production")) == "b@1"
    assert str(registry.tags("a")["production"]) == "a@2"


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda r: r.get("x"), "there is no 'x'; names: 'm'"),
        (lambda r: r.get("m@7"), "there is no version m@7; versions of 'm': 1, 2"),
        (lambda r: r.get("m:x"), "'m' has no tag 'x'; its tags: production"),
        (lambda r: r.get("m@"), "expected 'name', 'name@3' or 'name:tag', got 'm@'"),
        (lambda r: r.get("m@0"), "expected 'name'"),
        (lambda r: r.get(3), "expected 'name'"),
        (lambda r: r.add("a@b", model()), "expected a name of printable characters"),
        (lambda r: r.add(" ", model()), "expected a name"),
        (lambda r: r.add("m", model(), tags=["a:b"]), "expected a tag"),
        (lambda r: r.add("m", model(), parent="m@9"), "there is no version m@9"),
        (lambda r: r.add("m", model(), metadata={"a": object()}), "metadata may hold numbers"),
        (lambda r: r.promote("m@9", "production"), "there is no version m@9"),
        (lambda r: r.rollback("x"), "no name has the tag 'x'; tags: 'm:production'"),
        (lambda r: r.rollback("m:x"), "the tag 'm:x' does not exist"),
        (lambda r: r.history("m@1"), "expected 'tag' or 'name:tag'"),
        (lambda r: r.proxy("x"), "no name has the tag 'x'"),
        (lambda r: r.untag("m:x"), "'m' has no tag 'x'"),
        (lambda r: r.prune(-1), "expected a number of versions, got -1"),
    ],
)
def test_what_is_not_there_or_not_allowed(registry, ask, text):
    chain(registry, 2)
    registry.tag("m@1", "production")
    with pytest.raises(RegistryError, match=text):
        ask(registry)
    assert texts(registry.versions()) == ["m@1", "m@2"]
    assert texts(registry.tags("m").values()) == ["m@1"]


def test_lineage_goes_to_the_root_across_names(registry):
    chain(registry, 3)
    registry.add("fork", model(9.0), parent="m@2")
    assert texts(registry.lineage("m")) == ["m@3", "m@2", "m@1"]
    assert texts(registry.lineage("fork")) == ["fork@1", "m@2", "m@1"]


def test_prune_keeps_what_is_needed_and_says_why(registry):
    chain(registry, 6)
    for number in (1, 2, 4):
        registry.promote(f"m@{number}", "production")
    registry.add("other", model(0.0))
    registry.add("m", model(7.0), parent="m@3")
    proxy = registry.proxy("m@3")
    report = registry.prune(name="other")
    assert not report.removed
    announced = registry.prune(dry_run=True)
    assert value(registry.get("m@5")) == 5
    report = registry.prune()
    assert texts(report.removed) == texts(announced.removed) == ["m@5", "m@6"]
    assert report.kept == announced.kept
    assert report.bytes > 0
    assert report.kept == {
        "m@1": ("parent of m@2",),
        "m@2": ("rollback of production", "parent of m@3"),
        "m@3": ("proxy", "parent of m@7", "parent of m@4"),
        "m@4": ("tag production",),
        "m@7": ("latest",),
        "other@1": ("latest",),
    }
    held = registry.get("m@1")
    report = registry.prune(squash=True)
    assert texts(report.removed) == ["m@1"]
    assert report.alive == ("m@1",)
    del proxy
    assert texts(registry.prune(squash=True).removed) == ["m@3"]
    assert texts(registry.lineage("m@4")) == ["m@4", "m@2"]
    for number in (2, 4, 7):
        assert value(registry.get(f"m@{number}")) == number
    assert value(held) == 1.0
    assert str(registry.add("m", model(8.0))) == "m@8"
    assert str(registry.rollback("production")) == "m@2"
    with pytest.raises(RegistryError, match="no earlier version"):
        registry.rollback("production")
    assert set(registry.prune(keep=2).kept) == {"m@2", "m@7", "m@8", "other@1"}


def test_a_proxy_follows_its_tag(registry):
    chain(registry, 3)
    registry.tag("m@1", "production")
    served, fixed = registry.proxy("production"), registry.proxy("m@3")
    x = torch.ones(1, 4)
    one = served(x)
    registry.promote("m@2", "production")
    assert torch.equal(served(x), registry.get("m@2").clone()(x))
    assert not torch.equal(served(x), one)
    registry.rollback("production")
    assert torch.equal(served(x), one)
    assert torch.equal(fixed(x), registry.get("m@3").clone()(x))
    assert served.training is False
    served.train()
    served(torch.rand(5, 4))
    assert registry.get("m:production").clone().training is False
    assert registry.get("m:production").clone()[1].num_batches_tracked == 0
    with pytest.raises(AttributeError, match=r"Proxy\('m:production'\) cannot be changed, 'training' was not set"):
        served.training = True
    with pytest.raises(AttributeError, match="cannot be changed"):
        del served.training
    assert repr(fixed) == "Proxy('m@3')"
    assert not hasattr(served, "__len__")
    with pytest.raises(TypeError):
        copy.deepcopy(served)
    assert "training" in dir(served)


def test_what_cannot_be_called_is_told(registry):
    registry.add("parts", {"model": nn.Linear(1, 1)}, tags=["production"])
    served = registry.proxy("production")
    with pytest.raises(TypeError, match=r"Proxy\('parts:production'\) serves a dict, which cannot be called"):
        served(torch.zeros(1))
    assert list(served.keys()) == ["model"]


def test_a_call_ends_with_the_version_it_began_with(registry):
    class Asks(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, between):
            first = self.number
            between()
            return first, self.number

    registry.add("m", Asks(1), tags=["production"])
    registry.add("m", Asks(2))
    served = registry.proxy("production")
    assert served(lambda: registry.promote("m@2", "production")) == (1, 1)
    assert served(lambda: registry.rollback("production")) == (2, 2)
    assert served(lambda: None) == (1, 1)


def test_a_split_by_key_is_stable_and_by_weight(registry):
    chain(registry, 2)
    registry.tag("m@1", "production")
    registry.tag("m@2", "candidate")
    split = registry.split({"production": 9, "m:candidate": 1}, seed=1)
    sides = {key: split.choose(key) for key in range(2000)}
    assert 140 < sum(side == "m:candidate" for side in sides.values()) < 260
    again = registry.split({"m:candidate": 0.1, "production": 0.9}, seed=1)
    assert all(again.choose(str(key)) == side for key, side in sides.items())
    more = registry.split({"production": 0.8, "m:candidate": 0.2}, seed=1)
    moved = [key for key, side in sides.items() if more.choose(key) != side]
    assert 0 < len(moved) < 400
    assert all(sides[key] == "production" for key in moved)
    another = registry.split({"production": 9, "m:candidate": 1}, seed=2)
    assert any(another.choose(key) != side for key, side in sides.items())
    x = torch.ones(1, 4)
    for key in range(50):
        got = split(x, key=key)
        assert torch.equal(got, registry.get("m@1" if sides[key] == "production" else "m@2").clone()(x))
    assert split.counts == {
        "production": sum(sides[key] == "production" for key in range(50)),
        "m:candidate": sum(sides[key] == "m:candidate" for key in range(50)),
    }


STABLE = """
import torch, torchcow
registry = torchcow.Registry()
for tag in ("a", "b"):
    registry.add("m", torch.nn.Linear(1, 1), tags=[tag])
split = registry.split({"a": 0.5, "b": 0.5})
print("".join(split.choose(f"user {number}") for number in range(64)))
"""


@STARTS_PROCESSES
def test_a_key_has_the_same_side_in_every_process():
    outs = {
        subprocess.run([sys.executable, "-c", STABLE], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert len(outs) == 1
    assert {"a", "b"} <= set(outs.pop())


def test_a_split_at_random_is_seeded_and_checked(registry):
    chain(registry, 2)
    registry.tag("m@1", "a")
    registry.tag("m@2", "b")
    one, two = (registry.split({"a": 3, "b": 1}, seed=5) for _ in range(2))
    choices = [one.choose() for _ in range(1000)]
    assert choices == [two.choose() for _ in range(1000)]
    assert 650 < choices.count("a") < 850
    for weights in ({}, {"a": 0.0}, {"a": -1.0}, {"a": float("nan")}, {"a": float("inf")}, {"a": True}, {"a": "1"}):
        with pytest.raises(RegistryError, match=r"at least one target|positive and finite"):
            registry.split(weights)
    with pytest.raises(RegistryError, match="a key is a text or a whole number"):
        one.choose(1.5)


@pytest.mark.sharing
def test_versions_share_what_they_have_in_common(registry):
    base = nn.Sequential(*(nn.Linear(32, 32) for _ in range(8)))
    registry.add("m", base)
    for _ in range(9):
        clone = registry.get("m").clone()
        with torch.no_grad():
            clone[3].weight.add_(1)
        registry.add("m", clone, parent="m")
        del clone
    prototypes = [registry.get(version) for version in registry.versions()]
    used = torchcow.memory(*(prototype._snapshot for prototype in prototypes))
    assert used.unique <= used.logical / 10 * (1 + 9 / 8) + 1
