"""The progress of a run, as Lightning counts it."""

from __future__ import annotations

from typing import Any

from lightning import Trainer

EPOCHS, BATCHES, LOOP_STATE = "epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict"
"""Keys in the state of Trainer.fit_loop."""


def at_epoch_end(trainer: Trainer) -> bool:
    """Whether no epoch is cut short here, as max_steps, max_time and signals do: the last minibatch has been seen."""
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return ready == 0 or trainer.is_last_batch or ready == trainer.num_training_batches


def complete_epochs(trainer: Trainer) -> int:
    """Epochs (in RL: iterations) whose last minibatch has been trained on. Called at the end of an epoch or of fit."""
    return int(trainer.fit_loop.epoch_progress.current.ready) - (not at_epoch_end(trainer))


def begin_next_epoch(fit_loop: dict[str, Any]) -> None:
    """Turns the state of the loop after the last minibatch of an epoch into that before the next epoch, in place.

    Lightning continues from wherever a callback saved, after validation or at the end of the epoch, each in another
    way; with max_steps it takes the epoch for unfinished. Before an epoch there is but one way.
    """
    for counts in (fit_loop[EPOCHS]["current"], fit_loop[EPOCHS]["total"]):
        is_counted = counts["processed"] == counts["started"]
        counts["ready"] = counts["processed"] = counts["completed"] = counts["started"]
    fit_loop[BATCHES]["total"]["completed"] = fit_loop[BATCHES]["total"]["processed"]
    if not is_counted:
        fit_loop[LOOP_STATE]["_batches_that_stepped"] += 1
    for name, counts in fit_loop.items():
        if name.startswith("epoch_loop."):
            _reset(counts)


def _reset(progress: dict[str, Any]) -> None:
    """Sets the counts of an epoch to zero."""
    for key, value in progress.items():
        if key == "current":
            progress[key] = dict.fromkeys(value, 0)
        elif key == "is_last_batch":
            progress[key] = False
        elif isinstance(value, dict):
            _reset(value)
