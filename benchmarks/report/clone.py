# SPDX-License-Identifier: Apache-2.0
"""Question 1: how long does a clone take?"""

from __future__ import annotations

from typing import Any

from report import labels
from report.markdown import by, digits, duration, inverse, listed, measured, size, spread, table, times, values

OURS, DEEPCOPY = "torchcow.clone", "copy.deepcopy"


def section(result: dict[str, Any]) -> str:
    rows = result["tables"]["models"]
    row_of = by(rows, "model", "candidate")
    models, methods = values(rows, "model"), by(result["tables"]["methods"], "candidate")
    sizes = by(result["tables"]["sizes"], "model")
    return f"""## Time of a clone

How long does a clone take? Each method makes one more variant of the same model, in turn with the others. Before a
method is timed, its variant is compared with that of `copy.deepcopy`: every bit of the state, and the output. If a
method claims isolation, all of its variant is written, and the source must not change; if it claims none, the source
must change.

{measured(result)}
{_first(row_of, models)}
![Time of a clone by model, on a logarithmic scale](charts/clone.svg)

The scale of the chart is logarithmic: from one grid line to the next, the time is ten times as long.

The time of a clone depends on the number of objects, not on bytes. It is the median of calls in a row, which find the
caches of the processor warm; *cold* is the first call of each turn, after other work. *Quartiles* are the middle half
of the ratios.

{_sizes(models, sizes)}
### Other methods

How many times as long as `torchcow.clone` does each method take? Below 1x the method is faster.

{_methods(methods)}
{_matrix(row_of, models, methods)}
{_lost(row_of, models, methods)}

### Objects without tensors

{_objects(result["tables"]["objects_without_tensors"])}
"""


def _first(row_of: dict, models: list[str]) -> str:
    rows = []
    for model in models:
        deep, ours = row_of[model, DEEPCOPY], row_of[model, OURS]
        rows.append(
            [
                model,
                times(1 / ours["ratio"]["median"]),
                " to ".join(times(inverse(ours["ratio"])[key]) for key in ("lower", "upper")),
                duration(deep["seconds"]["median"]),
                spread(ours["seconds"]),
                duration(ours["seconds"]["first"]),
                str(ours["rounds"]),
            ]
        )
    return table(["model", "faster", "quartiles", "`copy.deepcopy`", "`torchcow.clone`", "cold", "rounds"], rows)


def _sizes(models: list[str], sizes: dict[str, Any]) -> str:
    keys = ("modules", "objects", "tensors")
    rows = [[model, *(f"{sizes[model][key]:,}" for key in keys), size(sizes[model]["bytes"])] for model in models]
    return table(["model", *keys, "bytes"], rows)


def _methods(methods: dict[str, Any]) -> str:
    rows = [
        [labels.row(name), "yes" if method["isolated"] else "**no**", method["limits"]]
        for name, method in methods.items()
    ]
    return table(["method", "isolated", "note"], rows, left=3)


def _matrix(row_of: dict, models: list[str], methods: dict[str, Any]) -> str:
    rows = []
    for candidate in methods:
        cells = []
        for model in models:
            one, ours = row_of.get((model, candidate)), row_of[model, OURS]
            cells.append(times(one["seconds"]["median"] / ours["seconds"]["median"]) if one else "")
        rows.append([labels.row(candidate), *cells])
    return table(["method", *models], rows)


def _lost(row_of: dict, models: list[str], methods: dict[str, Any]) -> str:
    lost = {
        candidate: [model for model in models if _faster(row_of, model, candidate)]
        for candidate in methods
        if candidate != OURS
    }
    sentences = [
        f"{labels.row(candidate)} is faster than a clone for {'every model' if where == models else listed(where)}"
        f" ({methods[candidate]['limits'] or 'with the same result'})."
        for candidate, where in lost.items()
        if where
    ]
    return " ".join(sentences) if sentences else "No method is faster."


def _faster(row_of: dict, model: str, candidate: str) -> bool:
    one, ours = row_of.get((model, candidate)), row_of[model, OURS]
    return one is not None and one["seconds"]["median"] < ours["seconds"]["median"]


def _objects(rows: list[dict[str, Any]]) -> str:
    row_of = by(rows, "objects", "candidate")
    lines = []
    for objects in values(rows, "objects"):
        ours = row_of[objects, OURS]["seconds"]
        cells = [row_of.get((objects, name)) for name in (DEEPCOPY, "copium.deepcopy")]
        ratios = [times(cell["seconds"]["median"] / ours["median"]) if cell else "" for cell in cells]
        lines.append([objects, *ratios, spread(ours)])
    ratios_and_times = table(["objects", "`copy.deepcopy`", "`copium.deepcopy`", "`torchcow.clone`"], lines)
    slower = [o for o in values(rows, "objects") if _behind(row_of, o)]
    lost = f"Lists and dicts of plain values are bound by Python's allocator; copium is faster for {listed(slower)}."
    head = "How many times as long does each take, and the time of `torchcow.clone`.\n\n"
    return head + ratios_and_times + (f"\n{lost}\n" if slower else "")


def _behind(row_of: dict, objects: str) -> bool:
    other = row_of.get((objects, "copium.deepcopy"))
    return other is not None and other["seconds"]["median"] < row_of[objects, OURS]["seconds"]["median"]


def headline(result: dict[str, Any], chosen: list[str]) -> list[list[str]]:
    row_of = by(result["tables"]["models"], "model", "candidate")
    rows = []
    for model in chosen:
        if (model, OURS) in row_of:
            deep, ours = row_of[model, DEEPCOPY]["seconds"], row_of[model, OURS]
            cells = [duration(deep["median"]), duration(ours["seconds"]["median"]), times(1 / ours["ratio"]["median"])]
            rows.append([f"clone {model}", *cells])
    return rows


def per_object(result: dict[str, Any], model: str) -> str:
    row_of, sizes = by(result["tables"]["models"], "model", "candidate"), by(result["tables"]["sizes"], "model")
    return digits(row_of[model, OURS]["seconds"]["median"] / sizes[model]["objects"] * 1e9)
