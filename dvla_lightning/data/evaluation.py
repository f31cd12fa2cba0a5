"""What both data modules share: the collector and the held-out episodes of validation, test and prediction."""

from __future__ import annotations

import dataclasses

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.specs import SpecBatch, heldout_specs
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec


class EvaluationDataModule(LightningDataModule):
    """Closed-loop evaluation on held-out initial states.

    Args:
        collector: runs the episodes; None if this run never evaluates.
        tasks: "all", one name, or a list of names.
        num_steps: denoising steps K of every decision.
        num_eval_episodes: held-out episodes of all tasks together; 0 evaluates nothing.
        eval_num_steps: K in evaluation; None is `num_steps`.
        eval_seed: seed of the policy's draws in evaluation, the same at every evaluation.
        num_recorded_episodes: how many of them keep pictures for the log.
    """

    def __init__(
        self,
        collector: Collector | None,
        tasks: str | list[str],
        num_steps: int,
        num_eval_episodes: int,
        eval_num_steps: int | None,
        eval_seed: int,
        num_recorded_episodes: int,
    ) -> None:
        super().__init__()
        if collector is None and num_eval_episodes:
            raise UserError("data: evaluation needs a collector; give one or set num_eval_episodes: 0")
        self.collector = collector
        self.tasks = collector.environment.select_tasks(tasks) if collector else ()
        self.num_steps = num_steps
        self.num_eval_episodes = num_eval_episodes
        self.eval_num_steps = eval_num_steps or num_steps
        self.eval_seed = eval_seed
        self.num_recorded_episodes = num_recorded_episodes
        self.val_dataloader = self.test_dataloader = self.predict_dataloader = self._evaluation_dataloader

    def evaluation_specs(self) -> list[EpisodeSpec]:
        """The held-out grid of all ranks; the recorded episodes are spread over the tasks."""
        num_episodes = self.num_eval_episodes
        if self.trainer is not None and self.trainer.fast_dev_run:
            num_episodes = len(self.tasks)
        specs = heldout_specs(self.collector.environment, self.tasks, num_episodes, self.eval_num_steps, self.eval_seed)
        stride = max(1, len(specs) // max(1, self.num_recorded_episodes))
        recorded = set(list(range(0, len(specs), stride))[: self.num_recorded_episodes])
        return [dataclasses.replace(spec, pictures=n in recorded) for n, spec in enumerate(specs)]

    def _evaluation_dataloader(self) -> DataLoader | list:
        if not self.num_eval_episodes:
            return []
        # Every rank takes its own share, each episode once; a rank without episodes still takes part in the reduction.
        specs = self.evaluation_specs()[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader([SpecBatch(specs)], batch_size=None, collate_fn=_identity)

    def teardown(self, stage: str) -> None:
        if self.collector is not None:
            self.collector.close()


def _identity(batch: SpecBatch) -> SpecBatch:
    return batch
