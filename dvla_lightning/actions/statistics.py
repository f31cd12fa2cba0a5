"""Statistics of a data set: the parts that the normaliser and the fitted bins share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from dvla_lightning.errors import UserError


class StatisticsModule(nn.Module):
    """A module whose buffers are statistics: they stay float32 when the policy around them is cast to bfloat16.

    Eight bits of mantissa would move every action by up to 0.4 % of its range, and bins would merge.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.dtype != torch.float32:
                setattr(self, name, before[name].to(device=buffer.device))
        return self


def check_samples(samples_N_D: ArrayLike | Tensor, dim: int, what: str) -> NDArray[np.float64]:
    """Samples as a float64 array, or a sentence about what is wrong with them.

    Args:
        samples_N_D: (N, dim) numbers, N >= 1.
        dim: the expected last dimension.
        what: who asks, for the message.

    Raises:
        UserError: for another shape, no rows, or a value that is not finite (naming its dimension and row).
    """
    if isinstance(samples_N_D, Tensor):
        samples_N_D = samples_N_D.detach().cpu().double().numpy()
    samples = np.asarray(samples_N_D, dtype=np.float64)
    if samples.ndim != 2 or samples.shape[1] != dim:
        raise UserError(f"{what} is fitted on an array of shape (N, {dim}), got {samples.shape}")
    if len(samples) == 0:
        raise UserError(f"{what} cannot be fitted on no data: the array has shape {samples.shape}")
    bad = np.argwhere(~np.isfinite(samples))
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"{what} cannot be fitted: dimension {column} holds {samples[row, column]} in row {row} "
            f"({len(bad)} values are not finite); remove or repair those rows"
        )
    return samples
