# SPDX-License-Identifier: Apache-2.0
"""A registry in a folder survives SIGKILL at every step: the last good state is there, and the next writer cleans up.

A driver forks a child for each step of an operation; the child kills itself at that step (before, within or after each
write, rename, synchronization, removal, statement and commit). The driver then opens what is left.

Catches: a state between two good ones, a version whose tensors are not there, leftovers that stay for ever.
"""

from __future__ import annotations

import json

import pytest

from support.child import finish, start
from support.oracle import STARTS_PROCESSES

DRIVER = """
import json, os, random, shutil, time
from pathlib import Path
torch.set_num_threads(1)
prepared, work = Path(sys.argv[1]) / "prepared", Path(sys.argv[1]) / "work"

def prepare():
    registry = open_registry(prepared)
    for number in (1, 2, 3):
        registry.add("m", model(number), parent=f"m@{number - 1}" if number > 1 else None)
    registry.promote("m@1", "production")
    registry.promote("m@2", "production")
    registry.close()

def state(path):
    '''What is there, after a look at every tensor of every version.'''
    registry = open_registry(path)
    versions = registry.versions()
    for version in versions:
        assert_is(registry.get(version), version.number)
    tags = {name: str(registry.tags("m")[name]) for name in (registry.tags("m") if versions else ())}
    registry.close()
    return [str(version) for version in versions], tags

def clean(path):
    '''The next writer works, and leaves exactly the files that the database knows.'''
    registry = open_registry(path)
    number = len(registry.versions()) and registry.versions()[-1].number
    registry.add("m", model(number + 1))
    with registry.backend.database.read() as db:
        known = {name for (name,) in db.execute("SELECT path FROM file")}
    registry.close()
    assert {file.name for file in (path / "tensors").iterdir()} == known

def fork(action):
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    return child

def copy():
    shutil.rmtree(work, ignore_errors=True)
    if prepared.exists():
        shutil.copytree(prepared, work)

def sweep(action):
    outcomes, step = [], 0
    while True:
        step += 1
        copy()
        _, status = os.waitpid(fork(lambda: (kill_at(step), action(work))), 0)
        assert status in (0, 9), status
        outcomes.append(state(work))
        clean(work)
        if status == 0:
            print(json.dumps(outcomes))
            return
"""

ADD = """
def action(path):
    open_registry(path).add("m", model(4), parent="m@3", tags=["production", "new"])
"""
FIRST = """
def action(path):
    open_registry(path).add("m", model(1), tags=["production"])
"""
PROMOTE = """
def action(path):
    open_registry(path).promote("m@3", "production")
"""
ROLLBACK = """
def action(path):
    open_registry(path).rollback("production")
"""
PRUNE = """
def action(path):
    registry = open_registry(path)
    registry.add("m", model(4))
    registry.promote("m@3", "production")
    registry.prune(squash=True)
"""
AFTER_A_CRASH = """
for step in range(1, 100):
    os.waitpid(fork(lambda: (kill_at(step), open_registry(prepared).add("m", model(9)))), 0)
    if len(list((prepared / "tensors").iterdir())) > 3:
        break
def action(path):
    open_registry(path).add("m", model(4))
"""

OLD = [["m@1", "m@2", "m@3"], {"production": "m@2"}]
ADDED = [*OLD[0], "m@4"]
CASES = {
    "add": (ADD, True, [OLD, [ADDED, {"production": "m@4", "new": "m@4"}]]),
    "first": (FIRST, False, [[[], {}], [["m@1"], {"production": "m@1"}]]),
    "promote": (PROMOTE, True, [OLD, [OLD[0], {"production": "m@3"}]]),
    "rollback": (ROLLBACK, True, [OLD, [OLD[0], {"production": "m@1"}]]),
    "prune": (
        PRUNE,
        True,
        [
            OLD,
            [ADDED, OLD[1]],
            [ADDED, {"production": "m@3"}],
            [["m@2", "m@3", "m@4"], {"production": "m@3"}],
        ],
    ),
    "after a crash": (AFTER_A_CRASH, True, [OLD, [ADDED, OLD[1]]]),
}


@pytest.mark.slow
@STARTS_PROCESSES
@pytest.mark.parametrize("name", CASES)
def test_a_kill_at_any_step_leaves_a_good_state(name, tmp_path):
    action, prepared, good = CASES[name]
    code = DRIVER + ("prepare()\n" if prepared else "") + action + "sweep(action)\n"
    outcomes = json.loads(finish(start(code, tmp_path)))
    assert len(outcomes) > (30 if name in ("add", "first", "prune") else 10)
    places = [good.index(outcome) for outcome in outcomes]
    assert places == sorted(places), "later steps lead to later states"
    assert set(places) == set(range(len(good))), "every state was seen"


RANDOM = """
prepare()
seed, rounds, seen = random.Random(int(sys.argv[2])), 25, set()

def action():
    registry = open_registry(work)
    print("ready", flush=True)
    while True:
        number = registry.versions("m")[-1].number + 1
        registry.add("m", model(number), tags=["production"] if number % 2 else [])
        if number % 5 == 0:
            registry.prune(1, squash=True)

copy()
for _ in range(rounds):
    child = fork(action)
    time.sleep(seed.uniform(0.01, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    versions, tags = state(work)
    assert tags["production"] in versions
    seen.add(versions[-1])
clean(work)
print(len(seen))
"""


@STARTS_PROCESSES
def test_kills_at_random_moments(tmp_path):
    out = finish(start(DRIVER + RANDOM, tmp_path, 1)).split()
    assert int(out[-1]) > 3, "no writer got anywhere"
