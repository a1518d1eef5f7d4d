# SPDX-License-Identifier: Apache-2.0
"""Question 5: how does it scale?"""

from __future__ import annotations

from typing import Any

from report import labels
from report.markdown import digits, duration, listed, measured, size, spread, table, values


def section(result: dict[str, Any]) -> str:
    tables = result["tables"]
    rows = tables["per_unit"]
    memory = tables["memory_of_a_clone"][0]
    return f"""## Scaling

How does the time for one unit change as the number of units grows? *Growth* is relative to the first row of the same
method; 1 is flat.

{measured(result)}
{_table(rows)}
![Time per unit, on logarithmic scales](charts/scaling.svg)

{_bends(rows)}

A clone of {memory["model"]} that was not written keeps {size(memory["bytes_per_clone"])}: the Python objects of
{memory["modules"]} modules. For threads, the time is that of all clones together, divided by their number. Python's
lock lets one thread at a time clone; the copies and fills of first writes run without it.
"""


def groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by what grows."""
    return {what: [row for row in rows if row["what"] == what] for what in values(rows, "what")}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for title, members in groups(rows).items():
        for candidate in values(members, "candidate"):
            mine = [row for row in members if row["candidate"] == candidate]
            for row in mine:
                growth = row["seconds"]["median"] / mine[0]["seconds"]["median"]
                number = f"{row['at']:,}"
                who = labels.row(candidate)
                lines.append([title, who, number, row["unit"], spread(row["seconds"]), digits(growth)])
    return table(["what grows", "", "number", "unit", "time per unit", "growth"], lines, left=2)


def _bends(rows: list[dict[str, Any]]) -> str:
    bends = []
    for title, members in groups(rows).items():
        for candidate in values(members, "candidate"):
            mine = [row["seconds"]["median"] for row in members if row["candidate"] == candidate]
            if mine[-1] > 2 * min(mine) and candidate not in ("copy.deepcopy", "detach", "write", "_foreach_add_"):
                bends.append(f"{labels.row(candidate)}, {title} (from {duration(min(mine))} to {duration(mine[-1])})")
    if not bends:
        return "No curve of torchcow ends at more than twice its lowest point."
    return (
        f"These curves of torchcow end at more than twice their lowest point: {listed(bends)}. Objects of the source"
        " and of the clone that no longer fit into the caches of the processor come from memory. `copy.deepcopy` and"
        " `detach`, which makes as many tensors and shares nothing, show how much of a bend that explains."
    )
