"""Demonstrations as a LightningDataModule, for SFT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from dvla_lightning.data.base import DVLADataModule, already_a_batch
from dvla_lightning.data.clipping import clipping_report
from dvla_lightning.data.demonstration_set import Demonstration, DemonstrationSet
from dvla_lightning.data.episode_files import load_demonstrations, num_copies
from dvla_lightning.data.seeding import seed_epoch
from dvla_lightning.errors import UserError, check_number
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.objectives.supervised import DemonstrationBatch
from dvla_lightning.paths import local_path
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.seeding import derived_seed
from dvla_lightning.wiring import learner_of


class ChunkDataset(Dataset[DemonstrationBatch]):
    """Every observation of every demonstration with the action chunk that starts there.

    Args:
        demonstrations: the episodes.
        policy: makes the prompts and knows the chunk size.
    """

    def __init__(self, demonstrations: Sequence[Demonstration], policy: DVLAPolicy) -> None:
        self.demonstrations = demonstrations
        self.policy = policy
        self.index = [(e, n) for e, demo in enumerate(demonstrations) for n in range(len(demo.observed_at))]

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, items: Sequence[int]) -> DemonstrationBatch:
        """A whole batch at once: prompts are made for all observations together."""
        pairs = [(self.demonstrations[e], n) for e, n in (self.index[item] for item in items)]
        chunks = [_chunk(demo, n, self.policy.chunk_size) for demo, n in pairs]
        return DemonstrationBatch(
            self.policy.make_prompt([demo.observation(n) for demo, n in pairs]),
            torch.from_numpy(np.stack([actions for actions, _ in chunks])),
            torch.from_numpy(np.stack([is_pad for _, is_pad in chunks])),
        )


class DemonstrationDataModule(DVLADataModule):
    """Demonstrations collected with `dvla collect`, or read by a subclass of yours, and closed-loop evaluation.

    Args:
        path: directory of the demonstrations.
        batch_size: chunks per step and rank.
        collector: runs evaluation episodes; None if this run never evaluates.
        tasks: tasks to evaluate: "all", one name, or a list of names.
        num_steps: denoising steps K of every decision in evaluation, where there is no schedule.
        schedule: step schedule, a YAML file of `dvla schedule`: K per task.
        evaluation: which episodes are evaluated, by default none; inside `dvla fit` those of selection.
        seed: of shuffling and masking; the command line sets it from seed_everything.
    """

    batch_type = DemonstrationBatch

    def __init__(
        self,
        path: str,
        batch_size: int = 256,
        collector: Collector | None = None,
        tasks: str | list[str] = "all",
        num_steps: int = 4,
        schedule: str | None = None,
        evaluation: Evaluation = Evaluation(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        check_number("data", "batch_size", batch_size, low=1)
        super().__init__(collector, tasks, num_steps, schedule, evaluation)
        self.path = local_path(path, "data.path")
        self.batch_size = batch_size
        self.seed = seed
        self._found: DemonstrationSet | None = None

    def read(self) -> DemonstrationSet:
        """Reads the demonstrations of `dvla collect` in `path`; a subclass overrides this to read another format.

        Called once in every process, before the first batch. docs/data-reader.md has an example.

        Raises:
            UserError: if there are no demonstrations, or they are damaged.
        """
        header, demonstrations = load_demonstrations(self.path)
        if copies := num_copies(demonstrations):
            rank_zero_warn(f"{copies} of the {len(demonstrations)} demonstrations in {self.path} are copies of others")
        return DemonstrationSet(demonstrations, header["environment"].get("training_remark"))

    @property
    def demonstrations(self) -> Sequence[Demonstration]:
        """The episodes, read at the first use."""
        return self._checked_set().demonstrations

    def _checked_set(self) -> DemonstrationSet:
        if self._found is None:
            found, reader = self.read(), f"{type(self).__name__}.read()"
            if not isinstance(found, DemonstrationSet):
                raise UserError(f"{reader} must return a DemonstrationSet, it returned {type(found).__name__}")
            try:
                found.check()
            except ValueError as error:
                raise UserError(f"{self.path}, as {reader} reads it: {error}") from error
            self._found = found
        return self._found

    def check_policy(self, policy: DVLAPolicy) -> None:
        """Checks that the data fit the policy and the environment of the evaluation.

        Raises:
            UserError: if they are damaged, or of another robot or other cameras.
        """
        shape = self._checked_set().shape
        self._check_same("action_dim", shape["action_dim"], policy.action_dim, "the policy")
        try:
            policy.processor.check(self.demonstrations[0].observation(0))
        except UserError as error:
            raise UserError(f"{self.path} does not fit the policy: {error}") from error
        if self.collector is not None:
            environment = self.collector.environment
            name = f"{type(environment).__name__}, the environment of the evaluation,"
            for key in ("action_dim", "proprioception_dim"):
                self._check_same(key, shape[key], getattr(environment, key), name)
            self._check_same("cameras", shape["cameras"], sorted(environment.cameras), name)

    def _check_same(self, key: str, here: Any, there: Any, owner: str) -> None:
        if here != there:
            raise UserError(f"{self.path} has {key} {here}, {owner} has {there}: choose what belongs together")

    def training_remark(self) -> str | None:
        return self._checked_set().training_remark

    def statistics_data(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """All actions (N, action_dim) and all proprioception vectors (M, proprioception_dim), for normalisation."""
        actions = np.concatenate([demo.actions for demo in self.demonstrations])
        return actions, np.concatenate([demo.proprioception for demo in self.demonstrations])

    def train_dataloader(self) -> DataLoader[DemonstrationBatch]:
        """Shuffled batches of chunks."""
        policy = learner_of(self).policy
        if report := clipping_report(policy, *self.statistics_data()):
            rank_zero_info(report)
        dataset = ChunkDataset(self.demonstrations, policy)
        return DataLoader(
            dataset, self.batch_size, sampler=_EpochShuffle(len(dataset), self), collate_fn=already_a_batch
        )


class _EpochShuffle(Sampler[int]):
    """This rank's share of the chunks, shuffled anew in every epoch; all ranks have the same number.

    It seeds the whole process at the start of an epoch, so that a resumed run repeats masks and order.
    """

    def __init__(self, num_chunks: int, data: DemonstrationDataModule) -> None:
        self.num_chunks, self.data = num_chunks, data

    def __len__(self) -> int:
        return self.num_chunks // self.data._trainer.world_size

    def __iter__(self) -> Iterator[int]:
        trainer = self.data._trainer
        epoch, rank, ranks = trainer.fit_loop.epoch_progress.current.processed, trainer.global_rank, trainer.world_size
        seed_epoch(self.data.seed, epoch, rank)
        # The same order on all ranks, and on any number of them.
        shared = torch.Generator().manual_seed(derived_seed("demonstration order", self.data.seed, epoch, bits=32))
        yield from torch.randperm(self.num_chunks, generator=shared)[rank::ranks][: len(self)].tolist()


def _chunk(demo: Demonstration, number: int, chunk_size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The chunk that starts at an observation, and which of its actions lie beyond the end (they repeat the last)."""
    steps = int(demo.observed_at[number]) + np.arange(chunk_size)
    return demo.actions[np.minimum(steps, len(demo.actions) - 1)], steps >= len(demo.actions)
