"""`Tabletop`: the recipe that a configuration names and that travels to the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dvla_lightning.envs.base import Environment
from dvla_lightning.envs.tabletop.drawing import MIN_IMAGE_SIZE
from dvla_lightning.envs.tabletop.env import CAMERA, TabletopEnv
from dvla_lightning.envs.tabletop.scene import VERSION
from dvla_lightning.envs.tabletop.tasks import TASKS
from dvla_lightning.errors import UserError


class Tabletop(Environment):
    """The built-in table with the tasks reach, carry, push, collect and detour.

    Args:
        image_size: height and width of the picture in pixels.
    """

    tasks = tuple(TASKS)
    cameras = (CAMERA,)
    action_dim = 2
    proprioception_dim = 4

    def __init__(self, image_size: int = 32) -> None:
        if image_size < MIN_IMAGE_SIZE:
            raise UserError(f"Tabletop: image_size is {image_size}; give at least {MIN_IMAGE_SIZE} pixels")
        self.image_size = image_size

    def make(self) -> TabletopEnv:
        return TabletopEnv(image_size=self.image_size)

    def num_heldout_states(self, task: str) -> int | None:
        """None: every non-negative number is an initial state of every split.

        Raises:
            UserError: for an unknown task.
        """
        self.select_tasks(task)
        return None

    def identity(self) -> Mapping[str, Any]:
        return {"class": type(self).__name__, "version": VERSION, "image_size": self.image_size}
