"""Estimators of KL(pi || reference) from samples of pi (J. Schulman, http://joschu.net/blog/kl-approx.html)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KLKind = Literal["k1", "k2", "k3"]

#: Log-ratios beyond this are cut before exp(), so that one freak token cannot make a loss infinite. Value as in verl
#: (verl/trainer/ppo/core_algos.py, "clamp for stability").
LOG_RATIO_LIMIT = 20.0


def kl_estimate(log_prob: Tensor, reference_log_prob: Tensor, kind: KLKind) -> Tensor:
    """One KL estimate per entry; its mean over samples of pi estimates KL(pi || reference).

    With d = log_prob - reference_log_prob:

    * k1 = d: unbiased, may be negative, high variance;
    * k2 = d^2 / 2: never negative, biased, low variance; its gradient is that of KL;
    * k3 = exp(-d) - 1 + d: unbiased, never negative, low variance.

    Args:
        log_prob: any shape, log-probability under pi of what pi drew.
        reference_log_prob: same shape, log-probability of the same draws under the reference.
        kind: which estimator.

    Returns:
        Same shape, in nats; gradients flow into both arguments.

    Raises:
        ValueError: for an unknown kind.
    """
    difference = log_prob - reference_log_prob
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return torch.expm1((-difference).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) + difference
    raise ValueError(f"unknown KL estimator {kind!r}: choose k1, k2 or k3")
