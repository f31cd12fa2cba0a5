"""A tabletop that goes wrong in ten ways, once for each initial state that is meant to."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from dvla_lightning.envs.tabletop import Tabletop, TabletopEnv

FAULTS = (
    *("raise", "kill", "hang", "flood", "nan_reward", "infinite_reward", "nan_proprioception"),
    *("wrong_shape", "missing_camera", "float_image"),
)


class SometimesFaultyEnv(TabletopEnv):
    def __init__(self, every, marker):
        super().__init__()
        self.every, self.marker = every, Path(marker)
        self.fault = None

    def reset(self, *, seed=None, options=None):
        state = options["initial_state"]
        self.fault = None
        if state % self.every == 0 and not (self.marker / str(state)).exists():
            self.fault = FAULTS[state // self.every % len(FAULTS)]
            self.place = self.marker / str(state)
        return super().reset(seed=seed, options=options)

    def step_chunk(self, actions):
        observation, reward, *rest = super().step_chunk(actions)
        if self.fault is None:
            return observation, reward, *rest
        self.place.write_text(self.fault)
        observation = {**observation, "images": dict(observation["images"])}
        return self._spoil(observation, reward, *rest)

    def _spoil(self, observation, reward, *rest):
        image = observation["images"]["top"]
        match self.fault:
            case "raise":
                raise RuntimeError("contact solver diverged")
            case "kill":
                print("the simulator's last words", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(600)
            case "flood":
                while True:
                    print("WARNING: Nan, Inf or huge value in QACC" * 100, flush=True)
            case "nan_reward":
                reward = float("nan")
            case "infinite_reward":
                reward = np.float64("inf")
            case "nan_proprioception":
                observation["proprioception"] = observation["proprioception"] * np.float32("nan")
            case "wrong_shape":
                observation["images"]["top"] = image[:-1]
            case "missing_camera":
                observation["images"] = {"front": image}
            case "float_image":
                observation["images"]["top"] = image / 255
        return observation, reward, *rest


class SometimesFaultyTabletop(Tabletop):
    """Tabletop where the first visit of every `every`-th initial state ends in one of `FAULTS`.

    Args:
        every: 10 for a tenth of the states; 0 mod `every` is faulty.
        marker: folder with one file for each fault that has happened, over all processes.
    """

    def __init__(self, every: int, marker: str) -> None:
        super().__init__()
        self.every, self.marker = every, marker

    def make(self):
        return SometimesFaultyEnv(self.every, self.marker)
