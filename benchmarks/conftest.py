# SPDX-License-Identifier: Apache-2.0
"""Shared by all benchmarks: candidates are timed in turn, in one process, under pytest-benchmark.

One round of pytest-benchmark runs every candidate once (A B C, A B C, ...), so that a machine whose speed drifts
slows all of them. ``--tiny`` runs each benchmark once on small models: a test that it works. ``--quick`` (which is the
default) and ``--full`` differ in rounds, and some models and sizes are measured by the full form only. ``--record``
stores the results in ``benchmarks/results``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from unittest import SkipTest

import pytest
import torch

import machine
import record as results
from times import Times
from torchcow_cli.turns import Turns

FORMS = {
    "tiny": "small models, one round: does each benchmark work?",
    "quick": "minutes (the default)",
    "full": "all models and sizes, and more rounds",
}
TABLES = pytest.StashKey[dict[str, dict[str, list[results.Row]]]]()
FAILED = pytest.StashKey[set[str]]()
MEASURED = ("candidate", "rounds", "seconds", "ratio")
COMMIT = pytest.StashKey[dict[str, Any]]()
Choice = TypeVar("Choice")


def pytest_addoption(parser):
    group = parser.getgroup("benchmarks of torchcow")
    for form, help_ in FORMS.items():
        group.addoption(f"--{form}", dest="form", action="store_const", const=form, default="quick", help=help_)
    group.addoption("--record", action="store_true", help="store the results of each question that has no failure")
    group.addoption("--dirty", action="store_true", help="store them although files differ from the commit")


def pytest_configure(config):
    if config.getoption("form") == "tiny":
        torch.set_num_threads(1)  # other tests run beside these
    config.stash[TABLES], config.stash[FAILED] = {}, set()
    if not config.getoption("record"):
        return
    if config.getoption("form") == "tiny":
        raise pytest.UsageError("--record with --tiny: what is measured so is no result; leave out --tiny")
    if machine.commit() is None:
        raise pytest.UsageError("--record: this is not a git checkout, so no commit would say what was measured")
    if (files := machine.changed()) and not config.getoption("dirty"):
        raise pytest.UsageError(
            f"--record: {files[0]} and {len(files) - 1} more differ from the commit, which must say what was measured;"
            " commit them, or add --dirty, which is stored with the results"
        )
    config.stash[COMMIT] = {"commit": machine.commit(), "changed": machine.changed()}


class Form(str):
    """'tiny', 'quick' or 'full'."""

    def choose(self, tiny: Choice, quick: Choice, full: Choice) -> Choice:
        return {"tiny": tiny, "quick": quick, "full": full}[self]


@pytest.fixture
def form(request) -> Form:
    return Form(request.config.getoption("form"))


@pytest.fixture
def tiny(form) -> bool:
    return form == "tiny"


@pytest.fixture(autouse=True)
def seeded():
    # The imports so far are a large heap; frozen, it costs the collection before each turn nothing.
    gc.collect()
    gc.freeze()
    torch.manual_seed(0)


@pytest.fixture
def record(request) -> Callable[..., None]:
    """Add a row to a table of the question; the table is called like the benchmark unless told otherwise."""
    question = question_of(request.node)
    default = request.function.__name__.removeprefix("test_")

    def add(table: str = default, **row: Any) -> None:
        request.config.stash[TABLES].setdefault(question, {}).setdefault(table, []).append(row)

    return add


@pytest.fixture
def compare(benchmark, form, record) -> Callable[..., Times]:
    """Time candidates in turn (see ``Turns``), for so many seconds in the full form; one row for each is recorded.

    ``labels`` go into the rows. ``ratio`` in a row is the candidate over the first one. The first round is thrown
    away, except where the candidates are ``warm`` because all of them have run before. A row has seconds per unit.
    """

    def run(
        seconds: float = 12.0,
        turn: float = 0.0,
        labels: Mapping[str, Any] | None = None,
        table: str | None = None,
        warm: bool = False,
        units: int = 1,
        **candidates: tuple[Callable, Callable],
    ) -> Times:
        turns = Turns(candidates, form.choose(0.0, turn, turn))
        begin = time.perf_counter()
        turns.round()
        one = time.perf_counter() - begin
        least, most, budget = form.choose((1, 1, 0.0), (3, 21, seconds / 6), (5 if one < 20 else 3, 101, seconds))
        rounds = max(least, min(most, int(budget / one)))
        if not warm:
            turns.forget()
        if benchmark.stats is None and rounds > warm:
            benchmark.pedantic(turns.round, rounds=rounds - warm)
        else:  # pytest-benchmark times one thing per test
            if benchmark.stats is None:
                benchmark.pedantic(lambda: None)
            for _ in range(rounds - warm):
                turns.round()
        times = Times(turns.times, turns.first, rounds)
        reference = next(iter(candidates))
        shown = benchmark.extra_info.setdefault("seconds", [])
        place = {} if table is None else {"table": table}
        for name in candidates:
            row = {**(labels or {}), "candidate": name, "rounds": rounds}
            spread = {key: value / units for key, value in times.spread(name).items()}
            row |= {"seconds": spread, "ratio": times.ratio(name, reference)}
            record(**place, **row)
            shown.append(row)
        return times

    return run


@pytest.fixture
def report(benchmark, record, request):
    """Store figures that are not timings."""

    def store(**figures: float) -> None:
        if benchmark.stats is None:
            benchmark.pedantic(lambda: None)
        benchmark.extra_info.setdefault("figures", {}).update(figures)
        record("figures", benchmark=request.node.name.removeprefix("test_"), **figures)

    return store


def pytest_terminal_summary(terminalreporter, config):
    for bench in config._benchmarksession.benchmarks:
        terminalreporter.write_line(bench.name)
        for row in bench.extra_info.get("seconds", []):
            labels = " ".join(str(v) for k, v in row.items() if k not in MEASURED)
            time_, ratio = row["seconds"], row["ratio"]
            terminalreporter.write_line(
                f"    {labels:24} {row['candidate']:28} x {ratio['median']:8.3f}"
                f" ({ratio['lower']:.3f} to {ratio['upper']:.3f})  {time_['median'] * 1e3:10.4g} ms"
                f" ({time_['lower'] * 1e3:.4g} to {time_['upper'] * 1e3:.4g}; first {time_['first'] * 1e3:.4g})"
            )
        for name, value in bench.extra_info.get("figures", {}).items():
            terminalreporter.write_line(f"    {name:53} {value:10.3f}")


def pytest_runtest_makereport(item, call):
    if call.excinfo is not None and not call.excinfo.errisinstance((pytest.skip.Exception, SkipTest)):
        item.config.stash[FAILED].add(question_of(item))


def question_of(item) -> str:
    return item.module.__name__.removeprefix("bench_")


def pytest_sessionfinish(session, exitstatus):
    stash = session.config.stash
    if COMMIT not in stash or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return
    for question, tables in stash[TABLES].items():
        if question in stash[FAILED]:
            print(f"\n{question}: not stored, because a benchmark failed", end="")
        else:
            form = session.config.getoption("form")
            path = results.write(question, results.document(form, tables) | stash[COMMIT])
            print(f"\n{question}: stored in {path.relative_to(machine.ROOT)}", end="")
