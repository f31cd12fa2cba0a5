"""What the Lightning module and its data module know of each other; Lightning hands them over untyped."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from lightning import LightningDataModule
from torch import Tensor

from dvla_lightning.objectives.base import Objective
from dvla_lightning.policy import DVLAPolicy


class Learner(Protocol):
    """What a data module asks of the Lightning module."""

    policy: DVLAPolicy
    objective: Objective
    stop_iteration: bool
    """Whether no further minibatch of this iteration is wanted."""

    def begin_iteration(self, iteration: int) -> None:
        """Tells it that an epoch begins, before its data are collected."""


def learner_of(data: LightningDataModule) -> Learner:
    """The Lightning module that trains on this data module."""
    assert data.trainer is not None
    return cast(Learner, data.trainer.lightning_module)


def gather(data: LightningDataModule, values: Tensor) -> Tensor:
    """(world_size, len(values)): the values of every rank, on the CPU."""
    assert data.trainer is not None
    module: Any = data.trainer.lightning_module
    gathered: Tensor = module.all_gather(values.to(module.device))
    return gathered.reshape(-1, len(values)).to(torch.device("cpu"))
