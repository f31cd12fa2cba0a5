"""One RoboTwin simulator that serves every task; start reading at `Simulator.reset`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError
from .expert import proprioception
from .language import instruction
from .options import Options
from .rendering import device_summary, picture
from .stage import Stage

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray  # numpy 1.17 has none

    Outcome = tuple[float, bool, bool, dict[str, Any]]  # reward, terminated, truncated, info
    Observation = Any  # `envs.base.Observation`, which RoboTwin's Python need not have

PACKAGES = ("sapien", "mplib", "numpy", "torch", "nvidia_curobo", "toppra", "gymnasium")


class Simulator:
    """Has the methods of `envs.base.SimulatorEnv`, without its base class, which RoboTwin's Python need not have.

    Args:
        options: the fields of `Options`.

    Raises:
        UserError: if the checkout, its assets or its packages cannot be used.
    """

    def __init__(self, **options: Any) -> None:
        self.options = Options(**options)
        self.stage = Stage(self.options)
        self._scene: tuple[int, str] | None = None  # seed and split
        self._plan: list[NDArray[np.float32]] | None = None  # the expert's actions that are left
        self._gave_up = False

    @property
    def on_progress(self) -> Callable[[], object]:
        """The function to call while a reset makes progress; see `foreign_worker.Runner`."""
        return self.stage.on_progress

    @on_progress.setter
    def on_progress(self, call: Callable[[], object]) -> None:
        self.stage.on_progress = call

    def reset(self, seed: int | None, options: Mapping[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Sets up an initial state; see `SimulatorEnv.reset`."""
        if options.get("expert_noise"):
            raise UserError("RoboTwin's expert acts without noise: set expert_noise: 0")
        self._scene, split = None, options["split"]
        with gradients():
            self.stage.select(options["task"])
            scene_seed, info = self.stage.find_scene(split, int(options["initial_state"]))
            self.stage.set_up(scene_seed, split)
            task = self.stage.task
            if not info and hasattr(task, "get_info"):  # RLinf_support knows it without the expert
                info = {key: str(value) for key, value in task.get_info().items()}
        self._scene, self._plan, self._gave_up = (scene_seed, split), None, False
        seen = self.options.eval_instructions if split == "heldout" else self.options.train_instructions
        task.set_instruction(instruction(self.stage.checkout, self.stage.name, info, seen, scene_seed))
        return self.observe(), {"is_success": False, "scene_seed": scene_seed}

    def advance(self, action: ArrayLike) -> Outcome:
        """Runs one action, time-parameterised by itself as in the published protocol; renders nothing."""
        task, _ = self._require_reset()
        with gradients():
            task.take_action(self._clip(np.asarray(action, np.float64)[None])[0], self.options.action_type)
        return self._outcome()

    def step_chunk(self, actions: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Runs a chunk, action by action or as one trajectory; see `SimulatorEnv.step_chunk`."""
        start = time.perf_counter()
        run = self._run_as_one if self.options.execution == "chunk" else self._run_one_by_one
        executed, (reward, terminated, truncated, info) = run(actions)
        simulated = time.perf_counter()
        observation = self.observe()
        cost = {"simulation_seconds": simulated - start, "rendering_seconds": time.perf_counter() - simulated}
        return observation, reward, terminated, truncated, dict(info, num_env_steps=executed, **cost)

    def observe(self) -> Observation:
        """Renders the cameras and reads where the arms are sent; see `SimulatorEnv.observe`."""
        task, _ = self._require_reset()
        shown = task.get_obs()
        self._picture = picture(shown, self.options.cameras[0] if self.options.cameras else "head", None)
        return {
            "images": {name: picture(shown, name, self.options.image_size) for name in self.options.cameras},
            "proprioception": proprioception(task, self.options.action_type),
            "instruction": task.get_instruction(),
        }

    def expert_action(self) -> NDArray[np.float32]:
        """The next action of the expert, which solves the scene at the first call; it ends the episode if it cannot."""
        task, scene = self._require_reset()
        if self._plan is None:
            sentence = task.get_instruction()
            with gradients():
                run = self.stage.run_expert(*scene)
                self.stage.set_up(*scene)  # the expert has changed the scene
            task.set_instruction(sentence)
            self._plan = list(run.actions) if run.verdict.valid else []
        self._gave_up = len(self._plan) <= 1  # nothing is left after this one
        return self._plan.pop(0) if self._plan else proprioception(task, self.options.action_type)

    def render(self) -> NDArray[np.uint8]:
        """The first camera as it was last seen, in its own size."""
        self._require_reset()
        return self._picture

    def describe(self) -> dict[str, Any]:
        """Versions, layout and rendering devices."""
        return {
            "layout": self.stage.checkout.layout,
            "commit": self.stage.commit,
            "versions": {name: _version(name) for name in PACKAGES},
            "devices": device_summary(),
        }

    def close(self) -> None:
        """Closes the scene."""
        self._scene = None
        self.stage.close()

    def _require_reset(self) -> tuple[Any, tuple[int, str]]:
        """RoboTwin's task object, and the scene that it shows."""
        if self._scene is None:
            raise UserError("RoboTwin: call reset() first")
        return self.stage.task, self._scene

    def _run_one_by_one(self, actions: NDArray[np.float32]) -> tuple[int, Outcome]:
        """Brings every action to a stop: the published dynamics."""
        total, executed = 0.0, 0
        outcome: Outcome = (0.0, False, False, {"is_success": False})
        for action in actions:
            outcome = self.advance(action)
            total, executed = total + outcome[0], executed + 1
            if outcome[1] or outcome[2]:
                break
        return executed, (total, *outcome[1:])

    def _run_as_one(self, actions: NDArray[np.float32]) -> tuple[int, Outcome]:
        """Runs one trajectory through all actions, as RLinf trains."""
        task, _ = self._require_reset()
        chunk = self._clip(np.asarray(actions, np.float64))[: task.step_lim - task.take_action_cnt]
        with gradients():
            task.gen_sparse_reward_data(chunk)  # like take_action, it leaves its outcome in eval_success
        return len(chunk), self._outcome()

    def _clip(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Checks (T, action_dim) and clips the grippers to 0 (closed) .. 1 (open); joints have no common range."""
        wanted = self.options.action_dim
        if actions.ndim != 2 or actions.shape[1] != wanted:
            raise UserError(f"RoboTwin takes actions of shape ({wanted},) here, not {actions.shape[1:]}")
        clipped, grippers = actions.copy(), [wanted // 2 - 1, wanted - 1]
        clipped[:, grippers] = np.clip(clipped[:, grippers], 0.0, 1.0)
        return clipped

    def _outcome(self) -> Outcome:
        task = self.stage.task
        success = bool(task.eval_success)
        ended = task.take_action_cnt >= task.step_lim or self._gave_up
        return float(success), success, ended and not success, {"is_success": success}


def gradients() -> AbstractContextManager[Any]:
    """Turns gradients on: RoboTwin's planner needs them, and a policy in this process may have turned them off."""
    torch = sys.modules.get("torch")
    return torch.enable_grad() if torch else contextlib.nullcontext()


def _version(package: str) -> str | None:
    from importlib import metadata  # Python 3.8 has it

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
