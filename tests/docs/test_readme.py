# SPDX-License-Identifier: Apache-2.0
"""README is short, and what it promises works (tests/docs/test_docs.py runs its code)."""

from __future__ import annotations

import re

import pytest

from support import ROOT

README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="not a checkout")


def test_readme_is_read_in_two_screens() -> None:
    text = README.read_text()
    assert text.count("\n") <= 80
    ours = re.sub(r"<!-- benchmarks: .*?<!-- end -->", "", text, flags=re.DOTALL)
    assert max(map(len, ours.splitlines())) <= 130


def test_readme_has_one_example_and_the_three_commands() -> None:
    text = README.read_text()
    assert text.count("```python\n") == 1
    commands = re.findall(r"^    (\S.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.MULTILINE)
    assert [command.split()[:2] for command in commands] == [["pip", "install"]] * 2 + [["make", "demo"]]


def test_readme_has_a_place_for_the_headline_of_the_benchmarks() -> None:
    assert len(re.findall(r"^<!-- benchmarks: headline -->\n(?:.*\n)+?<!-- end -->$", README.read_text(), re.M)) == 1


def test_demo_options_that_are_named_exist() -> None:
    cli = pytest.importorskip("torchcow_cli.app")
    command = cli.get_command(cli.app).commands["demo"]
    options = {parameter.name for parameter in command.params}
    named = set(re.findall(r"--(variants|device|model|seed)\b", (ROOT / "docs/quickstart.md").read_text()))
    assert named == {"variants", "device", "model", "seed"}
    assert named <= options


def test_scripts_that_the_makefile_calls_exist() -> None:
    scripts = re.findall(r"\btests/\S+\.(?:sh|py)\b", (ROOT / "Makefile").read_text())
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
