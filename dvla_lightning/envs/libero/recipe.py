"""`Libero`: what a user configures, and what is known before a simulator exists."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dvla_lightning.envs.base import Environment, SimulatorEnv
from dvla_lightning.envs.libero.preflight import GL_BACKENDS, require_assets
from dvla_lightning.envs.libero.suites import INSTALL_REMEDY, MAX_STEPS, NUM_HELDOUT_STATES, suite_tasks
from dvla_lightning.errors import UserError

# Our camera names -> MuJoCo's.
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _choice(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise UserError(f"Libero: {name}={value!r} is not one of: {', '.join(allowed)}")
    return value


class Libero(Environment):
    """The LIBERO benchmark: a Franka arm at a table, 20 control steps per second, sparse reward 1 at success.

    Split "heldout" is the 50 published initial states of a task; split "train" draws placements from the regions of
    the task's BDDL file. Both fix the furniture too, so the same number always gives the same picture.

    Args:
        suite: libero_spatial, libero_object, libero_goal, libero_10 or libero_90.
        assets_dir: Folder with LIBERO's meshes and textures. If not given: the environment variable LIBERO_ASSETS,
            else wherever hf-libero finds or downloads them.
        image_size: Height and width of each image in pixels.
        cameras: Images of an observation: "agentview" (third person) and "wrist". An empty list renders nothing.
        rendering: "fast" leaves out antialiasing and reflections, which makes pictures three times cheaper without a
            GPU; "faithful" gives exactly upstream's observations. Use the same setting for demonstrations, training and
            evaluation, and "faithful" for published checkpoints.
        reset_mode: "soft" keeps the compiled model between episodes (50 ms), "hard" rebuilds it as upstream does
            (2 s). The states are identical.
        gl_backend: How MuJoCo renders: "egl" (GPU, or Mesa on a CPU), "osmesa" (CPU), or "auto": the environment
            variable MUJOCO_GL, else the first that works.
        max_steps: Control steps after which an episode is truncated, wait not counted. If not given: the published
            limit of the suite (220, 280, 300, 520, 400).
        num_wait_steps: Control steps with open gripper at the beginning, while objects settle (published: 10).
    """

    def __init__(
        self,
        suite: str = "libero_spatial",
        assets_dir: str | None = None,
        image_size: int = 128,
        cameras: Sequence[str] = ("agentview", "wrist"),
        rendering: Literal["fast", "faithful"] = "fast",
        reset_mode: Literal["soft", "hard"] = "soft",
        gl_backend: Literal["auto", "egl", "osmesa"] = "auto",
        max_steps: int | None = None,
        num_wait_steps: int = 10,
    ) -> None:
        self.tasks = tuple(suite_tasks(suite))
        self.suite = suite
        self.assets_dir = assets_dir
        self.image_size = image_size
        self.cameras = tuple(_choice("cameras", camera, tuple(CAMERAS)) for camera in cameras)
        self.rendering = _choice("rendering", rendering, ("fast", "faithful"))
        self.reset_mode = _choice("reset_mode", reset_mode, ("soft", "hard"))
        self.gl_backend = _choice("gl_backend", gl_backend, ("auto", *GL_BACKENDS))
        self.max_steps = MAX_STEPS[suite] if max_steps is None else max_steps
        self.num_wait_steps = num_wait_steps
        self.action_dim = 7  # hand translation 3, rotation 3, gripper (-1 open, +1 closed)
        self.proprioception_dim = 8  # hand position 3 (m), axis-angle 3 (rad), finger joints 2 (m); OpenVLA-OFT's order
        if image_size < 1 or self.max_steps < 1 or num_wait_steps < 0:
            raise UserError("Libero: image_size and max_steps must be at least 1, num_wait_steps at least 0")

    def make(self) -> SimulatorEnv:
        """Builds the simulator in this process; see `Environment.make`."""
        _require_versions()
        require_assets(self.assets_dir)
        from dvla_lightning.envs.libero.env import LiberoEnv  # here: it prepares GL and imports MuJoCo

        return LiberoEnv(self)

    def num_heldout_states(self, task: str) -> int:
        """50: every LIBERO task has that many published initial states."""
        self.select_tasks(task)
        return NUM_HELDOUT_STATES

    def identity(self) -> Mapping[str, Any]:
        """Suite, options that change states or pixels, and the simulator's versions."""
        names = ("suite", "image_size", "cameras", "rendering", "reset_mode", "max_steps", "num_wait_steps")
        packages = ("hf-libero", "mujoco", "robosuite")
        return {
            "class": type(self).__name__,
            **{name: getattr(self, name) for name in names},
            "versions": {package: _version(package) for package in packages},
        }


def _require_versions() -> None:
    """Raises UserError for simulator versions that are known not to work."""
    mujoco, robosuite = _version("mujoco"), _version("robosuite")
    if mujoco is None or robosuite is None:
        missing = "mujoco" if mujoco is None else "robosuite"
        raise UserError(f"LIBERO needs the package {missing}, which is not installed: {INSTALL_REMEDY}")
    # MuJoCo 4 split its package and robosuite 1.4 cannot import it; hf-libero 0.1.4 declares mujoco<3.9.
    if tuple(int(part) for part in mujoco.split(".")[:2]) >= (3, 9):
        raise UserError(f"LIBERO does not run with mujoco {mujoco}: pip install 'mujoco<3.9'")
    if not robosuite.startswith("1.4."):  # single_arm_env is gone in 1.5
        raise UserError(f"LIBERO does not run with robosuite {robosuite}: pip install --no-deps robosuite==1.4.0")
