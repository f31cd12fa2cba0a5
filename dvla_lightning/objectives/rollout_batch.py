"""The decisions of an RL iteration, and its minibatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dvla_lightning.backbones.base import Prompt, PromptRow
from dvla_lightning.diffusion.path import DenoisingPath


@dataclass
class Rollouts:
    """N decisions of one iteration, on the CPU.

    Attributes:
        rows: N prompt rows, which the policy saw.
        path: how it decoded its chunks.
        old_log_prob_NSL: float32, log-probability of each token under the behaviour policy, as the objective scores
            it; S is 1 for estimators that score every position once, else their number of views.
        advantages_N: float32.
        returns_N: float32, targets of the value head.
        old_values_N: float32, its estimates at collection.
        version_N: int64, of the policy that decided.
    """

    rows: Sequence[PromptRow]
    path: DenoisingPath
    old_log_prob_NSL: Tensor
    advantages_N: Tensor
    returns_N: Tensor
    old_values_N: Tensor
    version_N: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batch(
        self,
        rows: Tensor,
        collate: Callable[[Sequence[PromptRow]], Prompt],
        weight: float = 1.0,
        num_passes: int = 0,
    ) -> RolloutBatch:
        """A minibatch of some of the decisions, on the CPU but for the prompt, which is where `collate` puts it."""
        return RolloutBatch(
            collate([self.rows[row] for row in rows.tolist()]),
            self.path.select(rows),
            self.old_log_prob_NSL[rows],
            self.advantages_N[rows],
            self.returns_N[rows],
            self.old_values_N[rows],
            self.version_N[rows],
            torch.tensor(weight),
            num_passes,
        )


@dataclass
class RolloutBatch:
    """B decisions of one iteration.

    Attributes:
        prompt: which the policy saw.
        path: how it decoded its chunk.
        old_log_prob_BSL: see `Rollouts`, as for all up to `version_B`.
        advantages_B: float32.
        returns_B: float32.
        old_values_B: float32.
        version_B: int64.
        weight: float32 scalar, this rank's share of the minibatch over all ranks times their number; 1 on one rank.
        num_passes: scoring passes of every rank, whatever K its decisions have; 0: as many as they have different K.
            Ranks that share one network gather its weights in each pass, and wait for one another there.
    """

    prompt: Prompt
    path: DenoisingPath
    old_log_prob_BSL: Tensor
    advantages_B: Tensor
    returns_B: Tensor
    old_values_B: Tensor
    version_B: Tensor
    weight: Tensor
    num_passes: int = 0

    def __len__(self) -> int:
        return len(self.path)

    def select(self, rows: Tensor) -> RolloutBatch:
        """Some of the decisions."""
        return RolloutBatch(
            {name: value[rows] for name, value in self.prompt.items()},
            self.path.select(rows),
            self.old_log_prob_BSL[rows],
            self.advantages_B[rows],
            self.returns_B[rows],
            self.old_values_B[rows],
            self.version_B[rows],
            self.weight,
            self.num_passes,
        )


def rows_by_num_steps(path: DenoisingPath) -> list[Tensor]:
    """Rows with equal K, one index tensor per K in increasing order."""
    return [(path.num_steps_B == steps).nonzero()[:, 0] for steps in path.num_steps_B.unique()]
