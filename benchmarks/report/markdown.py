# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Spread = dict[str, float]


def digits(value: float, count: int = 3) -> str:
    """So many significant digits, no exponent."""
    if value == 0:
        return "0"
    text = f"{value:.{count}g}"
    value = float(text)
    return f"{value:,.0f}" if abs(value) >= 10 ** (count - 1) or "e" in text else text


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds * 1e9)} ns"


def size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{digits(count / scale)} {unit}"
    return f"{digits(count)} B"


def times(ratio: float) -> str:
    return f"{digits(ratio, 2 if ratio >= 10 else 3)}x"


def spread(values: Spread, render: Any = duration) -> str:
    """The median, and in brackets the quartiles."""
    return f"{render(values['median'])} ({render(values['lower'])} to {render(values['upper'])})"


def inverse(ratio: Spread) -> Spread:
    return {"lower": 1 / ratio["upper"], "median": 1 / ratio["median"], "upper": 1 / ratio["lower"]}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """The first ``left`` columns hold words, the others numbers."""
    rule = ["---" if index < left else "---:" for index in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def measured(result: dict[str, Any]) -> str:
    """Where, when and with what."""
    machine, versions = result["machine"], result["versions"]
    system = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:g} GB, {machine['system']}"
    system += f", huge pages: {machine['huge pages']}, {machine['threads of torch']} threads of torch"
    if "gpu" in machine:
        system = f"{machine['gpu']}, {machine['gpu_memory_gb']:g} GB, CUDA {machine['cuda']}; {system}"
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    commit = (result["commit"] or "unknown")[:12] + (" and changes" if result["changed"] else "")
    return f"*Measured on {result['date']} at commit `{commit}`, {result['form']} form; {system}; {software}.*\n"


def by(rows: Iterable[dict[str, Any]], *keys: str) -> dict[Any, dict[str, Any]]:
    """Rows by the values of these keys, or of one key by its value."""
    return {tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]: row for row in rows}


def values(rows: Iterable[dict[str, Any]], key: str) -> list[Any]:
    """The different values of a key, in order of appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "none"
