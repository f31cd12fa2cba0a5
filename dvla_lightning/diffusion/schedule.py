"""The share of a chunk that is masked at time t, and the positions that each of K denoising steps commits."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import torch
from torch import Tensor

MaskSchedule = Literal["cosine", "linear"]


def mask_ratio(time: Tensor, schedule: MaskSchedule) -> Tensor:
    """Share of the positions that is masked at time t: 1 at t = 0, 0 at t = 1.

    Args:
        time: any shape, float, in [0, 1].
        schedule: "cosine" is cos(pi t / 2) (MaskGIT, arXiv 2202.04200, Sec. 3.3; used by MM-ACT), "linear" is 1 - t.

    Returns:
        Same shape and dtype as `time`.
    """
    if schedule == "cosine":
        return torch.cos(time * math.pi * 0.5)
    if schedule == "linear":
        return 1 - time
    raise ValueError(f"unknown mask schedule {schedule!r}: choose cosine or linear")


@cache
def commit_counts(num_positions: int, num_steps: int, schedule: MaskSchedule = "cosine") -> tuple[int, ...]:
    """Number of positions that each denoising step commits.

    After step k the schedule wants floor(L * mask_ratio((k + 1) / K)) masked positions, at least one fewer than before
    and at least one; the last step commits everything left. Counts follow the float32 cosine of MM-ACT's sampler
    (float64 gives other counts where K is a multiple of 3).

    Args:
        num_positions: L >= 1.
        num_steps: K, 1 <= K <= L.
        schedule: see `mask_ratio`.

    Returns:
        K positive integers that sum to L.

    Raises:
        ValueError: if K is not in 1..L.
    """
    if not 1 <= num_steps <= num_positions:
        raise ValueError(f"num_steps must be between 1 and the {num_positions} action-token positions, got {num_steps}")
    counts = []
    masked = num_positions
    for step in range(num_steps - 1):
        ratio = mask_ratio(torch.tensor((step + 1) / num_steps, dtype=torch.float32), schedule)
        wanted = int(torch.floor(num_positions * ratio))
        # Every later step must still find a position to commit.
        left = max(num_steps - 1 - step, min(masked - 1, wanted))
        counts.append(masked - left)
        masked = left
    return (*counts, masked)
