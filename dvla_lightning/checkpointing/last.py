"""last.ckpt: the end of the last epoch that is complete."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightning import LightningModule
from lightning.pytorch.callbacks import Checkpoint

from dvla_lightning.checkpointing.progress import at_epoch_end, complete_epochs
from dvla_lightning.checkpointing.storage import LAST, checkpoint_folder
from dvla_lightning.files import make_folder, remove_partial


class LastCheckpoint(Checkpoint):
    """Writes checkpoints/last.ckpt at the end of every epoch (in RL: iteration), whatever a monitored score does.

    An epoch that is cut short by max_steps, max_time, a signal or an error leaves it as it is: a checkpoint cannot tell
    which part of the epoch is done, so resuming runs the epoch again from its beginning, with the weights of its
    beginning, and comes to the same weights as a run that was never stopped. A sentence at the end says so.
    """

    def __init__(self) -> None:
        self._epochs: int | None = None  # complete ones in the newest checkpoint; None before training
        self._newest: Path | None = None

    def on_fit_start(self, trainer: Any, module: LightningModule) -> None:
        """Makes the folder, so that a full disk is found now; not in `setup`, where others still refuse the run."""
        if not trainer.fast_dev_run and trainer.is_global_zero:
            remove_partial(make_folder(checkpoint_folder(trainer)))

    def on_train_start(self, trainer: Any, module: LightningModule) -> None:
        self._newest = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        self._epochs = complete_epochs(trainer) if self._newest else 0

    def on_train_epoch_end(self, trainer: Any, module: LightningModule) -> None:
        if at_epoch_end(trainer) and not trainer.fast_dev_run:
            # All ranks reduce what was logged before they meet to save: rank 0 may have done so for its progress bar,
            # and the others would wait for it elsewhere.
            trainer.callback_metrics  # noqa: B018 - computed when it is asked for
            path = checkpoint_folder(trainer) / LAST
            trainer.save_checkpoint(path)
            self._newest, self._epochs = path, complete_epochs(trainer)

    def on_train_end(self, trainer: Any, module: LightningModule) -> None:
        if not at_epoch_end(trainer):
            self._say_where(trainer, "; policy/ will hold the weights of the moment")

    def on_exception(self, trainer: Any, module: LightningModule, exception: BaseException) -> None:
        # SIGTERM and Ctrl-C are no Exception. An error has its own sentence; where nothing was saved it is enough.
        if self._epochs is not None and (self._newest or not isinstance(exception, Exception)):
            self._say_where(trainer, "")

    def _say_where(self, trainer: Any, remark: str) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        unit, number = getattr(trainer.datamodule, "epoch_name", "epoch"), self._epochs or 0
        if self._newest is None:
            rest = f"there is no checkpoint to resume from, a new run begins {unit} {number} again"
        else:
            rest = (
                f"{self._newest} holds the end of {unit} {number - 1}, resuming from there runs {unit} {number} again"
            )
        print(f"\nstopped inside {unit} {number}: {rest}, from its beginning{remark}", file=sys.stderr, flush=True)
