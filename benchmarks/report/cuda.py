# SPDX-License-Identifier: Apache-2.0
"""Question 6: the same on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from report import labels
from report.markdown import by, digits, duration, measured, size, spread, table, times, values

Rows = list[dict[str, Any]]
TITLE = "## GPU\n"
NONE = """
There are no stored results yet: torchcow has not run on a GPU. On a machine with one, `make gpu` builds, tests and
measures in eight minutes, and `python benchmarks/render.py --gpu gpu-results.json` puts the results here.
"""


def section(result: dict[str, Any] | None) -> str:
    if result is None:
        return TITLE + NONE
    parts = [TITLE, measured(result)]
    for name, (title, render) in PARTS.items():
        rows = result["tables"].get(name, [])
        good = [row for row in rows if "error" not in row]
        parts.append(f"### {title}\n")
        parts += [render(good)] if good else []
        parts += [f"Failed: {row['error']}\n" for row in rows if "error" in row]
        if not rows:
            parts.append("Not measured.\n")
    return "\n".join(parts)


def _timed(*keys: str) -> Callable[[Rows], str]:
    def render(rows: Rows) -> str:
        lines = []
        for row in rows:
            cells = [str(row[key]) for key in keys]
            lines.append([*cells, labels.row(row["candidate"]), spread(row["ratio"], digits), spread(row["seconds"])])
        return table([*keys, "", "relative to the first row", "time"], lines, left=len(keys) + 1)

    return render


def _bandwidth(rows: Rows) -> str:
    row_of = by(rows, "size", "candidate")
    candidates = values(rows, "candidate")
    lines = [
        [s, *(digits(row_of[s, c]["bytes"] / row_of[s, c]["seconds"]["median"] / 1e9) for c in candidates)]
        for s in values(rows, "size")
    ]
    return "GB/s of the device.\n\n" + table(["size", *map(labels.row, candidates)], lines)


def _sharing(rows: Rows) -> str:
    lines = [[labels.row(r["candidate"]), times(r["ratio"]["median"]), duration(_each(r))] for r in rows]
    return table(["", "relative to the first row", "host time per tensor of 1 MiB"], lines)


def _each(row: dict[str, Any]) -> float:
    return float(row["seconds"]["median"] / row["tensors"])


def _capacity(rows: Rows) -> str:
    lines = []
    for row in rows:
        full = "until memory was full" if row["full"] else "as many as were tried"
        edited = f"{digits(100 * row['edited_bytes'] / row['model_bytes'])} %"
        sizes = [size(row["bytes"]), size(row["predicted"])] if "deepcopy" not in row["candidate"] else ["", ""]
        lines.append([labels.row(row["candidate"]), edited, full, f"{row['variants']:,}", *sizes])
    head = ["", "written in each", "", "variants", "taken", "predicted"]
    return f"A model of {size(rows[0]['model_bytes'])}.\n\n" + table(head, lines, left=3)


def _optimizers(rows: Rows) -> str:
    names = [name for name in rows[0] if name != "optimizer"]
    lines = [[row["optimizer"], *(row[name] for name in names)] for row in rows]
    return (
        "A clone is trained with the optimizer's default settings, which on CUDA are multi-tensor operators. Is its"
        " source unchanged?\n\n" + table(["optimizer", *map(labels.row, names)], lines, left=3)
    )


def _training(rows: Rows) -> str:
    ours = [row for row in rows if row["candidate"] == "torchcow.clone"]
    row_of = by(ours, "fraction", "steps")
    steps = values(ours, "steps")
    lines = [
        [f"{digits(100 * f)} %", *(spread(row_of[f, s]["ratio"], digits) for s in steps)]
        for f in values(ours, "fraction")
    ]
    return "Time relative to that with `copy.deepcopy`.\n\n" + table(
        ["weights trained", *(f"{step} steps" for step in steps)], lines
    )


PARTS: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "clones": ("A clone", _timed("model")),
    "sharing": ("Many tensors", _sharing),
    "first_writes": ("The first write", _bandwidth),
    "many_small": ("Many small tensors", _timed("tensors", "time")),
    "streams": ("Streams", _timed("streams")),
    "training": ("Clone, train, drop", _training),
    "reading": ("Forward passes", _timed("model")),
    "capacity": ("Variants of a model of 8 billion parameters that fit", _capacity),
    "optimizers": ("Default optimizers", _optimizers),
}
