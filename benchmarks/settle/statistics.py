"""Means over seeds with their intervals, and the verdict on a claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

TWO_SIDED_95, ONE_SIDED_95 = 0.975, 0.95  # the quantile that a 95 % interval or bound needs
# Student's t for 1, 2, 3, 4 degrees of freedom, where the expansion below is not good enough.
_T_SMALL = {TWO_SIDED_95: (12.7062, 4.3027, 3.1824, 2.7764), ONE_SIDED_95: (6.3138, 2.9200, 2.3534, 2.1318)}
MOST_SEEDS = 1000


def t_quantile(degrees: int, probability: float = TWO_SIDED_95) -> float:
    """Quantile of Student's t (Abramowitz and Stegun 26.7.5, three terms; error < 0.003 from 5 degrees on, 0 below).

    Args:
        degrees: of freedom, at least 1.
        probability: TWO_SIDED_95 or ONE_SIDED_95.
    """
    small = _T_SMALL[probability]
    if degrees <= len(small):
        return small[degrees - 1]
    z = statistics.NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and what is known about it; with one seed every interval is unbounded.

    Attributes:
        mean: over seeds.
        deviation: sample standard deviation over seeds; nan with one.
        seeds: how many.
    """

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """From one value per seed."""
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), deviation, len(values))

    def width(self, probability: float, seeds: int | None = None) -> float:
        """From the mean to its bound with this t-quantile, with so many seeds of the same deviation."""
        seeds = seeds or self.seeds
        if self.seeds < 2 or seeds < 2:
            return math.inf
        return t_quantile(seeds - 1, probability) * self.deviation / math.sqrt(seeds)

    @property
    def half_width(self) -> float:
        """Of the 95 % t-interval."""
        return self.width(TWO_SIDED_95)

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def lower_bound(self) -> float:
        """One-sided, 95 %."""
        return self.mean - self.width(ONE_SIDED_95)

    def above(self, limit: float, probability: float = TWO_SIDED_95) -> bool | None:
        """Whether the true mean is above a limit; None: undecided."""
        width = self.width(probability)
        if self.mean - width > limit:
            return True
        return False if self.mean + width < limit else None

    def seeds_to_decide(self, limit: float = 0.0, probability: float = TWO_SIDED_95) -> int | None:
        """How many seeds would decide `above` if mean and deviation stayed; None: one seed, or above MOST_SEEDS."""
        enough = (n for n in range(2, MOST_SEEDS + 1) if self.width(probability, n) < abs(self.mean - limit))
        return next(enough, None)

    def percent(self, sign: bool = False) -> str:
        """In percent with its interval, cut off at 0 and 100; with a sign in points, and nothing is cut off."""
        form = "+.1f" if sign else ".1f"
        if self.seeds < 2:
            return f"{100 * self.mean:{form}} (one seed)"
        low, high = (self.low, self.high) if sign else (max(0.0, self.low), min(1.0, self.high))
        return f"{100 * self.mean:{form}} [{100 * low:{form}}, {100 * high:{form}}]"
