"""The origin of a run's ranks: this command, torchrun, or srun of SLURM."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from torch.distributed import is_torchelastic_launched

from dvla_lightning.errors import UserError

# Set in what srun starts, not in the script of sbatch or in the shell of salloc.
SRUN_MARKS = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_SRUN_COMM_HOST")


class SrunRanks(SLURMEnvironment):
    """Ranks that srun started, with our own signal handling, and with --ntasks as well as --ntasks-per-node."""

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)
        for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
            _number(name)

    @staticmethod
    def _validate_srun_variables() -> None:
        """Accepts --ntasks, which Lightning refuses because it cannot tell it from an allocation without srun."""

    def world_size(self) -> int:
        return num_external_ranks()

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Checks nothing: `check_world` does, with a better sentence."""


def started_by_srun() -> bool:
    """Whether this process is one of several tasks of srun.

    A single task, the script of sbatch and the shell of salloc are ordinary processes, which start their own ranks.
    """
    if "SLURM_PROCID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return False
    is_step = any(name in os.environ for name in SRUN_MARKS) or os.environ["SLURM_PROCID"] != "0"
    return is_step and _number("SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS") > 1


def num_external_ranks() -> int:
    """Number of processes that torchrun or srun started; 1 if neither did."""
    if is_torchelastic_launched():
        return _number("WORLD_SIZE")
    if started_by_srun():
        return _number("SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS")
    return 1


def is_first_process() -> bool:
    """Whether this process becomes rank 0, the one that writes."""
    if is_torchelastic_launched():
        return os.environ.get("RANK", "0") == "0"
    if started_by_srun():
        return os.environ["SLURM_PROCID"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def cluster_environment() -> ClusterEnvironment | None:
    """The environment of the ranks where Lightning would guess wrong, else None.

    Raises:
        UserError: for variables of SLURM that are missing or no numbers.
    """
    if is_torchelastic_launched():
        return None
    if started_by_srun():
        return SrunRanks()
    return LightningEnvironment() if "SLURM_NTASKS" in os.environ else None


def check_world(trainer: Any) -> None:
    """Raises `UserError` unless the processes that exist are the ranks that the Trainer expects."""
    ranks = num_external_ranks()
    if ranks > 1 and ranks != trainer.world_size:
        by = "torchrun" if is_torchelastic_launched() else "srun"
        raise UserError(
            f"{by} started {ranks} processes, but trainer.devices x trainer.num_nodes is {trainer.world_size}: "
            "make them equal, and set trainer.strategy: ddp"
        )
    alone = isinstance(trainer.strategy.cluster_environment, LightningEnvironment) if trainer.num_nodes > 1 else False
    if alone and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"trainer.num_nodes {trainer.num_nodes}: start the command on every node with torchrun or srun, or with "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK in the environment"
        )


@contextlib.contextmanager
def usr1_ends_as_term() -> Iterator[None]:
    """Treats SIGUSR1 as SIGTERM: SLURM announces the end of a job's time with either (--signal)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise UserError(f"the environment variable {name} must be a whole number, got {value!r}: start ranks with srun")
    return int(value)
