"""The interfaces of the Lightning module and its data module to each other; Lightning passes them on untyped."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule
from numpy.typing import NDArray
from torch import Tensor

from dvla_lightning.evaluation.plan import Evaluation, EvaluationSplit
from dvla_lightning.evaluation.run import EvaluationRun
from dvla_lightning.objectives.base import Objective
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec


class Learner(Protocol):
    """A Lightning module as its data module sees it."""

    policy: DVLAPolicy
    objective: Objective
    device: torch.device
    stop_iteration: bool
    """Whether no further minibatch of this iteration is wanted."""

    def begin_iteration(self, iteration: int) -> None:
        """Begins an epoch, before its data are collected."""

    def all_gather(self, data: Tensor) -> Tensor:
        """A tensor of every rank, stacked where there are several; see `LightningModule.all_gather`."""


class RunData(Protocol):
    """A data module as the Lightning module sees it."""

    collector: Collector | None
    """Runs the episodes of evaluation; None if there are none."""
    tasks: tuple[str, ...]
    evaluation: Evaluation
    batch_type: type | None
    """Type of a training batch; an objective takes one type."""

    @property
    def split(self) -> EvaluationSplit:
        """The split of the evaluation that runs now."""

    @property
    def evaluation_steps(self) -> dict[str, int]:
        """Task -> K in evaluation."""

    def check_policy(self, policy: DVLAPolicy) -> None:
        """Raises `UserError` for a policy that cannot be trained on these data."""

    def statistics_data(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """All actions and all proprioception vectors, for the statistics of a new policy; None if there are none."""

    def prepare_steps(self, policy: DVLAPolicy) -> None:
        """Raises `UserError` for a K or a schedule that does not fit the policy."""

    def evaluation_specs(self) -> list[EpisodeSpec]:
        """The episodes of an evaluation, over all ranks."""

    def training_remark(self) -> str | None:
        """A sentence for every table about a policy trained on these data."""

    def begin_evaluation(self, policy: DVLAPolicy) -> EvaluationRun:
        """Prepares an evaluation."""

    def stop_on_sigterm(self) -> None:
        """Raises if the run was asked to end."""


def learner_of(data: LightningDataModule) -> Learner:
    """The Lightning module that trains on this data module."""
    assert data.trainer is not None
    return cast(Learner, data.trainer.lightning_module)


def data_of(module: LightningModule) -> RunData:
    """The data module that this Lightning module runs on."""
    trainer: Any = module.trainer
    return cast(RunData, trainer.datamodule)
