#!/usr/bin/env -S uv run --script
# SPDX-License-Identifier: Apache-2.0

# /// script
# dependencies = ["nox>=2025.2.9"]
# ///

"""For those who are used to nox: each session calls the target of the Makefile with the same name."""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "none"  # the Makefile keeps its own environments


@nox.session
def lint(session: nox.Session) -> None:
    """Layout, types and the rules of this project."""
    session.run("make", "lint", external=True)


@nox.session
def test(session: nox.Session) -> None:
    """Build, C++ tests and Python tests; arguments go to pytest."""
    session.run("make", "test", f"PYTEST_ARGS={' '.join(session.posargs)}", external=True)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The documents as HTML."""
    session.run("make", "docs", external=True)


if __name__ == "__main__":
    nox.main()
