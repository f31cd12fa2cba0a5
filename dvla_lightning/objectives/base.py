"""The contract between the Lightning module and an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from dvla_lightning.objectives.rollout_batch import Rollouts
from dvla_lightning.policy import DVLAPolicy


@dataclass
class LossOutput:
    """The result of one minibatch.

    Attributes:
        loss: scalar to minimise.
        metrics: name -> detached scalar, logged as train/<name>, averaged over ranks.
        diagnostics: the same, but of rank 0 alone: the names may depend on what a rank collected.
        stop: whether to stop updating on this iteration's data (None: this objective never stops early); a scalar in
            the units of `stop_limit`, averaged over ranks before it is compared.
        stop_limit: see `stop`.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    stop: Tensor | None = None
    stop_limit: float = float("inf")


class Objective(ABC):
    """Turns a batch into a loss.

    Attributes:
        batch_type: of the batches; a data module that yields others does not fit.
    """

    batch_type: type

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the policy as it was at the start of training."""
        return False

    @abstractmethod
    def prepare(self, policy: DVLAPolicy) -> None:
        """Sets train or eval mode and freezes what this objective does not train; called once, before training."""

    def check_policy(self, policy: DVLAPolicy) -> None:  # noqa: B027
        """Raises `UserError` if this cannot train the policy; called before training, not before an evaluation."""

    def begin_iteration(self, iteration: int) -> None:  # noqa: B027
        """Begins a training epoch, before its first minibatch; `iteration` counts from 0 and survives a resume."""

    def prepare_batch(self, policy: DVLAPolicy, rollouts: Rollouts, rows_at_once: int | None = None) -> None:  # noqa: B027
        """Adds what only this objective needs to the decisions of an RL iteration; called once for each iteration.

        Args:
            policy: as it was in the collection.
            rollouts: changed in place.
            rows_at_once: decisions in one pass of the network, at most; None is all of one K.
        """

    def held_parameters(self, policy: DVLAPolicy) -> Iterable[Parameter]:
        """Parameters that the present iteration leaves as they are, whatever their gradient says."""
        return ()

    @abstractmethod
    def __call__(self, policy: DVLAPolicy, batch: Any) -> LossOutput:
        """Computes the loss of one minibatch."""
