# SPDX-License-Identifier: Apache-2.0
"""The registry in a folder: what it writes, what it refuses, and that damage stays where it is.

Catches: a tensor that is written twice, damage that goes unnoticed or spreads to other versions, a foreign database
that is changed, a file that is in use and removed, a file that is rewritten wrongly, an order that crashes punish.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3

import pytest
import torch
from safetensors import safe_open
from torch import nn

import torchcow
from support.child import assert_is, build, model, open_registry
from support.oracle import assert_same, freeze
from support.states import CASES, seen
from torchcow import Registry, RegistryError, StateError


def files(path):
    return sorted((path / "tensors").iterdir()) if (path / "tensors").exists() else []


def filled(path, count=4, **options):
    registry = open_registry(path)
    for number in range(1, count + 1):
        registry.add("m", model(number), parent=f"m@{number - 1}" if number > 1 else None, **options)
    registry.close()


def test_only_new_tensors_are_written_once_each(tmp_path):
    filled(tmp_path, 3)
    registry = open_registry(tmp_path)
    assert len(files(tmp_path)) == 3
    registry.add("n", model(2))
    registry.add("m", torchcow.clone(registry.get("m@1")._snapshot).train())
    assert len(files(tmp_path)) == 3, "other metadata only"
    names = []
    for path in files(tmp_path):
        with safe_open(path, "pt") as file:
            names.append(len(file.keys()))
    assert sorted(names) == [6, 6, 8], "the first layer is written once"
    assert registry.get("m")._snapshot.training
    assert not registry.get("m@1")._snapshot.training or build().training


@pytest.mark.parametrize("name", CASES)
def test_a_reopened_version_is_what_was_saved(name, tmp_path):
    saved = CASES[name](True)
    want = freeze(seen(torchcow.clone(saved)))
    Registry(tmp_path).add(name, saved)
    registry = Registry(tmp_path, structures={name: lambda: CASES[name](False)})
    assert_same(want, seen(registry.get(name).clone()), name)


def test_a_structure_is_asked_for_and_lent(tmp_path):
    filled(tmp_path)
    registry = Registry(tmp_path)
    with pytest.raises(RegistryError, match=r"m@2 was not added in this process.*get\('m@2', structure=\.\.\.\)"):
        registry.get("m@2")
    for structure in (build, build(), torchcow.Prototype(build())):
        assert_is(registry.get("m@2", structure=structure), 2)
    with pytest.raises(StateError, match=r"(?s)m@2: the saved state does not fit.*'0\.weight' expected"):
        registry.get("m@2", structure=nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False)))
    version = registry.add("m", model(9))
    registry.prune(squash=True)
    assert_is(registry.get(version), 9)


def test_a_file_that_a_structure_misses_is_not_taken_for_one_of_the_registry(tmp_path):
    filled(tmp_path, 1)

    def make():
        raise FileNotFoundError(2, "No such file or directory", "vocabulary.txt")

    with pytest.raises(FileNotFoundError, match=r"vocabulary\.txt"):
        Registry(tmp_path, structures={"m": make}).get("m")


def test_versions_of_other_functions_are_no_structure_for_each_other(tmp_path):
    def make(function):
        made = nn.Linear(2, 2)
        made.function = function
        return made

    registry = Registry(tmp_path)
    registry.add("m", make(lambda: 1))
    registry.add("m", make(lambda: 2))
    registry.add("m", make(lambda: 3))  # the latest is kept, so only the others are read into a structure
    assert [registry.get(f"m@{number}")._snapshot.function() for number in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.sharing
def test_a_version_that_nobody_holds_is_read_again(tmp_path):
    registry = open_registry(tmp_path)
    registry.add("m", model(1))
    second = registry.get("m").clone()
    with torch.no_grad():
        second[2].weight.add_(1)
    registry.add("m", second)
    del second
    first = registry.get("m@1")
    assert registry.get("m@1") is first
    second = registry.get("m@2")
    assert torchcow.is_shared(second._snapshot[0].weight)
    used = torchcow.memory(first._snapshot, second._snapshot)
    assert used.unique < used.logical


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "other", "missing"])
def test_damage_is_told_and_stays_where_it_is(damage, tmp_path):
    filled(tmp_path)
    victim = next(path for path in files(tmp_path) if b'"1.running_mean"' in path.read_bytes() and is_of(path, 3))
    other = next(path for path in files(tmp_path) if path != victim)
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        victim.write_bytes(data)
    elif damage == "cut":
        victim.write_bytes(data[:-4])
    elif damage == "empty":
        victim.write_bytes(b"")
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(2)}, victim)
    elif damage == "other":
        shutil.copy(other, victim)
    else:
        victim.unlink()
    registry = open_registry(tmp_path)
    with pytest.raises(RegistryError, match=rf"(?s)m@3.*{victim.name}") as error:
        registry.get("m@3")
    assert "tensor '" in str(error.value) or damage == "missing"
    for number in (1, 2, 4):
        assert_is(registry.get(f"m@{number}"), number)
    registry.add("m", model(5))
    report = registry.prune(squash=True)
    assert "m@3" in map(str, report.removed)
    assert_is(open_registry(tmp_path).get("m"), 5)


def is_of(path, number):
    with safe_open(path, "pt") as file:
        return file.get_tensor("1.running_mean")[0] // 100 == number


def test_a_damaged_database_is_told(tmp_path):
    filled(tmp_path)
    database = tmp_path / "registry.sqlite"
    connection = sqlite3.connect(database)
    connection.execute("UPDATE entry SET node = replace(node, '1e-05', '1e-04') WHERE path = '1' AND version = 1")
    connection.commit()
    connection.close()
    with pytest.raises(RegistryError, match="what the database says about it is not what was written"):
        open_registry(tmp_path).get("m")
    good = database.read_bytes()
    database.write_bytes(good[: len(good) // 2 + 100])
    with pytest.raises(RegistryError, match="cannot be used"):
        for version in open_registry(tmp_path).versions():
            open_registry(tmp_path).get(version)
    database.write_bytes(b"something else " * 100)
    with pytest.raises(RegistryError, match=r"registry\.sqlite: the database .* cannot be used"):
        open_registry(tmp_path)
    assert database.read_bytes() == b"something else " * 100


def test_foreign_places_are_refused_and_left_alone(tmp_path):
    with pytest.raises(RegistryError, match="there is no registry here"):
        Registry(tmp_path / "nothing", create=False)
    assert not (tmp_path / "nothing").exists()
    database = tmp_path / "registry.sqlite"
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    before = database.read_bytes()
    with pytest.raises(RegistryError, match=r"an SQLite database, but not one of torchcow; it was left as it is"):
        Registry(tmp_path)
    assert database.read_bytes() == before
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA application_id = 1952673655")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(RegistryError, match="a registry of schema 99; this torchcow knows schemas 1 to 2"):
        Registry(tmp_path)


def test_tensors_without_their_database_are_not_taken_for_leftovers(tmp_path):
    filled(tmp_path)
    (tmp_path / "registry.sqlite").unlink()
    (tmp_path / "registry.sqlite-wal").unlink(missing_ok=True)
    with pytest.raises(RegistryError, match=r"registry\.sqlite is missing or empty; restore it"):
        open_registry(tmp_path)
    assert len(files(tmp_path)) == 4


def test_an_empty_database_beside_tensors_is_not_taken_for_a_new_registry(tmp_path):
    filled(tmp_path)
    empty = sqlite3.connect(tmp_path / "empty.sqlite")
    empty.execute("PRAGMA journal_mode = WAL")
    empty.close()
    for content in (b"", (tmp_path / "empty.sqlite").read_bytes()):
        (tmp_path / "registry.sqlite").write_bytes(content)
        with pytest.raises(RegistryError, match=r"registry\.sqlite is missing or empty; restore it"):
            open_registry(tmp_path)
        assert (tmp_path / "registry.sqlite").read_bytes() == content
    assert len(files(tmp_path)) == 4


def test_leftovers_of_writers_that_died_are_removed_and_other_files_are_not(tmp_path):
    filled(tmp_path, 1)
    folder = tmp_path / "tensors"
    leftovers = [folder / f"{'a' * 32}.safetensors", folder / f".{'b' * 32}.tmp"]
    for path in leftovers:
        path.write_bytes(b"x" * 1000)
    (folder / "notes.txt").write_text("mine")
    registry = open_registry(tmp_path)
    registry.get("m")
    assert all(path.exists() for path in leftovers), "a reader removes nothing"
    assert registry.prune().bytes == 2000
    assert not any(path.exists() for path in leftovers)
    assert (folder / "notes.txt").exists()


def test_prune_writes_a_file_anew_that_others_need_in_part(tmp_path):
    filled(tmp_path, 3)
    registry = open_registry(tmp_path)
    before = sum(path.stat().st_size for path in files(tmp_path))
    report = registry.prune(squash=True)
    assert [str(one) for one in report.removed] == ["m@1", "m@2"]
    after = sum(path.stat().st_size for path in files(tmp_path))
    assert report.bytes == before - after > 0
    assert len(files(tmp_path)) == 2, "what is left of the first, and the third"
    assert not report.complaints
    again = open_registry(tmp_path)
    assert_is(again.get("m"), 3)
    assert len(again.fingerprints("m")) == 8
    assert again.prune().bytes == 0


def test_a_reader_whose_file_was_written_anew_asks_again(tmp_path, monkeypatch):
    filled(tmp_path, 3)
    registry = open_registry(tmp_path)
    real = registry.backend.stored_version
    looked_up = []

    def stored_version(version_id):
        stored = real(version_id)
        if not looked_up:
            open_registry(tmp_path).prune(squash=True)
        looked_up.append(version_id)
        return stored

    monkeypatch.setattr(registry.backend, "stored_version", stored_version)
    assert_is(registry.get("m"), 3)
    assert len(looked_up) == 2


def test_files_are_durable_before_the_database_knows_them(tmp_path, monkeypatch):
    registry = open_registry(tmp_path)
    registry.add("m", model(1))
    calls = []
    for name in ("fsync", "replace", "unlink"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, real=real, **options: (calls.append(name), real(*args, **options))[1]
        )
    registry.backend.database._connection("write").set_trace_callback(calls.append)
    registry.add("m", model(2))
    order = [call for call in calls if call in ("fsync", "replace", "unlink", "COMMIT") or call.startswith("BEGIN")]
    assert order == ["BEGIN IMMEDIATE", "fsync", "replace", "fsync", "COMMIT"]
    calls.clear()
    registry.prune(squash=True)
    order = [call for call in calls if call in ("fsync", "replace", "unlink", "COMMIT")]
    assert order == ["fsync", "replace", "fsync", "COMMIT", "unlink", "fsync"]


def test_a_failed_write_adds_nothing(tmp_path, monkeypatch):
    filled(tmp_path, 1)
    registry = open_registry(tmp_path)
    before = files(tmp_path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "write", fail)
        registry.add("m", model(2))
    assert files(tmp_path) == before
    assert [str(one) for one in registry.versions()] == ["m@1"]
    assert str(registry.add("m", model(2))) == "m@2"
    with pytest.raises(StateError, match="'x': a bytearray"):
        registry.add("m", {"x": bytearray(b"a")})


def test_versions_take_the_base_and_what_changed(tmp_path):
    base = nn.Sequential(*(nn.Linear(128, 128) for _ in range(20)))
    registry = Registry(tmp_path)
    registry.add("m", base)
    changed = 0
    for number in range(1, 30):
        clone = registry.get("m").clone()
        layer = clone[number % 20]
        with torch.no_grad():
            layer.weight.add_(1)
            layer.bias.add_(1)
        changed += layer.weight.nbytes + layer.bias.nbytes
        registry.add("m", clone, parent=f"m@{number}")
    registry.close()
    total = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert total < sum(tensor.nbytes for tensor in base.parameters()) + 1.1 * changed


def test_only_get_reads_tensors(tmp_path, monkeypatch):
    filled(tmp_path)

    def read(*_):
        raise AssertionError("a file with tensors was opened")

    monkeypatch.setattr("torchcow.registry.files.TensorFile", read)
    registry = open_registry(tmp_path)
    registry.versions()
    registry.lineage("m")
    registry.fingerprints("m")
    registry.promote("m@2", "production")
    registry.promote("m@3", "production")
    registry.rollback("production")
    registry.proxy("production")
    with pytest.raises(AssertionError, match="was opened"):
        registry.get("m")


def damaged(data, random):
    """Some flipped bits, a cut, or a stretch of noise."""
    data, kind = bytearray(data), random.random()
    at = random.randrange(len(data))
    if kind < 0.8:
        for _ in range(random.choice([1, 1, 3, 10])):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind < 0.9:
        del data[at:]
    else:
        data[at : at + 100] = random.randbytes(100)
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_a_database_that_is_damaged_anywhere_gives_no_wrong_version(seed, tmp_path):
    filled(tmp_path / "good", tags=["production"])
    good = (tmp_path / "good" / "registry.sqlite").read_bytes()
    work = tmp_path / "work"
    told = 0
    for number in range(50):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(tmp_path / "good", work)
        (work / "registry.sqlite").write_bytes(damaged(good, random.Random(seed * 1000 + number)))
        try:
            registry = open_registry(work)
            for version in registry.versions():
                assert_is(registry.get(version), version.number)
                assert {one.number for one in registry.lineage(version)} == set(range(1, version.number + 1))
            if registry.names() == ["m"] and "production" in registry.tags("m"):
                assert_is(registry.get("m:production"), registry.tags("m")["production"].number)
                assert [one.version for one in registry.history("production")] == [f"m@{n}" for n in range(1, 5)]
        except StateError:
            told += 1
    assert 5 < told < 50


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE version SET number = 9 WHERE number = 2",
        "UPDATE version SET name = 'n' WHERE number = 2",
        "UPDATE version SET parent = 3 WHERE number = 2",
        "UPDATE version SET metadata = replace(metadata, '2', '3') WHERE number = 2",
        "UPDATE version SET created = created + 1 WHERE number = 2",
        "UPDATE version SET base = NULL WHERE number = 2",
        "UPDATE promotion SET number = 1 WHERE number = 2",
        "UPDATE promotion SET undone = NULL WHERE number = 3",
        "UPDATE promotion SET at = at + 1 WHERE number = 2",
        "UPDATE entry SET fingerprint = (SELECT fingerprint FROM entry WHERE path = '2.weight' AND version = 1) "
        "WHERE path = '2.weight' AND version = 2",
        "UPDATE tensor SET key = '1.weight' WHERE key = '2.weight'",
        "DELETE FROM entry WHERE path = '2.weight' AND version = 2",
    ],
)
def test_a_row_that_was_changed_is_told(change, tmp_path):
    registry = open_registry(tmp_path)
    for number in (1, 2, 3):
        registry.add("m", model(number), tags=["production"], metadata={"number": number})
    registry.rollback("production")
    assert_is(registry.get("m:production"), 2)
    registry.close()
    connection = sqlite3.connect(tmp_path / "registry.sqlite")
    assert connection.execute(change).rowcount > 0
    connection.commit()
    connection.close()
    registry = open_registry(tmp_path)
    with pytest.raises(RegistryError, match=r"damaged|not the one that was written"):
        registry.versions()
        registry.history("m:production")
        registry.get("m:production")
