"""Checks of Trainer flags that Lightning silently accepts, or answers with a traceback: one sentence for each."""

from __future__ import annotations

import os
import re
import secrets
from typing import Any

from dvla_lightning.errors import UserError
from dvla_lightning.launch.cluster import num_external_ranks

MAX_SEED = 2**32 - 1
"""The largest seed that numpy and Lightning accept."""
DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")
# They start the ranks in ways that the command does not know, or need another package.
UNSUPPORTED_STRATEGIES = ("deepspeed", "ddp_spawn", "ddp_fork", "ddp_notebook", "xla", "single_xla", "hpu")
UNSUPPORTED_PRECISIONS = {
    "64-true": "observations and statistics are float32: use 32-true",
    "64": "observations and statistics are float32: use 32-true",
    "transformer-engine": "use bf16-mixed",
    "transformer-engine-float16": "use bf16-mixed",
}


def whole_seed(given: Any) -> int:
    """The seed to use; true and null draw one, which config.yaml then names.

    Raises:
        UserError: if it is no seed, or if several processes would each draw their own.
    """
    if given is True or given is None:
        if os.environ.get("LOCAL_RANK", "0") != "0" and os.environ.get("PL_GLOBAL_SEED", "").isdigit():
            return int(os.environ["PL_GLOBAL_SEED"])  # what the rank that started this one has drawn
        if num_external_ranks() > 1:
            raise UserError("seed_everything: every process would draw a seed of its own: give a number")
        return secrets.randbelow(MAX_SEED + 1)
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_SEED:
        raise UserError(
            f"seed_everything must be a whole number from 0 to {MAX_SEED}, or true to have one drawn, got "
            f"{str(given).lower()}"
        )
    return given


def check_flags(flags: Any, verb: str) -> None:
    """Checks the flags that Lightning itself accepts wrongly, or answers with a traceback.

    Args:
        flags: the `trainer` part of the configuration.
        verb: fit, validate, test or predict.

    Raises:
        UserError: for the first that cannot be used.
    """
    if not hasattr(flags, "get"):
        raise UserError(f"trainer must be a mapping from flags to values, got {flags!r}")
    for name, lowest, instead in (
        ("accumulate_grad_batches", 1, ""),
        ("check_val_every_n_epoch", 1, "; to evaluate nothing set data.evaluation.num_episodes: 0"),
        ("gradient_clip_val", 0, "; null clips nothing"),
        ("log_every_n_steps", 0, ""),
        ("num_sanity_val_steps", -1, ""),
        ("num_nodes", 1, ""),
        ("max_steps", -1, ""),
        ("max_epochs", -1, ""),
    ):
        value = flags.get(name)
        if value is not None and not value >= lowest:  # not <: NaN is refused, too
            raise UserError(f"trainer.{name} must be at least {lowest}, got {value}{instead}")
    for name in ("limit_val_batches", "limit_test_batches", "limit_predict_batches"):
        if isinstance(share := flags.get(name), float) and 0 < share < 1:
            raise UserError(
                f"trainer.{name} {share}: episodes are evaluated all together: set data.evaluation.num_episodes"
            )
    if verb == "fit":
        _check_length(flags)
    _check_devices(flags)
    if flags.get("use_distributed_sampler"):
        raise UserError(
            "trainer.use_distributed_sampler: true runs episodes twice to make the ranks equal: leave it false, the "
            "data modules share their work themselves"
        )


def _check_length(flags: Any) -> None:
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if flags.get(name) == 0:
            raise UserError(f"trainer.{name}: 0 trains nothing: give at least 1; to evaluate use `dvla validate`")
    if flags.get("val_check_interval") == 0:
        raise UserError("trainer.val_check_interval: 0 is no interval: give at least 1 minibatch, or leave it out")
    if flags.get("overfit_batches"):
        raise UserError(
            "trainer.overfit_batches would evaluate on training data: use trainer.limit_train_batches, or a smaller "
            "data set"
        )
    duration = flags.get("max_time")
    if isinstance(duration, str) and not DURATION.fullmatch(duration):
        raise UserError(f"trainer.max_time {duration!r} is no duration: write days:hours:minutes:seconds, 00:12:00:00")


def _check_devices(flags: Any) -> None:
    precision = str(flags.get("precision"))
    if precision in UNSUPPORTED_PRECISIONS:
        raise UserError(f"trainer.precision {precision} is not supported: {UNSUPPORTED_PRECISIONS[precision]}")
    strategy, accelerator, devices = (flags.get(name) for name in ("strategy", "accelerator", "devices"))
    if isinstance(strategy, str) and strategy.lower().startswith(UNSUPPORTED_STRATEGIES):
        raise UserError(
            f"trainer.strategy {strategy} is not supported: use ddp, or fsdp on GPUs for a policy that does not fit "
            "into the memory of one"
        )
    if accelerator in ("tpu", "hpu"):
        raise UserError(f"trainer.accelerator {accelerator} is not supported: use cpu, gpu or auto")
    number = devices if not isinstance(devices, str) else int(devices) if devices.lstrip("+-").isdigit() else None
    if isinstance(devices, str) and number is None and not re.fullmatch(r"auto|\d+(,\d+)*,?", devices):
        raise UserError(f"trainer.devices {devices!r} is no number of devices: give one, a list of them, or auto")
    if number == 0 or number == [] or (isinstance(number, int) and number < -1):
        raise UserError(f"trainer.devices must be at least 1, or auto, got {devices}")
    if accelerator == "cpu" and (number == -1 or isinstance(devices, list) or "," in str(devices)):
        raise UserError(f"trainer.devices {devices}: a CPU has no numbered devices: give the number of processes")


def check_port() -> None:
    """Raises `UserError` unless MASTER_PORT is a port; for ranks that meet through it."""
    for name in ("MASTER_PORT", "STANDALONE_PORT"):
        port = os.environ.get(name)
        if port is not None and not (port.isdigit() and 0 < int(port) < 2**16):
            raise UserError(f"the environment variable {name} must be a port, 1 to 65535, got {port!r}")
