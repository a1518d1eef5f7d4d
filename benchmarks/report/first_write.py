"""Question 3: what does the first write cost, and where does copy-on-write stop paying?"""

from __future__ import annotations

from typing import Any

from report.markdown import by, digits, duration, inverse, listed, measured, spread, table, times, values

STEPS = {0: "written once", 1: "1 step", 10: "10 steps"}


def section(result: dict[str, Any]) -> str:
    tables = result["tables"]
    return f"""## What does the first write cost?

Gigabytes per second until a tensor has bytes that may be written, of which one is then written; *skip* and *zero_*
write all of them. `copy into warm memory` is the limit: memory that is there already. Fresh memory is bound by page
faults. *Kept pages* were given back by another clone before, and are there already, too. A steal copies nothing, so
its bandwidth is only the size over the time of a call.

{measured(result)}
{_bandwidth(tables["one_tensor"])}
![Bandwidth of the first write by size](charts/first_write.svg)

{_behind(tables["one_tensor"])}

### All of a model

{_whole(tables["every_parameter_of_gpt2"])}
{_whole(tables["load_state_dict"])}
### Where does copy-on-write stop paying?

Clone a GPT, train the last parts of it, drop it: the whole use, and how long it takes with `torchcow.clone` for each
second with `copy.deepcopy`. Below 1 it pays.

{_break_even(tables["break_even"])}
![The break-even curve](charts/break_even.svg)

{_verdict(tables["break_even"])}
"""


def _bandwidth(rows: list[dict[str, Any]]) -> str:
    found = by(rows, "size", "candidate")
    candidates = values(rows, "candidate")
    lines = []
    for size in values(rows, "size"):
        cells = [found[size, candidate] for candidate in candidates]
        lines.append([size, *(digits(cell["bytes"] / cell["seconds"]["median"] / 1e9) for cell in cells)])
    return table(["size", *candidates], lines)


def _behind(rows: list[dict[str, Any]]) -> str:
    found = by(rows, "size", "candidate")

    def slower(ours: str, other: str) -> list[str]:
        sizes = values(rows, "size")
        return [s for s in sizes if found[s, ours]["seconds"]["lower"] > found[s, other]["seconds"]["upper"]]

    told = []
    for ours, other in (("copy", "torch clone"), ("copy", "_lazy_clone"), ("skip", "torch empty_like, zero_")):
        lost = slower(ours, other)
        told.append(
            f"`{ours}` is slower than `{other}` (by more than the quartiles) at {listed(lost)}."
            if lost
            else f"`{ours}` is at no size slower than `{other}` by more than the quartiles."
        )
    return " ".join(told)


def _whole(rows: list[dict[str, Any]]) -> str:
    lines = [[row["candidate"], times(row["ratio"]["median"]), spread(row["seconds"])] for row in rows]
    return table([rows[0]["model"], "of the first row", "time"], lines)


def _break_even(rows: list[dict[str, Any]]) -> str:
    ours = by((row for row in rows if row["candidate"] == "torchcow.clone"), "fraction", "steps")
    steps = values(rows, "steps")
    lines = [
        [f"{digits(100 * fraction)} %", *(spread(ours[fraction, step]["ratio"], digits) for step in steps)]
        for fraction in values(rows, "fraction")
    ]
    return table(["weights trained", *(STEPS.get(step, f"{step} steps") for step in steps)], lines)


def _verdict(rows: list[dict[str, Any]]) -> str:
    told = []
    for steps in values(rows, "steps"):
        ours = [row for row in rows if row["steps"] == steps and row["candidate"] == "torchcow.clone"]
        lost = [row for row in ours if row["ratio"]["median"] > 1]
        what = STEPS.get(steps, f"{steps} steps")
        if not lost:
            told.append(f"{what.capitalize()}: a clone pays at each fraction that was measured.")
            continue
        shares = listed([f"{digits(100 * row['fraction'])} %" for row in lost])
        worst = max(lost, key=lambda row: row["ratio"]["median"])
        clear = "beyond" if worst["ratio"]["lower"] > 1 else "within"
        told.append(
            f"{what.capitalize()}: a deep copy is faster with {shares} trained, at worst by"
            f" {digits(100 * worst['ratio']['median'] - 100, 2)} % ({clear} the quartiles)."
        )
    return " ".join(told)


def headline(result: dict[str, Any]) -> list[list[str]]:
    found = by(result["tables"]["every_parameter_of_gpt2"], "candidate")
    deep, ours = found["deepcopy, then write"], found["torchcow.clone, then write"]
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
