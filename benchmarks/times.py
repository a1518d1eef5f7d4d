# SPDX-License-Identifier: Apache-2.0
"""Times of candidates that took turns: medians with quartiles, and ratios formed within a round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds of each candidate, one entry per round."""

    seconds: dict[str, list[float]]
    first: dict[str, list[float]]  #: of the first call in each turn, which finds cold caches
    rounds: int

    def __getitem__(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def spread(self, name: str) -> dict[str, float]:
        return spread(self.seconds[name]) | {"first": statistics.median(self.first[name])}

    def ratio(self, one: str, other: str) -> dict[str, float]:
        """``one`` over ``other``, round by round: a slow round cancels out."""
        return spread([a / b for a, b in zip(self.seconds[one], self.seconds[other], strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, and the quartiles, which enclose the middle half of the values."""
    if len(values) == 1:
        return dict.fromkeys(("lower", "median", "upper"), values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"lower": lower, "median": median, "upper": upper}
