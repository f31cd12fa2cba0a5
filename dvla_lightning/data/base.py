"""The base of all data modules: where episodes run and at which K, and Lightning's hooks for their evaluation."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from dvla_lightning.errors import UserError, check_number
from dvla_lightning.evaluation.header import Header, make_header
from dvla_lightning.evaluation.plan import Evaluation, EvaluationSplit
from dvla_lightning.evaluation.published import make_recipe
from dvla_lightning.evaluation.run import EvaluationRun
from dvla_lightning.evaluation.specs import SpecBatch
from dvla_lightning.evaluation.step_schedule import StepSchedule, sampler_mismatch
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec


class DVLADataModule(LightningDataModule, ABC):
    """The base of all data modules: it has the episodes of `evaluation`, a subclass adds the training data.

    Args:
        collector: runs the episodes; None if this run never evaluates.
        tasks: "all", one name, or a list of names.
        num_steps: denoising steps K of every decision, where there is no schedule.
        schedule: step schedule, a YAML file of `dvla schedule`: K per task.
        evaluation: which episodes are evaluated.

    Attributes:
        batch_type: type of a training batch; None if there is no training.
        steps: task -> K of training episodes, and of evaluation unless `evaluation` has another.
    """

    batch_type: ClassVar[type | None] = None

    def __init__(
        self,
        collector: Collector | None,
        tasks: str | list[str],
        num_steps: int,
        schedule: str | None,
        evaluation: Evaluation,
    ) -> None:
        super().__init__()
        check_number("data", "num_steps", num_steps, low=1)
        if collector is None and evaluation.num_episodes:
            raise UserError("data: evaluation needs a collector; give one or set evaluation.num_episodes: 0")
        self.collector, self.evaluation = collector, evaluation
        self.tasks = collector.environment.select_tasks(tasks) if collector else ()
        if collector is not None:
            evaluation.check_tasks(collector.environment, self.tasks)
        if schedule is None:
            self.steps: Mapping[str, int] = dict.fromkeys(self.tasks, num_steps)
        else:
            self.steps = StepSchedule.read(schedule)
        self._run: EvaluationRun | None = None

    @abstractmethod
    def train_dataloader(self) -> Any:
        """Batches of `batch_type`."""

    @property
    def split(self) -> EvaluationSplit:
        """The split of the evaluation that runs now."""
        is_fit = self.trainer is not None and self.trainer.state.fn == "fit"
        return "selection" if is_fit else self.evaluation.split

    @property
    def evaluation_steps(self) -> dict[str, int]:
        """Task -> K in evaluation."""
        return self.evaluation.steps(self.tasks, self.steps)

    def prepare_steps(self, policy: DVLAPolicy) -> None:
        """Reduces the step schedule to the tasks of this run, and checks that every K fits the policy.

        Called before every fit or evaluation; from the second time on only K is checked, which RL may have changed.

        Raises:
            UserError: for a K or a schedule that does not fit the policy and the environment's tasks.
        """
        if isinstance(self.steps, StepSchedule):
            self.steps.check(self._collector.environment.tasks, policy)
            warning = sampler_mismatch(self.steps, policy.sampler)
            self.steps = dict(self.steps.restricted(self.tasks))
            if warning:
                rank_zero_warn(warning)
        for steps in {*self.steps.values(), *self.evaluation_steps.values()}:
            policy.check_num_steps(steps)

    def check_policy(self, policy: DVLAPolicy) -> None:
        """Raises `UserError` if the policy cannot be trained on these data."""

    def statistics_data(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Actions and proprioception vectors for the statistics of a new policy; None where there are none."""
        return None

    def training_remark(self) -> str | None:
        """The note under every table about a policy trained on these data; None if there is none."""
        return None

    def evaluation_specs(self) -> list[EpisodeSpec]:
        """The grid of all shards and ranks.

        Raises:
            UserError: if there are fewer initial states, or the episodes do not divide evenly among the tasks.
        """
        evaluation = self.evaluation
        if self.trainer is not None and self._trainer.fast_dev_run:
            evaluation = dataclasses.replace(evaluation, num_episodes=len(self.tasks))
        return evaluation.specs(self._collector.environment, self.split, self.tasks, self.evaluation_steps)

    def val_dataloader(self) -> DataLoader[SpecBatch] | list[Any]:
        """One batch, the episodes of this rank; none where nothing is evaluated."""
        if not self.evaluation.num_episodes:
            return []
        return DataLoader(_RankEpisodes(self), batch_size=None, collate_fn=already_a_batch)

    test_dataloader = predict_dataloader = val_dataloader

    def begin_evaluation(self, policy: DVLAPolicy) -> EvaluationRun:
        """Prepares an evaluation; a stand-alone validation or test keeps a manifest in the run directory.

        Raises:
            UserError: if the manifest there is of another evaluation.
        """
        self._end_evaluation()
        trainer = self._trainer
        stands_alone = trainer.state.fn in ("validate", "test") and not trainer.fast_dev_run
        root = Path(trainer.default_root_dir)
        videos = root / "videos" if stands_alone and self.evaluation.save_videos else None
        self._run = EvaluationRun(self._collector, policy, videos)
        if stands_alone:
            self._run.keep_manifest(root, self._header(policy), trainer.global_rank)
        return self._run

    def _header(self, policy: DVLAPolicy) -> Header:
        return make_header(
            self._collector.environment,
            policy,
            self.split,
            self.evaluation_steps,
            len(self.evaluation_specs()) // len(self.tasks),
            self.evaluation.seed,
            str(self._trainer.precision),
        )

    def recipe(self) -> dict[str, Any] | None:
        """Describes the held-out evaluation for a policy directory; None if there is none that can be described."""
        if self.collector is None or not self.evaluation.num_episodes:
            return None
        return make_recipe(self.collector.environment, self.tasks, self.evaluation, self.evaluation_steps)

    def stop_on_sigterm(self) -> None:
        """Stops after SIGTERM; Lightning does so only between batches, and the episodes of one can take hours."""
        if self._trainer.received_sigterm:
            raise SIGTERMException

    def on_exception(self, exception: BaseException) -> None:
        """Releases the manifest: the process may live on, and Lightning skips `teardown`."""
        self._end_evaluation()

    def teardown(self, stage: str) -> None:
        self._end_evaluation()
        if self.collector is not None:
            self.collector.close()

    def _end_evaluation(self) -> None:
        if self._run is not None:
            self._run.close()

    @property
    def _trainer(self) -> Any:
        """The Trainer of a running loop; untyped, because Lightning's types do not know all of it."""
        return self.trainer

    @property
    def _collector(self) -> Collector:
        """The collector of a run that has one."""
        assert self.collector is not None
        return self.collector


class _RankEpisodes(Dataset[SpecBatch]):
    """One item: this rank's share of this shard of the grid, each episode on one rank.

    Made on access: Lightning keeps a dataloader for the whole of fit, in which the schedule may change. A rank without
    episodes has an empty item and still takes part in the reduction.
    """

    def __init__(self, data: DVLADataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> SpecBatch:
        trainer, specs = self.data._trainer, self.data.evaluation_specs()
        return SpecBatch(self.data.evaluation.share(specs, trainer.global_rank, trainer.world_size))


def already_a_batch(batch: Any) -> Any:
    """Collates nothing: the data set returns whole batches."""
    return batch
