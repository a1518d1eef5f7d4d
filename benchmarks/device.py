# SPDX-License-Identifier: Apache-2.0
"""Timing on a device, by events, with candidates in turn. On a CPU, as a rehearsal, by the clock."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from times import Times

Setup = Callable[[], Any]
Work = Callable[[Any], Any]
Candidates = dict[str, tuple[Setup, Work]]
Timer = Callable[[Work, Any], float]


class Device:
    """``cuda``, or ``cpu`` for a rehearsal; ``tiny`` makes everything small and runs it once."""

    def __init__(self, name: str, tiny: bool = False):
        self.name = name
        self.cuda = name == "cuda"
        self.tiny = tiny

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def in_use(self) -> int:
        """Bytes that torch's allocator has given out; unknown (0) in a rehearsal."""
        self.wait()
        return torch.cuda.memory_allocated() if self.cuda else 0

    def free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    @contextmanager
    def leaving(self, share: float) -> Iterator[None]:
        """Allow allocations up to this share of the device's memory."""
        if not self.cuda:
            yield
            return
        torch.cuda.set_per_process_memory_fraction(share)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def by_events(self, work: Work, state: Any) -> float:
        """Seconds of the device for ``work(state)``."""
        if not self.cuda:
            return self.until_done(work, state)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        kept = work(state)
        end.record()
        torch.cuda.synchronize()
        del kept
        return float(start.elapsed_time(end)) / 1e3

    def until_done(self, work: Work, state: Any) -> float:
        """Seconds until ``work(state)`` has returned and the device is idle."""
        self.wait()
        begin = time.perf_counter()
        kept = work(state)
        self.wait()
        elapsed = time.perf_counter() - begin
        del kept
        return elapsed

    def until_returned(self, work: Work, state: Any) -> float:
        """Seconds until ``work(state)`` returns to the caller; the device may still be busy."""
        self.wait()
        begin = time.perf_counter()
        kept = work(state)
        elapsed = time.perf_counter() - begin
        self.wait()
        del kept
        return elapsed

    def compare(self, candidates: Candidates, timer: Timer, seconds: float = 3.0, most: int = 25) -> Times:
        return interleaved(candidates, timer, 0.0 if self.tiny else seconds, 1 if self.tiny else most)


def interleaved(candidates: Candidates, timer: Timer, seconds: float, most: int) -> Times:
    """Times of candidates in rounds of A B C, A B C, ...; setups are not timed, and a first round is thrown away.

    The rounds end after so many seconds, or with round number ``most``; there are at least three unless ``most`` is
    less. A slow candidate ends the rounds early for all, so that each ratio is formed within a round.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    begin = time.monotonic()
    rounds = 0
    while rounds <= most:
        for name, (setup, work) in candidates.items():
            state = setup()
            elapsed = timer(work, state)
            del state
            if rounds:
                times[name].append(elapsed)
        if rounds >= min(3, most) and time.monotonic() - begin > seconds:
            break
        rounds += 1
    rounds = len(next(iter(times.values())))
    return Times(times, times, rounds)
