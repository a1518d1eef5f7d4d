"""Question 5: how does it scale?"""

from __future__ import annotations

from typing import Any

from report.markdown import digits, duration, listed, measured, size, spread, table, values


def section(result: dict[str, Any]) -> str:
    tables = result["tables"]
    rows = tables["per_unit"]
    memory = tables["memory_of_a_clone"][0]
    return f"""## How does it scale?

The time for each unit, as their number grows. *Growth* is against the first line of the same method; flat is 1.

{measured(result)}
{_table(rows)}
![Time per unit](charts/scaling.svg)

{_bends(rows)}

An untouched clone of {memory["model"]} keeps {size(memory["bytes_per_clone"])}: the Python objects of
{memory["modules"]} modules. Threads: the time is that of all clones together, divided by their number; Python's lock
lets one thread at a time clone, while the copies and fills of first writes run outside of it.
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
                lines.append([title, candidate, f"{row['at']:,}", row["unit"], spread(row["seconds"]), digits(growth)])
    return table(["what grows", "", "number", "unit", "time per unit", "growth"], lines, left=2)


def _bends(rows: list[dict[str, Any]]) -> str:
    bent = []
    for title, members in groups(rows).items():
        for candidate in values(members, "candidate"):
            mine = [row["seconds"]["median"] for row in members if row["candidate"] == candidate]
            if mine[-1] > 2 * min(mine) and candidate not in ("copy.deepcopy", "detach", "write", "_foreach_add_"):
                bent.append(f"{candidate}, {title} (from {duration(min(mine))} to {duration(mine[-1])})")
    if not bent:
        return "No curve of torchcow ends at more than twice its lowest point."
    return (
        f"Curves of torchcow that end at more than twice their lowest point: {listed(bent)}. What no longer fits into"
        " the caches of the processor, objects of the source and of the clone, comes from memory; `copy.deepcopy` and"
        " `detach`, which makes as many tensors and shares nothing, show how much of a bend is that."
    )
