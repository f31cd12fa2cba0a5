"""The scripted expert of one episode: works through the goals, and repeats those that failed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.expert import spots
from dvla_lightning.envs.libero.expert.arm import OPEN, Arm
from dvla_lightning.envs.libero.expert.goals import PLACING, Goal, plan, read_goals
from dvla_lightning.envs.libero.expert.move_part import move_part
from dvla_lightning.envs.libero.expert.parts import Part, joint_names
from dvla_lightning.envs.libero.expert.pick_place import pick_and_place
from dvla_lightning.envs.libero.geometry import Scene
from dvla_lightning.errors import UserError

AT_REST = 0.05  # m/s; LIBERO drops some objects from the height of a metre at the beginning of an episode


class Expert:
    """Places objects, opens and closes drawers and doors, turns knobs, until the whole goal holds.

    Noise perturbs the actions, the speed and the points passed through the air, never a grasp or a place itself, so
    noisy demonstrations differ and still mostly succeed.

    Args:
        domain: the robosuite environment, in its initial state.
        attempt: which grasp candidates to use, 0 = the best.
        noise: standard deviation of the noise on each translation command, in units of the action range.
        rng: where the noise comes from.
    """

    def __init__(self, domain: Any, attempt: int, noise: float, rng: np.random.Generator) -> None:
        self._domain = domain
        self._scene = Scene(domain)
        self._arm = Arm(self._scene, noise, rng)
        self._attempt = attempt
        self._actions = self._run()

    def action(self) -> NDArray[np.float32]:
        """The next action, (7,). Where nothing is left to do it stands still with the gripper open.

        Raises:
            UserError: if the task's goal is beyond the expert's skills.
        """
        return np.clip(next(self._actions), -1.0, 1.0).astype(np.float32)

    def _run(self) -> Iterator[NDArray[np.float64]]:
        goals = read_goals(self._domain.parsed_problem["goal_state"])
        self._require_possible(goals)
        for _ in range(20):
            if self._scene.speed() < AT_REST:
                break
            yield from self._arm.stay(OPEN, 1)
        for number in count(self._attempt):
            for goal in plan([goal for goal in goals if not self._holds(goal)], self._door_of, self._is_open):
                if not self._holds(goal):
                    yield from self._pursue(goal, goals, number)
            yield from self._arm.stay(OPEN, 5)

    def _pursue(self, goal: Goal, goals: list[Goal], attempt: int) -> Iterator[NDArray[np.float64]]:
        if goal.predicate not in PLACING:
            return move_part(self._arm, Part(self._scene, goal.subject), goal.predicate, attempt)
        sharing = [other.subject for other in goals if other.target == goal.target]
        return pick_and_place(self._arm, goal.subject, goal.target, sharing, attempt)

    def _holds(self, goal: Goal) -> bool:
        return bool(self._domain._eval_predicate(goal.words))

    def _require_possible(self, goals: list[Goal]) -> None:
        for goal in goals:
            words = " ".join(goal.words)
            if goal.predicate not in PLACING:
                if not joint_names(self._domain, goal.subject):
                    raise UserError(f"the LIBERO expert finds no joint to move for the goal ({words})")
            elif goal.subject not in self._domain.objects_dict:
                raise UserError(f"the LIBERO expert can place objects only, and the goal is ({words})")
            elif self._door_of(goal.target) is None and spots.covered(self._scene, goal.target):
                raise UserError(f"the LIBERO expert places from above, and something covers the place of ({words})")

    def _door_of(self, region: str) -> str | None:
        """The name under which a region's drawer opens; None for what lies open."""
        site = self._domain.object_sites_dict.get(region)
        return region if site is not None and joint_names(self._domain, region) else None

    def _is_open(self, door: str) -> bool:
        return bool(self._domain.object_states_dict[door].is_open())
