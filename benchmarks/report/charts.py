# SPDX-License-Identifier: Apache-2.0
"""Charts of the results, readable on light and on dark pages: no background, colours in the middle.

Each chart is a function from results to ``Lines``, which hold all that is plotted. A digest of them stands in the
SVG's metadata, so that a check needs no matplotlib of a certain version.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from report import labels
from report.first_write import STEPS
from report.markdown import by, duration, times, values
from report.scaling import groups

INK = "#808080"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#8C6BB1")
Results = dict[str, dict[str, Any]]


@dataclass
class Lines:
    """What a chart shows: named series of points, which may have quartiles; ``bars`` are horizontal ones over names.

    ``texts`` stand beside the bars of a series. ``log`` names the axes with a logarithmic scale; their titles say so.
    """

    x: str
    y: str
    series: dict[str, list[list[float]]]
    dashed: dict[str, list[list[float]]] = field(default_factory=dict)
    bars: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    log: str = ""
    even: float | None = None

    def digest(self) -> str:
        return "data sha256:" + hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def clone(results: Results) -> Lines:
    rows = results["clone"]["tables"]["models"]
    row_of, models = by(rows, "model", "candidate"), values(rows, "model")
    names = ("copy.deepcopy", "torchcow.clone")
    series = {name: [[at, row_of[m, name]["seconds"]["median"] * 1e3] for at, m in enumerate(models)] for name in names}
    texts = {name: [duration(row_of[m, name]["seconds"]["median"]) for m in models] for name in names}
    for at, model in enumerate(models):
        texts[names[1]][at] += f", {times(1 / row_of[model, names[1]]['ratio']['median'])} faster"
    title = "ms for one clone (log scale: each grid line is 10x the last)"
    return Lines(title, "", series, bars=models, texts=texts, log="x")


def memory(results: Results) -> Lines:
    rows = results["memory"]["tables"]["variants"]
    model = values(rows, "model")[-1]  # the small one, of which all was measured
    mine = [row for row in rows if row["model"] == model and "resident" in row]
    parts = values(mine, "written")
    points = {p: [[r["variants"], r["resident"] / 1e9] for r in mine if r["written"] == p] for p in parts}
    lines = {p: [[r["variants"], r["predicted"] / 1e9] for r in mine if r["written"] == p] for p in parts}
    title = "variants (log scale); dashed: predicted"
    return Lines(title, "GB, resident (log scale)", points, lines, log="xy")


def first_write(results: Results) -> Lines:
    rows = results["first_write"]["tables"]["one_tensor"]
    shown = ("copy into warm memory", "torch clone", "_lazy_clone", "copy", "copy, kept pages", "skip")
    series = {
        labels.plain(name, "one_tensor"): [
            [r["bytes"] / 2**20, r["bytes"] / r["seconds"]["median"] / 1e9] for r in rows if r["candidate"] == name
        ]
        for name in shown
    }
    return Lines("MiB of the tensor (log scale)", "GB/s until it may be written (log scale)", series, log="xy")


def break_even(results: Results) -> Lines:
    rows = [r for r in results["first_write"]["tables"]["break_even"] if r["candidate"] == "torchcow.clone"]
    series = {
        STEPS.get(steps, f"{steps} steps"): [
            [100 * r["fraction"], *(r["ratio"][key] for key in ("median", "lower", "upper"))]
            for r in rows
            if r["steps"] == steps
        ]
        for steps in values(rows, "steps")
    }
    return Lines("% of the weights trained", "time relative to copy.deepcopy", series, even=1.0)


def scaling(results: Results) -> Lines:
    rows = results["scaling"]["tables"]["per_unit"]
    series = {
        title: [[r["at"], r["seconds"]["median"] * 1e6] for r in members if r["candidate"] == "torchcow.clone"]
        for title, members in groups(rows).items()
        if not title.startswith("threads")
    }
    return Lines("number of units (log scale)", "µs per unit, torchcow.clone (log scale)", series, log="xy")


CHARTS: dict[str, tuple[str, Callable[[Results], Lines]]] = {
    "clone": ("clone", clone),
    "memory": ("memory", memory),
    "first_write": ("first_write", first_write),
    "break_even": ("first_write", break_even),
    "scaling": ("scaling", scaling),
}


def draw(name: str, lines: Lines, path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 10, "text.color": INK}):
        height = 1.2 + 0.42 * len(lines.bars) if lines.bars else 3.6
        figure = Figure(figsize=(7.5, height), layout="constrained")
        axes = figure.add_subplot()
        (_bars if lines.bars else _curves)(axes, lines)
        for which in lines.log:
            getattr(axes, f"set_{which}scale")("log")
            getattr(axes, f"{which}axis").set_major_formatter("{x:g}")
        axes.set_xlabel(lines.x, color=INK)
        axes.set_ylabel(lines.y, color=INK)
        axes.tick_params(colors=INK, which="both")
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
        axes.grid(color=INK, alpha=0.25, linewidth=0.5, axis="x" if lines.bars else "both")
        axes.set_axisbelow(True)
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": len(lines.series)}
        axes.legend(frameon=False, labelcolor=INK, **(above if lines.bars else beside))
        path.parent.mkdir(parents=True, exist_ok=True)
        title = f"torchcow: {name.replace('_', ' ')}"
        metadata = {"Date": None, "Creator": None, "Title": title, "Description": lines.digest()}
        figure.savefig(path, format="svg", transparent=True, metadata=metadata)
    # matplotlib leaves blanks at the ends of lines, which checks of a repository complain about.
    path.write_text(re.sub(r"[ \t]+$", "", path.read_text(), flags=re.MULTILINE))


def _bars(axes: Any, lines: Lines) -> None:
    count = len(lines.series)
    for index, (name, points) in enumerate(lines.series.items()):
        places = [point[0] + (index - (count - 1) / 2) * 0.38 for point in points]
        colour = COLOURS[1 - index] if count == 2 else COLOURS[index]
        bars = axes.barh(places, [point[1] for point in points], height=0.36, color=colour, label=name)
        axes.bar_label(bars, lines.texts.get(name, [""] * len(points)), padding=3, fontsize=8, color=INK)
    sizes = [point[1] for points in lines.series.values() for point in points]
    axes.set_xlim(left=min(sizes) / 3, right=max(sizes) * 12)  # room for the texts
    axes.set_yticks(range(len(lines.bars)), lines.bars)
    axes.invert_yaxis()


def _curves(axes: Any, lines: Lines) -> None:
    for colour, (name, points) in zip(COLOURS * 3, lines.series.items(), strict=False):
        x, y, *band = zip(*points, strict=True)
        axes.plot(x, y, color=colour, marker="o", markersize=4, label=name, linestyle="" if lines.dashed else "-")
        if band:
            axes.fill_between(x, *band, color=colour, alpha=0.25, linewidth=0)
        if name in lines.dashed:
            axes.plot(*zip(*lines.dashed[name], strict=True), color=colour, linestyle="--", linewidth=1)
    if lines.even is not None:
        axes.axhline(lines.even, color=INK, linewidth=1)
        axes.set_ylim(bottom=0)


def stored_digest(path: Path) -> str | None:
    match = re.search(r"data sha256:[0-9a-f]{64}", path.read_text()) if path.exists() else None
    return match.group() if match else None
