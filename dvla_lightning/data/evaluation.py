"""Evaluation alone as a LightningDataModule, for `dvla validate | test | predict`."""

from __future__ import annotations

from typing import NoReturn

from dvla_lightning.data.base import DVLADataModule
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.rollout.collector import Collector


class EvaluationDataModule(DVLADataModule):
    """Evaluates a policy in closed loop; there is nothing to train on.

    Args:
        collector: runs the episodes.
        tasks: "all", one name, or a list of names.
        num_steps: denoising steps K of every decision, where there is no schedule.
        schedule: step schedule, a YAML file of `dvla schedule`: K per task.
        evaluation: which episodes are evaluated.
    """

    def __init__(
        self,
        collector: Collector,
        tasks: str | list[str] = "all",
        num_steps: int = 4,
        schedule: str | None = None,
        evaluation: Evaluation = Evaluation(num_episodes=100, num_recorded_episodes=10),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(collector, tasks, num_steps, schedule, evaluation)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train_dataloader()

    def train_dataloader(self) -> NoReturn:
        """Raises `UserError`: there is nothing to train on."""
        raise UserError(
            "EvaluationDataModule has nothing to train on: give `dvla fit` --data DemonstrationDataModule (SFT) or "
            "--data RolloutDataModule (RL)"
        )
