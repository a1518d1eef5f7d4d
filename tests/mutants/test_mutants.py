# SPDX-License-Identifier: Apache-2.0
"""Each deliberate break still applies, names tests that exist, and stands in DESIGN.md; `make mutants` runs them.

Catches: code that was reworded under a mutant, a test that was renamed, a mutant without a row in the table or a
row without a mutant, and a mutant that survived when it was run last.
"""

from __future__ import annotations

import json
import re

import pytest
from run import RESULTS, TABLE, render

from mutants import HERE, ROOT, StaleMutantError, load

MUTANTS = load()

pytestmark = pytest.mark.skipif(not (ROOT / "DESIGN.md").is_file(), reason="not a checkout")


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_applies_and_names_tests(name):
    mutant = MUTANTS[name]
    for edit in mutant.edits:
        _, match = edit.find(ROOT)
        assert match[0].split() != edit.new.split(), "it changes nothing"
    assert mutant.tests
    for test in mutant.python_tests:
        file, _, function = test.partition("::")
        text = (ROOT / file).read_text()
        assert not function or re.search(rf"^def {function.partition('[')[0]}\(", text, re.MULTILINE), test
    for executable, _ in mutant.native_tests:
        assert list((ROOT / "tests").rglob(f"{executable}.cpp")), executable


def test_a_stale_mutant_is_refused(tmp_path):
    mutant = MUTANTS["proxy-is-stale"]
    (tmp_path / "python").mkdir()
    with pytest.raises(
        StaleMutantError, match=r"proxy-is-stale: expected once below python, found 0 times \(nowhere\)"
    ):
        mutant.apply(tmp_path)
    for name in ("one.py", "two.py"):
        (tmp_path / "python" / name).write_text(f"def f():\n    {mutant.edits[0].old}\n")
    with pytest.raises(StaleMutantError, match="found 2 times"):
        mutant.apply(tmp_path)


def test_white_space_does_not_matter_and_the_old_text_is_given_back(tmp_path):
    mutant = MUTANTS["proxy-is-stale"]
    (tmp_path / "python").mkdir()
    file = tmp_path / "python" / "one.py"
    text = "a\n" + mutant.edits[0].old.replace(" ", "\n      ") + "\nb\n"
    file.write_text(text)
    assert mutant.apply(tmp_path) == {file: text}
    assert file.read_text() == f"a\n{mutant.edits[0].new}\nb\n"


def test_the_table_names_exactly_the_mutants():
    results = json.loads(RESULTS.read_text())
    assert set(results) <= set(MUTANTS), "run make mutants with --record"
    assert [name for name, seen in results.items() if not seen["failed"]] == [], "these survived"
    page = (ROOT / "DESIGN.md").read_text()
    table = page.partition(f"<!-- {TABLE}: begin -->\n")[2].partition(f"\n<!-- {TABLE}: end -->")[0]
    assert table == render(results)


def test_each_file_of_mutants_is_read():
    assert {file.name for file in HERE.glob("*.toml")} >= {"csrc.toml", "python.toml", "python-registry.toml"}
