"""A scripted expert for pick-and-place goals, from privileged state; it needs no pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.geometry import Scene
from dvla_lightning.envs.libero.grasps import Grasp, grasps
from dvla_lightning.errors import UserError

OPEN, CLOSED = -1.0, 1.0  # LIBERO's gripper commands

Vector = NDArray[np.float64]

UP = np.array([0.0, 0.0, 1.0])


class Expert:
    """Picks and places every object that the goal names, in order.

    Closed loop: hand errors times a gain become actions; from the lift on, the held object is steered instead of the
    hand, which corrects slip. Noise perturbs the actions, the speed and the points passed through the air, never
    the grasp or the place itself, so noisy demonstrations differ and still mostly succeed.

    Args:
        domain: the robosuite environment, in its initial state.
        attempt: which grasp candidate to use, 0 = the best.
        noise: standard deviation of the noise on each translation command, in units of the action range.
        rng: where the noise comes from.
    """

    def __init__(self, domain: Any, attempt: int, noise: float, rng: np.random.Generator) -> None:
        self._domain = domain
        self._scene = Scene(domain)
        self._attempt = attempt
        self._noise = noise
        self._rng = rng
        self._speed = 1.0 - min(2.0 * noise, 0.5) * rng.random()
        self._start_rotation = self._scene.hand_rotation()
        self._yaw = 0.0
        self._actions = self._run()

    def action(self) -> NDArray[np.float32]:
        """The next action, (7,). After the plan has ended it stands still with the gripper open.

        Raises:
            UserError: if the task's goal is not pick and place.
        """
        return np.clip(next(self._actions), -1.0, 1.0).astype(np.float32)

    def _run(self) -> Iterator[Vector]:
        for source, target in self._goals():
            yield from self._pick_and_place(source, target)
        while True:
            yield _command(OPEN)

    def _goals(self) -> list[tuple[str, str]]:
        goals = self._domain.parsed_problem["goal_state"]
        for predicate, *names in goals:
            if predicate not in ("on", "in") or len(names) != 2 or names[0] not in self._domain.objects_dict:
                raise UserError(f"the LIBERO expert can only pick and place, not: {' '.join([predicate, *names])}")
            self._require_reachable(names[1])
        return [(source, target) for _, source, target in goals]

    def _require_reachable(self, target: str) -> None:
        site = self._domain.object_sites_dict.get(target)
        if getattr(site, "joints", None) and not self._domain.object_states_dict[target].is_open():
            raise UserError(f"the LIBERO expert cannot open drawers, and {target} is closed")

    # ------------------------------------------------------------------ one object

    def _pick_and_place(self, source: str, target: str) -> Iterator[Vector]:
        """The phases; their step limits, tolerances (m) and gains are tuned on libero_spatial's training states."""
        candidates = grasps(self._scene, source)
        grasp: Grasp = candidates[self._attempt % len(candidates)]
        self._yaw = grasp.yaw
        hand = self._scene.hand_position

        def held() -> Vector:
            return self._scene.root(source)

        above = grasp.position + 0.1 * UP + self._stray()
        yield from self._servo(hand, above, OPEN, tolerance=0.015, max_steps=70, gain=12.0)
        yield from self._servo(hand, grasp.position, OPEN, tolerance=0.006, max_steps=45, gain=10.0)
        yield from (_command(CLOSED) for _ in range(10))
        place = self._place(source, target)
        carry = self._carry_height(source, target, place)
        up = np.append(held()[:2], carry)
        yield from self._servo(held, up, CLOSED, tolerance=0.02, max_steps=40, gain=12.0)
        over = np.append(place[:2], carry)
        yield from self._servo(held, over, CLOSED, tolerance=0.012, max_steps=80, gain=9.0)
        near = np.append(place[:2], min(carry, place[2] + 0.04))
        yield from self._servo(held, near, CLOSED, tolerance=0.02, max_steps=50, gain=9.0)
        yield from self._servo(held, place, CLOSED, tolerance=0.008, max_steps=25, gain=8.0, max_speed=0.7)
        yield from (_command(OPEN) for _ in range(8))
        retreat = hand() + 0.12 * UP
        yield from self._servo(hand, retreat, OPEN, tolerance=0.02, max_steps=25, gain=12.0)
        yield from (_command(OPEN) for _ in range(5))

    def _place(self, source: str, target: str) -> Vector:
        """Where the object's root has to be when the gripper opens, (3,)."""
        if target in self._domain.object_sites_dict:
            centre, half = self._scene.site_box(target)
            # A "contain" region is the inside of a basket: drop in from 60 mm above its bottom.
            underside = centre[2] - half[2] + (0.06 if "contain" in target else 0.012)
        else:
            centre = self._scene.root(target)
            bowl = "bowl" in target
            underside = self._scene.points(target)[:, 2].min() + 0.02 if bowl else centre[2] + 0.012
        return np.append(centre[:2], underside + self._root_height(source))

    def _carry_height(self, source: str, target: str, place: Vector) -> float:
        """Height of the object's root on the way: above the target, above where it is, above its place."""
        site = self._domain.object_sites_dict.get(target)
        if site is None:
            top = self._scene.points(target)[:, 2].max()
        else:
            centre, half = self._scene.site_box(target)
            top = centre[2] + half[2] if "contain" in target else centre[2] - half[2]
        return max(top + self._root_height(source) + 0.05, self._scene.root(source)[2] + 0.1, place[2] + 0.06)

    def _root_height(self, name: str) -> float:
        """Height of an object's root above its underside, m."""
        return float(self._scene.root(name)[2] - self._scene.points(name)[:, 2].min())

    # ------------------------------------------------------------------ servo

    def _servo(
        self,
        moved: Callable[[], Vector],
        goal: Vector,
        gripper: float,
        *,
        tolerance: float,
        max_steps: int,
        gain: float,
        max_speed: float = 1.0,
    ) -> Iterator[Vector]:
        """Moves something to a goal; gives up silently after `max_steps`."""
        limit = max_speed * self._speed
        bias = np.zeros(3)
        for _ in range(max_steps):
            error = np.clip(goal - moved(), -0.15, 0.15)
            turn = self._rotation_error()
            # Near full reach the arm's controller stands still 20 mm short of its goal: integrate what is left.
            if np.linalg.norm(error) < 0.03:
                bias = np.clip(bias + 0.1 * error, -0.03, 0.03)
            if np.linalg.norm(error) < tolerance and np.linalg.norm(turn) < 0.08:
                return
            command = _command(gripper)
            command[:3] = np.clip(gain * (error + bias), -limit, limit) + self._noise * self._rng.standard_normal(3)
            command[3:6] = np.clip(1.5 * turn, -0.6, 0.6)
            yield command

    def _rotation_error(self) -> Vector:
        """Rotation vector from the hand's orientation to the wanted one, (3,) rad, world frame."""
        cos, sin = np.cos(self._yaw), np.sin(self._yaw)
        about_z = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        difference = about_z @ self._start_rotation @ self._scene.hand_rotation().T
        axis = np.array([difference[2, 1] - difference[1, 2], difference[0, 2] - difference[2, 0],
                         difference[1, 0] - difference[0, 1]]) / 2  # fmt: skip
        sine, cosine = np.linalg.norm(axis), (np.trace(difference) - 1.0) / 2.0
        return axis * (np.arctan2(sine, cosine) / sine) if sine > 1e-9 else np.zeros(3)

    def _stray(self) -> Vector:
        """A random offset of a point in the air, (3,) m: 10 mm at noise 0.1."""
        return 0.1 * self._noise * self._rng.standard_normal(3)


def _command(gripper: float) -> Vector:
    """Stand still, (7,)."""
    return np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper])
