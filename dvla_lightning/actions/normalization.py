"""Robot units <-> [-1, 1], per dimension; for actions and proprioception."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dvla_lightning.actions.statistics import StatisticsModule, check_samples
from dvla_lightning.errors import UserError, check_number

NormalizationMode = Literal["min_max", "quantile", "mean_std", "identity"]

# A dimension that moves less than this never moved: a micrometre, a microradian. What is left is noise of sensors and
# solvers, and stretching it to [-1, 1] would turn the first real motion into thousands.
STILL = 1e-6
# Values that float32 rounds differently are no motion either: two units in the last place.
ROUNDING = 2 * float(np.finfo(np.float32).eps)
# Where the middle 98 % of the rows span less than this share of all, the rare rows are the motion (a gripper that
# closes once, over the noise of an idle one) and no outliers: commands have limits, and stay within a thousand ranges.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class NormalizationGroup:
    """Dimensions that are normalised alike.

    Attributes:
        dims: their indices.
        mode: see `Normalizer`.
        factor: of "mean_std": how many standard deviations map to 1. Of "identity": what maps to 1, in the units of the
            data. The other modes have none.
    """

    dims: Sequence[int]
    mode: NormalizationMode
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in get_args(NormalizationMode):
            raise UserError(f"unknown normalisation {self.mode!r}: choose {', '.join(get_args(NormalizationMode))}")
        check_number("normalization", "factor", self.factor, above=0)
        if self.factor != 1.0 and self.mode in ("min_max", "quantile"):
            raise UserError(f"normalization: {self.mode} has no factor, got {self.factor}")


GroupedNormalization = NormalizationMode | Sequence[NormalizationGroup]
"""One mode for all dimensions, or groups that name every dimension once."""


@dataclass(frozen=True)
class Normalization:
    """The scaling of a policy's actions and proprioception, where one mode for everything would not do.

    Attributes:
        actions: mode of all action dimensions, or groups of them (a gripper that is -1 or 1: mode identity).
        proprioception: the same for the proprioception vector.
    """

    actions: GroupedNormalization = "min_max"
    proprioception: GroupedNormalization = "min_max"

    def plain(self) -> str | dict[str, Any]:
        """In plain JSON types; one mode for everything is its name alone."""
        actions, proprioception = plain(self.actions), plain(self.proprioception)
        if isinstance(actions, str) and actions == proprioception:
            return actions
        return {"actions": actions, "proprioception": proprioception}


class Normalizer(StatisticsModule):
    """Maps [low, high] of each dimension to [-1, 1] and back.

    The bounds are buffers, so they travel in the policy's state dict. Until `fit` or `load_state_dict` they are NaN
    and using them is an error (mode "identity" needs no bounds). A dimension that is still has low == high, maps to 0
    and comes back as its constant.

    Args:
        dim: size of the last dimension D; 0 where there is nothing to normalise.
        mode: of all dimensions, or groups of dimensions with a mode each. "min_max" uses the smallest and largest value
            seen; "quantile" uses the 1 % and 99 % quantiles, so that outliers do not waste the range; "mean_std" uses
            the mean plus and minus `factor` standard deviations; all three clip what lies beyond. "identity" clips
            nothing and changes nothing but the unit (`factor`), for data that is in [-1, 1] already.

    Attributes:
        low: (D,) float32, what maps to -1, in the units of the data.
        high: (D,) float32, what maps to +1.

    Raises:
        UserError: for a mode that does not exist, dim < 0, or groups that do not name every dimension once.
    """

    low: Tensor
    high: Tensor

    def __init__(self, dim: int, mode: GroupedNormalization = "quantile") -> None:
        super().__init__()
        if dim < 0:
            raise UserError(f"Normalizer needs dim >= 0, got {dim}")
        self.dim = dim
        self.mode = mode
        self.groups = [NormalizationGroup(range(dim), mode)] if isinstance(mode, str) else list(mode)
        named = [d for group in self.groups for d in group.dims]
        if sorted(named) != list(range(dim)):
            raise UserError(f"normalization: the groups must name each of the dimensions 0 to {dim - 1} once: {named}")
        self._identity = [False] * dim
        bounds = torch.full((dim,), float("nan"))
        for group in self.groups:
            for d in group.dims if group.mode == "identity" else ():
                self._identity[d], bounds[d] = True, group.factor
        self.register_buffer("low", -bounds)
        self.register_buffer("high", bounds)

    @property
    def init_args(self) -> dict[str, Any]:
        """Constructor arguments, ready for JSON."""
        return {"dim": self.dim, "mode": plain(self.mode)}

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
        if all(self._identity):
            return self
        low, high = samples.min(axis=0), samples.max(axis=0)
        too_far = (np.maximum(np.abs(low), np.abs(high)) > np.finfo(np.float32).max / 4) & ~np.array(self._identity)
        if too_far.any():
            d = int(np.argmax(too_far))
            raise UserError(f"Normalizer cannot be fitted: dimension {d} goes from {low[d]} to {high[d]}; rescale it")
        for group in self.groups:
            dims = list(group.dims)
            if dims and group.mode != "identity":
                bounds = _bounds(samples[:, dims], group)
                self.low[dims], self.high[dims] = (torch.from_numpy(bound).to(self.low) for bound in bounds)
        return self

    def normalize(self, x: Tensor) -> Tensor:
        """Units of the data -> [-1, 1].

        Args:
            x: (..., D) in the units of the data.

        Returns:
            (..., D), float64 if `x` is, else float32; in [-1, 1], but for dimensions of mode "identity".

        Raises:
            UserError: for a wrong last dimension, or bounds that were never set.
        """
        low, high, x = self._prepare(x)
        span = high - low
        constant = span == 0
        # written so that x == low gives exactly -1 and x == high exactly +1
        scaled = (2.0 * ((x - low) / span.masked_fill(constant, 1.0)) - 1.0).masked_fill(constant, 0.0)
        return self._unless_identity(scaled.clamp(-1.0, 1.0), lambda: x / high)

    def outside(self, x: Tensor) -> Tensor:
        """Marks numbers that lie beyond the bounds, by more than noise: clipped by `normalize`, or replaced by 0.

        Args:
            x: (..., D) in the units of the data.

        Returns:
            (..., D) bool. In mode "identity" the bounds are what maps to -1 and 1: the action tokenizer clips there.

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
        return self._unless_identity(torch.lerp(low, high, (x.clamp(-1.0, 1.0) + 1.0) / 2.0), lambda: x * high)

    def _unless_identity(self, scaled: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        if not any(self._identity):
            return scaled
        return torch.where(torch.tensor(self._identity, device=scaled.device), plain(), scaled)

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bounds and `x` in one dtype, after checking them."""
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise UserError(f"Normalizer was made for {self.dim} dimensions, got a tensor of shape {tuple(x.shape)}")
        if bool(self.low.isnan().any()):
            raise UserError("Normalizer has no statistics yet: call fit() or load a state dict that has them")
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return self.low.to(dtype), self.high.to(dtype), x.to(dtype)


def _noise(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest distance of values that are the same but for noise, per dimension."""
    return np.maximum(STILL, ROUNDING * np.maximum(np.abs(low), np.abs(high)))


def _bounds(samples: NDArray[np.float64], group: NormalizationGroup) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(D,) low and high of the dimensions of one group that has statistics."""
    low, high = samples.min(axis=0), samples.max(axis=0)
    if group.mode == "quantile":
        q01, q99 = np.quantile(samples, [0.01, 0.99], axis=0, method="linear")
        moves = (q99 - q01 > NEGLIGIBLE * (high - low)) & (q99 - q01 > _noise(q01, q99))
        low, high = np.where(moves, q01, low), np.where(moves, q99, high)
    elif group.mode == "mean_std":
        mean, half = samples.mean(axis=0), group.factor * samples.std(axis=0)
        low, high = mean - half, mean + half
    still = high - low <= _noise(low, high)
    middle = (low + high) / 2
    return np.where(still, middle, low), np.where(still, middle, high)


def plain(mode: GroupedNormalization) -> str | list[dict[str, Any]]:
    """The mode or groups in plain JSON types."""
    return mode if isinstance(mode, str) else [{**asdict(group), "dims": list(group.dims)} for group in mode]
