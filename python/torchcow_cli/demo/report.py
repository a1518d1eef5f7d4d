# SPDX-License-Identifier: Apache-2.0
"""The demo's output: a progress bar on stderr while it works, the report on stdout at the end."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

import torchcow
from torchcow.report.table import size
from torchcow_cli.demo.models import BaseModel
from torchcow_cli.demo.variants import DEEP_COPIES, PROMPT, Spawned
from torchcow_cli.output import console, escape, seconds, table


@dataclass(frozen=True)
class Findings:
    """The measurements of the demo, and the results of its checks."""

    base: BaseModel
    spawned: Spawned
    cloned: torchcow.Memory
    written: torchcow.Memory
    base_text: str
    texts: Sequence[str]
    fingerprint_before: str
    fingerprint_after: str
    changed: Sequence[frozenset[str]]
    distinct: int


class Steps:
    """The progress bar: one line per step."""

    def __init__(self) -> None:
        stderr = console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=stderr,
            disable=not stderr.is_terminal,
        )
        self._task: TaskID | None = None
        self._total = 1

    def __enter__(self) -> Steps:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._progress.stop()

    def begin(self, what: str, total: int = 1) -> Callable[[], None]:
        """Finish the previous step and start this one; return a function to call after each of its ``total`` parts."""
        self._finish()
        task = self._progress.add_task(escape(what), total=total)
        self._task = task
        self._total = total
        return lambda: self._progress.advance(task)

    def _finish(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=self._total)
            self._progress.stop_task(self._task)
            self._task = None


def show(findings: Findings) -> bool:
    """Print the report; return whether every check passed."""
    out = console()
    model = findings.base.model
    count = len(findings.spawned.variants)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    out.print(
        f"\n[bold]{count} variants of {escape(findings.base.name)}[/] ({parameters / 1e6:.1f} M parameters)"
        f" on {findings.base.device}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    out.print(_time(findings))
    out.print(_memory(findings))
    out.print(_text(findings))
    for holds, statement in _checks(findings):
        out.print(f"{'[good]ok    [/]' if holds else '[bad]WRONG [/]'} {escape(statement)}")
    out.print(f"\n{_engine()}\n{_process(findings.base)}")
    return all(holds for holds, _ in _checks(findings))


def document(findings: Findings) -> dict[str, Any]:
    """Return the report for programs: times in seconds, memory in bytes, generated texts, and the checks."""
    base, spawned = findings.base, findings.spawned
    checks = _checks(findings)
    return {
        "passed": all(holds for holds, _ in checks),
        "checks": [{"holds": holds, "statement": statement} for holds, statement in checks],
        "model": base.name,
        "parameters": sum(parameter.numel() for parameter in base.model.parameters()),
        "device": str(base.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "variants": [
            {"story": variant.story, "changed": sorted(changed)}
            for variant, changed in zip(spawned.variants, findings.changed, strict=True)
        ],
        "seconds": {
            name: {"median": timing.median, "slowest": timing.slowest, "measured": len(timing.seconds)}
            for name, timing in (("clone", spawned.clone), ("deepcopy", spawned.deepcopy))
        },
        "memory": {
            moment: {name: getattr(memory, name) for name in ("logical", "unique", "private", "shared", "fair_share")}
            for moment, memory in (("after cloning", findings.cloned), ("after writing", findings.written))
        },
        "prompt": PROMPT,
        "says": {"base": findings.base_text, "variants": list(findings.texts)},
        "fingerprint": {"before": findings.fingerprint_before, "after": findings.fingerprint_after},
        "ledger": asdict(torchcow.ledger()),
        "events": Counter(str(event.way) for event in torchcow.events()),
        "peak_resident_bytes": _peak_bytes(),
    }


def _time(findings: Findings) -> Any:
    clone, deepcopy = findings.spawned.clone, findings.spawned.deepcopy
    rows = [
        [name, seconds(timing.median), seconds(timing.slowest), str(len(timing.seconds))]
        for name, timing in (("torchcow.clone", clone), ("copy.deepcopy", deepcopy))
    ]
    rows.append(["deepcopy / clone", f"{deepcopy.median / clone.median:.1f}", "", ""])
    return table("Time per copy", ["", "median", "slowest", "measured"], rows)


def _memory(findings: Findings) -> Any:
    rows = [
        [name, size(memory.unique), size(memory.logical), f"{1 - memory.unique / memory.logical:.1%}"]
        for name, memory in (("after cloning", findings.cloned), ("after writing", findings.written))
    ]
    title = "Tensor memory of the base and its variants together"
    return table(title, ["", "unique", "as deep copies", "saved"], rows)


def _text(findings: Findings) -> Any:
    rows = [["base", _line(findings.base_text)]]
    for index, text in enumerate(findings.texts):
        rows.append([f"{index}: {findings.spawned.variants[index].story}", _line(text)])
    return table(f"'{PROMPT} ...'", ["model", "continues"], rows, left={"continues"})


def _checks(findings: Findings) -> list[tuple[bool, str]]:
    variants = findings.spawned.variants
    wrong = [index for index, variant in enumerate(variants) if not findings.changed[index] <= variant.written]
    untouched = [index for index, names in enumerate(findings.changed) if not names]
    before, after = findings.fingerprint_before, findings.fingerprint_after
    same = before == after
    return [
        (
            same,
            f"the base is bit-identical to before: SHA-256 {before[:16]}"
            if same
            else f"the base has changed: SHA-256 {before[:16]} before, {after[:16]} after",
        ),
        (
            not wrong,
            "each variant differs from the base only in the tensors that were written into it"
            if not wrong
            else f"tensors changed that the demo did not write, in variants {wrong}",
        ),
        (
            not untouched and findings.distinct == len(variants),
            f"the variants differ pairwise: {findings.distinct} distinct among {len(variants)}",
        ),
    ]


def _engine() -> str:
    ledger = torchcow.ledger()
    ways = Counter(str(event.way) for event in torchcow.events())
    events = ", ".join(f"{number} {way}" for way, number in sorted(ways.items())) or "none"
    return (
        f"Ledger: {ledger.blocks} blocks, {ledger.sharers} sharers; {size(ledger.logical_bytes)} logical,"
        f" {size(ledger.unique_bytes)} unique, {size(ledger.retired_bytes)} retired. Events: {events}."
    )


def _process(base: BaseModel) -> str:
    text = f"Peak resident memory of this process, with the {DEEP_COPIES} deep copies: {size(_peak_bytes())}."
    if base.device.type == "cuda":
        text += f" Peak CUDA memory: {size(torch.cuda.max_memory_allocated())}."
    return text


def _peak_bytes() -> int:
    # The operating system measures it, so it can confirm the numbers of the engine. ru_maxrss is in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _line(text: str) -> str:
    return " ".join(text.split())
