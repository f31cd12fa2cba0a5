"""Normalised actions <-> action tokens. A chunk of T actions with D dimensions is L = T * D tokens, one per number.

Tokens lie time-major with the dimensions inside: token t * D + d is dimension d of action t.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dvla_lightning.actions.statistics import StatisticsModule, check_samples
from dvla_lightning.errors import UserError, check_number

MAX_BINS = 2**20
"""Far more than any robot resolves (MM-ACT: 2048), and few enough for memory."""


class ActionTokenizer(StatisticsModule, ABC):
    """The contract between the policy and a tokenizer. Subclasses map single numbers in `_encode` and `_decode`.

    Args:
        num_bins: size V of the action vocabulary, 2 to `MAX_BINS`.

    Raises:
        UserError: for another number of bins.
    """

    def __init__(self, num_bins: int) -> None:
        super().__init__()
        check_number(type(self).__name__, "num_bins", num_bins, low=2, high=MAX_BINS)
        self.num_bins = num_bins

    @property
    def vocab_size(self) -> int:
        """V: tokens are 0 .. V - 1."""
        return self.num_bins

    @property
    def mask_id(self) -> int:
        """The id of MASK: V, one past the last token."""
        return self.num_bins

    @property
    def init_args(self) -> dict[str, Any]:
        """Constructor arguments, ready for JSON."""
        return {"num_bins": self.num_bins}

    def fit(self, samples_N_D: ArrayLike | Tensor) -> Self:
        """Takes what it needs from the normalised actions of demonstrations; by default nothing."""
        return self

    def encode(self, actions: Tensor) -> Tensor:
        """Actions -> tokens.

        Args:
            actions: (..., T, D) floating in [-1, 1]; values beyond are clipped.

        Returns:
            (..., T * D) int64.

        Raises:
            UserError: for NaN, or fewer than two dimensions.
        """
        if actions.ndim < 2:
            raise UserError(f"{type(self).__name__} encodes (..., T, D) actions, got shape {tuple(actions.shape)}")
        if bool(actions.isnan().any()):
            dims = actions.isnan().flatten(0, -2).any(0).nonzero().flatten().tolist()
            raise UserError(f"{type(self).__name__} cannot encode NaN (action dimensions {dims})")
        exact = actions if actions.dtype == torch.float64 else actions.float()
        return self._encode(exact.clamp(-1.0, 1.0)).flatten(-2)

    def decode(self, tokens: Tensor, action_dim: int) -> Tensor:
        """Tokens -> actions.

        Args:
            tokens: (..., T * D) integers in 0 .. V - 1.
            action_dim: D.

        Returns:
            (..., T, D) float32 in [-1, 1].

        Raises:
            UserError: for MASK or any other id outside the vocabulary, a floating dtype, or a length that
                `action_dim` does not divide.
        """
        if tokens.dtype.is_floating_point or tokens.dtype == torch.bool:
            raise UserError(f"{type(self).__name__} decodes integer tokens, got {tokens.dtype}")
        if tokens.ndim == 0 or action_dim < 1 or tokens.shape[-1] % action_dim:
            raise UserError(f"tokens of shape {tuple(tokens.shape)} are no whole actions of {action_dim} dimensions")
        outside = (tokens < 0) | (tokens >= self.num_bins)
        if bool(outside.any()):
            first = int(tokens[outside][0])
            what = "MASK: the chunk is not fully committed" if first == self.mask_id else f"id {first}"
            raise UserError(f"cannot decode {what}; action tokens are 0 .. {self.num_bins - 1}")
        return self._decode(tokens.long().reshape(*tokens.shape[:-1], -1, action_dim))

    @abstractmethod
    def _encode(self, actions: Tensor) -> Tensor:
        """(..., T, D) float32 or float64 in [-1, 1] -> (..., T, D) int64."""

    @abstractmethod
    def _decode(self, tokens: Tensor) -> Tensor:
        """(..., T, D) int64 in 0 .. V - 1 -> (..., T, D) float32."""


class UniformBins(ActionTokenizer):
    """Evenly spaced values that include both ends: token = round((v + 1) / 2 * (V - 1)), half to even.

    The convention of MM-ACT (V = 2048): -1 and +1 are represented exactly, the round trip errs by at most
    1 / (V - 1). OpenVLA-style tokenizers use V equal bins and their centres instead, which never return an end.

    Args:
        num_bins: size V of the action vocabulary, at least 2.
    """

    def __init__(self, num_bins: int = 256) -> None:
        super().__init__(num_bins)

    def _encode(self, actions: Tensor) -> Tensor:
        return ((actions + 1.0) / 2.0 * (self.num_bins - 1)).round().long()

    def _decode(self, tokens: Tensor) -> Tensor:
        return tokens.float() / (self.num_bins - 1) * 2.0 - 1.0


# Share of the bins that is spread evenly over the range of the data. Without it the rare rows of a joint that is mostly
# idle would share a bin with its noise, and decode to something in between.
EVEN_SHARE = 0.25


class QuantileBins(ActionTokenizer):
    """Bins that hold about equally many samples of the data, per dimension: fine where the robot often moves.

    None holds more than 4/3 of an equal share (unless one value alone does), and none is wider than 4 of V even bins.
    A token decodes to the mean of its bin's samples. A value that is very frequent (a gripper that is open or closed)
    fills several bins; it is encoded by one of them and decodes exactly; the others, empty, decode to their middle.

    Args:
        num_bins: size V of the action vocabulary, at least 2.
        action_dim: D, the number of action dimensions.

    Attributes:
        edges: (D, V - 1) float32, ascending; a value equal to an edge belongs to the bin above it.
        centers: (D, V) float32, what each token decodes to.

    Raises:
        UserError: for fewer than two bins or no dimension.
    """

    edges: Tensor
    centers: Tensor

    def __init__(self, num_bins: int, action_dim: int) -> None:
        super().__init__(num_bins)
        check_number("QuantileBins", "action_dim", action_dim, low=1)
        self.action_dim = action_dim
        self.register_buffer("edges", torch.full((action_dim, num_bins - 1), float("nan")))
        self.register_buffer("centers", torch.full((action_dim, num_bins), float("nan")))

    @property
    def init_args(self) -> dict[str, Any]:
        """Constructor arguments, ready for JSON."""
        return {"num_bins": self.num_bins, "action_dim": self.action_dim}

    def fit(self, samples_N_D: ArrayLike | Tensor) -> Self:
        """Takes edges and centres from data: quantiles of the data, mixed with evenly spread values.

        Args:
            samples_N_D: (N, D) normalised actions; values beyond [-1, 1] are clipped as in `encode`.

        Returns:
            This tokenizer.

        Raises:
            UserError: for another shape, no rows, or values that are not finite.
        """
        # through float32 first: bins must be counted with the numbers that encode() will see
        samples = check_samples(samples_N_D, self.action_dim, "QuantileBins").astype(np.float32).clip(-1.0, 1.0)
        bounds = np.stack([_bounds(column, self.num_bins) for column in samples.T.astype(np.float64)])
        self.edges.copy_(torch.from_numpy(bounds[:, 1:-1]))
        tokens = self._encode(torch.from_numpy(samples).to(self.edges.device)).cpu().numpy()
        for d in range(self.action_dim):
            count = np.bincount(tokens[:, d], minlength=self.num_bins)
            total = np.bincount(tokens[:, d], weights=samples[:, d].astype(np.float64), minlength=self.num_bins)
            middle = (bounds[d, :-1].astype(np.float64) + bounds[d, 1:]) / 2
            center = np.where(count > 0, total / np.maximum(count, 1), middle)
            self.centers[d].copy_(torch.from_numpy(center))
        return self

    def _encode(self, actions: Tensor) -> Tensor:
        self._check_fitted()
        if actions.shape[-1] != self.action_dim:
            raise UserError(f"QuantileBins was made for {self.action_dim} dimensions, got {actions.shape[-1]}")
        # searchsorted wants the dimension first and the values contiguous
        values_D_N = actions.float().reshape(-1, self.action_dim).T.contiguous()
        tokens_D_N = torch.searchsorted(self.edges, values_D_N, right=True)
        return tokens_D_N.T.reshape(actions.shape)

    def _decode(self, tokens: Tensor) -> Tensor:
        self._check_fitted()
        if tokens.shape[-1] != self.action_dim:
            raise UserError(f"QuantileBins was made for {self.action_dim} dimensions, got {tokens.shape[-1]}")
        return self.centers[torch.arange(self.action_dim, device=tokens.device), tokens]

    def _check_fitted(self) -> None:
        if bool(self.edges.isnan().any()):
            raise UserError("QuantileBins has no edges yet: call fit() or load a state dict that has them")


def _bounds(samples_N: NDArray[np.float64], num_bins: int) -> NDArray[np.float32]:
    """(V + 1,) ascending bounds of the bins of one dimension; quantiles are interpolated linearly."""
    ordered = np.sort(samples_N)
    rank = np.linspace(0.0, 1.0, len(ordered))
    span = ordered[-1] - ordered[0]
    if span > 0:
        rank = (1 - EVEN_SHARE) * rank + EVEN_SHARE * (ordered - ordered[0]) / span
    return np.interp(np.linspace(0.0, 1.0, num_bins + 1), rank, ordered).astype(np.float32)
