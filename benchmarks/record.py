# SPDX-License-Identifier: Apache-2.0
"""Results on disk: one JSON file per question, ``results/<question>.json``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import machine

RESULTS = Path(__file__).resolve().parent / "results"
QUESTIONS = ("clone", "memory", "first_write", "reading", "scaling", "cuda", "answers", "prototype", "registry")

Row = dict[str, Any]


def document(form: str, tables: dict[str, list[Row]], **more: Any) -> dict[str, Any]:
    """The document that is stored: where, when and with what it was measured, and the rows of each table."""
    return {
        "commit": machine.commit(),
        "changed": machine.changed(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "form": form,
        "machine": machine.machine(),
        "versions": machine.versions(),
        **more,
        "tables": tables,
    }


def write(question: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{question}.json"
    path.write_text(_pretty(rounded(result)))
    return path


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The results of all questions that were measured."""
    paths = {question: folder / f"{question}.json" for question in QUESTIONS}
    return {question: json.loads(path.read_text()) for question, path in paths.items() if path.exists()}


def rounded(value: Any) -> Any:
    """Floats with five digits: no measurement is more precise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _pretty(result: dict[str, Any]) -> str:
    """JSON with one row per line, so that a change of one figure is a change of one line."""
    head = {key: value for key, value in result.items() if key != "tables"}
    tables = [
        f"    {json.dumps(name)}: [\n{','.join(chr(10) + '      ' + json.dumps(row) for row in rows)[1:]}\n    ]"
        for name, rows in result["tables"].items()
    ]
    opened = json.dumps(head, indent=2).rstrip().removesuffix("}").rstrip()
    return opened + ',\n  "tables": {\n' + ",\n".join(tables) + "\n  }\n}\n"
