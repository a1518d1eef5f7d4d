"""Question 4: is reading free?"""

from __future__ import annotations

from typing import Any

from report.markdown import by, digits, duration, measured, spread, table, times, values


def section(result: dict[str, Any]) -> str:
    tables = result["tables"]
    return f"""## Is reading free?

A clone that nobody has written against a deep copy of the same model, in turn. The ratio is that of each row to the
deep copy, within a round; where the quartiles enclose 1, no difference was seen.{_control(tables["generate"])}

{measured(result)}
{_against("forward", tables["forward"], "model")}
{_against("generate", tables["generate"], "model")}
{_against("a read of a 32 x 32 tensor, a thousand times", tables["reading_a_small_tensor"], "operator")}
### A step of training

The first step of a clone makes the copies that a deep copy has made before; after that its memory is its own.

{_against("step of AdamW", tables["training_step"], "model")}
### What does the barrier cost those who share nothing?

Nanoseconds per call on a 32 x 32 tensor, in a process without torchcow, and what is added in one that has imported it.

{_operators(tables["operators_with_and_without_torchcow"])}
Operators that only read have no kernel of torchcow. The unboxed kernels are those in front of operators that loops over
small tensors call most; the boxed ones stand in front of the others.
"""


def _control(rows: list[dict[str, Any]]) -> str:
    if all(row["candidate"] != "another deep copy" for row in rows):
        return ""
    return " *Another deep copy* is a\ncontrol: as far as it is from 1, so far are equal things apart."


def _against(title: str, rows: list[dict[str, Any]], label: str) -> str:
    lines = [[row[label], row["candidate"], spread(row["ratio"], digits), spread(row["seconds"])] for row in rows]
    return table([title, "", "ratio", "time"], lines, left=2)


def _operators(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        added = row["added"]
        cells = [digits(row["without"]["median"]), *(f"{added[key]:+.0f}" for key in ("median", "lower", "upper"))]
        lines.append([f"`{row['operator']}`", row["kind"], cells[0], f"{cells[1]} ({cells[2]} to {cells[3]})"])
    return table(["operator", "", "without", "added"], lines, left=2)


def headline(result: dict[str, Any]) -> list[list[str]]:
    rows = result["tables"]["forward"]
    found = by(rows, "model", "candidate")
    model = values(rows, "model")[0]
    plain, clone = found[model, "deep copy"], found[model, "clone"]
    cells = [duration(plain["seconds"]["median"]), duration(clone["seconds"]["median"])]
    title = {"gpt2": "GPT-2 124M"}.get(model, model)
    return [[f"forward pass of {title}", *cells, times(1 / clone["ratio"]["median"])]]
