# SPDX-License-Identifier: Apache-2.0
"""Timing of candidates in turn, in one process, so that changes in the speed of the machine affect all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

#: A function that prepares a call, and the function that is timed, which gets its result.
Candidate = tuple[Callable[[], Any], Callable[[Any], Any]]


class Turns:
    """Times of candidates, one entry per round: A B C, A B C, ...

    In its turn a candidate is called once, or repeatedly until its calls have taken ``turn`` seconds. ``times`` gets
    the time of the median call, ``first`` that of the first call, which finds cold caches. The result of a call is
    dropped before the next call. Python's garbage collector is off during a turn.

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
        """Drop the times measured so far, those of the warm-up."""
        for values in (*self.times.values(), *self.first.values()):
            values.clear()

    def ratios(self, one: str, other: str) -> list[float]:
        """Return ``one`` / ``other`` for each round; changes in speed that affect a whole round cancel out."""
        return [a / b for a, b in zip(self.times[one], self.times[other], strict=True)]
