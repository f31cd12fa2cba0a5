"""Callbacks for the output of a run: rollout metrics, commit orders, evaluation tables, pictures, policies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger

from dvla_lightning.checkpointing.progress import at_epoch_end, complete_epochs
from dvla_lightning.data.rescheduling import LAST_SCHEDULE
from dvla_lightning.envs.base import SPLIT_NAMES
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.heat_map import commit_order_figure, save_figure
from dvla_lightning.evaluation.pictures import picture_strip, save_strip
from dvla_lightning.evaluation.published import check_publishable, compare_with_published, publish, write_recipe
from dvla_lightning.evaluation.ranks import gather_objects
from dvla_lightning.evaluation.records import EpisodeKey, EpisodeRecord, one_per_episode
from dvla_lightning.evaluation.success import SuccessCount, steps_text, success_table, wilson_interval
from dvla_lightning.evaluation.summary import evaluation_report


class RolloutMetrics(Callback):
    """Logs what the data module measured in the collection of this epoch, and the time of the update.

    At the end of the epoch, because the collection of the first epoch runs before any hook of it.
    """

    def on_train_batch_start(self, trainer: Any, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self._first_batch_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._last_batch_done_at = time.perf_counter()  # a validation may follow before the epoch ends

    def on_train_epoch_end(self, trainer: Any, module: LightningModule) -> None:
        metrics = dict(getattr(trainer.datamodule, "rollout_metrics", {}))
        if metrics:
            metrics["time/update_seconds"] = self._last_batch_done_at - self._first_batch_at
        for name, value in metrics.items():
            module.log(name, float(value), on_step=False, on_epoch=True, sync_dist=False, batch_size=1)


class CommitOrderPicture(Callback):
    """In RL, draws the mean commit order of the last collection, one panel per K.

    Every `check_val_every_n_epoch` epochs, whether or not episodes are evaluated then, and at the end of fit: in
    TensorBoard as rollout/commit_order, and as pictures/commit_order.png in the run directory, which holds the newest.
    It shows the episodes of rank 0 alone: a K that only other ranks ran has no panel.
    """

    def __init__(self) -> None:
        self._drawn: dict[int, torch.Tensor] | None = None

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0:
            self._draw(trainer, module)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self._draw(trainer, module)

    def _draw(self, trainer: Any, module: Any) -> None:
        commit_order = getattr(trainer.datamodule, "commit_order", None)
        if not commit_order or commit_order is self._drawn or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        self._drawn = commit_order
        title = f"Commit order, epoch {trainer.fit_loop.epoch_progress.current.ready - 1}"
        figure = commit_order_figure(commit_order, module.policy.chunk_size, module.policy.action_dim, title)
        picture = save_figure(Path(trainer.default_root_dir) / "pictures" / "commit_order.png", figure)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("rollout/commit_order", picture, trainer.global_step, dataformats="HWC")


class EvaluationReport(Callback):
    """After an evaluation: prints the table and logs pictures; inside fit, one line, and the interval beside the rate.

    The record of a stand-alone validation or test is its manifest in the run directory.
    """

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        """Complains before the episodes, not after them, about what is not to be published."""
        if trainer.state.fn == "fit" or not trainer.datamodule.evaluation.publish:
            return
        if module.policy.directory is None or trainer.ckpt_path is not None:
            raise UserError(
                "data.evaluation: publish writes into a policy directory: give model.policy.pretrained alone"
            )
        check_publishable(module.policy, trainer.datamodule.recipe())

    def on_test_start(self, trainer: Any, module: Any) -> None:
        self.on_validation_start(trainer, module)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if trainer.sanity_checking:
            return
        split, prefix = trainer.datamodule.split, module.evaluation_prefix
        counts = module.task_success.by_task()
        total = sum(counts.values(), SuccessCount(0, 0))
        # Every rank takes part in the gathering, and in counting above.
        pictured = [episode for part in gather_objects(module.evaluation.pictured) for episode in part.values()]
        records = one_per_episode(
            record for part in gather_objects(module.evaluation.records) for record in part.values()
        )
        if not trainer.is_global_zero:
            return
        directory = Path(trainer.default_root_dir)
        self._log_pictures(trainer, directory, pictured, prefix, SPLIT_NAMES[split])
        if trainer.state.fn == "fit":
            low, high = wilson_interval(total.successes, total.n)
            interval = {f"{prefix}/success_rate_low": low, f"{prefix}/success_rate_high": high}
            for logger in trainer.loggers:
                logger.log_metrics(interval, step=trainer.global_step)
            print(f"\nepoch {trainer.current_epoch}: {SPLIT_NAMES[split]} success {total}", flush=True)
            return
        if module.evaluation.header is None:  # a development run keeps no record
            steps = trainer.datamodule.evaluation_steps
            print(success_table(counts, f"{SPLIT_NAMES[split]} episodes, {steps_text(steps)}", steps), flush=True)
        else:
            print(evaluation_report(directory, module.evaluation.header, records), flush=True)
            self._publish_or_compare(trainer, module, records)

    def _publish_or_compare(self, trainer: Any, module: Any, records: Mapping[EpisodeKey, EpisodeRecord]) -> None:
        """Writes the records into the policy directory if asked to, else prints the success published there."""
        data, directory, header = trainer.datamodule, module.policy.directory, module.evaluation.header
        if directory is None:
            return
        if data.evaluation.publish:
            print(f"published in {publish(directory, data.recipe(), header, records).parent}", flush=True)
        elif line := compare_with_published(directory, header):
            print(line, flush=True)

    def on_test_end(self, trainer: Any, module: Any) -> None:
        self.on_validation_end(trainer, module)

    def _log_pictures(self, trainer: Any, directory: Path, episodes: list[Any], prefix: str, split_name: str) -> None:
        for outcome in () if trainer.fast_dev_run else (True, False):
            wanted = [episode for episode in episodes if episode.success == outcome]
            if not wanted:
                continue
            strip = picture_strip(wanted[0])
            name = "success" if outcome else "failure"
            instruction = wanted[0].transitions[-1].observation["instruction"]
            save_strip(directory / "pictures" / f"{name}.png", strip, f"{instruction} ({split_name} episode)")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    tag = f"{prefix}/{name}"
                    logger.experiment.add_image(tag, strip, trainer.global_step, dataformats="HWC")


class SavePolicy(Callback):
    """Writes the policy directory `policy` at the end of fit, and `policy-best` whenever validation improves.

    Validation in fit runs on the initial states of selection: the best of many is chosen there, and `dvla validate`
    reports it on held-out ones, which had no part in the choice.

    Where RL measured its step schedule again, it prints the one to run `policy` with.
    """

    def __init__(self) -> None:
        self.best = -1.0

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        score = float(trainer.callback_metrics.get("val/success_rate", -1.0))
        if score > self.best:
            self.best = score
            self._save(trainer, module, "policy-best")

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        if trainer.fast_dev_run:
            return
        self._save(trainer, module, "policy")
        schedule = Path(trainer.default_root_dir) / LAST_SCHEDULE
        if trainer.is_global_zero and getattr(trainer.datamodule, "reschedule", None) and schedule.exists():
            print(
                f"this run ended with the step schedule {schedule}: evaluate with --data.schedule {schedule}",
                flush=True,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _save(self, trainer: Any, module: Any, name: str) -> None:
        objective = type(module.objective).__name__
        epochs = f"{complete_epochs(trainer)} epochs"
        if not at_epoch_end(trainer):
            epochs += " and a part of the next"
        card = f"Trained with {objective} for {epochs}; config.yaml is in the run directory."
        directory = Path(trainer.default_root_dir) / name
        module.policy.save_pretrained(directory, card)  # on every rank: weights may be sharded
        if trainer.is_global_zero and (recipe := trainer.datamodule.recipe()):
            write_recipe(directory, recipe)
