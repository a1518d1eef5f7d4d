# SPDX-License-Identifier: Apache-2.0
"""Several processes use one registry at once: nothing is lost, mixed up or given twice.

Catches: a number given twice, a version that another process cannot read, a tag between two versions, a file that a
prune takes away from a reader, an open database that a forked child shares.
"""

from __future__ import annotations

import pytest
import torch

import torchcow
from support.child import assert_is, finish, model, open_registry, start
from support.oracle import STARTS_PROCESSES

pytestmark = [STARTS_PROCESSES, pytest.mark.slow]

WRITER = """
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
registry = open_registry(path)
for _ in range(count):
    number = int(sys.argv[4]) * 100 + _
    version = registry.add("m", model(number), metadata={"number": number})
    registry.promote(version, "production")
    print(version)
"""

READER = """
path, total = sys.argv[1], int(sys.argv[2])
registry, looks = open_registry(path), 0
while not looks or len(registry.versions("m")) < total:
    version = registry.version("m:production")
    assert_is(registry.get(version), version.metadata["number"])
    looks += 1
print(looks)
"""

PRUNER = """
import time
registry = open_registry(sys.argv[1])
for _ in range(int(sys.argv[2])):
    registry.prune(3, squash=True)
    time.sleep(0.02)
"""

TAKER = """
registry, looks = open_registry(sys.argv[1]), 0
while not looks or registry.versions("m")[-1].number < int(sys.argv[2]):
    for version in registry.versions("m"):
        try:
            prototype = registry.get(version)
        except torchcow.RegistryError as error:
            assert "removed meanwhile" in str(error) or "there is no version" in str(error), error
        else:
            assert_is(prototype, version.metadata["number"])
            looks += 1
print(looks)
"""


def seeded(path):
    registry = open_registry(path)
    registry.add("m", model(1), metadata={"number": 1}, tags=["production"])
    registry.close()


def test_writers_and_readers_at_once(tmp_path):
    seeded(tmp_path)
    writers = [start(WRITER, tmp_path, "m", 12, index) for index in (1, 2, 3)]
    reader = start(READER, tmp_path, 37)
    given = [version for writer in writers for version in finish(writer).split()]
    assert int(finish(reader)) > 0
    assert sorted(given) == sorted(f"m@{number}" for number in range(2, 38))
    registry = open_registry(tmp_path)
    for version in registry.versions("m"):
        assert_is(registry.get(version), version.metadata["number"])
    history = registry.history("production")
    assert len(history) == 37
    assert str(registry.version("m:production")) == history[-1].version


def test_readers_survive_a_prune(tmp_path):
    seeded(tmp_path)
    writer = start(WRITER, tmp_path, "m", 20, 2)
    pruner = start(PRUNER, tmp_path, 40)
    taker = start(TAKER, tmp_path, 21)
    for child in (writer, pruner):
        finish(child)
    assert int(finish(taker)) > 0
    registry = open_registry(tmp_path)
    registry.prune(3, squash=True)
    for version in registry.versions("m"):
        assert_is(registry.get(version), version.metadata["number"])
    with registry.backend.database.read() as db:
        known = {name for (name,) in db.execute("SELECT path FROM file")}
    assert {path.name for path in (tmp_path / "tensors").iterdir()} == known


def test_processes_that_all_make_the_registry(tmp_path):
    children = [start(WRITER, tmp_path / "new", "m", 2, index) for index in (1, 2, 3, 4)]
    given = [version for child in children for version in finish(child).split()]
    assert sorted(given) == [f"m@{number}" for number in range(1, 9)]


def test_a_promotion_elsewhere_reaches_a_proxy_here(tmp_path):
    seeded(tmp_path)
    registry = open_registry(tmp_path)
    served = registry.proxy("production")
    x = torch.ones(2, 4)
    before = served(x)
    finish(start(WRITER, tmp_path, "m", 1, 5))
    want = registry.get("m@2").clone()(x)
    assert torch.equal(served(x), want)
    assert not torch.equal(before, want)


FORK = """
torch.set_num_threads(1)
registry = open_registry(sys.argv[1])
registry.add("m", model(1))
registry.versions()
child = os.fork()
if child == 0:
    assert_is(registry.get("m@1"), 1)
    registry.add("m", model(2))
    registry.close()
    os._exit(0)
for number in range(5):
    registry.add("n", model(number))
assert os.waitpid(child, 0)[1] == 0
assert_is(registry.get("m@2"), 2)
assert len(registry.versions()) == 7
"""


def test_parent_and_forked_child_both_add(tmp_path):
    finish(start(FORK, tmp_path))


PARENT_ENDS = """
import time
torch.set_num_threads(1)
registry = open_registry(sys.argv[1])
registry.add("m", model(1))
registry.versions()
child_uses_it, child = os.pipe()
parent_ended, parent = os.pipe()
child_id = os.fork()
if child_id:
    os.read(child_uses_it, 1)
    registry.close()
    if sys.argv[2] == "exits":
        os._exit(0)
    os.write(parent, b"x")
    os.waitpid(child_id, 0)
    os._exit(0)
os.close(parent)
print(registry.add("m", model(2)), flush=True)
os.write(child, b"x")
os.read(parent_ended, 1)
for number in (3, 4):
    print(registry.add("m", model(number)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("parent", ["closes", "exits"])
def test_versions_that_a_forked_child_added_are_there(parent, tmp_path):
    """A child that inherited SQLite's connections took no locks, and the parent's close removed its log."""
    added = finish(start(PARENT_ENDS, tmp_path, parent)).split()
    assert added == ["m@2", "m@3", "m@4"]
    out = finish(start("print(*open_registry(sys.argv[1]).versions())", tmp_path)).split()
    assert out == ["m@1", *added]
    registry = open_registry(tmp_path)
    for version in registry.versions():
        assert_is(registry.get(version), version.number)


THREADS = """
import threading, time
torch.set_num_threads(1)
registry = open_registry(sys.argv[1])
registry.add("m", model(1), metadata={"number": 1}, tags=["production"])
served, ends = registry.proxy("production"), threading.Event()

def add():
    while not ends.is_set():
        registry.add("m", model(1))

def get():
    while not ends.is_set():
        registry.get("m@1", structure=lambda: (time.sleep(0.01), build())[1])

threads = [threading.Thread(target=work, daemon=True) for work in (add, get)]
[thread.start() for thread in threads]
for _ in range(12):
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        signal.alarm(100)  # instead of for ever
        assert_is(registry.get("m@1"), 1)
        registry.get("m@1", structure=build)
        served(torch.ones(2, 4))
        print(registry.add("n", model(1)), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
ends.set()
[thread.join() for thread in threads]
assert len(registry.versions("n")) == 12
"""


def test_no_child_hangs_on_a_lock_of_a_thread_that_it_has_not(tmp_path):
    out = finish(start(THREADS, tmp_path)).split()
    assert out == [f"n@{number}" for number in range(1, 13)]


def test_a_child_that_inherits_a_transaction_refuses_to_go_on(tmp_path):
    code = """
torch.set_num_threads(1)
path = sys.argv[1] if sys.argv[1] != "memory" else None
registry = open_registry(path)
registry.add("m", model(1))
with registry.backend.database.write():
    child = os.fork()
    if child == 0:
        try:
            registry.versions()
        except torchcow.RegistryError as error:
            print(error, flush=True)
        registry.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
registry.add("m", model(2))
"""
    assert f"{tmp_path}/registry.sqlite: this process was forked while" in finish(start(code, tmp_path))
    assert "a registry in memory: this process was forked while" in finish(start(code, "memory"))
    assert [str(version) for version in open_registry(tmp_path).versions()] == ["m@1", "m@2"]


def test_a_version_of_another_process_shares_memory_with_what_is_here(tmp_path):
    seeded(tmp_path)
    registry = open_registry(tmp_path)
    first = registry.get("m")
    finish(start(WRITER, tmp_path, "m", 1, 5))
    second = registry.get("m")
    assert torchcow.is_shared(second._snapshot[0].weight)
    assert not torchcow.is_shared(second._snapshot[2].weight)
    assert torchcow.memory(first._snapshot, second._snapshot).shared == first._snapshot[0].weight.nbytes + 16
