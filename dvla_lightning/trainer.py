"""Attributes of Lightning's Trainer that its types do not have."""

from __future__ import annotations

from typing import Any


def data_of(trainer: Any) -> Any:
    """The data module that a trainer runs on."""
    return trainer.datamodule


def num_epochs_done(trainer: Any) -> int:
    """Epochs that are done; `current_epoch` is one too low in the first collection after a resume."""
    return int(trainer.fit_loop.epoch_progress.current.processed)


def is_trial(trainer: Any) -> bool:
    """Whether `fast_dev_run` asks for a few minibatches that leave nothing behind."""
    return bool(trainer.fast_dev_run)
