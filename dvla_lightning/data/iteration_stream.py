"""One RL iteration as Lightning sees it: a stream of minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.utils.data import IterableDataset

from dvla_lightning.data.seeding import seed_epoch
from dvla_lightning.errors import UserError
from dvla_lightning.objectives.rollout_batch import RolloutBatch
from dvla_lightning.seeding import derived_seed

if TYPE_CHECKING:
    from dvla_lightning.data.rollouts import RolloutDataModule


class IterationStream(IterableDataset):
    """Each pass over it is one RL iteration: collect, then yield minibatches.

    It has no length: with one, Lightning would skip validation whenever an iteration stops early.
    """

    def __init__(self, data: RolloutDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[RolloutBatch]:
        trainer = self.data.trainer
        # Not current_epoch: that is one too low in the first collection after a resume.
        iteration = trainer.fit_loop.epoch_progress.current.processed
        seed_epoch(self.data.seed, iteration, trainer.global_rank)
        module = trainer.lightning_module
        module.begin_iteration(iteration)
        batch = self.data.collect(iteration)
        for minibatch in self.minibatches(batch, iteration):
            if module.stop_iteration:
                return
            yield minibatch

    def minibatches(self, batch: RolloutBatch, iteration: int) -> Iterator[RolloutBatch]:
        """`ppo_epochs` shuffled passes; every rank yields the same number of minibatches.

        Ranks have different numbers of decisions but Lightning averages their gradients as if they had not: each
        minibatch carries its rank's share as a weight.
        """
        data = self.data
        sizes = data.gather(torch.tensor([float(len(batch))]))[:, 0]
        count = math.ceil(float(sizes.max()) / data.minibatch_size)
        if float(sizes.min()) < count:
            raise UserError(
                f"a rank collected {int(sizes.min())} decisions and cannot fill {count} minibatches: raise "
                "minibatch_size or episodes_per_iteration"
            )
        weight = float(sizes[data.trainer.global_rank] / sizes.mean())
        order_seed = derived_seed("minibatch order", data.seed, iteration, data.trainer.global_rank, bits=32)
        generator = torch.Generator().manual_seed(order_seed)
        for epoch in range(data.ppo_epochs):
            order = torch.randperm(len(batch), generator=generator).to(batch.returns_B.device)
            for number, rows in enumerate(order.tensor_split(count)):
                yield batch.select(rows, weight, is_first=epoch == number == 0)
