"""What does sharing cost, and what does a first write cost, on a CUDA device?

Run as ``python benchmarks/bench_cuda.py [--out FILE] [--seconds N]``; prints one line per figure and writes them as
JSON.

Every figure is a median over interleaved rounds: in each round each contestant runs once, so that clocks and
temperature drift for all of them alike. Device work is timed with CUDA events, after a warm-up that fills the caching
allocator; bandwidths count a copy's bytes once (one GiB copied in one second is 1.07 GB/s), so the same memory traffic
gives the same number for ``clone``, ``copy_`` and a first write.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torchcow

Setup = Callable[[], Any]
Work = Callable[[Any], Any]


def device_ms(work: Work, state: Any) -> float:
    """Milliseconds of the device's time for ``work(state)``."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    kept = work(state)
    end.record()
    torch.cuda.synchronize()
    del kept
    return start.elapsed_time(end)


def host_ms(work: Work, state: Any) -> float:
    """Milliseconds until ``work(state)`` returns to the caller; the device may still be busy."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    kept = work(state)
    elapsed = (time.perf_counter() - start) * 1e3
    torch.cuda.synchronize()
    del kept
    return elapsed


def interleaved(
    contestants: dict[str, tuple[Setup, Work]], timer: Callable[[Work, Any], float], rounds: int
) -> dict[str, float]:
    """The median of ``timer`` for each contestant; setups are not timed. Two rounds are run and thrown away."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for index in range(rounds + 2):
        for name, (setup, work) in contestants.items():
            state = setup()
            elapsed = timer(work, state)
            del state
            if index >= 2:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def share_cost(rounds: int) -> dict[str, float]:
    """Microseconds of host time per tensor to share a list of 1000 tensors of 1 MiB."""
    count = 1000
    source = [torch.ones(1 << 18, device="cuda") for _ in range(count)]
    medians = interleaved(
        {
            "torchcow_clone": (lambda: None, lambda _: torchcow.clone(source)),
            "deepcopy": (lambda: None, lambda _: copy.deepcopy(source)),
        },
        host_ms,
        rounds,
    )
    return {f"{name}_us_per_tensor": ms * 1e3 / count for name, ms in medians.items()}


def first_write_bandwidth(rounds: int, mebibytes: int) -> dict[str, float]:
    """GB/s of first writes (steal, copy, skip) to one tensor, beside what torch does for the same bytes."""
    size = mebibytes << 20
    base = torch.ones(size // 4, device="cuda")
    target = torch.empty_like(base)

    def fresh() -> torch.Tensor:
        return torchcow.clone(base)

    def alone() -> torch.Tensor:
        source = torch.ones_like(base)
        torchcow.clone(source)
        return source

    def private() -> torch.Tensor:
        return target

    medians = interleaved(
        {
            "torch_clone": (private, lambda _: base.clone()),
            "torch_copy_into_existing": (private, lambda t: t.copy_(base)),
            "torchcow_copy": (fresh, torchcow.materialize),
            "torch_clone_then_add": (private, lambda _: base.clone().add_(1)),
            "torchcow_copy_then_add": (fresh, lambda t: t.add_(1)),
            "torch_add": (private, lambda t: t.add_(1)),
            "torchcow_steal_then_add": (alone, lambda t: t.add_(1)),
            "torch_fill": (private, lambda t: t.fill_(1)),
            "torch_empty_then_fill": (private, lambda t: torch.empty_like(t).fill_(1)),
            "torchcow_skip_then_fill": (fresh, lambda t: t.fill_(1)),
        },
        device_ms,
        rounds,
    )
    return {f"{name}_gb_per_s": size / ms / 1e6 for name, ms in medians.items()}


def many_small(rounds: int, count: int, kibibytes: int) -> dict[str, float]:
    """Milliseconds for one multi-tensor write to many small shared tensors, beside copying them all first."""
    source = [torch.ones(kibibytes << 8, device="cuda") for _ in range(count)]
    contestants: dict[str, tuple[Setup, Work]] = {
        "torchcow_foreach_add": (lambda: torchcow.clone(source), lambda x: torch._foreach_add_(x, 1.0)),
        "torch_clone_each_then_foreach_add": (
            lambda: None,
            lambda _: torch._foreach_add_([t.clone() for t in source], 1.0),
        ),
        "torch_foreach_add": (lambda: [t.clone() for t in source], lambda x: torch._foreach_add_(x, 1.0)),
    }
    device = interleaved(contestants, device_ms, rounds)
    host = interleaved(contestants, host_ms, rounds)
    return {f"{name}_device_ms": ms for name, ms in device.items()} | {
        f"{name}_host_ms": ms for name, ms in host.items()
    }


def capacity(variants: int) -> dict[str, float]:
    """Device bytes that variants of a 1 GiB model keep: untouched, and after one of its 64 tensors was written."""
    source = [torch.ones(1 << 22, device="cuda") for _ in range(64)]
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    family = [torchcow.clone(source) for _ in range(variants)]
    untouched = torch.cuda.memory_allocated() - before
    for index, variant in enumerate(family):
        variant[index % len(variant)].add_(1)
    torch.cuda.synchronize()
    touched = torch.cuda.memory_allocated() - before
    ledger = torchcow.ledger()
    return {
        "variants": variants,
        "model_bytes": 64 * (1 << 24),
        "untouched_bytes_per_variant": untouched / variants,
        "one_tensor_written_bytes_per_variant": touched / variants,
        "ledger_unique_bytes": ledger.unique_bytes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    parser.add_argument("--seconds", type=float, default=150, help="start no further part after so many seconds")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA device", file=sys.stderr)
        return 2

    parts: dict[str, Callable[[], dict[str, float]]] = {
        "share": lambda: share_cost(arguments.rounds),
        "first_write_64MiB": lambda: first_write_bandwidth(arguments.rounds, 64),
        "first_write_1GiB": lambda: first_write_bandwidth(arguments.rounds, 1024),
        "many_small_1000x64KiB": lambda: many_small(arguments.rounds, 1000, 64),
        "many_small_150x1MiB": lambda: many_small(arguments.rounds, 150, 1024),
        "capacity": lambda: capacity(100),
    }
    begin = time.monotonic()
    results: dict[str, Any] = {}
    for name, part in parts.items():
        if time.monotonic() - begin > arguments.seconds:
            results[name] = {"error": "not started: out of time"}
        else:
            try:
                results[name] = part()
            except Exception as error:  # one figure that cannot be had must not cost the others
                results[name] = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        torch.cuda.empty_cache()
        for figure, value in results[name].items():
            print(f"{name}.{figure}: {value if isinstance(value, str) else format(value, '.4g')}", flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if any("error" in figures for figures in results.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
