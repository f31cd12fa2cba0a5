"""LightningCLI with the defaults and error messages of `dvla`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
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
from dvla_lightning.cli_help import HelpFormatter, arrange, introduction
from dvla_lightning.data.base import DVLADataModule
from dvla_lightning.data.evaluation import EvaluationDataModule
from dvla_lightning.errors import UserError
from dvla_lightning.files import REMEDIES, unwritable
from dvla_lightning.launch.cluster import check_world, cluster_environment, is_first_process, usr1_ends_as_term
from dvla_lightning.launch.job_time import JobTime
from dvla_lightning.launch.quiet import faults_said_once, own_log_shown, without_advertisements
from dvla_lightning.launch.ranks import ending_together, use_launcher
from dvla_lightning.launch.run_directory import CKPT_PATH_HELP, RunDirectory
from dvla_lightning.launch.saved_config import SavedConfig
from dvla_lightning.launch.trainer_flags import MAX_SEED, check_flags, whole_seed
from dvla_lightning.module import DVLAModule
from dvla_lightning.policy_recipe import PolicyRecipe
from dvla_lightning.published_data import with_published_data
from dvla_lightning.tools.parser import ConfigFile, check_nulls, moved_options, useful_line
from dvla_lightning.verbs import TRAINER_VERBS

TRAINER_DEFAULTS = {
    "default_root_dir": "runs/latest",
    "num_sanity_val_steps": 0,  # it would run whole episodes before training
    "use_distributed_sampler": False,  # it pads with duplicates; the data modules split their work themselves
    "inference_mode": False,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}
NO_DATA_SEED = "data.seed is the seed of the run: set seed_everything"
CALLBACKS = os.path.join("lightning", "pytorch", "callbacks")


class Parser(LightningArgumentParser):
    """Turns jsonargparse's wall of text into its one useful line; options are written in full."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": HelpFormatter, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(useful_line(message, self))


class RunConfigFile(ConfigFile):
    """Refuses a seed of the data, which a link would silently overrule, unless it equals the seed of the run."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        try:
            super().__call__(parser, cfg, values, option_string)
        except UserError as error:
            if moved := moved_options(values, "data"):
                raise UserError(f"--config {values}: {moved}") from error
            raise
        if cfg.pop("data.init_args.seed", None) not in (None, cfg.get("seed_everything")):
            raise UserError(NO_DATA_SEED)


class RecipeModule(DVLAModule):
    """`DVLAModule` as the command line builds it: its policy is a recipe.

    Args:
        policy: the policy that is trained or evaluated.
    """

    def __init__(self, policy: PolicyRecipe, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)


class DVLACommand(LightningCLI):
    """`dvla fit | validate | test | predict`."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action=RunConfigFile, help="YAML file; of several the later win")
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        text = f"Seed of everything random, data.seed too, 0 to {MAX_SEED}; true draws one: config.yaml says which."
        # Any: Lightning's type takes every integer; `whole_seed` says what is wrong with one.
        parser.add_argument("--seed_everything", type=Any, default=0, help=text)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # The value is what `_set_seed` gives it: a seed may be drawn.
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=lambda _: 0)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        if any(map(_gives_data_seed, sys.argv[1:], [*sys.argv[2:], ""])):  # a link would silently overrule it
            raise UserError(NO_DATA_SEED)
        super().parse_arguments(parser, args)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        kwargs["description"] = introduction(subcommand, TRAINER_VERBS[subcommand])
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.set_defaults({"data": {"class_path": f"{EvaluationDataModule.__module__}.EvaluationDataModule"}})
        for action in parser._actions:
            if action.dest == "ckpt_path":
                action.help = CKPT_PATH_HELP
        arrange(parser, subcommand)
        return parser

    def _set_seed(self) -> None:
        config = self.config[self.subcommand]
        config.seed_everything = seed_everything(whole_seed(config.seed_everything), workers=True)
        if "init_args" in config.data and "seed" in config.data.init_args:
            config.data.init_args.seed = config.seed_everything

    def instantiate_classes(self) -> None:
        """Raises the `UserError` that jsonargparse wraps in its own errors of optional classes."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            inner: BaseException | None = error
            while inner is not None and not isinstance(inner, UserError):
                inner = inner.__cause__ or inner.__context__
            raise inner or UserError(useful_line(str(error))) from error

    def _parse_ckpt_path(self) -> None:
        """Does nothing, unlike Lightning's, which overwrites the command line with the checkpoint's arguments."""

    def before_instantiate_classes(self) -> None:
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        check_flags(config.trainer, self.subcommand)
        check_nulls("data", config.data)
        check_nulls("model.objective", config.model.objective)
        self.directory = RunDirectory(config.trainer.default_root_dir)
        self.checkpoint = self.directory.checkpoint(self.subcommand, config.get("ckpt_path"))
        if self.checkpoint is not None:
            check_file(self.checkpoint)
        self._keeps_a_run = self.subcommand == "fit" and not config.trainer.fast_dev_run
        if self._keeps_a_run and is_first_process():
            self.directory.check_free(self.checkpoint)
        if "verbose" in config:
            config.verbose = False  # Lightning's own table prints rates without n; EvaluationReport prints ours

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Gives paths inside the run's directory to the Trainer alone: config.yaml keeps what was asked for."""
        flags = self._get(self.config_init, "trainer")
        root = str(self.directory.root)
        kwargs |= {"default_root_dir": root, "logger": flags.logger, "max_time": None}
        if flags.logger is None or flags.logger is True:
            keeps_log = self.subcommand == "fit" and not flags.barebones
            kwargs["logger"] = TensorBoardLogger(save_dir=root, name="", version="") if keeps_log else False
        if flags.barebones and flags.log_every_n_steps == TRAINER_DEFAULTS["log_every_n_steps"]:
            kwargs["log_every_n_steps"] = None  # our default, which the user did not ask for
        if environment := cluster_environment():
            kwargs["plugins"] = [*listed(flags.plugins), environment]
        try:
            self.trainer_defaults["callbacks"] = self._callbacks(flags)
            trainer = super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        check_world(trainer)
        use_launcher(trainer)
        guard_checkpoints(trainer)
        return trainer

    def _callbacks(self, flags: Any) -> list[Callback]:
        """Ours, beside those of the user."""
        callbacks: list[Callback] = [RolloutMetrics(), CommitOrderPicture(), EvaluationReport(), SavePolicy()]
        if flags.max_time is not None:
            callbacks.append(JobTime(flags.max_time))
        callbacks.append(RunRecord())  # also where no checkpoint is written: one may be read
        if flags.enable_checkpointing is not False and not flags.barebones:
            callbacks.append(LastCheckpoint())
        elif self._keeps_a_run:
            print("no checkpoints are written: this run cannot be resumed", file=sys.stderr, flush=True)
        shows_progress = flags.enable_progress_bar is not False and not flags.barebones
        if shows_progress and not any(isinstance(callback, ProgressBar) for callback in listed(flags.callbacks)):
            # Not Lightning's rich bar: the collector's own bar lives beside this one.
            callbacks.append(TQDMProgressBar())
        return callbacks

    def after_instantiate_classes(self) -> None:
        if self._keeps_a_run and is_first_process():
            self.directory.lock()
            self.directory.check_free(self.checkpoint)  # again: now that no other run can write here

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": checkpoint}

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with ending_together(self.trainer.strategy.launcher):
                super()._run_subcommand(subcommand)
        finally:
            self.directory.release()


def listed(given: Any) -> list[Any]:
    """The value as a list: empty for None, with one item for a single value."""
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]


def _gives_data_seed(word: str, following: str) -> bool:
    """Whether a word of the command line, and its value where it is the next one, sets the seed of the data."""
    option, equals, value = word.partition("=")
    if option in ("--data.seed", "--data.init_args.seed"):
        return True
    if option not in ("--data", "--data.init_args"):
        return False
    try:
        given = yaml.safe_load(value if equals else following)
        if isinstance(given, str) and os.path.isfile(given):
            given = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):  # the parser has a sentence about it
        return False
    parts = (given, given.get("init_args")) if isinstance(given, dict) else ()
    return any(isinstance(part, dict) and "seed" in part for part in parts)


def run(args: list[str]) -> None:
    """Parses `args` (the verb first) and runs it."""
    args = with_published_data(args)
    sys.argv[1:] = args  # Lightning launches further ranks with the command line of the first one
    try:
        shown = own_log_shown() if is_first_process() else contextlib.nullcontext()
        with usr1_ends_as_term(), faults_said_once(), without_advertisements(), shown:
            DVLACommand(
                RecipeModule,
                DVLADataModule,
                subclass_mode_data=True,
                trainer_defaults=dict(TRAINER_DEFAULTS),
                save_config_callback=SavedConfig,
                auto_configure_optimizers=False,
            )
    except MisconfigurationException as error:  # Lightning's word for arguments that do not fit each other
        raise UserError(" ".join(str(error).split())) from error
    except OSError as error:  # in the middle of Lightning or of a logger
        if error.errno not in REMEDIES:
            raise
        raise unwritable(error.filename or "the run directory or a log", error) from error
    except (RuntimeError, ValueError) as error:  # of Lightning's callbacks, for a metric that there is not
        if isinstance(error, UserError) or CALLBACKS not in traceback.extract_tb(error.__traceback__)[-1].filename:
            raise
        raise UserError(f"trainer.callbacks: {' '.join(str(error).split())}") from error
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)
