# SPDX-License-Identifier: Apache-2.0
"""Question 2: how much memory do N variants take?"""

from __future__ import annotations

from typing import Any

from report import labels
from report.markdown import by, digits, measured, size, table, times, values


def section(result: dict[str, Any]) -> str:
    tables = result["tables"]
    return f"""## Memory of N variants

How much memory do N variants take? A model of size S is cloned N times, and a fraction f of the weights is written in
each clone. The prediction is S (1 + N f); deep copies take S (1 + N). *Allocated* is the count of `torchcow.memory`.
*Resident* is the memory that the process has taken from the system since the first clone, plus S; it includes the
Python objects of the clones.

{measured(result)}
{"".join(_model(tables["variants"], model) for model in values(tables["variants"], "model"))}
![Memory of N variants, predicted and measured, on logarithmic scales](charts/memory.svg)

The chart is of {values(tables["variants"], "model")[-1]}; both scales are logarithmic.

{_bend(tables["variants"])}

### Variants in a budget

{_budget(tables["budget"])}"""


def _model(rows: list[dict[str, Any]], model: str) -> str:
    lines = []
    for row in rows:
        if row["model"] != model:
            continue
        measured_ = "resident" in row
        lines.append(
            [
                row["written"],
                str(row["variants"]),
                f"{digits(100 * row['fraction'])} %",
                size(row["deep copies"]),
                size(row["predicted"]),
                size(row["unique"]) if measured_ else "does not fit",
                size(row["resident"]) if measured_ else "",
                digits(row["resident"] / row["predicted"]) if measured_ else "",
            ]
        )
    head = ["written", "N", "f", "deep copies", "predicted", "allocated", "resident", "resident / predicted"]
    return f"**{model}**\n\n{table(head, lines)}\n"


def _bend(rows: list[dict[str, Any]]) -> str:
    measured_rows = [row for row in rows if "resident" in row]
    worst = max(measured_rows, key=lambda row: row["resident"] / row["predicted"])
    idle = [row for row in measured_rows if row["written"] == "nothing"]
    most = max(idle, key=lambda row: row["variants"])
    each = (most["resident"] - most["size"]) / most["variants"]
    return (
        f"Resident memory exceeds the prediction most for {worst['model']}, {worst['written']} written, N ="
        f" {worst['variants']}: by a factor of {digits(worst['resident'] / worst['predicted'])}. The rest is the Python"
        f" objects of the clones, {size(each)} for each clone of {most['model']}, and tensors below 1 KB, which are"
        " copied eagerly."
    )


def _budget(rows: list[dict[str, Any]]) -> str:
    row_of = by(rows, "written", "candidate")
    methods = values(rows, "candidate")
    lines = []
    for written in values(rows, "written"):
        cells = [row_of[written, method] for method in methods]
        lines.append([written, *(f"{cell['fit']:,} ({size(cell['bytes_per_variant'])})" for cell in cells)])
    model, budget = rows[0]["model"], size(rows[0]["budget"])
    return (
        f"How many variants of {model} fit in {budget}, the model itself included? In brackets are the bytes that one"
        " more variant takes. They are measured on a few variants; the number of variants is computed from them. A"
        " variant of `functional_call` is a dict of tensors: to write a part, the caller puts a copy of that part into"
        " it by hand, and a write in place would reach the source.\n\n"
        + table(["written", *map(labels.row, methods)], lines)
    )


def headline(result: dict[str, Any]) -> list[list[str]]:
    """The largest number of variants of the first model that was measured, for two parts."""
    rows = []
    for written in ("one norm", "one layer"):
        measured_rows = [r for r in result["tables"]["variants"] if r["written"] == written and "resident" in r]
        if measured_rows:
            row = max(
                (r for r in measured_rows if r["model"] == measured_rows[0]["model"]), key=lambda r: r["variants"]
            )
            what = f"{row['variants']} variants of {row['model']}, {written} written in each"
            saved = times(row["deep copies"] / row["resident"])
            rows.append([what, size(row["deep copies"]), size(row["resident"]), saved])
    return rows
