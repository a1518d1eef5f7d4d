"""What the demo prints: a progress bar on stderr while it works, the report on stdout at the end."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import torchcow
from torchcow.cli.output import console, seconds, table
from torchcow.report.table import size

from .models import Prototype
from .variants import DEEP_COPIES, PROMPT, Spawned


@dataclass(frozen=True)
class Findings:
    """Everything that the demo measured and checked."""

    prototype: Prototype
    spawned: Spawned
    cloned: torchcow.Memory
    written: torchcow.Memory
    base_says: str
    says: Sequence[str]
    before: str
    after: str
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
        """Finish the step before, start this one, and return what to call after each of its ``total`` parts."""
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
    """Print the report. Returns whether every check passed."""
    out = console()
    model = findings.prototype.model
    count = len(findings.spawned.variants)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    out.print(
        f"\n[bold]{count} variants of {escape(findings.prototype.name)}[/] ({parameters / 1e6:.1f} M parameters)"
        f" on {findings.prototype.device}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    out.print(_time(findings))
    out.print(_memory(findings))
    out.print(_text(findings))
    for holds, statement in _checks(findings):
        out.print(f"{'[good]ok    [/]' if holds else '[bad]WRONG [/]'} {escape(statement)}")
    out.print(f"\n{_engine()}\n{_process(findings.prototype)}")
    return all(holds for holds, _ in _checks(findings))


def document(findings: Findings) -> dict[str, Any]:
    """The report for programs: times in seconds, memory in bytes, what the models say, and the checks."""
    prototype, spawned = findings.prototype, findings.spawned
    checks = _checks(findings)
    return {
        "passed": all(holds for holds, _ in checks),
        "checks": [{"holds": holds, "statement": statement} for holds, statement in checks],
        "model": prototype.name,
        "parameters": sum(parameter.numel() for parameter in prototype.model.parameters()),
        "device": str(prototype.device),
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
        "says": {"base": findings.base_says, "variants": list(findings.says)},
        "fingerprint": {"before": findings.before, "after": findings.after},
        "ledger": asdict(torchcow.ledger()),
        "events": Counter(str(event.way) for event in torchcow.events()),
        "peak_resident_bytes": _peak_bytes(),
    }


def _time(findings: Findings) -> Table:
    clone, deepcopy = findings.spawned.clone, findings.spawned.deepcopy
    rows = [
        [name, seconds(timing.median), seconds(timing.slowest), str(len(timing.seconds))]
        for name, timing in (("torchcow.clone", clone), ("copy.deepcopy", deepcopy))
    ]
    rows.append(["deepcopy / clone", f"{deepcopy.median / clone.median:.1f}", "", ""])
    return table("Time per copy", ["", "median", "slowest", "measured"], rows)


def _memory(findings: Findings) -> Table:
    rows = [
        [name, size(memory.unique), size(memory.logical), f"{1 - memory.unique / memory.logical:.1%}"]
        for name, memory in (("after cloning", findings.cloned), ("after writing", findings.written))
    ]
    title = "Tensor memory of the base and its variants together"
    return table(title, ["", "unique", "as deep copies", "saved"], rows)


def _text(findings: Findings) -> Table:
    made = Table(title=f"'{PROMPT} ...'", title_justify="left", show_lines=True)
    made.add_column("model", min_width=18)
    made.add_column("continues")
    made.add_row("base", escape(_line(findings.base_says)))
    for index, text in enumerate(findings.says):
        made.add_row(escape(f"{index}: {findings.spawned.variants[index].story}"), escape(_line(text)))
    return made


def _checks(findings: Findings) -> list[tuple[bool, str]]:
    variants = findings.spawned.variants
    strayed = [index for index, variant in enumerate(variants) if not findings.changed[index] <= variant.written]
    untouched = [index for index, names in enumerate(findings.changed) if not names]
    same = findings.before == findings.after
    return [
        (
            same,
            f"the base is bit-identical to before: SHA-256 {findings.before[:16]}"
            if same
            else f"the base has changed: SHA-256 {findings.before[:16]} before, {findings.after[:16]} after",
        ),
        (
            not strayed,
            "each variant differs from the base only in the tensors that were written into it"
            if not strayed
            else f"tensors changed that nobody wrote, in variants {strayed}",
        ),
        (
            not untouched and findings.distinct == len(variants),
            f"the variants differ pairwise: {findings.distinct} distinct among {len(variants)}",
        ),
    ]


def _engine() -> str:
    ledger = torchcow.ledger()
    ways = Counter(str(event.way) for event in torchcow.events())
    happened = ", ".join(f"{number} {way}" for way, number in sorted(ways.items())) or "none"
    return (
        f"Ledger: {ledger.blocks} blocks, {ledger.sharers} sharers; {size(ledger.logical_bytes)} logical,"
        f" {size(ledger.unique_bytes)} unique, {size(ledger.retired_bytes)} retired. Events: {happened}."
    )


def _process(prototype: Prototype) -> str:
    text = f"Peak resident memory of this process, with the {DEEP_COPIES} deep copies: {size(_peak_bytes())}."
    if prototype.device.type == "cuda":
        text += f" Peak CUDA memory: {size(torch.cuda.max_memory_allocated())}."
    return text


def _peak_bytes() -> int:
    # Measured by the operating system, so it is a witness for the engine's own numbers. ru_maxrss is in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _line(text: str) -> str:
    return " ".join(text.split())
