# SPDX-License-Identifier: Apache-2.0
"""The documents are true as far as that can be run: Sphinx accepts them, links lead somewhere, Python blocks work.

Catches: a cross reference or an anchor that is broken, an example that no longer does what it says, a target, command,
option, file, folder or reason that does not exist, a public name or reason that no page has, a word that the glossary
defines twice or that was retired, and sizes in DESIGN.md that are no longer those of the code.
"""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import torchcow
from support import ROOT

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / name for name in ("examples/README.md", "csrc/README.md")),
    *sorted(DOCS.glob("*.md")),
]
PAGES = [page for page in PAGES if page.is_file()]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="not a checkout")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str, str]]:
    """(line, language, text) of the fenced blocks."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        if match[1] in languages:
            yield text.count("\n", 0, match.start(2)), match[1], match[2]


@pytest.mark.tiny
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python", "pycon"))], ids=name_of)
def test_python_runs(page: Path) -> None:
    """All blocks of a page in one namespace, in order."""
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": page.stem}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for line, language, text in blocks(page, "python", "pycon"):
        if language == "python":
            exec(compile("\n" * line + text, str(page), "exec"), names)
        else:
            example = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), line)
            assert runner.run(example, clear_globs=False).failed == 0
            names.update(example.globs)
    names.clear()


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def slugs(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub and MyST make them."""
    text = page.read_text()
    included = re.findall(r"^```\{include\} (\S+)$", text, re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    for path in included:
        titles += re.findall(r"^#+ (.+)$", without_blocks((page.parent / path).read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    prose = re.sub(r"`[^`\n]*`", "code", without_blocks(page.read_text()))
    for target in re.findall(r"\]\((?!\w+:)([^)\s]*)\)", prose):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in slugs(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_named_exists(page: Path) -> None:
    """Targets of make, commands and options of the command line, and files of the repository."""
    text = without_blocks(page.read_text())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    # Commands stand in an indented line or between backticks; prose about making things does not.
    assert set(re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    files = re.findall(r"(?<![\w/])(?:tests|examples|benchmarks|csrc|docs)/[\w/]+\.(?:py|sh|h|cpp|cu|md|json)\b", text)
    assert [file for file in files if not (ROOT / file).exists()] == []
    cli = pytest.importorskip("torchcow_cli.app")
    app = cli.get_command(cli.app)
    for line in re.findall(r"(?:python -m |`|^    )torchcow ([a-z][^`\n]*)", text, re.MULTILINE):
        command, words = app, line.split()
        while words and words[0] != "--help" and hasattr(command, "commands"):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}, line


def test_each_public_name_is_in_the_reference() -> None:
    named = set(
        re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    )
    assert set(torchcow.__all__) <= named


GLOSSARY = DOCS / "glossary.md"
#: Words that the glossary has replaced, and pronouns that hide which thread, operator or caller acts.
RETIRED = r"\b(?:leavers?|keepers?|somebody|anybody|nobody|whoever)\b"


def test_the_glossary_defines_each_word_once() -> None:
    words = re.findall(r"^\| ([^|]+?) \| [^|]+ \| [^|]*\|$", GLOSSARY.read_text(), re.MULTILINE)
    words = [word for cell in words for word in cell.split(", ") if cell != "word"]
    assert {"block", "sharer", "materialize", "steal", "copy", "skip", "former sharer", "placeholder sharer"} <= {
        *words
    }
    assert [word for word in words if words.count(word) > 1] == []


@pytest.mark.parametrize("name", ["DESIGN.md", "CONTRIBUTING.md"])
def test_words_are_defined_in_the_glossary_only(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "](docs/glossary.md)" in text
    assert "| word | meaning |" not in text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_prose_names_who_acts(page: Path) -> None:
    tables = r"^## (?:Invariants|Deliberate breaks)\n.*?(?=^## |\Z)"  # sentences that the code quotes
    prose = re.sub(tables, "", without_blocks(page.read_text()), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'"[^"\n]*"|`[^`\n]*`', "", prose)
    assert re.findall(RETIRED, text, re.IGNORECASE) == []


def test_design_knows_the_layers_and_their_sizes() -> None:
    text = (ROOT / "DESIGN.md").read_text()
    layers = {
        folder: float(size) for folder, size in re.findall(r"^((?:csrc|python)/\w+) +(\d+\.\d) ", text, re.MULTILINE)
    }
    folders = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.is_dir()}
    folders |= {"python/torchcow", "python/torchcow_cli"}
    assert set(layers) == folders
    for folder, stated in layers.items():
        files = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".py")]
        lines = sum(path.read_text().count("\n") for path in files) / 1000
        assert abs(lines - stated) < 0.2 + 0.2 * lines, f"{folder} has {lines:.1f} thousand lines"


def test_design_knows_the_folders_of_the_package() -> None:
    section = (ROOT / "DESIGN.md").read_text().split("### The package\n")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)/` \|", section, re.MULTILINE))
    assert named == {path.parent.name for path in (ROOT / "python" / "torchcow").glob("*/__init__.py")}


def test_design_knows_the_mutexes() -> None:
    """Each file that declares a mutex is in the table of locks."""
    section = (ROOT / "DESIGN.md").read_text().split("\n## Locks\n")[1].split("\n## ")[0]
    files = [path for suffix in ("h", "cpp") for path in (ROOT / "csrc").rglob(f"*.{suffix}")]
    owners = [path for path in files if re.search(r"^ +(?:static )?std::mutex \w+;", path.read_text(), re.MULTILINE)]
    assert len(owners) >= 6
    rows = section.count("\n| ") - 1
    assert rows == len(owners), [path.name for path in owners]
    assert [path.stem for path in owners if path.stem not in section and "StreamOrder" not in path.read_text()] == []


def test_the_reasons_are_those_of_the_engine() -> None:
    header = (ROOT / "csrc/core/events.h").read_text()
    enumerators = re.search(r"enum class Reason : std::uint8_t \{\n(.*?)\n\};", header, re.DOTALL)
    reasons = re.findall(r"^  (\w+),", enumerators[1], re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| .+ \| .+ \|$", (DOCS / "semantics.md").read_text(), re.MULTILINE)
    assert rows == [reason for reason in reasons if reason != "none"]
    words = re.findall(r'return \{\s*"(\w+)",', (ROOT / "csrc/core/events.cpp").read_text())
    assert rows == words


def test_each_example_is_a_recipe() -> None:
    recipes = re.findall(
        r"^```\{literalinclude\} \.\./examples/(\w+)\.py$", (DOCS / "recipes.md").read_text(), re.MULTILINE
    )
    assert sorted(recipes) == sorted(file.stem for file in (ROOT / "examples").glob("*.py"))


@pytest.mark.slow
def test_sphinx_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}, of the extra docs")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-n", "-W", "--keep-going", DOCS, tmp_path / "html"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "html" / "api.html").is_file()
