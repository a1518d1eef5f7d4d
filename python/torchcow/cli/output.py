"""How the commands speak: tables for people, one JSON document for programs, one line for a mistake."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.theme import Theme

#: The option that every command with something to report has.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead, for programs.")]

# Blue and vermilion of Okabe and Ito: told apart by all kinds of eyes, readable on light and on dark. What they
# say stands beside them in words.
_THEME = Theme({"good": "#0072b2", "weak": "#d55e00", "bad": "bold #d55e00"})

# Rich breaks lines where it believes the terminal ends. A pipe has no end.
_ENDLESS = 100_000


class Mistake(Exception):  # noqa: N818
    """What ``command`` was asked for cannot be done; the message says in one line what, why, and what to do.

    ``code`` is the exit code: 2 where the user asked for what is not there, 1 where something is broken.
    """

    def __init__(self, command: str, message: str, code: int = 2):
        super().__init__(message)
        self.command = command
        self.code = code


def console(stderr: bool = False) -> Console:
    """A console: colours and the width of the window in a terminal, plain text of any width elsewhere."""
    made = Console(stderr=stderr, theme=_THEME, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, theme=_THEME, highlight=False, width=_ENDLESS)


def document(value: Any) -> None:
    """Print ``value`` as the one JSON document of a command; what JSON has no form for becomes a string."""
    sys.stdout.write(json.dumps(_portable(value), indent=2, allow_nan=False) + "\n")


@contextmanager
def only_a_document(asked: bool) -> Iterator[None]:
    """While work is done for a JSON document: what libraries print to stdout goes to stderr."""
    before = sys.stdout
    if asked:
        sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = before


def table(
    title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()
) -> Table:
    """A table of plain text; the first column and those in ``left`` are aligned to the left, others to the right."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 or column in left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def seconds(value: float) -> str:
    """A time for people.

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
