"""`dvla doctor`: what works on this machine, each line with its remedy."""

from __future__ import annotations

import importlib.util
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from dvla_lightning.envs.base import Environment
from dvla_lightning.envs.check import Check, NoAnswer
from dvla_lightning.envs.libero.doctor import check_libero
from dvla_lightning.envs.libero.suites import MAX_STEPS
from dvla_lightning.envs.robotwin import RoboTwin
from dvla_lightning.envs.robotwin.doctor import check_robotwin
from dvla_lightning.errors import UserError, last_line
from dvla_lightning.evaluation.videos import INSTALL_AV
from dvla_lightning.paths import local_path
from dvla_lightning.rollout.episode import EpisodeSpec
from dvla_lightning.rollout.foreign_slot import ForeignSlot
from dvla_lightning.rollout.worker import ChildSlot, ProcessSlot, WorkerFailure
from dvla_lightning.tools.parser import run_tool
from dvla_lightning.versions import installed_version

PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "gymnasium", "jsonargparse", "tensorboard")


class OwnSimulator:
    """A simulator in a worker of this Python, for the doctors of environments: `envs.check.Simulator`."""

    kind: type[ChildSlot] = ProcessSlot

    def __init__(self, environment: Environment) -> None:
        self._slot = self.kind(environment)

    @property
    def hello(self) -> dict[str, Any] | None:
        return getattr(self._slot, "hello", None)

    def reset(self, task: str, split: str, seconds: float) -> Any:
        return self.call("reset", EpisodeSpec(task, split, 0, seed=0), seconds)

    def call(self, command: str, argument: Any, seconds: float) -> Any:
        try:
            return self._slot.call(command, argument, seconds)
        except WorkerFailure as error:
            raise NoAnswer(last_line(str(error))) from error

    def close(self) -> None:
        self._slot.close()


class ForeignSimulator(OwnSimulator):
    """The same in a worker of another Python."""

    kind = ForeignSlot


def main(args: Sequence[str]) -> None:
    """Runs the command line; exit code 1 if something is broken."""
    if not run_tool(doctor, args, "dvla doctor"):
        sys.exit(1)


def doctor(
    libero: bool = False,
    suite: str = "all",
    robotwin: bool = False,
    environment: RoboTwin | None = None,
    pictures: str = "runs/doctor",
) -> bool:
    """Checks versions, GPU, the library behind videos, the built-in environment, GL backends, LIBERO and RoboTwin.

    Args:
        libero: treat a missing or incomplete LIBERO as broken instead of optional.
        suite: the LIBERO suite whose files are looked for, or "all".
        robotwin: treat a missing or incomplete RoboTwin as broken; its checkout is in ROBOTWIN_ROOT, its Python in
            ROBOTWIN_PYTHON.
        environment: RoboTwin with other options than its defaults: robots, renderer, planner.
        pictures: folder for the pictures of LIBERO's and RoboTwin's cameras.

    Returns:
        Whether nothing is broken.

    Raises:
        UserError: for an unknown suite.
    """
    if suite not in (*MAX_STEPS, "all"):
        raise UserError(f"dvla doctor: unknown LIBERO suite {suite!r}; choose from: all, {', '.join(MAX_STEPS)}")
    suites = tuple(MAX_STEPS) if suite == "all" else (suite,)
    folder = local_path(pictures, "--pictures")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--pictures {pictures} is a file: give a folder")
    libero_checks = check_libero(libero, suites, OwnSimulator, folder)
    robotwin_checks = check_robotwin(robotwin, environment, ForeignSimulator, folder)
    healthy = True
    for checks in (_packages(), _torchvision(), _gpu(), _videos(), _tabletop(), libero_checks, robotwin_checks):
        for check in checks:
            print(check, flush=True)
            healthy &= check.ok is not False
    return healthy


def _packages() -> Iterator[Check]:
    yield Check(sys.version_info >= (3, 11), "python", platform.python_version(), "use Python 3.11 or newer")
    for package in PACKAGES:
        version = installed_version(package)
        yield Check(version is not None, package, version or "not installed", "pip install -e .")


def _torchvision() -> Iterator[Check]:
    """A torchvision built for another torch breaks the import of transformers, torchmetrics and lightning."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        yield Check(False, "torchvision", f"cannot be imported ({error})", "pip uninstall -y torchvision")


def _gpu() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield Check(True, "GPU", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {memory:.0f} GiB")
    else:
        yield Check(None, "GPU", f"none; torch uses {torch.get_num_threads()} CPU threads", "fine for MiniBackbone")


def _videos() -> Iterator[Check]:
    version = installed_version("av")
    finding = f"av {version}" if version else "not installed (av missing), only data.evaluation.save_videos needs it"
    yield Check(True if version else None, "videos", finding, INSTALL_AV)


def _tabletop() -> Iterator[Check]:
    from dvla_lightning.envs.tabletop import TabletopEnv

    env = TabletopEnv()
    env.reset(seed=0)
    start, steps = time.perf_counter(), 500
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    yield Check(True, "Tabletop", f"{steps / (time.perf_counter() - start):.0f} env steps/s")
