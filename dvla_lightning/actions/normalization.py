"""Robot units <-> [-1, 1], per dimension; for actions and proprioception."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dvla_lightning.actions.statistics import StatisticsModule, check_samples
from dvla_lightning.errors import UserError

NormalizationMode = Literal["min_max", "quantile", "identity"]


class Normalizer(StatisticsModule):
    """Maps [low, high] of each dimension to [-1, 1] and back.

    The bounds are buffers, so they travel in the policy's state dict. Until `fit` or `load_state_dict` they are NaN
    and using them is an error (mode "identity" needs no bounds). A dimension with low == high maps to 0 and comes
    back as its constant.

    Args:
        dim: size of the last dimension D.
        mode: "min_max" uses the smallest and largest value seen and does not clip; "quantile" uses the 1 % and 99 %
            quantiles and clips, so that outliers do not waste the range; "identity" changes nothing, for data that
            is in [-1, 1] already.

    Attributes:
        low: (D,) float32, what maps to -1, in the units of the data.
        high: (D,) float32, what maps to +1.

    Raises:
        UserError: for a mode that does not exist or dim < 1.
    """

    low: Tensor
    high: Tensor

    def __init__(self, dim: int, mode: NormalizationMode = "quantile") -> None:
        super().__init__()
        if mode not in get_args(NormalizationMode):
            raise UserError(f"unknown normalisation {mode!r}: choose {', '.join(get_args(NormalizationMode))}")
        if dim < 1:
            raise UserError(f"Normalizer needs dim >= 1, got {dim}")
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

        In mode "quantile" a dimension that is still for all but 1 % of the rows (a gripper that closes once) falls
        back to its extremes: equal quantiles would erase its motion.

        Args:
            samples_N_D: (N, D) numbers in the units of the data.

        Returns:
            This normaliser.

        Raises:
            UserError: for another shape, no rows, or values that are not finite.
        """
        samples = check_samples(samples_N_D, self.dim, "Normalizer")
        if self.mode == "identity":
            return self
        low, high = samples.min(axis=0), samples.max(axis=0)
        if self.mode == "quantile":
            q01, q99 = np.quantile(samples, [0.01, 0.99], axis=0, method="linear")
            moves = q99 > q01
            low, high = np.where(moves, q01, low), np.where(moves, q99, high)
        self.low.copy_(torch.from_numpy(low))
        self.high.copy_(torch.from_numpy(high))
        return self

    def normalize(self, x: Tensor) -> Tensor:
        """Units of the data -> [-1, 1].

        Args:
            x: (..., D) in the units of the data.

        Returns:
            (..., D), float64 if `x` is, else float32. Mode "min_max" may leave [-1, 1] for values never seen in
            `fit`; mode "quantile" clips.

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
        return scaled.clamp(-1.0, 1.0) if self.mode == "quantile" else scaled

    def denormalize(self, x: Tensor) -> Tensor:
        """[-1, 1] -> units of the data; the inverse of `normalize` up to clipping.

        Args:
            x: (..., D); -1 and +1 come back as exactly `low` and `high`.

        Returns:
            (..., D), float64 if `x` is, else float32.

        Raises:
            UserError: for a wrong last dimension, or bounds that were never set.
        """
        low, high, x = self._prepare(x)
        return x if self.mode == "identity" else torch.lerp(low, high, (x + 1.0) / 2.0)

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bounds and `x` in one dtype, after checking them."""
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise UserError(f"Normalizer was made for {self.dim} dimensions, got a tensor of shape {tuple(x.shape)}")
        if bool(self.low.isnan().any()):
            raise UserError("Normalizer has no statistics yet: call fit() or load a state dict that has them")
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return self.low.to(dtype), self.high.to(dtype), x.to(dtype)
