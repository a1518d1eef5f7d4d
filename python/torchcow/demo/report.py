"""What the demo prints: a progress bar on stderr while it works, the report on stdout at the end."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import torchcow

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
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
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
    console = Console()
    model = findings.prototype.model
    count = len(findings.spawned.variants)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"\n[bold]{count} variants of {escape(findings.prototype.name)}[/] ({parameters / 1e6:.1f} M parameters)"
        f" on {findings.prototype.device}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    console.print(_time(findings))
    console.print(_memory(findings))
    console.print(_text(findings))
    passed = True
    for holds, statement in _checks(findings):
        console.print(f"{'[green]ok    [/]' if holds else '[bold red]WRONG [/]'} {statement}", highlight=False)
        passed = passed and holds
    console.print(f"\n{_engine()}\n{_process(findings.prototype)}", highlight=False)
    return passed


def _time(findings: Findings) -> Table:
    table = Table(title="Time per copy", title_justify="left")
    for column in ("", "median", "slowest", "measured"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, timing in (
        ("torchcow.clone", findings.spawned.clone),
        ("copy.deepcopy", findings.spawned.deepcopy),
    ):
        table.add_row(name, _seconds(timing.median), _seconds(timing.slowest), str(len(timing.seconds)))
    ratio = findings.spawned.deepcopy.median / findings.spawned.clone.median
    table.add_row("deepcopy / clone", f"{ratio:.1f}", "", "")
    return table


def _memory(findings: Findings) -> Table:
    table = Table(title="Tensor memory of the base and its variants together", title_justify="left")
    for column in ("", "unique", "as deep copies", "saved"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, memory in (("after cloning", findings.cloned), ("after writing", findings.written)):
        saved = 1 - memory.unique / memory.logical
        table.add_row(name, _bytes(memory.unique), _bytes(memory.logical), f"{saved:.1%}")
    return table


def _text(findings: Findings) -> Table:
    table = Table(title=f"'{PROMPT} ...'", title_justify="left", show_lines=True)
    table.add_column("model", min_width=18)
    table.add_column("continues")
    table.add_row("base", escape(_line(findings.base_says)))
    for index, text in enumerate(findings.says):
        table.add_row(escape(f"{index}: {findings.spawned.variants[index].story}"), escape(_line(text)))
    return table


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
        f"Ledger: {ledger.blocks} blocks, {ledger.sharers} sharers; {_bytes(ledger.logical_bytes)} logical,"
        f" {_bytes(ledger.unique_bytes)} unique, {_bytes(ledger.retired_bytes)} retired. Events: {happened}."
    )


def _process(prototype: Prototype) -> str:
    # Measured by the operating system, so it is a witness for the engine's own numbers. ru_maxrss is in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = f"Peak resident memory of this process, with the {DEEP_COPIES} deep copies: {_bytes(peak)}."
    if prototype.device.type == "cuda":
        text += f" Peak CUDA memory: {_bytes(torch.cuda.max_memory_allocated())}."
    return text


def _line(text: str) -> str:
    return " ".join(text.split())


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _bytes(number: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} B"
