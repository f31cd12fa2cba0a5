"""Random draws that depend on each row's own seed: uniform numbers, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor


class Purpose(IntEnum):
    """The use of a row's numbers; no two purposes of a seed share one."""

    TOKENS = 1
    MASKS = 2


def seeded_uniforms(seeds: Sequence[int], purpose: Purpose, count: int) -> Tensor:
    """(B, count) float64 in [0, 1); a row's numbers follow from its seed and the purpose, and fewer are the first ones.

    Not from torch's generator: it reads 32 bits of a seed, in which some decisions of a long run are bound to agree.

    Args:
        seeds: one per row, in [-2^63, 2^63).
        purpose: what the numbers are for.
        count: numbers per row.
    """
    start_B = _mix(_mix(torch.tensor(seeds, dtype=torch.int64)) + int(purpose))
    return _shift(split_mix(start_B, count), 11).double() * 2.0**-53


def split_mix(start_B: Tensor, count: int) -> Tensor:
    """(B, count) int64: the first numbers of SplitMix64, each a hash of its place, so that all are made at once.

    Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA, with the constants of Java's
    SplittableRandom: the golden ratio and variant 13 of D. Stafford's mixers. Products of int64 wrap around, as meant.
    """
    return _mix(start_B[:, None] + (0x9E3779B97F4A7C15 - 2**64) * torch.arange(1, count + 1))


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shift(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shifts to the right, with zeros coming in at the left."""
    return z.bitwise_right_shift(bits).bitwise_and(2 ** (64 - bits) - 1)


def row_uniforms(seeds: Sequence[int], num_steps: int, length: int) -> Tensor:
    """(B, K, 2, L) float64 in [0, 1): token and selection draws of K steps; fewer steps have the same numbers."""
    return seeded_uniforms(seeds, Purpose.TOKENS, num_steps * 2 * length).view(-1, num_steps, 2, length)


def inverse_cdf(log_probs_BLV: Tensor, uniform_BL: Tensor) -> Tensor:
    """Draws one token per position: the first whose cumulative probability exceeds the uniform number."""
    cumulative_BLV = log_probs_BLV.double().exp().cumsum(-1)
    # Scaling by the total instead of 1 keeps rounding of the sum from ever reaching past the last token.
    target_BL1 = (uniform_BL * cumulative_BLV[..., -1])[..., None]
    return torch.searchsorted(cumulative_BLV, target_BL1, right=True)[..., 0].clamp_max(log_probs_BLV.shape[-1] - 1)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, from uniform numbers in [0, 1); computed in float64, where its tails survive."""
    tiny = torch.finfo(torch.float64).tiny
    return -torch.log(-torch.log(uniform.clamp_min(tiny))).float()
