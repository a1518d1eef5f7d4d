"""Timing candidates against each other: in turn, in one process, so that a machine whose speed drifts slows all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

#: What prepares a call (not timed), and what is timed with its result.
Candidate = tuple[Callable[[], Any], Callable[[Any], Any]]


class Turns:
    """Times of candidates, one entry per round: A B C, A B C, ...

    In its turn a candidate is called once, or again and again until its calls have taken ``turn`` seconds; then the
    median call counts (``times``), and the first one, which finds cold caches, is told beside it (``first``). What a
    timed function returns is dropped before the next call, and Python's garbage collector rests during a turn.

    Example:
        >>> turns = Turns(dict(one=(lambda: 1, lambda x: x), two=(lambda: 2, lambda x: [x])))
        >>> for _ in range(3):
        ...     turns.round()
        >>> len(turns.times["one"]), min(turns.first["two"]) > 0
        (3, True)
    """

    def __init__(self, candidates: Mapping[str, Candidate], turn: float = 0.0):
        self._candidates = dict(candidates)
        self._turn = turn
        self.times: dict[str, list[float]] = {name: [] for name in candidates}  #: in seconds
        self.first: dict[str, list[float]] = {name: [] for name in candidates}  #: in seconds

    def round(self) -> None:
        """Give each candidate its turn."""
        for name, (prepare, act) in self._candidates.items():
            calls: list[float] = []
            prepared = prepare()
            gc.collect()
            gc.disable()
            try:
                while True:
                    begin = time.perf_counter()
                    result = act(prepared)
                    calls.append(time.perf_counter() - begin)
                    del result
                    if sum(calls) >= self._turn:
                        break
                    prepared = prepare()
            finally:
                gc.enable()
            del prepared
            self.times[name].append(statistics.median(calls))
            self.first[name].append(calls[0])

    def forget(self) -> None:
        """Drop what was measured so far, which was the warm-up."""
        for values in (*self.times.values(), *self.first.values()):
            values.clear()

    def ratios(self, one: str, other: str) -> list[float]:
        """``one`` over ``other``, round by round: what slows a whole round cancels out."""
        return [a / b for a, b in zip(self.times[one], self.times[other], strict=True)]
