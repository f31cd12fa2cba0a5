"""Non-inferiority of one way of running the policy to another: a paired comparison on the same initial states."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dvla_lightning.evaluation.success import wilson_interval


def paired_difference_interval(
    success_a: Sequence[bool], success_b: Sequence[bool], confidence: float
) -> tuple[float, float, float]:
    """Difference of two success rates measured on the same episodes, with its two-sided confidence interval.

    Method 10 of Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Stat. Med. 17:2635-2650: with Wilson intervals [l, u] of the two rates and their correlation phi,

        low  = (a - b) - sqrt((a - l_a)^2 - 2 phi (a - l_a)(u_b - b) + (u_b - b)^2)
        high = (a - b) + sqrt((u_a - a)^2 - 2 phi (u_a - a)(b - l_b) + (b - l_b)^2)

    Args:
        success_a: outcomes of one way.
        success_b: outcomes of the other, on the same initial states in the same order.
        confidence: of the interval, in (0, 1).

    Returns:
        rate of a - rate of b, lower end, upper end; all in [-1, 1].

    Raises:
        ValueError: if the lists are empty or differ in length.
    """
    n = len(success_a)
    if n == 0 or n != len(success_b):
        raise ValueError(f"paired outcomes needed, got {n} and {len(success_b)}")
    a, b = sum(success_a) / n, sum(success_b) / n
    low_a, high_a = wilson_interval(sum(success_a), n, confidence)
    low_b, high_b = wilson_interval(sum(success_b), n, confidence)
    phi = _correlation(success_a, success_b)
    # max: at 0 and n successes the end that equals the rate can be off by rounding
    below_a, above_a, below_b, above_b = (max(0.0, x) for x in (a - low_a, high_a - a, b - low_b, high_b - b))
    low = a - b - _combine(below_a, above_b, phi)
    high = a - b + _combine(above_a, below_b, phi)
    return a - b, max(-1.0, low), min(1.0, high)


def lower_bound(candidate: Sequence[bool], best: Sequence[bool], confidence: float) -> float:
    """One-sided lower bound of (rate of the candidate - rate of the best), both on the same episodes.

    Args:
        candidate: outcomes.
        best: outcomes on the same initial states in the same order.
        confidence: that the true difference is above the bound, in (0.5, 1).
    """
    return paired_difference_interval(candidate, best, 2 * confidence - 1)[1]


def _combine(one: float, other: float, phi: float) -> float:
    # max: rounding can make it negative where the two are equal and phi is 1
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _correlation(success_a: Sequence[bool], success_b: Sequence[bool]) -> float:
    """Correlation phi of paired outcomes, a positive one shrunk by Newcombe's continuity correction; 0 if undefined."""
    n, total_a, total_b = len(success_a), sum(success_a), sum(success_b)
    both = sum(a and b for a, b in zip(success_a, success_b, strict=True))
    neither = n - total_a - total_b + both
    scale = total_a * (n - total_a) * total_b * (n - total_b)
    if scale == 0:
        return 0.0
    determinant = both * neither - (total_a - both) * (total_b - both)
    if determinant > 0:
        return max(0.0, determinant - n / 2) / math.sqrt(scale)
    return determinant / math.sqrt(scale)
