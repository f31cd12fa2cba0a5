"""Puts a LIBERO simulator into a numbered initial state, completely and reproducibly."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.launch import quiet
from dvla_lightning.envs.libero.protocols import Protocol
from dvla_lightning.envs.libero.suites import INSTALL_REMEDY, Task
from dvla_lightning.errors import UserError
from dvla_lightning.seeding import seed_sequence


class InitialStates:
    """The initial states of one task.

    LIBERO draws the places of cabinet and stove at every reset, from numpy's global generator, and its published
    states do not contain them. Here the number of a state seeds that draw, so a number names the whole scene. What
    LIBERO's soft reset forgets to reset is reset too, which makes soft and hard resets bit-identical.

    Args:
        control: LIBERO's `ControlEnv`.
        task: the task it runs.
        protocol: says where the furniture stands in the published states; None seeds it with the state's number.
        train_on_published: split "train" takes the published states, too, in turn.
    """

    def __init__(
        self, control: Any, task: Task, protocol: Protocol | None = None, train_on_published: bool = False
    ) -> None:
        self._control = control
        self._protocol, self._train_on_published = protocol, train_on_published
        self._domain = control.env
        self._task = task
        self._published = load_published(task)
        self._furniture = self._compiled_furniture()
        self._samplers = list(self._domain.object_property_initializers)  # of drawers and knobs
        self._random_states: list[Any] = []  # of numpy before trial 0, 1, ... where trials follow one another

    def place(self, split: str, number: int) -> None:
        """Resets to an initial state: a published one ("heldout"), or one drawn from the task's regions (others)."""
        protocol = self._protocol
        if split == "train":
            self._reset(train_seed(self._task.name, number))
        elif split == "selection":
            self._reset(selection_seed(self._task.name, number))
        elif protocol is None:
            self._reset(number)
        elif protocol.seeds_every_reset:
            self._reset(protocol.furniture_seed + number)
        else:
            self._follow_trials(protocol.furniture_seed, number)
        for robot in self._domain.robots:
            # The only thing of the last episode that survives a soft reset: where the fingers were told to be.
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        if split == "heldout" or (split == "train" and self._train_on_published):
            self._control.set_init_state(self._published[number % len(self._published)])

    def _reset(self, seed: int | list[int] | None, past_resets: int = 0) -> None:
        """Runs LIBERO's reset with a seed for everything it draws; None goes on with numpy's present state."""
        self._undo_last_reset()
        # Upstream's hard resets append the drawer and knob samplers once more, each of which draws a random number.
        # Here a reset leaves no trace, except where `past_resets` asks for that of as many upstream ones.
        copies = past_resets + (0 if self._domain.hard_reset else 1)
        self._domain.object_property_initializers[:] = self._samplers * copies
        with global_random_state(seed), quiet():
            self._control.reset()

    def _follow_trials(self, seed: int, number: int) -> None:
        """Runs the reset of trial `number` as if the generator was seeded once, before trial 0; in any order."""
        with global_random_state(seed):
            self._random_states = self._random_states or [np.random.get_state()]
            for trial in range(min(number, len(self._random_states) - 1), number + 1):
                np.random.set_state(self._random_states[trial])
                self._reset(None, past_resets=trial + 1)  # one was the constructor's
                if trial + 1 == len(self._random_states):
                    self._random_states.append(np.random.get_state())

    def _undo_last_reset(self) -> None:
        if self._domain.hard_reset:
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
        UserError: if the file is not there, or holds something else.
    """
    import torch

    if not task.initial_states.is_file():
        raise UserError(f"the file {task.initial_states} is missing from the installed hf-libero: {INSTALL_REMEDY}")
    # LIBERO's files hold a pickled array, by the names of numpy 1: what makes one is let in, and nothing else.
    make = np.empty(0).__reduce__()[0]
    names: list[Any] = [
        make,
        (make, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.float64)),
    ]
    try:
        with torch.serialization.safe_globals(names):
            return np.asarray(torch.load(task.initial_states, weights_only=True), np.float64)
    except Exception as error:  # of a damaged pickle comes whatever comes
        raise UserError(f"the file {task.initial_states} holds no initial states: {INSTALL_REMEDY}") from error


def train_seed(task: str, number: int) -> int:
    """A 32-bit seed, far from the small numbers of the held-out states; never changed, as demonstrations rest on it."""
    return int(np.random.SeedSequence([zlib.crc32(task.encode()), number]).generate_state(1)[0])


def selection_seed(task: str, number: int) -> list[int]:
    """Four words: numpy's generator begins with several as with no single number, so with none of training."""
    return [int(word) for word in seed_sequence("LIBERO selection placements", task, number).generate_state(4)]


@contextlib.contextmanager
def global_random_state(seed: int | list[int] | None) -> Iterator[None]:
    """Seeds numpy's global generator, which LIBERO draws from, and restores it at the end; None changes nothing."""
    if seed is None:
        yield
        return
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
