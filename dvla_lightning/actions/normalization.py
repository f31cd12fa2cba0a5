"""Robot units <-> [-1, 1], per dimension; for actions and proprioception."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dvla_lightning.actions.statistics import StatisticsModule, check_samples
from dvla_lightning.errors import UserError

NormalizationMode = Literal["min_max", "quantile", "identity"]

# A dimension that moves less than this never moved: a micrometre, a microradian. What is left is noise of sensors and
# solvers, and stretching it to [-1, 1] would turn the first real motion into thousands.
STILL = 1e-6
# Values that float32 rounds differently are no motion either: two units in the last place.
ROUNDING = 2 * float(np.finfo(np.float32).eps)
# Where the middle 98 % of the rows span less than this share of all, the rare rows are the motion (a gripper that
# closes once, over the noise of an idle one) and no outliers: commands have limits, and stay within a thousand ranges.
NEGLIGIBLE = 1e-3


class Normalizer(StatisticsModule):
    """Maps [low, high] of each dimension to [-1, 1] and back.

    The bounds are buffers, so they travel in the policy's state dict. Until `fit` or `load_state_dict` they are NaN
    and using them is an error (mode "identity" needs no bounds). A dimension that is still has low == high, maps to 0
    and comes back as its constant.

    Args:
        dim: size of the last dimension D; 0 where there is nothing to normalise.
        mode: "min_max" uses the smallest and largest value seen; "quantile" uses the 1 % and 99 % quantiles, so that
            outliers do not waste the range; both clip what lies beyond. "identity" changes nothing and clips nothing,
            for data that is in [-1, 1] already.

    Attributes:
        low: (D,) float32, what maps to -1, in the units of the data.
        high: (D,) float32, what maps to +1.

    Raises:
        UserError: for a mode that does not exist or dim < 0.
    """

    low: Tensor
    high: Tensor

    def __init__(self, dim: int, mode: NormalizationMode = "quantile") -> None:
        super().__init__()
        if mode not in get_args(NormalizationMode):
            raise UserError(f"unknown normalisation {mode!r}: choose {', '.join(get_args(NormalizationMode))}")
        if dim < 0:
            raise UserError(f"Normalizer needs dim >= 0, got {dim}")
        self.dim = dim
        self.mode = mode
        bound = 1.0 if mode == "identity" else float("nan")
        self.register_buffer("low", torch.full((dim,), -bound))
        self.register_buffer("high", torch.full((dim,), bound))

    @property
    def init_args(self) -> dict[str, Any]:
        """Constructor arguments, ready for JSON."""
        return {"dim": self.dim, "mode": self.mode}

    def fit(self, samples_N_D: ArrayLike | Tensor) -> Self:
        """Takes the bounds from data; computed in float64, kept as float32.

        A dimension that moves by less than `STILL`, or than float32 resolves, is constant: its middle. In mode
        "quantile" one whose quantiles are close together, measured by its extremes, has the extremes for bounds: the
        quantiles would erase its rare motion.

        Args:
            samples_N_D: (N, D) numbers in the units of the data.

        Returns:
            This normaliser.

        Raises:
            UserError: for another shape, no rows, values that are not finite, or a span beyond float32.
        """
        samples = check_samples(samples_N_D, self.dim, "Normalizer")
        if self.mode == "identity":
            return self
        low, high = samples.min(axis=0), samples.max(axis=0)
        too_far = np.maximum(np.abs(low), np.abs(high)) > np.finfo(np.float32).max / 4
        if too_far.any():
            d = int(np.argmax(too_far))
            raise UserError(f"Normalizer cannot be fitted: dimension {d} goes from {low[d]} to {high[d]}; rescale it")
        if self.mode == "quantile":
            q01, q99 = np.quantile(samples, [0.01, 0.99], axis=0, method="linear")
            moves = (q99 - q01 > NEGLIGIBLE * (high - low)) & (q99 - q01 > _noise(q01, q99))
            low, high = np.where(moves, q01, low), np.where(moves, q99, high)
        still = high - low <= _noise(low, high)
        middle = (low + high) / 2
        low, high = np.where(still, middle, low), np.where(still, middle, high)
        self.low.copy_(torch.from_numpy(low))
        self.high.copy_(torch.from_numpy(high))
        return self

    def normalize(self, x: Tensor) -> Tensor:
        """Units of the data -> [-1, 1].

        Args:
            x: (..., D) in the units of the data.

        Returns:
            (..., D), float64 if `x` is, else float32; in [-1, 1], but in mode "identity".

        Raises:
            UserError: for a wrong last dimension, or bounds that were never set.
        """
        low, high, x = self._prepare(x)
        if self.mode == "identity":
            return x
        span = high - low
        constant = span == 0
        # written so that x == low gives exactly -1 and x == high exactly +1
        scaled = (2.0 * ((x - low) / span.masked_fill(constant, 1.0)) - 1.0).masked_fill(constant, 0.0)
        return scaled.clamp(-1.0, 1.0)

    def outside(self, x: Tensor) -> Tensor:
        """Which numbers lie beyond the bounds, by more than noise: clipped by `normalize`, or replaced by 0.

        Args:
            x: (..., D) in the units of the data.

        Returns:
            (..., D) bool. In mode "identity" the bounds are -1 and 1: the action tokenizer clips there.

        Raises:
            UserError: for a wrong last dimension, or bounds that were never set.
        """
        low, high, x = self._prepare(x)
        noise = torch.maximum(low.abs(), high.abs()).mul(ROUNDING).clamp(min=STILL)
        return (x < low - noise) | (x > high + noise)

    def denormalize(self, x: Tensor) -> Tensor:
        """[-1, 1] -> units of the data; the inverse of `normalize` up to clipping.

        Args:
            x: (..., D); -1 and +1 come back as exactly `low` and `high`, and so does what lies beyond them.

        Returns:
            (..., D), float64 if `x` is, else float32.

        Raises:
            UserError: for a wrong last dimension, or bounds that were never set.
        """
        low, high, x = self._prepare(x)
        return x if self.mode == "identity" else torch.lerp(low, high, (x.clamp(-1.0, 1.0) + 1.0) / 2.0)

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bounds and `x` in one dtype, after checking them."""
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise UserError(f"Normalizer was made for {self.dim} dimensions, got a tensor of shape {tuple(x.shape)}")
        if bool(self.low.isnan().any()):
            raise UserError("Normalizer has no statistics yet: call fit() or load a state dict that has them")
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return self.low.to(dtype), self.high.to(dtype), x.to(dtype)


def _noise(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far values may lie apart that are the same but for noise, per dimension."""
    return np.maximum(STILL, ROUNDING * np.maximum(np.abs(low), np.abs(high)))
