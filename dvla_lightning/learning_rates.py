"""Learning-rate schedules: torch's schedulers, one step per epoch, with the value head's rate in proportion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from dvla_lightning.errors import UserError, check_number

LENGTHS = ("T_max", "total_steps", "total_iters", "T_0", "step_size")
"""Names of the number of epochs in torch's schedulers."""
TO_THE_END = -1
"""T_max of a `CosineAnnealing` that follows the length of the run, until that is known."""


class CosineAnnealing(CosineAnnealingLR):
    """torch's CosineAnnealingLR over the whole run.

    Args:
        optimizer: whose rates it sets.
        num_epochs: epochs until the lowest rate (T_max); null: as many as trainer.max_epochs.
        eta_min: the lowest rate.
    """

    def __init__(self, optimizer: Optimizer, num_epochs: int | None = None, eta_min: float = 0.0) -> None:
        if num_epochs is not None:
            check_number("model.lr_scheduler", "num_epochs", num_epochs, low=1)
        super().__init__(optimizer, T_max=num_epochs or TO_THE_END, eta_min=eta_min)


class LearningRateSchedule:
    """A scheduler of torch that keeps the value head's rate in proportion.

    Some write absolute rates into every parameter group (OneCycleLR, CyclicLR, `eta_min` of the cosine ones): here the
    first group follows them, and the second keeps its ratio to the first.

    Args:
        optimizer: with one group, or two of which the second is the value head.
        make_scheduler: makes the scheduler.
        has_value_lr: whether the second group has a rate of its own.
        max_epochs: of the run; None or -1: no limit.

    Raises:
        UserError: for arguments that the scheduler refuses, and a scheduler that cannot work.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        make_scheduler: Callable[[Optimizer], Any],
        has_value_lr: bool,
        max_epochs: int | None = None,
    ) -> None:
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._groups = optimizer.param_groups
        self._ratio = rates[1] / rates[0] if has_value_lr and len(rates) == 2 and rates[0] else None
        try:
            self.scheduler: LRScheduler | ReduceLROnPlateau = make_scheduler(optimizer)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.lr_scheduler: {error}") from error
        if isinstance(self.scheduler, CosineAnnealing) and self.scheduler.T_max == TO_THE_END:
            if max_epochs is None or max_epochs < 0:
                raise UserError("model.lr_scheduler: the run has no trainer.max_epochs to follow: set num_epochs")
            self.scheduler.T_max = max_epochs
        self._max_epochs = max_epochs
        self.monitor: str | None = None
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.monitor = _monitor(self.scheduler)
        self._keep_ratio()

    def check_length(self, saved: Mapping[str, Any] | None) -> list[str]:
        """Compares the schedule with the length of the run.

        Args:
            saved: state of the scheduler in the checkpoint from which the run goes on; None: it starts.

        Returns:
            Remarks for the user.

        Raises:
            UserError: if the run goes on after the end of a schedule that has nothing beyond, or the checkpoint is of
                another scheduler.
        """
        own, max_epochs = self.scheduler.state_dict(), self._max_epochs
        if saved is not None and _public(own) != _public(saved):
            raise UserError(
                "the checkpoint was written with another model.lr_scheduler: resume with the one in the run's config"
            )
        state = own if saved is None else saved
        lengths = {name: state[name] for name in LENGTHS if name in state}
        remarks = [
            f"lr_scheduler: {name} stays {length}, as in the checkpoint, and is not {own[name]}"
            for name, length in lengths.items()
            if length != own[name]
        ]
        epochs = math.inf if max_epochs is None or max_epochs < 0 else max_epochs
        total = lengths.get("total_steps", math.inf)
        if total < epochs < math.inf:
            source = "given" if saved is None else "in the checkpoint"
            raise UserError(
                f"model.lr_scheduler: the schedule {source} ends after {total} epochs (total_steps), but "
                f"trainer.max_epochs is {max_epochs}: make them equal, or start a new run with "
                "--model.policy.pretrained"
            )
        if lengths.get("T_max", math.inf) < epochs:
            remarks.append(_beyond("rises again", "T_max", lengths["T_max"], max_epochs))
        if "power" in state and lengths["total_iters"] < epochs:
            remarks.append(_beyond("is 0", "total_iters", lengths["total_iters"], max_epochs))
        return remarks

    def step(self, metric: float = math.nan) -> None:
        """Advances by one epoch; `metric` is the monitored one of a ReduceLROnPlateau.

        Raises:
            UserError: if the scheduler refuses, e.g. at the end of a schedule with a fixed number of steps.
        """
        try:
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(metric)
            else:
                self.scheduler.step()
        except ValueError as error:
            raise UserError(f"model.lr_scheduler: {error}") from error
        self._keep_ratio()

    def _keep_ratio(self) -> None:
        if self._ratio is None:
            return
        wanted = float(self._groups[0]["lr"]) * self._ratio
        # Most schedulers keep it themselves, up to rounding, and then nothing is touched.
        if not math.isclose(float(self._groups[1]["lr"]), wanted, rel_tol=1e-9):
            self._groups[1]["lr"] = wanted


def _monitor(scheduler: ReduceLROnPlateau) -> str:
    monitor: str | None = getattr(scheduler, "monitor", None)
    if monitor is None:
        raise UserError(
            "model.lr_scheduler: ReduceLROnPlateau does not know what to watch; use class_path "
            "lightning.pytorch.cli.ReduceLROnPlateau with init_args {monitor: val/success_rate, mode: max}"
        )
    if scheduler.mode == "min" and ("success_rate" in monitor or monitor.endswith("return")):
        raise UserError(f"model.lr_scheduler: {monitor} should rise: give ReduceLROnPlateau mode: max")
    return monitor


def _beyond(what: str, name: str, length: int, max_epochs: int | None) -> str:
    return f"lr_scheduler: the learning rate {what} after {name} = {length} epochs, trainer.max_epochs is {max_epochs}"


def _public(state: Mapping[str, Any]) -> set[str]:
    return {name for name in state if not name.startswith("_")}
