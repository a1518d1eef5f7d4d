# SPDX-License-Identifier: Apache-2.0
"""The invariants of DESIGN.md are checked by the engine and shown by tests, and csrc/README.md lists each source file.

Catches: an invariant without an assert or without a test; a file in the table that does not exist, or that shows
nothing; a sentence that says something else in the engine's messages; a source file that the map of csrc lacks, or that
is gone.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import ROOT, TESTS
from torchcow import _C

DESIGN = ROOT / "DESIGN.md"
CSRC = ROOT / "csrc"

pytestmark = pytest.mark.skipif(not DESIGN.is_file(), reason="not a checkout")

ROW = re.compile(r"^\| (I\d+) \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)


def rows() -> dict[str, tuple[str, list[str], list[str]]]:
    """The table of invariants: the sentence, the files that keep it, and those that show it."""
    section = DESIGN.read_text().partition("\n## Invariants\n")[2].partition("\n## ")[0]
    files = {row[0]: [re.findall(r"`([^`]+\.\w+)`", cell) for cell in row[2:]] for row in ROW.findall(section)}
    return {row[0]: (row[1], *files[row[0]]) for row in ROW.findall(section)}


def asserts(text: str) -> set[str]:
    return set(re.findall(r"TORCHCOW_INVARIANT\(\s*(I\d+),", text))


def numbers_of_tests(path: Path) -> set[str]:
    """The numbers that the names of tests carry."""
    if path.suffix == ".py":
        names = re.findall(r"^\s*def (test_\w+)\(", path.read_text(), re.MULTILINE)
    else:
        names = re.findall(r"^TEST\w*\(\s*\w+,\s*(\w+)\)", path.read_text(), re.MULTILINE)
    return {number for name in names for number in re.findall(r"_(I\d+)", name)}


def sources() -> list[Path]:
    return [path for path in sorted(CSRC.rglob("*")) if path.suffix in (".cpp", ".h", ".cu")]


def suites() -> list[Path]:
    return [path for path in sorted(TESTS.rglob("test_*")) if path.suffix in (".cpp", ".py")]


def test_the_table_is_found():
    assert list(rows()) == [f"I{number}" for number in range(1, len(rows()) + 1)]
    assert len(rows()) >= 11


def test_the_sentences_are_those_of_the_messages():
    assert {number: sentence for number, (sentence, _, _) in rows().items()} == _C.invariants()


def test_each_invariant_is_asserted():
    found = set().union(*(asserts(path.read_text()) for path in sources() if path.name != "invariant.h"))
    assert found == set(rows())


def test_each_invariant_is_shown_by_a_test():
    found = set().union(*map(numbers_of_tests, suites()))
    assert found == set(rows())


@pytest.mark.parametrize("number", rows())
def test_the_files_of_the_table(number):
    _, keepers, shown_by = rows()[number]
    assert keepers, "which file keeps it?"
    assert shown_by, "which tests show it?"
    kept_in = [path for name in keepers for path in matching(name, sources())]
    assert number in set().union(*(asserts(path.read_text()) for path in kept_in)), "none of them asserts it"
    for name in shown_by:
        assert any(number in numbers_of_tests(path) for path in matching(name, suites())), f"no test of {name} has it"


def matching(name: str, paths: list[Path]) -> list[Path]:
    """The files that a name in the table means, which may be a pattern."""
    found = [path for path in paths if path.match(name)]
    assert found, f"there is no {name}"
    return found


def listed() -> set[str]:
    """Files that csrc/README.md names, relative to csrc; a name without a folder is in the folder of the one before."""
    found, folder = set(), ""
    for name in re.findall(r"`([\w/]+\.(?:cpp|h|cu))`", (CSRC / "README.md").read_text()):
        folder = name.rpartition("/")[0] or folder
        found.add(f"{folder}/{name.rpartition('/')[2]}")
    return found


def test_the_map_names_no_file_that_does_not_exist():
    assert listed() - {str(path.relative_to(CSRC)) for path in sources()} == set()


def test_the_map_names_each_source_file():
    """A header stands for its source."""
    known = {name.rpartition(".")[0] for name in listed() if name.endswith(".h")} | listed()
    names = [str(path.relative_to(CSRC)) for path in sources()]
    assert [name for name in names if name not in known and name.rpartition(".")[0] not in known] == []
