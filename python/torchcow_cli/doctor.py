# SPDX-License-Identifier: Apache-2.0
"""``torchcow doctor``: the state of this installation, and what to do about parts that are degraded or broken."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from torchcow_cli.options import Json
from torchcow_cli.output import console, document, escape

if TYPE_CHECKING:
    from torchcow_cli.checks import Finding

STYLES = {"ok": "good", "degraded": "weak", "broken": "bad"}


def doctor(json: Json = False) -> int:
    """Check this installation.

    Reports versions, hooks, GPUs, huge pages, threads and memory, and runs a self test. Parts that are degraded work,
    but slower or with fewer features; for each of them the report says why, and what to do. Exit code 1 if something
    is broken.
    """
    from torchcow_cli.checks import CHECKS
    from torchcow_cli.selftest import self_test

    findings = [finding for check in (*CHECKS, self_test) for finding in check()]
    if json:
        document({"state": _worst(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    return 1 if _worst(findings) == "broken" else 0


def _worst(findings: list[Finding]) -> str:
    return max((finding.state for finding in findings), key=list(STYLES).index)


def _show(findings: list[Finding]) -> None:
    from rich.table import Table

    out = console()
    lines = Table.grid(padding=(0, 2))
    for finding in findings:
        state = f"[{STYLES[finding.state]}]{finding.state}[/]"
        lines.add_row(state, finding.topic, escape(finding.found))
        for label, text in (("why", finding.why), ("remedy", finding.remedy)):
            if text:
                lines.add_row("", f"  {label}", escape(text))
    out.print(lines)
    counts = Counter(finding.state for finding in findings)
    summary = ", ".join(f"{counts[state]} {state}" for state in STYLES if counts[state])
    out.print(f"\n{summary}")
