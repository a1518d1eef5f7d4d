# SPDX-License-Identifier: Apache-2.0
"""Registries that older versions wrote can still be read, and grow.

Catches: a change of the database, of the nodes or of the dotted names for which a reader of the old format is missing;
a version that differs only in the format and is taken for another one.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from support.every_kind import every_kind, observable
from support.oracle import assert_same, freeze
from torchcow import Registry
from torchcow.registry.database import SCHEMA_VERSION

FOLDERS = sorted((Path(__file__).parent / "data").glob("registry_*"))


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name)
def folder(request, tmp_path):
    shutil.copytree(request.param, tmp_path / "registry")
    return tmp_path / "registry"


def opened(folder):
    return Registry(folder, structures={"kinds": lambda: every_kind(1)})


def assert_version(registry, version, number):
    assert_same(freeze(observable(every_kind(number))), observable(registry.get(version).clone()), str(version))


def test_format_1_is_among_them():
    assert "registry_1" in [path.name for path in FOLDERS]


def schema(folder):
    connection = sqlite3.connect(folder / "registry.sqlite")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return version


def test_versions_of_an_old_registry_are_read(folder):
    before = schema(folder)
    registry = opened(folder)
    for version in registry.versions():
        assert_version(registry, version, version.metadata["number"])
    assert registry.tags("kinds") == {"production": registry.version("kinds@2")}
    assert [str(version) for version in registry.lineage("kinds")] == ["kinds@3", "kinds@2", "kinds@1"]
    registry.promote("kinds@1", "production")
    registry.close()
    assert schema(folder) == before, "older versions of torchcow can still read it"


def test_versions_are_added_to_an_old_registry(folder):
    registry = opened(folder)
    for number, parent in ((3, "kinds@3"), (4, "kinds@3"), (5, "kinds@4")):
        registry.add("kinds", every_kind(number), parent=parent, metadata={"number": number})
    assert registry.fingerprints("kinds@4") == registry.fingerprints("kinds@3")
    registry.prune(squash=True)
    registry.close()
    assert schema(folder) == SCHEMA_VERSION
    registry = opened(folder)
    assert [str(version) for version in registry.versions()] == ["kinds@1", "kinds@2", "kinds@6"]
    for version in registry.versions():
        assert_version(registry, version, version.metadata["number"])
    registry.close()


def test_an_old_version_equals_a_new_one_of_the_same_object(folder, capsys):
    pytest.importorskip("typer")
    from torchcow_cli import main

    registry = opened(folder)
    registry.add("kinds", every_kind(3), parent="kinds@3")
    registry.close()
    assert main(["registry", "diff", "kinds@3", "kinds@4", "--path", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"]
    assert main(["registry", "show", "kinds@1", "--path", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["values"]["epoch"] == 1
