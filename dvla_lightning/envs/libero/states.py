"""Puts a LIBERO simulator into a numbered initial state, completely and reproducibly."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.launch import quiet
from dvla_lightning.envs.libero.suites import INSTALL_REMEDY, Task
from dvla_lightning.errors import UserError


class InitialStates:
    """The initial states of one task.

    LIBERO draws the places of cabinet and stove at every reset, from numpy's global generator, and its published
    states do not contain them. Here the number of a state seeds that draw, so a number names the whole scene. What
    LIBERO's soft reset forgets to reset is reset too, which makes soft and hard resets bit-identical.

    Args:
        control: LIBERO's `ControlEnv`.
        task: the task it runs.
    """

    def __init__(self, control: Any, task: Task) -> None:
        self._control = control
        self._domain = control.env
        self._task = task
        self._published = load_published(task)
        self._furniture = self._compiled_furniture()

    def place(self, split: str, number: int) -> None:
        """Resets to an initial state: a published one ("heldout"), or one drawn from the task's regions ("train")."""
        self._undo_last_reset()
        seed = number if split == "heldout" else train_seed(self._task.name, number)
        with global_random_state(seed), quiet():
            self._control.reset()
        for robot in self._domain.robots:
            # The only thing of the last episode that survives a soft reset: where the fingers were told to be.
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        if split == "heldout":
            self._control.set_init_state(self._published[number])

    def _undo_last_reset(self) -> None:
        if self._domain.hard_reset:
            # A hard reset appends the drawer and knob samplers once more; each of them draws random numbers.
            self._domain.object_property_initializers.clear()
            return
        # The samplers of objects on furniture add the furniture's place to the region's, which is right only while
        # the furniture stands where it was compiled.
        for body, position, quaternion in self._furniture:
            self._domain.sim.model.body_pos[body] = position
            self._domain.sim.model.body_quat[body] = quaternion

    def _compiled_furniture(self) -> list[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
        """Body id, position (3,) and quaternion (4,) of each piece of furniture, as written in the model's XML."""
        home = []
        for fixture in self._domain.fixtures_dict.values():
            element = self._domain.model.worldbody.find(f".//body[@name='{fixture.root_body}']")
            position = np.array(element.get("pos", "0 0 0").split(), float)
            quaternion = np.array(element.get("quat", "1 0 0 0").split(), float)
            home.append((self._domain.sim.model.body_name2id(fixture.root_body), position, quaternion))
        return home


def load_published(task: Task) -> NDArray[np.float64]:
    """The published initial states, (50, 1 + nq + nv): time, qpos, qvel.

    Raises:
        UserError: if the file is not there.
    """
    import torch

    if not task.initial_states.is_file():
        raise UserError(f"the file {task.initial_states} is missing from the installed hf-libero: {INSTALL_REMEDY}")
    # A pickled numpy array that came with the installed package, hence as trusted as its code.
    return np.asarray(torch.load(task.initial_states, weights_only=False))


def train_seed(task: str, number: int) -> int:
    """A 32-bit seed; far from the small numbers that seed the held-out states."""
    return int(np.random.SeedSequence([zlib.crc32(task.encode()), number]).generate_state(1)[0])


@contextlib.contextmanager
def global_random_state(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, which LIBERO draws from, and gives it back as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
