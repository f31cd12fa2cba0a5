"""The denoising path: what the sampler did, in just enough detail to rebuild and score every state it passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class DenoisingPath:
    """Which token was committed at which position in which step. Commits are permanent.

    Not frozen: Lightning rebuilds dataclasses when it moves a batch.

    Attributes:
        tokens_BL: int64, the decoded chunk x_0, values in [0, V).
        commit_step_BL: int64 in [0, K); step 0 is the first one (the paper counts k = K .. 1).
        commit_order_BL: int64 permutation of 0..L-1 per row: the order in which the positions were committed; inside a
            step it is the order of decreasing selection score.
        log_prob_BL: float32, behaviour log-probability of each token in the state in which it was committed.
        num_steps_B: int64, K of each row.
    """

    tokens_BL: Tensor
    commit_step_BL: Tensor
    commit_order_BL: Tensor
    log_prob_BL: Tensor
    num_steps_B: Tensor

    def __len__(self) -> int:
        return int(self.tokens_BL.shape[0])

    def select(self, rows: Tensor) -> DenoisingPath:
        """The paths of some rows; `rows` is an int64 or bool index of the batch dimension."""
        return DenoisingPath(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device | str) -> DenoisingPath:
        """The same paths on another device."""
        return DenoisingPath(*(getattr(self, field.name).to(device) for field in fields(self)))

    @staticmethod
    def cat(paths: Sequence[DenoisingPath]) -> DenoisingPath:
        """Stacks the rows of several paths."""
        names = [field.name for field in fields(DenoisingPath)]
        return DenoisingPath(*(torch.cat([getattr(path, name) for path in paths]) for name in names))
