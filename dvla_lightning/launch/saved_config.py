"""The configuration file of a run, as a starting point for other runs."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from dvla_lightning.files import atomic_text


class SavedConfig(SaveConfigCallback):
    """config.yaml in the run directory, whatever the loggers are, and in TensorBoard.

    It holds what was asked for, without the places of this run's logger and checkpoints and without the checkpoint it
    was resumed from. It is written once the run is set up, so that a command that is refused does not overwrite the
    file of an earlier run. An evaluation writes validate.yaml (test.yaml, ...).
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes nothing, unlike Lightning's: options that do not fit are found later."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "config.yaml")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._save(trainer, "validate.yaml")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "test.yaml")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "predict.yaml")

    def _save(self, trainer: Trainer, name: str) -> None:
        if not trainer.is_global_zero:
            return
        config = self.config.clone()
        config.pop("ckpt_path", None)
        config.pop("config", None)
        text = self.parser.dump(config, skip_unset=False, skip_validation=True)
        atomic_text(Path(trainer.default_root_dir) / name, text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```")
