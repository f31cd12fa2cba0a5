"""The hand in closed loop: errors times a gain become actions, with the noise that makes demonstrations differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.geometry import Scene, about, rotation_vector

OPEN, CLOSED = -1.0, 1.0  # LIBERO's gripper commands

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

UP = np.array([0.0, 0.0, 1.0])


class Arm:
    """Moves the hand, or what it holds, to where a skill wants it.

    Args:
        scene: where things are.
        noise: standard deviation of the noise on each translation command, in units of the action range. The speed of
            the whole episode is drawn from [1 - 2 noise, 1] (at least from [0.5, 1]).
        rng: where the noise comes from.

    Attributes:
        rotation: the hand's orientation to hold, (3, 3).
    """

    def __init__(self, scene: Scene, noise: float, rng: np.random.Generator) -> None:
        self.scene = scene
        self._noise = noise
        self._rng = rng
        self._speed = 1.0 - min(2.0 * noise, 0.5) * rng.random()
        self._home = scene.hand_rotation()
        self.rotation = self._home

    def face(self, yaw: float = 0.0) -> None:
        """Makes the hand point down from now on, turned about the vertical from how it was at the start, rad."""
        self.turn_to(about(UP, yaw) @ self._home)

    def turn_to(self, rotation: Matrix) -> None:
        """Gives the hand this orientation from now on, or the one with swapped fingers, as the last joint allows.

        At the start the last joint stands at 45 of +-166 degrees, so there is more room on one side.
        """
        swapped = rotation * np.array([-1.0, -1.0, 1.0])
        neutral = about(UP, np.pi / 4) @ self._home
        self.rotation = max(rotation, swapped, key=lambda either: np.trace(either @ neutral.T))  # the smaller turn

    def stay(self, gripper: float, num_steps: int) -> Iterator[Vector]:
        """Stands still."""
        return (_command(gripper) for _ in range(num_steps))

    def travel(self, goal: Vector, gripper: float, tolerance: float = 0.007) -> Iterator[Vector]:
        """Flies the free hand to a point in the air, or as far above it as things on the way demand.

        Args:
            goal: (3,) m.
            gripper: OPEN or CLOSED.
            tolerance: m. The default suits a way down that ends with 6 mm of air on both sides of an object.
        """
        hand = self.scene.hand_position
        height = max(goal[2], self.scene.highest(hand(), goal, margin=0.06) + 0.05)
        if hand()[2] < height - 0.03:
            begin = np.append(hand()[:2], height)
            yield from self.servo(hand, begin, gripper, tolerance=0.03, max_steps=40, gain=12.0)
        over = np.append(goal[:2], height)
        yield from self.servo(hand, over, gripper, tolerance=tolerance, max_steps=90, gain=12.0)

    def servo(
        self,
        moved: Callable[[], Vector],
        goal: Vector | Callable[[], Vector],
        gripper: float,
        *,
        tolerance: float,
        max_steps: int,
        gain: float,
        max_speed: float = 1.0,
        until: Callable[[], bool] = lambda: False,
        patience: int = 15,
    ) -> Iterator[Vector]:
        """Moves something to a goal, which may move too; gives up silently when it gets no nearer.

        Args:
            moved: position of what is to get there, (3,) m: the hand, or what it holds, which corrects slip.
            goal: where to, (3,) m.
            gripper: OPEN or CLOSED.
            tolerance: how near is near enough, m.
            max_steps: control steps.
            gain: command per metre of error.
            max_speed: largest command, in units of the action range.
            until: ends the motion early.
            patience: control steps without getting nearer after which it gives up.
        """
        limit = max_speed * self._speed
        bias = np.zeros(3)
        nearest, idle = np.inf, 0
        for _ in range(max_steps):
            error = np.clip((goal() if callable(goal) else goal) - moved(), -0.15, 0.15)
            turn = rotation_vector(self.rotation @ self.scene.hand_rotation().T)
            # Near full reach the arm's controller stands still 20 mm short of its goal: integrate what is left.
            if np.linalg.norm(error) < 0.03:
                bias = np.clip(bias + 0.1 * error, -0.03, 0.03)
            if until() or (np.linalg.norm(error) < tolerance and np.linalg.norm(turn) < 0.08):
                return
            distance = float(np.linalg.norm(error) + 0.1 * np.linalg.norm(turn))
            nearest, idle = (distance, 0) if distance < nearest - 0.001 else (nearest, idle + 1)
            if idle > patience:
                return
            command = _command(gripper)
            command[:3] = np.clip(gain * (error + bias), -limit, limit) + self._noise * self._rng.standard_normal(3)
            command[3:6] = np.clip(2.0 * turn, -1.0, 1.0)
            yield command

    def stray(self) -> Vector:
        """A random offset of a point in the air, (3,) m: 10 mm at noise 0.1."""
        return 0.1 * self._noise * self._rng.standard_normal(3)


def _command(gripper: float) -> Vector:
    """The action that stands still, (7,)."""
    return np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper])
