# SPDX-License-Identifier: Apache-2.0
"""What commands print: tables for people, one JSON document for programs, one line for a mistake of the user."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Blue and vermilion of Okabe and Ito: distinguishable by color-blind readers, readable on light and on dark. The words
# beside them say the same.
_STYLES = {"good": "#0072b2", "weak": "#d55e00", "bad": "bold #d55e00"}

# Rich breaks lines at the width of the terminal. A pipe has none.
_ENDLESS = 100_000


class Mistake(Exception):  # noqa: N818
    """``command`` cannot do what the user asked for; the message says in one line what, why, and what to do.

    ``code`` is the exit code: 2 if the user asked for something that does not exist, 1 if something is broken.
    """

    def __init__(self, command: str, message: str, code: int = 2):
        super().__init__(message)
        self.command = command
        self.code = code


def console(stderr: bool = False) -> Console:
    """Return a console: colors and the width of the window in a terminal, plain text of any width elsewhere."""
    from rich.console import Console
    from rich.theme import Theme

    theme = Theme(_STYLES)
    terminal = Console(stderr=stderr, theme=theme, highlight=False)
    if terminal.is_terminal:
        return terminal
    return Console(stderr=stderr, theme=theme, highlight=False, width=_ENDLESS)


def escape(text: str) -> str:
    """Return ``text`` so that rich prints it as it is."""
    from rich.markup import escape

    return escape(text)


def document(value: Any) -> None:
    """Print ``value`` as the one JSON document of a command; a value that JSON cannot express becomes a string."""
    sys.stdout.write(json.dumps(_portable(value), indent=2, allow_nan=False) + "\n")


@contextmanager
def only_a_document(asked: bool) -> Iterator[None]:
    """Within the block, if ``asked``, send to stderr what libraries print, so that stdout gets the document only."""
    before = sys.stdout
    if asked:
        sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = before


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()) -> Any:
    """Return a table of plain text; the first column and those in ``left`` are left-aligned, the others right-aligned.

    It looks like the tables of the package's reports.
    """
    from torchcow.report.table import Table

    return Table(columns, title or "", rows=list(rows), left=frozenset(left)).rich()


def seconds(value: float) -> str:
    """Return a time for people.

    Example:
        >>> seconds(0.00042), seconds(0.25), seconds(75.0)
        ('0.42 ms', '250.00 ms', '75.00 s')
    """
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _portable(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_portable(one) for one in value), key=str)
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
