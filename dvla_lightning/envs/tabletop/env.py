"""`TabletopEnv`: the table as a gymnasium environment."""

from __future__ import annotations

import copy
import math
import string
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dvla_lightning.envs.base import Observation, SimulatorEnv
from dvla_lightning.envs.tabletop.drawing import mark_outcome, paint, paint_ground
from dvla_lightning.envs.tabletop.expert import expert_action
from dvla_lightning.envs.tabletop.scene import Point, Scene, move_tool
from dvla_lightning.envs.tabletop.tasks import SUCCESS, TASKS, initial_scene
from dvla_lightning.errors import UserError

CAMERA = "top"
STEP_LIMIT = "step_limit"  # the outcome of a truncated episode
_RENDER_SIZE = 256
_OPTIONS = ("task", "split", "initial_state", "expert_noise", "expert_attempt")
# In detour the tool starts 0.075 from the wall: at full noise most demonstrations would crash in the first steps.
_NOISE_SCALE = {"detour": 0.4}


class TabletopEnv(SimulatorEnv):
    """A table seen from above and a tool point that an action (dx, dy) moves by up to 0.12 along each axis.

    The reward is 1 when the task is solved, which terminates the episode; a mistake terminates it with reward 0;
    the task's step limit truncates it. ``info["outcome"]`` says how it ended: "success", "wrong_block", "wall" or
    "step_limit"; None while it goes on. The proprioception is (tool x, tool y, whether a block
    is held, number of collected blocks).

    Args:
        image_size: height and width of the observation's picture in pixels.
        render_mode: "rgb_array" or None.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 8}  # type: ignore[misc]

    def __init__(self, image_size: int = 32, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode
        self.image_size = image_size
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        letters = string.ascii_lowercase + " ,"
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict({CAMERA: spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)}),
                "proprioception": spaces.Box(
                    np.array([-1, -1, 0, 0], np.float32), np.array([1, 1, 1, 2], np.float32), dtype=np.float32
                ),
                "instruction": spaces.Text(max_length=80, charset=letters),
            }
        )
        self._scene: Scene | None = None
        self._outcome: str | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode; see `SimulatorEnv` for the options. What they leave open is drawn at random.

        Raises:
            UserError: for an unknown option, task or split, or a negative number.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise UserError(f"Tabletop: unknown reset option {unknown[0]!r}; choose from: {', '.join(_OPTIONS)}")
        # Always drawn, so that the noise of an episode does not depend on which options were given.
        task, initial_state, way = (int(n) for n in self.np_random.integers((len(TASKS), 2**31, 2)))
        self._task = str(options.get("task", tuple(TASKS)[task]))
        self._scene = initial_scene(
            self._task, options.get("split", "train"), int(options.get("initial_state", initial_state))
        )
        self._noise = float(options.get("expert_noise", 0.0)) * _NOISE_SCALE.get(self._task, 1.0)
        if not 0.0 <= self._noise < math.inf:
            raise UserError(f"Tabletop: expert_noise is {options['expert_noise']}; give a number from 0 up")
        self._way = (way + int(options.get("expert_attempt", 0))) % 2
        self._outcome, self._num_steps = None, 0
        self._trail: list[Point] = []
        self._ground = paint_ground(self._scene, self.image_size)
        return self.observe(), self._info()

    @property
    def scene(self) -> Scene:
        """A copy of the present state, for tests and analysis; a policy sees only observations."""
        return copy.deepcopy(self._running_scene())

    def advance(self, action: NDArray[np.float32]) -> tuple[float, bool, bool, dict[str, Any]]:
        scene = self._running_scene()
        if self._outcome is not None:
            raise gymnasium.error.ResetNeeded(f"Tabletop: the episode is over ({self._outcome}): call reset() first")
        if len(action) != 2:
            raise UserError(f"Tabletop: an action has 2 components (dx, dy), not {len(action)}")
        dx, dy = float(action[0]), float(action[1])
        if not (math.isfinite(dx) and math.isfinite(dy)):
            raise UserError(f"Tabletop: action ({dx}, {dy}) is not finite")
        self._trail.append(scene.tool)
        move_tool(scene, min(max(dx, -1.0), 1.0), min(max(dy, -1.0), 1.0))
        self._num_steps += 1
        self._outcome = TASKS[self._task].judge(scene)
        terminated = self._outcome is not None
        truncated = not terminated and self._num_steps >= TASKS[self._task].step_limit
        if truncated:
            self._outcome = STEP_LIMIT
        return float(self._outcome == SUCCESS), terminated, truncated, self._info()

    def observe(self) -> Observation:
        scene = self._running_scene()
        return {
            "images": {CAMERA: paint(scene, self._ground)},
            "proprioception": np.array((scene.x, scene.y, scene.holding, scene.collected), np.float32),
            "instruction": scene.instruction,
        }

    def expert_action(self) -> NDArray[np.float32]:
        """The scripted expert's next action with its noise, (2,) float32 in [-1, 1].

        The noise is Gaussian with standard deviation `expert_noise` per component (0.4 of it in detour, where the
        corridor is narrow).
        """
        action = np.array(expert_action(self._task, self._running_scene(), self._way))
        if self._noise:
            action = np.clip(action + self.np_random.normal(0.0, self._noise, size=2), -1.0, 1.0)
        return action.astype(np.float32)

    def render(self) -> NDArray[np.uint8] | None:
        """A (256, 256, 3) uint8 picture with the tool's path; the border turns green on success, red on failure."""
        if self.render_mode is None:
            gymnasium.logger.warn("Tabletop: render() needs render_mode='rgb_array'")
            return None
        scene = self._running_scene()
        picture = paint(scene, paint_ground(scene, _RENDER_SIZE), self._trail)
        if self._outcome is not None:
            mark_outcome(picture, self._outcome == SUCCESS)
        return picture

    def _running_scene(self) -> Scene:
        if self._scene is None:
            raise gymnasium.error.ResetNeeded("Tabletop: call reset() first")
        return self._scene

    def _info(self) -> dict[str, Any]:
        return {"is_success": self._outcome == SUCCESS, "outcome": self._outcome}
