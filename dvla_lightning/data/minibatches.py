"""The decisions of one RL iteration as a stream of minibatches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import IterableDataset

from dvla_lightning.backbones.base import Prompt, PromptRow
from dvla_lightning.errors import UserError
from dvla_lightning.objectives.rollout_batch import RolloutBatch, Rollouts
from dvla_lightning.seeding import derived_seed


class IterationStream(IterableDataset[RolloutBatch]):
    """Each pass over it is one RL iteration.

    It has no length: with one, Lightning would skip validation whenever an iteration stops early.

    Args:
        run: collects, then yields minibatches.
    """

    def __init__(self, run: Callable[[], Iterator[RolloutBatch]]) -> None:
        self.run = run

    def __iter__(self) -> Iterator[RolloutBatch]:
        return self.run()


def minibatches(
    rollouts: Rollouts,
    collate: Callable[[Sequence[PromptRow]], Prompt],
    sizes: Sequence[int],
    rank: int,
    minibatch_size: int,
    ppo_epochs: int,
    seed: int,
    iteration: int,
    num_passes: int = 0,
) -> Iterator[RolloutBatch]:
    """`ppo_epochs` shuffled passes; every rank yields the same number of minibatches, collated when they are drawn.

    Ranks have different numbers of decisions, but Lightning averages their gradients with equal weights: each minibatch
    carries its rank's share as a weight.

    Args:
        rollouts: of this rank.
        collate: joins prompt rows.
        sizes: decisions of every rank.
        rank: this one.
        minibatch_size: decisions of a minibatch, at most.
        ppo_epochs: passes over the decisions.
        seed: of the order.
        iteration: of RL; each has another order.
        num_passes: see `RolloutBatch`.

    Raises:
        UserError: on every rank, if one has fewer decisions than there are minibatches.
    """
    count = math.ceil(max(sizes) / minibatch_size)
    if min(sizes) < count:
        raise UserError(
            f"a rank collected {min(sizes)} decisions and cannot fill {count} minibatches: raise minibatch_size or "
            "episodes_per_iteration"
        )
    weight = sizes[rank] * len(sizes) / sum(sizes)
    generator = torch.Generator().manual_seed(derived_seed("minibatch order", seed, iteration, rank, bits=32))
    for _ in range(ppo_epochs):
        for rows in torch.randperm(len(rollouts), generator=generator).tensor_split(count):
            yield rollouts.batch(rows, collate, weight, num_passes)
