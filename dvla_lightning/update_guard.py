"""The guard between the loss and the weights: only finite numbers pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from dvla_lightning.errors import UserError, check_number
from dvla_lightning.evaluation.ranks import gather_objects
from dvla_lightning.objectives.base import LossOutput
from dvla_lightning.objectives.finite import loss_fault


class UpdateGuard:
    """Decides whether an update may happen, counts those that may not, and checks the weights after it.

    Finite means here: of finite norm. From about 2e19 on the square of a float32 is infinite; one such gradient would
    fill Adam's second moment with infinity, and nothing can be computed with such a weight.

    All ranks call `refuses` and the two checks at the same time and decide alike.

    Args:
        max_skipped: updates of the run that may be skipped, >= 0.

    Attributes:
        skipped: updates skipped so far.

    Raises:
        UserError: for a negative max_skipped.
    """

    def __init__(self, max_skipped: int) -> None:
        check_number("model", "max_skipped_updates", max_skipped, low=0)
        self.max_skipped = max_skipped
        self.skipped = 0
        self._place = ""
        self._fault: str | None = None
        self._finite_batch: Any = None

    def see(self, output: LossOutput, batch: Any, place: str) -> None:
        """Looks at the loss of a minibatch, on this rank alone; `place` says which minibatch of the run it is."""
        self._place = place
        if bool(output.loss.isfinite()):
            self._finite_batch = batch
        elif self._fault is None:
            self._fault = f"{place}: {loss_fault(output, batch)}"

    def refuses(
        self, named_parameters: Iterable[tuple[str, Parameter]], is_scaled: bool, any_rank: Callable[[bool], bool]
    ) -> str | None:
        """Says what is wrong with the update from the minibatches since the last call; None if nothing is.

        Args:
            named_parameters: whose gradients are about to be used, averaged over ranks.
            is_scaled: the gradients come from a loss that was scaled up (float16). Where they alone overflow the scale
                was too high, which is no fault: the scaler skips the step itself and lowers it.
            any_rank: whether its argument is true on any rank.

        Raises:
            UserError: if more than `max_skipped` updates would have been skipped.
        """
        gradients = [(name, p.grad) for name, p in named_parameters if p.grad is not None]
        fault, self._fault = self._fault, None
        overflow = None
        if not is_scaled and not _norm_is_finite(gradients):
            overflow = f"{self._place}: the loss is finite, but not the gradient of {_first_not_finite(gradients)}"
        found = _first_fault((fault, overflow), any_rank)  # in this order: averaging has spread the gradient by now
        if found is None:
            return None
        self.skipped += 1
        if self.skipped > self.max_skipped:
            raise UserError(
                f"update number {self.skipped} of this run that is not finite, max_skipped_updates allows "
                f"{self.max_skipped} ({found}): nothing of them is in the weights; find the cause there, lower the "
                "learning rate, or set trainer.gradient_clip_val, and continue with --ckpt_path last"
            )
        return found

    def check_weights(
        self, named_parameters: Iterable[tuple[str, Parameter]], any_rank: Callable[[bool], bool]
    ) -> None:
        """Raises `UserError` if the step that was just made has left weights that are not finite."""
        weights = [(name, p.detach()) for name, p in named_parameters]
        fault = None if _norm_is_finite(weights) else f"{_first_not_finite(weights)} is not finite"
        self._raise_destroyed(fault, any_rank)

    def check_last_weights(self, loss: Callable[[Any], Tensor], any_rank: Callable[[bool], bool]) -> None:
        """Raises `UserError` if the weights are finite and useless, before anybody saves or runs them.

        Args:
            loss: of a minibatch under the present weights; called with one whose loss was finite in this epoch.
            any_rank: as in `refuses`.
        """
        batch, self._finite_batch = self._finite_batch, None
        useless = batch is not None and not bool(loss(batch).isfinite())
        fault = "a minibatch whose loss was finite has one that is not" if useless else None
        self._raise_destroyed(fault, any_rank)

    def _raise_destroyed(self, fault: str | None, any_rank: Callable[[bool], bool]) -> None:
        if found := _first_fault((fault,), any_rank):
            raise UserError(
                f"the last updates have destroyed the weights ({found}): lower model.optimizer.lr and model.value_lr, "
                "or set trainer.gradient_clip_val; what was saved before is as it was"
            )


def _first_fault(faults: Sequence[str | None], any_rank: Callable[[bool], bool]) -> str | None:
    """The first kind of fault that some rank has, of the first such rank, on every rank."""
    if not any_rank(any(faults)):
        return None
    ranks = gather_objects(faults)
    for kind in zip(*ranks, strict=True):
        for rank, fault in enumerate(kind):
            if fault is not None:
                return f"rank {rank}, {fault}" if len(ranks) > 1 else fault
    return None


def _norm_is_finite(named: list[tuple[str, Tensor]]) -> bool:
    return not named or bool(get_total_norm([value for _, value in named]).isfinite())


def _first_not_finite(named: list[tuple[str, Tensor]]) -> str:
    return next((name for name, value in named if not _norm_is_finite([(name, value)])), "all parameters together")
