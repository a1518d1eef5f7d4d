# SPDX-License-Identifier: Apache-2.0
"""Question 4: is reading free?"""

from __future__ import annotations

from typing import Any

from report import labels
from report.markdown import by, digits, duration, measured, spread, table, times, values


def section(result: dict[str, Any]) -> str:
    tables = result["tables"]
    return f"""## Reading

Is reading free? A clone that was not written and a deep copy of the same model take turns. The ratio is the time of a
row relative to the deep copy, within a round; where the quartiles enclose 1, no difference was seen.
{_control(tables["generate"])}

{measured(result)}
{_against("forward", tables["forward"], "model")}
{_against("generate", tables["generate"], "model")}
{_against("a read of a 32 x 32 tensor, a thousand times", tables["reading_a_small_tensor"], "operator")}
### Training

The first step of a clone makes the copies that a deep copy has made before. After that, the clone's memory is private.

{_against("step of AdamW", tables["training_step"], "model")}
### Cost of the barrier

What does the barrier cost a program that shares nothing? The table has nanoseconds per call on a 32 x 32 tensor: in a
process without torchcow, and how many more in a process that has imported it.

{_operators(tables["operators_with_and_without_torchcow"])}
Operators that only read have no kernel of torchcow. The operators that loops over small tensors call most have unboxed
kernels; the others have boxed ones.
"""


def _control(rows: list[dict[str, Any]]) -> str:
    if all(row["candidate"] != "another deep copy" for row in rows):
        return ""
    return "*Another deep copy* is a control: its distance from 1 is the distance between equal things."


def _against(title: str, rows: list[dict[str, Any]], label: str) -> str:
    lines = [
        [labels.row(row[label]), labels.row(row["candidate"]), spread(row["ratio"], digits), spread(row["seconds"])]
        for row in rows
    ]
    return table([title, "", "ratio to the deep copy", "time"], lines, left=2)


def _operators(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        added = row["added"]
        cells = [digits(row["without"]["median"]), *(f"{added[key]:+.0f}" for key in ("median", "lower", "upper"))]
        name = row["operator"]
        lines.append(
            [labels.ROWS.get(name, f"`{name}`"), row["kind"], cells[0], f"{cells[1]} ({cells[2]} to {cells[3]})"]
        )
    return table(["operator", "", "without torchcow, ns", "added, ns"], lines, left=2)


def headline(result: dict[str, Any]) -> list[list[str]]:
    rows = result["tables"]["forward"]
    row_of = by(rows, "model", "candidate")
    model = values(rows, "model")[0]
    plain, clone = row_of[model, "deep copy"], row_of[model, "clone"]
    cells = [duration(plain["seconds"]["median"]), duration(clone["seconds"]["median"])]
    title = {"gpt2": "GPT-2 124M"}.get(model, model)
    return [[f"forward pass of {title}", *cells, times(1 / clone["ratio"]["median"])]]
