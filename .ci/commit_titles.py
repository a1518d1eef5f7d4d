#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check the titles of commits: ``type(scope): imperative`` in at most 72 characters.

Without arguments: all commits since this file exists. ``--file PATH``: the message in a file, as a commit hook gets it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TYPES = ("build", "ci", "docs", "feat", "fix", "perf", "refactor", "revert", "style", "test")
TITLE = re.compile(rf"({'|'.join(TYPES)})(\([\w ,./-]+\))?!?: \S.*")
LENGTH = 72


def complaint(title: str) -> str | None:
    """Say what is wrong with a title, or return None."""
    if title.startswith(("Merge ", "fixup! ", "squash! ", 'Revert "')):
        return None
    if len(title) > LENGTH:
        return f"has {len(title)} characters, at most {LENGTH} are read in full"
    if not TITLE.fullmatch(title):
        return f"is not 'type(scope): imperative' with a type of {', '.join(TYPES)}"
    return None


def git(*arguments: str) -> list[str]:
    """Return the lines that git prints; none where there is no history."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def titles() -> list[str]:
    """Return the titles of the commits since the one that added this file."""
    here = Path(__file__).resolve().relative_to(Path.cwd())
    first = git("log", "--diff-filter=A", "--format=%H", "--", str(here))
    return git("log", "--no-merges", "--format=%s", f"{first[-1]}..HEAD") if first else []


def main(arguments: list[str]) -> int:
    """Print each title that is wrong; return 1 if there is one."""
    checked = Path(arguments[1]).read_text().splitlines()[:1] if arguments[:1] == ["--file"] else titles()
    wrong = [(title, why) for title in checked if (why := complaint(title))]
    for title, why in wrong:
        print(f"commit title {title!r} {why}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
