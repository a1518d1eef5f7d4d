"""Shared by all benchmarks: candidates are timed in turn, in one process, under pytest-benchmark.

One round of pytest-benchmark runs every candidate once (A B C, A B C, ...), so that a machine whose speed drifts
slows all of them. The figures of each candidate are in ``extra_info`` of the JSON that ``--benchmark-json`` writes,
beside the machine and the commit. ``--tiny`` runs each benchmark once on small models: a test that it works.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from torchcow.cli.turns import Turns


def pytest_addoption(parser):
    parser.addoption("--tiny", action="store_true", help="small models, one round")


@pytest.fixture
def tiny(request) -> bool:
    return request.config.getoption("--tiny")


@pytest.fixture
def compare(benchmark, tiny) -> Callable[..., dict[str, float]]:
    """Time candidates in turn (see ``Turns``) and return their medians in seconds."""

    def run(rounds: int = 15, turn: float = 0.0, **candidates: tuple[Callable, Callable]) -> dict[str, float]:
        turns = Turns(candidates, turn)
        benchmark.pedantic(turns.round, rounds=1 if tiny else rounds, warmup_rounds=1)
        for values in (*turns.times.values(), *turns.first.values()):
            del values[0]  # of the round that was the warm-up
        medians = {name: statistics.median(values) for name, values in turns.times.items()}
        benchmark.extra_info["seconds"] = {
            name: {
                "median": medians[name],
                "minimum": min(values),
                "maximum": max(values),
                "first": statistics.median(turns.first[name]),
            }
            for name, values in turns.times.items()
        }
        return medians

    return run


@pytest.fixture
def report(benchmark):
    """Store figures that are no timings."""

    def store(**figures: float) -> None:
        if benchmark.stats is None:
            benchmark.pedantic(lambda: None)
        benchmark.extra_info.setdefault("figures", {}).update(figures)

    return store


def pytest_terminal_summary(terminalreporter, config):
    for bench in config._benchmarksession.benchmarks:
        terminalreporter.write_line(bench.name)
        seconds = bench.extra_info.get("seconds", {})
        first = next(iter(seconds.values()))["median"] if seconds else 1.0
        for name, value in seconds.items():
            terminalreporter.write_line(
                f"    {name:22} {value['median'] * 1e3:10.3f} ms  x {value['median'] / first:7.3f}"
                f"   ({value['minimum'] * 1e3:.3f} to {value['maximum'] * 1e3:.3f}; first {value['first'] * 1e3:.3f})"
            )
        for name, value in bench.extra_info.get("figures", {}).items():
            terminalreporter.write_line(f"    {name:28} {value:10.3f}")
