# SPDX-License-Identifier: Apache-2.0
"""Random histories of a registry, in memory and in a folder, against a model in plain Python.

Catches: a version, a parent or a tag that differs from the model after any sequence of additions, promotions,
rollbacks, prunes and reopenings; files that the database does not know.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchcow
from support.child import assert_is, build, model
from torchcow import Registry, RegistryError

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "root", "promote", "promote", "rollback", "prune", "squash", "reopen"]),
        st.integers(0, 1000),
    ),
    min_size=1,
    max_size=25,
)


class Expected:
    """What has to be there: parents by number, and the numbers that the tag was moved to and not taken back from."""

    def __init__(self):
        self.parents = {}
        self.stack = []
        self.last = 0

    def pick(self, choice):
        numbers = sorted(self.parents)
        return numbers[choice % len(numbers)] if numbers else None

    def add(self, parent):
        self.last += 1
        self.parents[self.last] = parent

    def promote(self, number):
        if self.stack[-1:] != [number]:
            self.stack.append(number)

    def before(self):
        return next((n for n in reversed(self.stack) if n != self.stack[-1] and n in self.parents), None)

    def rollback(self):
        target = self.before()
        while self.stack[-1] != target:
            self.stack.pop()

    def prune(self, keep, squash):
        if not self.parents:
            return
        numbers = sorted(self.parents)
        stays = {numbers[-1], *(numbers[-keep:] if keep else ()), *self.stack[-1:]}
        if self.before() is not None:
            stays.add(self.before())
        for number in reversed(numbers):
            if number in stays and not squash and self.parents[number] is not None:
                stays.add(self.parents[number])
        for number in stays:
            while self.parents[number] is not None and self.parents[number] not in stays:
                self.parents[number] = self.parents[self.parents[number]]
        self.parents = {number: self.parents[number] for number in sorted(stays)}


def apply(registry, expected, step, choice):
    number = expected.pick(choice)
    if step in ("add", "root") or number is None:
        parent = None if step == "root" or number is None else max(expected.parents) if choice % 2 else number
        expected.add(parent)
        registry.add("m", model(expected.last), parent=None if parent is None else f"m@{parent}")
    elif step == "promote":
        expected.promote(number)
        registry.promote(f"m@{number}", "t")
    elif step == "rollback":
        if expected.before() is None:
            with pytest.raises(RegistryError):
                registry.rollback("m:t")
        else:
            expected.rollback()
            assert registry.rollback("m:t").number == expected.stack[-1]
    elif step in ("prune", "squash"):
        expected.prune(choice % 3, step == "squash")
        registry.prune(choice % 3, squash=step == "squash")


def check(registry, expected):
    versions = registry.versions("m") if expected.parents else registry.versions()
    parents = {one.number: one.parent and int(one.parent.partition("@")[2]) for one in versions}
    assert parents == expected.parents
    assert [version.number for version in versions if "t" in version.tags] == expected.stack[-1:]
    for version in versions:
        assert_is(registry.get(version), version.number)


@pytest.mark.parametrize("where", ["memory", "folder"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_any_history(where, steps):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "registry"

        def opened():
            return Registry(None if where == "memory" else path, structures={"m": build})

        registry, expected = opened(), Expected()
        for step, choice in steps:
            if step == "reopen" and where == "folder":
                registry.close()
                registry = opened()
            elif step != "reopen":
                apply(registry, expected, step, choice)
            check(registry, expected)
        if where == "folder" and expected.parents:
            again = opened()
            again.prune()
            with again.backend.database.read() as db:
                known = {name for (name,) in db.execute("SELECT path FROM file")}
                orphans = db.execute(
                    "SELECT count(*) FROM tensor WHERE fingerprint NOT IN "
                    "(SELECT fingerprint FROM entry WHERE fingerprint IS NOT NULL)"
                )
                assert orphans.fetchone() == (0,)
            assert {file.name for file in (path / "tensors").iterdir()} == known
            again.close()
        registry.close()
        torchcow.testing.verify()
