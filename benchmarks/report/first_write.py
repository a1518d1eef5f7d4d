# SPDX-License-Identifier: Apache-2.0
"""Question 3: what does the first write cost, and where does copy-on-write stop paying?"""

from __future__ import annotations

from typing import Any

from report import labels
from report.markdown import by, digits, duration, inverse, listed, measured, spread, table, times, values

STEPS = {0: "written once", 1: "1 step", 10: "10 steps"}


def section(result: dict[str, Any]) -> str:
    tables = result["tables"]
    return f"""## First write

What does the first write cost? The table has gigabytes per second until the tensor may be written. One byte is then
written; *skip* and `zero_` write all bytes. *Copy into warm memory* is the limit: the process has used that memory
before. Page faults bound the speed of fresh memory. *Kept pages* were freed by another clone, so they have no page
faults either. A steal copies nothing, so its bandwidth is the size divided by the time of a call.

{measured(result)}
{_bandwidth(tables["one_tensor"])}
![Bandwidth of the first write by size, on logarithmic scales](charts/first_write.svg)

{_behind(tables["one_tensor"])}

### Every weight of a model

{_whole(tables["every_parameter_of_gpt2"])}
{_whole(tables["load_state_dict"])}
### Break-even

Where does copy-on-write stop paying? A GPT is cloned, its last parts are trained, and the clone is dropped. The table
has the time of all that with `torchcow.clone`, relative to the time with `copy.deepcopy`. Below 1 copy-on-write pays.

{_break_even(tables["break_even"])}
![The break-even curve](charts/break_even.svg)

{_verdict(tables["break_even"])}
"""


def _bandwidth(rows: list[dict[str, Any]]) -> str:
    row_of = by(rows, "size", "candidate")
    candidates = values(rows, "candidate")
    lines = []
    for size in values(rows, "size"):
        cells = [row_of[size, candidate] for candidate in candidates]
        lines.append([size, *(digits(cell["bytes"] / cell["seconds"]["median"] / 1e9) for cell in cells)])
    return table(["size", *(labels.row(candidate, "one_tensor") for candidate in candidates)], lines)


def _behind(rows: list[dict[str, Any]]) -> str:
    row_of = by(rows, "size", "candidate")

    def slower(ours: str, other: str) -> list[str]:
        sizes = values(rows, "size")
        return [s for s in sizes if row_of[s, ours]["seconds"]["lower"] > row_of[s, other]["seconds"]["upper"]]

    sentences = []
    for ours, other in (("copy", "torch clone"), ("copy", "_lazy_clone"), ("skip", "torch empty_like, zero_")):
        losses = slower(ours, other)
        name = labels.row(other, "one_tensor")
        sentences.append(
            f"A {ours} is slower than {name} (by more than the quartiles) at {listed(losses)}."
            if losses
            else f"A {ours} is at no size slower than {name} by more than the quartiles."
        )
    return " ".join(sentences)


def _whole(rows: list[dict[str, Any]]) -> str:
    lines = [[labels.row(row["candidate"]), times(row["ratio"]["median"]), spread(row["seconds"])] for row in rows]
    return table([rows[0]["model"], "relative to the first row", "time"], lines)


def _break_even(rows: list[dict[str, Any]]) -> str:
    ours = by((row for row in rows if row["candidate"] == "torchcow.clone"), "fraction", "steps")
    steps = values(rows, "steps")
    lines = [
        [f"{digits(100 * fraction)} %", *(spread(ours[fraction, step]["ratio"], digits) for step in steps)]
        for fraction in values(rows, "fraction")
    ]
    return table(["weights trained", *(STEPS.get(step, f"{step} steps") for step in steps)], lines)


def _verdict(rows: list[dict[str, Any]]) -> str:
    sentences = []
    for steps in values(rows, "steps"):
        ours = [row for row in rows if row["steps"] == steps and row["candidate"] == "torchcow.clone"]
        losses = [row for row in ours if row["ratio"]["median"] > 1]
        what = STEPS.get(steps, f"{steps} steps")
        if not losses:
            sentences.append(f"{what.capitalize()}: a clone pays at each fraction that was measured.")
            continue
        shares = listed([f"{digits(100 * row['fraction'])} %" for row in losses])
        worst = max(losses, key=lambda row: row["ratio"]["median"])
        clear = "beyond" if worst["ratio"]["lower"] > 1 else "within"
        sentences.append(
            f"{what.capitalize()}: a deep copy is faster with {shares} trained, at worst by"
            f" {digits(100 * worst['ratio']['median'] - 100, 2)} % ({clear} the quartiles)."
        )
    return " ".join(sentences)


def headline(result: dict[str, Any]) -> list[list[str]]:
    row_of = by(result["tables"]["every_parameter_of_gpt2"], "candidate")
    deep, ours = row_of["deepcopy, then write"], row_of["torchcow.clone, then write"]
    cells = [deep["seconds"]["median"], ours["seconds"]["median"]]
    row = [f"clone {ours['model']} and write every weight", *map(duration, cells)]
    rows = [[*row, times(inverse(ours["ratio"])["median"])]]
    trained = [row for row in result["tables"]["break_even"] if row["fraction"] == 1 and row["steps"] == 1]
    if trained:
        by_name = by(trained, "candidate")
        cells = [by_name[name]["seconds"]["median"] for name in ("copy.deepcopy", "torchcow.clone")]
        row = ["clone a GPT, one training step of all weights", *map(duration, cells)]
        rows.append([*row, times(1 / by_name["torchcow.clone"]["ratio"]["median"])])
    return rows
