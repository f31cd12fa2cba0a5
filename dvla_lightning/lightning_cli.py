"""LightningCLI with the defaults and error messages of `dvla`."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import dvla_lightning.backbones
import dvla_lightning.data
import dvla_lightning.envs.libero
import dvla_lightning.envs.robotwin
import dvla_lightning.envs.tabletop
import dvla_lightning.objectives  # noqa: F401 - short class names in YAML resolve to what is imported
from dvla_lightning.callbacks import CommitOrderPicture, EvaluationReport, RolloutMetrics, SavePolicy
from dvla_lightning.checkpointing.last import LastCheckpoint
from dvla_lightning.checkpointing.record import RunRecord
from dvla_lightning.checkpointing.storage import check_file, guard_checkpoints
from dvla_lightning.data.evaluation import EvaluationDataModule
from dvla_lightning.errors import UserError
from dvla_lightning.module import DVLAModule
from dvla_lightning.tools.parser import useful_line

TRAINER_DEFAULTS = {
    "default_root_dir": "runs/latest",
    "num_sanity_val_steps": 0,  # it would run whole episodes before training
    "use_distributed_sampler": False,  # it pads with duplicates; the data modules split their work themselves
    "inference_mode": False,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}
# Lightning tells about its products, torch about an internal rename; neither is the user's business. And what is logged
# without sync_dist is a sum over ranks already, or rank 0's alone on purpose (time; diagnostics of K that others lack).
QUIET = (
    "LeafSpec",
    "JsonargparseDeprecationWarning",
    "was deprecated in v4.49",
    "does not have many workers",
    "in eval mode at the start of training",
    "sync_dist=True",
)


class Parser(LightningArgumentParser):
    """Turns jsonargparse's wall of text into its one useful line."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        raise UserError(useful_line(message))


class LogConfig(SaveConfigCallback):
    """Beside config.yaml in the run directory, the resolved configuration goes to TensorBoard.

    An evaluation in the directory of a run writes validate.yaml (test.yaml, ...) and leaves its config.yaml alone.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            self.config_filename = f"{trainer.state.fn.value}.yaml"
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_unset=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```")


class DVLACommand(LightningCLI):
    """`dvla fit | validate | test | predict`."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file; later ones win")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"seed_everything": 0})
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def instantiate_classes(self) -> None:
        """Jsonargparse wraps errors of optional classes in its own; the user wants the sentence inside."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            inner: BaseException | None = error
            while inner is not None and not isinstance(inner, UserError):
                inner = inner.__cause__ or inner.__context__
            raise inner or UserError(useful_line(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        guard_checkpoints(trainer)
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Lightning would overwrite the command line with the checkpoint's arguments; here the command line counts."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.trainer.default_root_dir is None:
            raise UserError("trainer.default_root_dir: give the directory that the run shall be written to")
        root = Path(config.trainer.default_root_dir)
        last = root / "checkpoints" / "last.ckpt"
        checkpoint = config.get("ckpt_path")
        if checkpoint == "last":
            if not last.exists():
                raise UserError(f"--ckpt_path last: {last} does not exist, there is no run to resume")
            config.ckpt_path = str(last)
        if checkpoint is not None:
            check_file(Path(config.ckpt_path))
        is_first_process = os.environ.get("LOCAL_RANK", "0") == "0"
        overwrites = checkpoint is None and not config.trainer.fast_dev_run and last.exists()
        if self.subcommand == "fit" and overwrites and is_first_process:
            raise UserError(
                f"{root} already holds a run: continue it with --ckpt_path last, or choose another directory with "
                "--trainer.default_root_dir"
            )
        if config.trainer.enable_progress_bar is not False:
            # Not Lightning's rich bar: the collector's own bar lives beside this one.
            self.trainer_defaults["callbacks"].append(TQDMProgressBar())
        if config.trainer.logger is None or config.trainer.logger is True:
            logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger"}
            logger["init_args"] = {"save_dir": str(root), "name": "", "version": ""}
            config.trainer.logger = logger if self.subcommand == "fit" else False
        if "verbose" in config:
            config.verbose = False  # Lightning's own table prints rates without n; EvaluationReport prints ours


def run(args: list[str]) -> None:
    """Parses `args` (the verb first) and runs it."""
    sys.argv[1:] = args  # Lightning launches further ranks with the command line of the first one
    for text in QUIET:
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    callbacks = [
        RolloutMetrics(),
        CommitOrderPicture(),
        EvaluationReport(),
        SavePolicy(),
        RunRecord(),
        LastCheckpoint(),
    ]
    try:
        DVLACommand(
            DVLAModule,
            EvaluationDataModule,
            subclass_mode_data=True,
            trainer_defaults={**TRAINER_DEFAULTS, "callbacks": callbacks},
            save_config_callback=LogConfig,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
        )
    except MisconfigurationException as error:  # Lightning's word for arguments that do not fit each other
        raise UserError(" ".join(str(error).split())) from error
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)
