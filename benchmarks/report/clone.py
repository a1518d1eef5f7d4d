"""Question 1: how long does a clone take?"""

from __future__ import annotations

from typing import Any

from report.markdown import by, digits, duration, inverse, listed, measured, size, spread, table, times, values

OURS, DEEPCOPY = "torchcow.clone", "copy.deepcopy"


def section(result: dict[str, Any]) -> str:
    rows = result["tables"]["models"]
    found = by(rows, "model", "candidate")
    models, methods = values(rows, "model"), by(result["tables"]["methods"], "candidate")
    return f"""## How long does a clone take?

Each method makes one more variant of the same model, in turn with the others. Before it is timed, its variant is
compared with that of `copy.deepcopy`: every bit of the state, and the output. A method that claims isolation is written
to, all of it, and the source must not change; of a method that claims none, the source must change.

{measured(result)}
{_first(found, models, by(result["tables"]["sizes"], "model"))}
![Time of a clone by model, logarithmic](charts/clone.svg)

The time of a clone depends on the number of objects, not on bytes. It is the median of calls in a row, which find the
caches of the processor warm; *cold* is the first call of each turn, after other work.

### Against everything else

How many times as long as `torchcow.clone` each method takes; less than 1x is faster.

{_matrix(found, models, methods)}
{_lost(found, models, methods)}

### Objects without tensors

{_objects(result["tables"]["objects_without_tensors"])}
"""


def _first(found: dict, models: list[str], sizes: dict[str, Any]) -> str:
    rows = []
    for model in models:
        deep, ours, parts = found[model, DEEPCOPY], found[model, OURS], sizes[model]
        rows.append(
            [
                model,
                times(1 / ours["ratio"]["median"]),
                " to ".join(times(inverse(ours["ratio"])[key]) for key in ("lower", "upper")),
                duration(deep["seconds"]["median"]),
                spread(ours["seconds"]),
                duration(ours["seconds"]["first"]),
                *(f"{parts[key]:,}" for key in ("modules", "objects", "tensors")),
                size(parts["bytes"]),
                str(ours["rounds"]),
            ]
        )
    head = ["model", "faster", "middle half", "`copy.deepcopy`", "`torchcow.clone`", "cold"]
    return table([*head, "modules", "objects", "tensors", "bytes", "rounds"], rows)


def _matrix(found: dict, models: list[str], methods: dict[str, Any]) -> str:
    rows = []
    for candidate, method in methods.items():
        cells = []
        for model in models:
            one, ours = found.get((model, candidate)), found[model, OURS]
            cells.append(times(one["seconds"]["median"] / ours["seconds"]["median"]) if one else "")
        rows.append([f"`{candidate}`", "yes" if method["isolated"] else "**no**", method["limits"], *cells])
    return table(["method", "isolated", "what it is not", *models], rows, left=3)


def _lost(found: dict, models: list[str], methods: dict[str, Any]) -> str:
    lost = {
        candidate: [model for model in models if _faster(found, model, candidate)]
        for candidate in methods
        if candidate != OURS
    }
    told = [
        f"`{candidate}` is faster than a clone for {listed(where)}"
        f" ({methods[candidate]['limits'] or 'with the same result'})."
        for candidate, where in lost.items()
        if where
    ]
    return " ".join(told) if told else "No method is faster."


def _faster(found: dict, model: str, candidate: str) -> bool:
    one, ours = found.get((model, candidate)), found[model, OURS]
    return one is not None and one["seconds"]["median"] < ours["seconds"]["median"]


def _objects(rows: list[dict[str, Any]]) -> str:
    found = by(rows, "objects", "candidate")
    lines = []
    for objects in values(rows, "objects"):
        ours = found[objects, OURS]["seconds"]
        cells = [found.get((objects, name)) for name in (DEEPCOPY, "copium.deepcopy")]
        ratios = [times(cell["seconds"]["median"] / ours["median"]) if cell else "" for cell in cells]
        lines.append([objects, *ratios, spread(ours)])
    told = table(["objects", "`copy.deepcopy`", "`copium.deepcopy`", "`torchcow.clone`"], lines)
    slower = [o for o in values(rows, "objects") if _behind(found, o)]
    lost = f"Lists and dicts of plain values are bound by Python's allocator; copium is faster for {listed(slower)}."
    return "How many times as long, and the time of `torchcow.clone`.\n\n" + told + (f"\n{lost}\n" if slower else "")


def _behind(found: dict, objects: str) -> bool:
    other = found.get((objects, "copium.deepcopy"))
    return other is not None and other["seconds"]["median"] < found[objects, OURS]["seconds"]["median"]


def headline(result: dict[str, Any], chosen: list[str]) -> list[list[str]]:
    found = by(result["tables"]["models"], "model", "candidate")
    rows = []
    for model in chosen:
        if (model, OURS) in found:
            deep, ours = found[model, DEEPCOPY]["seconds"], found[model, OURS]
            cells = [duration(deep["median"]), duration(ours["seconds"]["median"]), times(1 / ours["ratio"]["median"])]
            rows.append([f"clone {model}", *cells])
    return rows


def per_object(result: dict[str, Any], model: str) -> str:
    found, sizes = by(result["tables"]["models"], "model", "candidate"), by(result["tables"]["sizes"], "model")
    return digits(found[model, OURS]["seconds"]["median"] / sizes[model]["objects"] * 1e9)
