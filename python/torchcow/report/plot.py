# SPDX-License-Identifier: Apache-2.0
"""Charts, drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchcow.report.memory import Memory

# Distinguishable by color-blind readers on white and on black; the gray of text and axes is readable on both.
PRIVATE, SHARED, INK = "#D55E00", "#0072B2", "#808080"


def memory_bars(memory: Memory, path: str | None) -> Any:
    """Draw one bar for each object: private memory and its fair share of shared blocks, against its deep copy."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need the package matplotlib: pip install 'torchcow[plot]'") from error
    parts = memory.by_object()
    unit, scale = ("GB", 1e9) if memory.logical >= 1e10 else ("MB", 1e6)
    private = [part.private / scale for part in parts.values()]
    shared = [(part.fair_share - part.private) / scale for part in parts.values()]
    copies = [part.logical / scale for part in parts.values()]
    places = range(len(parts))

    figure = Figure(figsize=(8, 1.6 + 0.25 * min(len(parts), 60)), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.barh(places, private, color=PRIVATE, label="private")
    axes.barh(places, shared, left=private, color=SHARED, label="fair share of shared memory")
    axes.plot(copies, places, "|", color=INK, markersize=10, label="a deep copy")
    axes.set_yticks(places if len(parts) <= 60 else [], list(parts) if len(parts) <= 60 else [])
    axes.invert_yaxis()
    axes.set_xlabel(f"{unit}; {memory.unique / scale:,.1f} allocated, {memory.logical / scale:,.1f} as deep copies")
    axes.legend(labelcolor=INK, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(INK)
    if path is not None:
        figure.savefig(path)
    return figure
