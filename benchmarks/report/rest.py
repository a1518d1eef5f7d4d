"""What else is measured: prototypes, registries, and the answers about many variants."""

from __future__ import annotations

from typing import Any

from report.markdown import digits, measured, spread, table

TITLES = {
    "prototype": "What does a prototype add to a clone?",
    "registry": "What do versions on disk cost?",
    "answers": "What do the answers cost?",
}


def section(question: str, result: dict[str, Any]) -> str:
    parts = [f"## {TITLES[question]}\n", measured(result)]
    for name, rows in result["tables"].items():
        timed = [row for row in rows if "seconds" in row]
        if timed:
            labels = [key for key in timed[0] if key not in ("candidate", "rounds", "seconds", "ratio")]
            lines = [
                [*(str(r[key]) for key in labels), r["candidate"], spread(r["ratio"], digits), spread(r["seconds"])]
                for r in timed
            ]
            told = table([*labels, "", "of the first", "time"], lines, left=len(labels) + 1)
            parts.append(f"**{name.replace('_', ' ')}**\n\n{told}")
    for row in result["tables"].get("figures", []):
        lines = [[name.replace("_", " "), digits(value)] for name, value in row.items() if name != "benchmark"]
        parts.append(f"**{row['benchmark'].replace('_', ' ')}**\n\n" + table(["", "figure"], lines))
    return "\n".join(parts)
