# SPDX-License-Identifier: Apache-2.0
"""One table, for a terminal, as plain text and for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any


@dataclass
class Table:
    """Columns and rows of text; the first column is left-aligned, the others are right-aligned unless in ``left``."""

    columns: Sequence[str]
    title: str = ""
    caption: str = ""
    rows: list[Sequence[str]] = field(default_factory=list)
    left: frozenset[str] = frozenset()

    def rich(self) -> Any:
        """Return the table as an object that rich prints."""
        try:
            from rich import box
            from rich.markup import escape as plain
            from rich.table import Table as RichTable
        except ImportError as error:
            raise ImportError("tables in a terminal need the package rich: pip install rich") from error
        table = RichTable(
            title=plain(self.title) or None,
            caption=plain(self.caption) or None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE,
        )
        for index, column in enumerate(self.columns):
            table.add_column(plain(column), justify=self._side(index), overflow="fold")
        for row in self.rows:
            table.add_row(*(plain(cell) for cell in row))
        return table

    def text(self) -> str:
        """Return the table as plain text, which needs no library."""
        lines = [list(self.columns), *(list(row) for row in self.rows)]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        body = []
        for line in lines:
            cells = [
                cell.ljust(width) if self._side(index) == "left" else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            body.append("  ".join(cells).rstrip())
        return "\n".join([*([self.title] if self.title else []), *body, *([self.caption] if self.caption else [])])

    def html(self) -> str:
        """Return HTML for a notebook, in the colors of its page."""

        def row(cells: Sequence[str], tag: str) -> str:
            sides = (f"text-align: {self._side(index)}" for index in range(len(cells)))
            inner = (f'<{tag} style="{side}">{escape(cell)}</{tag}>' for cell, side in zip(cells, sides, strict=True))
            return f"<tr>{''.join(inner)}</tr>"

        body = "".join(row(cells, "td") for cells in self.rows)
        title = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        caption = f"<p>{escape(self.caption)}</p>" if self.caption else ""
        return f"<table>{title}<thead>{row(self.columns, 'th')}</thead><tbody>{body}</tbody></table>{caption}"

    def _side(self, index: int) -> Any:
        return "left" if index == 0 or self.columns[index] in self.left else "right"


class Tabular:
    """An object that prints as its `_table()`: with print, with rich, and in a notebook."""

    def _table(self) -> Table:
        raise NotImplementedError

    def __str__(self) -> str:
        return self._table().text()

    def __rich__(self) -> Any:
        return self._table().rich()

    def _repr_html_(self) -> str:
        return self._table().html()


def size(number: float) -> str:
    """Return a number of bytes for people, in units of powers of ten."""
    for unit, value in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= value:
            return f"{number / value:.2f} {unit}"
    return f"{number:.0f} B"
