"""`RoboTwinEnv`: the simulator in this process, as a gymnasium environment."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.base import Observation, SimulatorEnv
from dvla_lightning.envs.robotwin.simulator.simulator import Simulator


class RoboTwinEnv(SimulatorEnv):
    """RoboTwin as a `SimulatorEnv`, all done by `simulator.Simulator`, which changes the working directory.

    Args:
        options: the fields of `simulator.options.Options`.
        image_shape: height, width and 3 of one picture.
    """

    render_mode = "rgb_array"

    def __init__(self, options: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        self.simulator = Simulator(**options)
        numbers = (options["action_dim"],)
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, numbers, np.float32)
        image = gymnasium.spaces.Box(0, 255, image_shape, np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            images=gymnasium.spaces.Dict(dict.fromkeys(options["cameras"], image)),
            proprioception=gymnasium.spaces.Box(-np.inf, np.inf, numbers, np.float32),
            instruction=gymnasium.spaces.Text(500, charset=string.printable),
        )
        self._first_task = next(iter(options["max_steps"]))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Sets up an initial state; options as in `SimulatorEnv`."""
        super().reset(seed=seed)
        defaults = {"task": self._first_task, "split": "train", "initial_state": 0}
        return self.simulator.reset(seed, {**defaults, **(options or {})})

    def advance(self, action: NDArray[np.float32]) -> tuple[float, bool, bool, dict[str, Any]]:
        return self.simulator.advance(action)

    def step_chunk(self, actions: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        return self.simulator.step_chunk(actions)

    def observe(self) -> Observation:
        return self.simulator.observe()

    def expert_action(self) -> NDArray[np.float32]:
        return self.simulator.expert_action()

    def render(self) -> NDArray[np.uint8]:
        return self.simulator.render()

    def describe(self) -> dict[str, Any]:
        """Versions, layout and rendering devices."""
        return self.simulator.describe()

    def close(self) -> None:
        self.simulator.close()
