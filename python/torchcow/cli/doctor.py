"""``python -m torchcow doctor``: what is here, what is degraded or broken, why, and what to do about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from torchcow.cli.output import Json, console, document

if TYPE_CHECKING:
    from torchcow.cli.checks import Finding

STYLES = {"ok": "good", "degraded": "weak", "broken": "bad"}


def doctor(json: Json = False) -> int:
    """Look at this installation, and test it.

    Versions, hooks, GPUs, huge pages, threads, memory, and a self test. What is degraded works, but slower or with
    less: each such line says why, and what to do. Exit code 1 if something is broken.
    """
    from torchcow.cli.checks import CHECKS
    from torchcow.cli.selftest import self_test

    findings = [finding for check in (*CHECKS, self_test) for finding in check()]
    if json:
        document({"state": _worst(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    return 1 if _worst(findings) == "broken" else 0


def _worst(findings: list[Finding]) -> str:
    return max((finding.state for finding in findings), key=list(STYLES).index)


def _show(findings: list[Finding]) -> None:
    out = console()
    lines = Table.grid(padding=(0, 2))
    for finding in findings:
        state = f"[{STYLES[finding.state]}]{finding.state}[/]"
        lines.add_row(state, finding.topic, escape(finding.found))
        for word, told in (("why", finding.why), ("remedy", finding.remedy)):
            if told:
                lines.add_row("", f"  {word}", escape(told))
    out.print(lines)
    counts = Counter(finding.state for finding in findings)
    told = ", ".join(f"{counts[state]} {state}" for state in STYLES if counts[state])
    out.print(f"\n{told}")
