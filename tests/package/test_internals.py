# SPDX-License-Identifier: Apache-2.0
"""Private parts of CPython are used in one room, each with its versions and with a test that would notice.

Catches: a private name of CPython anywhere else in csrc; an entry of ``cpython_internals.h`` without versions; an
entry that names a test which does not exist.
"""

from __future__ import annotations

import re

import pytest

from support import ROOT, TESTS

CSRC = ROOT / "csrc"
ROOM = CSRC / "deepcopy" / "cpython_internals.h"
PRIVATE = re.compile(r"\b(_Py\w+|PY_VERSION_HEX|tp_version_tag|ma_version_tag|Py_SET_SIZE|Py_REFCNT)\b")

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="not a checkout")


def entries():
    """The comment before each function or class of the room."""
    text = ROOM.read_text().split("namespace torchcow {")[1]
    return re.findall(r"((?:^///.*\n)+)^(?!///)\S", text, re.MULTILINE)


def private_names(path):
    code = re.sub(r"//.*", "", path.read_text())
    return sorted(set(PRIVATE.findall(code)))


def test_other_files_name_no_private_part_of_cpython():
    assert private_names(ROOM)
    sources = [path for suffix in ("h", "cpp") for path in CSRC.rglob(f"*.{suffix}") if path != ROOM]
    assert len(sources) > 60
    assert {path.name: names for path in sources if (names := private_names(path))} == {}


def test_each_entry_has_versions_and_a_test_that_exists():
    assert len(entries()) >= 9
    for entry in entries():
        text = " ".join(line.removeprefix("///").strip() for line in entry.splitlines())
        assert "Versions: " in text, text
        named = re.search(r"Test: (\w+/test_\w+\.py)", text)
        assert named, text
        source = (TESTS / named[1]).read_text()
        for function in re.findall(r"\btest_\w+(?!\.py|\w)", text[named.end() :]):
            assert f"def {function}(" in source, f"{named[1]} has no {function}"
