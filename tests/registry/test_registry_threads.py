# SPDX-License-Identifier: Apache-2.0
"""Many threads use one registry: a reader sees one version or another, never something between.

Catches: a call that mixes two versions, a clone that is made twice, a number given twice, counts that get lost, a
promotion that is seen before or after its time.
"""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

import torchcow
from support.child import assert_is, model
from torchcow import Registry, RegistryError


class Twin(nn.Module):
    """Two parameters that agree in each version, and are looked at one after the other."""

    def __init__(self, number):
        super().__init__()
        self.a = nn.Parameter(torch.full((256,), float(number)))
        self.b = nn.Parameter(torch.full((256,), float(number)))

    def forward(self):
        return self.a.detach().clone(), self.b.detach().clone()


def together(*works):
    """Run all at once; whatever one of them raises is raised here."""
    errors = []
    barrier = threading.Barrier(len(works))

    def run(work):
        try:
            barrier.wait()
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_calls_through_a_proxy_while_the_tag_moves(registry):
    for number in (1, 2):
        registry.add("m", Twin(number))
    registry.tag("m@1", "production")
    served = registry.proxy("production")
    stop = threading.Event()
    seen = set()

    def move():
        for _ in range(60):
            registry.promote("m@2", "production")
            registry.rollback("production")
        stop.set()

    def call():
        while not stop.is_set():
            a, b = served()
            assert torch.equal(a, b)
            assert (a == a[0]).all()
            seen.add(a[0].item())

    together(move, call, call, call)
    assert seen <= {1.0, 2.0}
    assert len(served._clones) <= 2
    assert len(registry.history("production")) == 61


def test_a_promotion_is_seen_by_the_next_call(registry):
    for number in range(1, 6):
        registry.add("m", Twin(number))
    registry.tag("m@1", "production")
    served = registry.proxy("production")
    for number in range(2, 6):
        registry.promote(f"m@{number}", "production")
        results = []
        together(*[lambda results=results: results.append(served()[0][0].item())] * 4)
        assert results == [float(number)] * 4


def test_one_clone_is_made_for_all_threads(registry, monkeypatch):
    registry.add("m", Twin(1), tags=["production"])
    made = []
    real = torchcow.Prototype.clone

    def clone(self, *args, **options):
        made.append(1)
        time.sleep(0.05)  # the others come in between, if they can
        return real(self, *args, **options)

    monkeypatch.setattr(torchcow.Prototype, "clone", clone)
    served = registry.proxy("production")
    together(*[lambda: [served() for _ in range(5)]] * 8)
    assert len(made) == 1


def test_versions_added_by_many_threads(registry):
    given = []

    def add(index):
        for number in range(index * 10, index * 10 + 10):
            version = registry.add("m", model(number), metadata={"number": number}, tags=["production"])
            given.append(str(version))
            assert_is(registry.get(version), number)
            assert "production" in registry.tags("m")

    together(*(lambda index=index: add(index) for index in range(4)))
    assert sorted(given) == sorted(f"m@{number}" for number in range(1, 41))
    for version in registry.versions("m"):
        assert_is(registry.get(version), version.metadata["number"])
    assert len(registry.history("production")) == 40


def test_a_version_is_read_once_for_all_threads(tmp_path, monkeypatch):
    Registry(tmp_path).add("m", Twin(1))
    registry = Registry(tmp_path, structures={"m": lambda: Twin(0)})
    got = []
    real = registry.backend.stored_version
    monkeypatch.setattr(registry.backend, "stored_version", lambda version_id: (real(version_id), time.sleep(0.05))[0])
    together(*[lambda: got.append(registry.get("m"))] * 8)
    assert len({id(prototype) for prototype in got}) == 1


def test_prunes_while_versions_are_added_and_got(registry):
    registry.add("m", model(0), metadata={"number": 0}, tags=["production"])
    stop = threading.Event()

    def add():
        for number in range(1, 25):
            registry.add("m", model(number), metadata={"number": number}, tags=["production"])
        stop.set()

    def prune():
        while not stop.is_set():
            registry.prune(squash=True)

    def get():
        while not stop.is_set():
            for version in registry.versions("m"):
                try:
                    prototype = registry.get(version)
                except RegistryError as error:
                    assert "removed meanwhile" in str(error) or "there is no version" in str(error), error
                else:
                    assert_is(prototype, version.metadata["number"])

    together(add, prune, get)
    registry.prune(squash=True)
    assert [str(version) for version in registry.versions("m")] == ["m@24", "m@25"]


def test_counts_of_a_split_add_up(registry):
    for tag in ("a", "b"):
        registry.add("m", Twin(1), tags=[tag])
    split = registry.split({"a": 1, "b": 1}, seed=0)
    together(*[lambda: [split() for _ in range(50)]] * 4)
    assert sum(split.counts.values()) == 200
    assert min(split.counts.values()) > 50


def test_a_version_is_in_the_cache_before_others_can_ask_for_it(tmp_path, monkeypatch):
    registry = Registry(tmp_path)
    cache, connection = registry.backend.cache, registry.backend.database._connection("write")
    before_the_commit = []
    for name in ("put", "keep"):
        real = getattr(cache, name)
        monkeypatch.setattr(
            cache, name, lambda *args, real=real: (before_the_commit.append(connection.in_transaction), real(*args))
        )
    registry.add("m", Twin(1))
    assert before_the_commit == [True, True]


def test_a_version_that_was_not_added_is_not_in_the_cache(tmp_path, monkeypatch):
    registry = Registry(tmp_path)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as raised:
        patch.setattr(registry.backend.cache, "keep", fail)
        registry.add("m", Twin(1))
    assert registry.backend.cache.get(1) is None
    del raised  # its traceback has kept the version alive until here
    registry.add("m", Twin(2))
    assert registry.get("m@1")._snapshot()[0][0] == 2
