# SPDX-License-Identifier: Apache-2.0
"""What a mutant is, and how it is read and applied.

A mutant is an entry of a TOML file in this folder:

    [commit-before-file]
    breaks = "the version is committed before its file is written"
    tests = ["tests/registry/test_store_crash.py::test_a_crash_leaves_the_last_good_state"]
    edits = [{ old = "self._write(db, tensors)", new = "pass" }]

``old`` must occur exactly once below ``in`` ("csrc" or "python", or a narrower path). Any white space matches any
other, so a mutant survives reformatting, moves of code and renames of files. One that no longer applies is an error.

``tests`` are ids of pytest, or a C++ test: "test_share Share.ASpanOfASpan" (executable and filter of GoogleTest).
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SUFFIXES = {".py", ".cpp", ".h", ".cu", ".md", ".toml", ".txt"}


class StaleMutantError(Exception):
    """A mutant does not apply to this tree."""


@dataclass(frozen=True)
class Edit:
    """One replacement."""

    old: str
    new: str
    within: str

    def find(self, root: Path) -> tuple[Path, re.Match[str]]:
        """Return the one place where ``old`` occurs."""
        pattern = re.compile(r"\s+".join(re.escape(word) for word in self.old.split()))
        top = root / self.within
        files = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.suffix in SUFFIXES)
        places = [(path, match) for path in files for match in pattern.finditer(path.read_text())]
        if len(places) != 1:
            where = ", ".join(f"{path.relative_to(root)}" for path, _ in places) or "nowhere"
            raise StaleMutantError(
                f"expected once below {self.within}, found {len(places)} times ({where}): {self.old}"
            )
        return places[0]


@dataclass(frozen=True)
class Mutant:
    """One deliberate break."""

    name: str
    breaks: str
    tests: tuple[str, ...]
    edits: tuple[Edit, ...]

    @property
    def compiles(self) -> bool:
        """Does it change what has to be compiled?"""
        return any(edit.within.startswith("csrc") for edit in self.edits)

    @property
    def python_tests(self) -> list[str]:
        """Ids of pytest."""
        return [test for test in self.tests if "/" in test]

    @property
    def native_tests(self) -> list[tuple[str, str]]:
        """Executables of C++ tests, each with a filter."""
        return [(test.split()[0], " ".join(test.split()[1:]) or "*") for test in self.tests if "/" not in test]

    def apply(self, root: Path) -> dict[Path, str]:
        """Break the tree at ``root``; return the old text of each file that was changed."""
        before: dict[Path, str] = {}
        for edit in self.edits:
            try:
                path, match = edit.find(root)
            except StaleMutantError as error:
                raise StaleMutantError(f"{self.name}: {error}") from None
            text = path.read_text()
            before.setdefault(path, text)
            path.write_text(text[: match.start()] + edit.new + text[match.end() :])
        return before


def load() -> dict[str, Mutant]:
    """All mutants, by name."""
    mutants: dict[str, Mutant] = {}
    for file in sorted(HERE.glob("*.toml")):
        for name, entry in tomllib.loads(file.read_text()).items():
            if name in mutants:
                raise ValueError(f"{file.name}: there are two mutants named {name}")
            edits = tuple(
                Edit(edit["old"], edit["new"], edit.get("in", file.stem.split("-")[0])) for edit in entry["edits"]
            )
            mutants[name] = Mutant(name, entry["breaks"], tuple(entry["tests"]), edits)
    return mutants
