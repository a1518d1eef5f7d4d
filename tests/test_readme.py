"""What the documents for newcomers say can be done, can be done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="not a checkout")


def python_snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_readme_has_an_example() -> None:
    assert python_snippets()


@pytest.mark.parametrize("snippet", python_snippets())
def test_python_in_the_readme_runs(snippet: str) -> None:
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_that_are_named_exist(document: str) -> None:
    # Commands stand in an indented line or between backticks; prose about making things does not.
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_linked_exist(document: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_demo_options_that_are_named_exist() -> None:
    cli = pytest.importorskip("torchcow.cli")
    command = cli.get_command(cli.app).commands["demo"]
    options = {parameter.name for parameter in command.params}
    named = set(re.findall(r"--(variants|device|model|seed)\b", (ROOT / "README.md").read_text()))
    assert named == {"variants", "device", "model", "seed"}
    assert named <= options


def test_scripts_that_the_makefile_calls_exist() -> None:
    scripts = re.findall(r"\btests/\S+\.(?:sh|py)\b", (ROOT / "Makefile").read_text())
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
