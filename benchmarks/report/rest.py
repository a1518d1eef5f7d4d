# SPDX-License-Identifier: Apache-2.0
"""What else is measured: prototypes, registries, and the answers about many variants."""

from __future__ import annotations

from typing import Any

from report import labels
from report.markdown import digits, measured, spread, table

QUESTIONS = {
    "prototype": "What does `Prototype.clone` add to `torchcow.clone`?",
    "registry": "What do versions cost on disk and in time? A version stores only the tensors that are new.",
    "answers": "How long do reports about many variants take?",
}
TITLES = {
    "prototype": "Prototypes",
    "registry": "Versions on disk",
    "answers": "Reports",
}


def section(question: str, result: dict[str, Any]) -> str:
    parts = [f"## {TITLES[question]}\n\n{QUESTIONS[question]}\n", measured(result)]
    for name, rows in result["tables"].items():
        timed = [row for row in rows if "seconds" in row]
        if timed:
            keys = [key for key in timed[0] if key not in ("candidate", "rounds", "seconds", "ratio")]
            lines = [
                [
                    *(labels.row(str(row[key])) for key in keys),
                    labels.row(row["candidate"], name),
                    spread(row["ratio"], digits),
                    spread(row["seconds"]),
                ]
                for row in timed
            ]
            rows_ = table([*keys, "", "relative to the first row", "time"], lines, left=len(keys) + 1)
            parts.append(f"**{labels.table(name)}**\n\n{rows_}")
    for row in result["tables"].get("figures", []):
        lines = [labels.figure(name, value) for name, value in row.items() if name != "benchmark"]
        parts.append(f"**{labels.table(row['benchmark'])}**\n\n" + table(["", "value"], lines))
    return "\n".join(parts)
