"""`RoboTwin`: the options of the benchmark, and facts that are known before a simulator exists."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dvla_lightning.envs.base import Environment, SimulatorEnv
from dvla_lightning.envs.robotwin.seed_files import read_seed_file
from dvla_lightning.envs.robotwin.simulator.checkout import Checkout
from dvla_lightning.envs.robotwin.tasks import (
    ARM_JOINTS,
    CAMERA_SIZES,
    EVAL_INSTRUCTIONS,
    FIRST_EVAL_SEED,
    NUM_TRIALS,
    STEP_LIMITS,
)
from dvla_lightning.errors import UserError
from dvla_lightning.paths import local_path

MAX_TRAIN_SCENES = 10_000  # nine seeds below the first of selection for each

CHUNK_ARM_JOINTS = 6  # RLinf_support 0008ae6, Base_Task.compress_path: an arm that rests gets noise on six joints

CHOICES = {
    "action_type": ("qpos", "ee"),
    "execution": ("per_action", "chunk"),
    "camera_type": tuple(CAMERA_SIZES),
    "train_instructions": ("seen", "unseen"),
    "eval_instructions": ("seen", "unseen"),
    "validity": ("expert", "seed_file", "none"),
    "shader": ("rt", "default", "minimal"),
    "planner": ("checkout", "mplib"),
}


class RoboTwin(Environment):
    """RoboTwin 2.0: two arms at a table, 50 tasks, sparse reward 1 at success, on a checkout that the user installed.

    Held-out initial states are those of the published evaluation: the n-th seed from 100000 * (1 + eval_seed) upwards
    that the task's own expert solves. Training states lie below seed 90000, those of selection between; both show other
    backgrounds than evaluation.

    Args:
        root: Folder of the checkout, of branch stable_2.0, main or RLinf_support. If not given: the environment
            variable ROBOTWIN_ROOT.
        interpreter: Python of the RoboTwin installation, in which the workers run. If not given: the environment
            variable ROBOTWIN_PYTHON, else this Python, in processes of its own.
        assets_root: Folder that holds `assets/`. If not given: the checkout.
        task_config: Configuration of the scenes: demo_clean, demo_randomized, or another one of the checkout.
        embodiment: The robot: one name of a robot with two arms, or two names (or folders) and their distance in m.
            If empty: what `task_config` says, aloha-agilex.
        arm_joints: Joints of one arm; needed for a robot that this package does not know.
        action_type: "qpos": absolute joint targets in rad, "ee": absolute hand poses (m, quaternion wxyz); for each
            arm, followed by its gripper, 0 (closed) to 1 (open).
        execution: "per_action" brings every action to a stop, as published results do; "chunk" makes one trajectory of
            a chunk, as RLinf does (branch RLinf_support, "qpos" and arms of six joints only).
        cameras: Images of an observation: "head", "left" and "right" (wrists).
        camera_type: D435, L515, Large_D435 or Large_L515. If not given: what `task_config` says, D435.
        image_size: Height and width to which images are squeezed. If not given: those of the camera, 240 x 320 pixels.
        train_instructions: Instructions of training episodes: "seen" or "unseen" wordings.
        eval_instructions: The same of evaluation episodes. If not given: as in RoboTwin's main branch, "seen" in
            demo_clean and "unseen" otherwise.
        validity: Which scenes count: "expert": those that the task's expert solves, checked once and remembered;
            "seed_file": those of lists; "none": all, and instructions do not name the objects.
        train_seed_file: JSON {task: {"success_seeds": [...]}} for validity "seed_file", as of RLinf and SimpleVLA-RL.
            Every tenth seed of a task is kept for selection.
        eval_seed_file: The same for evaluation; the two must not share a seed.
        cache_dir: Folder of the seeds that were checked. If not given: dvla_lightning/robotwin in the user's cache.
        eval_seed: Number of the evaluation, which begins at seed 100000 * (1 + eval_seed).
        num_train_scenes: Different initial states of training, per task.
        max_steps: Task -> control steps after which an episode is truncated, where it is not the published limit.
        shader: "rt" is RoboTwin's ray tracing; "default" and "minimal" rasterise, also on a CPU.
        shadow: Whether lights cast shadows; without them a CPU renders 20 times faster.
        planner: Of the expert: "checkout" leaves RoboTwin's (curobo), "mplib" needs no GPU.
    """

    tasks = tuple(STEP_LIMITS)

    machine_options = ("interpreter", "root", "assets_root", "cache_dir", "train_seed_file", "eval_seed_file")

    def __init__(
        self,
        root: str | None = None,
        interpreter: str | None = None,
        assets_root: str | None = None,
        task_config: str = "demo_clean",
        embodiment: Sequence[str | float] = (),
        arm_joints: int | None = None,
        action_type: Literal["qpos", "ee"] = "qpos",
        execution: Literal["per_action", "chunk"] = "per_action",
        cameras: Sequence[str] = ("head", "left", "right"),
        camera_type: str | None = None,
        image_size: int | None = None,
        train_instructions: Literal["seen", "unseen"] = "seen",
        eval_instructions: Literal["seen", "unseen"] | None = None,
        validity: Literal["expert", "seed_file", "none"] = "expert",
        train_seed_file: str | None = None,
        eval_seed_file: str | None = None,
        cache_dir: str | None = None,
        eval_seed: int = 0,
        num_train_scenes: int = 1000,
        max_steps: dict[str, int] | None = None,
        shader: Literal["rt", "default", "minimal"] = "rt",
        shadow: bool = True,
        planner: Literal["checkout", "mplib"] = "checkout",
    ) -> None:
        self.root = root or os.environ.get("ROBOTWIN_ROOT")
        # Never in the calling process: RoboTwin changes its working directory and seeds its global generators.
        self.interpreter = interpreter or os.environ.get("ROBOTWIN_PYTHON") or sys.executable
        self.assets_root, self.task_config = assets_root, task_config
        self.embodiment, self.cameras = list(embodiment), tuple(cameras)
        self.action_type, self.execution = action_type, execution
        self.camera_type, self.image_size = camera_type, image_size
        self.train_instructions = train_instructions
        self.eval_instructions = eval_instructions or EVAL_INSTRUCTIONS.get(task_config, "unseen")
        self.validity = validity
        listed, self.eval_seeds = read_seed_file(train_seed_file), read_seed_file(eval_seed_file)
        self.selection_seeds = {task: _every_tenth(seeds, True) for task, seeds in listed.items()}
        self.train_seeds = {task: _every_tenth(seeds, False) for task, seeds in listed.items()}
        self.cache_dir = str(Path(cache_dir or _user_cache()).expanduser().resolve())  # the simulator changes directory
        self.eval_seed, self.num_train_scenes = eval_seed, num_train_scenes
        self.max_steps = {**STEP_LIMITS, **(max_steps or {})}
        self.shader, self.shadow, self.planner = shader, shadow, planner
        joints = _arm_joints(self.embodiment, arm_joints)
        self._check(joints)
        self.action_dim = 2 * (joints + 1) if action_type == "qpos" else 16
        self.proprioception_dim = self.action_dim

    def make(self) -> SimulatorEnv:
        """Builds the simulator in this process, which changes its working directory; see `Environment.make`."""
        from dvla_lightning.envs.robotwin.env import RoboTwinEnv

        return RoboTwinEnv(self.simulator_options(), self.image_shape)

    def num_heldout_states(self, task: str) -> int | None:
        """Number of held-out states of a task: no limit (None), or as many as the seed file lists."""
        self.select_tasks(task)
        return len(self.eval_seeds.get(task, [])) if self.validity == "seed_file" else None

    def num_selection_states(self, task: str) -> int | None:
        """Number of selection states of a task: thousands (None), or every tenth of the seed file of training."""
        self.select_tasks(task)
        return len(self.selection_seeds.get(task, [])) if self.validity == "seed_file" else None

    def num_trials(self, task: str) -> int:
        """100, as RoboTwin's evaluation runs them; fewer if a seed file lists fewer."""
        available = self.num_heldout_states(task)
        return NUM_TRIALS if available is None else min(NUM_TRIALS, available)

    def foreign_build(self) -> dict[str, Any]:
        """Builds `simulator/` alone, which needs neither gymnasium nor this Python."""
        folder = Path(__file__).parent / "simulator"
        return {
            "packages": {"robotwin_simulator": str(folder)},
            "factory": "robotwin_simulator.simulator:Simulator",
            "arguments": self.simulator_options(),
        }

    def simulator_options(self) -> dict[str, Any]:
        """Arguments of `simulator.Simulator`, in plain types.

        Raises:
            UserError: if no checkout is named.
        """
        if not self.root:
            raise UserError(
                "RoboTwin: no checkout is named: give its folder as `root` or in the environment variable ROBOTWIN_ROOT"
            )
        names = ["assets_root", "task_config", "action_type", "action_dim", "execution", "camera_type"]
        names += ["image_size", "train_instructions", "eval_instructions", "validity", "train_seeds"]
        names += ["selection_seeds", "eval_seeds"]
        names += ["cache_dir", "num_train_scenes", "max_steps", "shader", "shadow", "planner"]
        return {
            **{name: getattr(self, name) for name in names},
            "root": str(local_path(self.root, "RoboTwin: root or ROBOTWIN_ROOT").resolve()),
            # Folders of robots: the simulator changes its working directory.
            "embodiment": [
                os.path.abspath(part) if isinstance(part, str) and os.sep in part else part for part in self.embodiment
            ],
            "cameras": list(self.cameras),
            "first_eval_seed": FIRST_EVAL_SEED * (1 + self.eval_seed),
        }

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and 3 of one picture."""
        width, height = CAMERA_SIZES[self.camera_type or "D435"]
        return (self.image_size, self.image_size, 3) if self.image_size else (height, width, 3)

    def identity(self) -> Mapping[str, Any]:
        """Everything that changes scenes, pixels or dynamics, and the commit of the checkout."""
        names = ["task_config", "embodiment", "action_type", "execution", "cameras", "camera_type", "image_size"]
        names += ["train_instructions", "eval_instructions", "validity", "eval_seed", "num_train_scenes"]
        names += ["shader", "shadow", "planner"]
        checkout = Checkout(self.simulator_options()["root"], self.assets_root)
        own_limits = {task: limit for task, limit in self.max_steps.items() if limit != STEP_LIMITS[task]}
        return {
            "class": type(self).__name__,
            **{name: getattr(self, name) for name in names},
            "max_steps": own_limits or "published",
            "layout": checkout.layout,
            "commit": checkout.commit(),
        }

    def _check(self, joints: int) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed and not (name == "camera_type" and value is None):
                raise UserError(f"RoboTwin: {name}={value!r} is not one of: {', '.join(allowed)}")
        self.select_tasks(list(self.max_steps))
        if len(self.embodiment) not in (0, 1, 3):
            raise UserError(
                f"RoboTwin: embodiment {self.embodiment} must be one name, or left name, right name and distance in m"
            )
        if self.execution == "chunk" and self.action_type == "ee":
            raise UserError("RoboTwin: execution: chunk takes joint targets: set action_type: qpos")
        if self.execution == "chunk" and joints != CHUNK_ARM_JOINTS:
            raise UserError(
                f"RoboTwin: execution: chunk moves arms of {CHUNK_ARM_JOINTS} joints, not of {joints}: set execution: "
                "per_action, or choose another embodiment"
            )
        if self.eval_seed < 0 or not 1 <= self.num_train_scenes <= MAX_TRAIN_SCENES:
            raise UserError(
                f"RoboTwin: eval_seed must not be negative, num_train_scenes must be in 1..{MAX_TRAIN_SCENES}"
            )
        if self.validity == "seed_file" and not (self.train_seeds or self.eval_seeds):
            raise UserError("RoboTwin: validity: seed_file needs train_seed_file or eval_seed_file")
        if self.validity != "seed_file" and (self.train_seeds or self.eval_seeds):
            raise UserError(
                f"RoboTwin: train_seed_file and eval_seed_file need validity: seed_file, it is {self.validity}"
            )
        for task, seeds in [*self.train_seeds.items(), *self.selection_seeds.items()]:
            if shared := set(seeds) & set(self.eval_seeds.get(task, [])):
                raise UserError(
                    f"RoboTwin: seed {min(shared)} of task {task!r} is both in train_seed_file and in eval_seed_file: "
                    "give lists that share none"
                )


def _arm_joints(embodiment: Sequence[str | float], given: int | None) -> int:
    """Joints of one arm, gripper not counted."""
    if given is not None:
        return given
    name = embodiment[0] if embodiment else "aloha-agilex"
    if name not in ARM_JOINTS:
        raise UserError(
            f"RoboTwin: unknown embodiment {name!r}: choose from: {', '.join(ARM_JOINTS)}; for another robot of your "
            "checkout give the joints of one arm as arm_joints"
        )
    return ARM_JOINTS[str(name)]


def _user_cache() -> str:
    return str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dvla_lightning" / "robotwin")


def _every_tenth(seeds: Sequence[int], chosen: bool) -> list[int]:
    """Every tenth seed (`chosen`), or all others."""
    return [seed for number, seed in enumerate(seeds, 1) if (number % 10 == 0) == chosen]
