"""The interface between the Lightning module and its data module, which Lightning passes on untyped."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from lightning import LightningDataModule
from torch import Tensor

from dvla_lightning.objectives.base import Objective
from dvla_lightning.policy import DVLAPolicy


class Learner(Protocol):
    """The Lightning module as data modules use it."""

    policy: DVLAPolicy
    objective: Objective
    device: torch.device
    stop_iteration: bool
    """Whether no further minibatch of this iteration is wanted."""

    def begin_iteration(self, iteration: int) -> None:
        """Begins an epoch, before its data are collected."""

    def all_gather(self, data: Tensor) -> Tensor:
        """A tensor of every rank, stacked where there are several; see `LightningModule.all_gather`."""


def learner_of(data: LightningDataModule) -> Learner:
    """The Lightning module that trains on this data module."""
    assert data.trainer is not None
    return cast(Learner, data.trainer.lightning_module)
