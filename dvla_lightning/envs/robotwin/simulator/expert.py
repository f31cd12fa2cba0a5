"""RoboTwin's own expert: solves a whole episode at once, and what it did is kept as actions of our action space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import UserError
from .seed_book import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray  # numpy 1.17 has none

# After the last recorded target the arms still have to arrive there.
SETTLING_ACTIONS = 5


class ExpertRun(NamedTuple):
    """One run of the expert.

    Attributes:
        verdict: whether it solved the task, else why not.
        actions: (T, action_dim) float32; replayed through `take_action`, they should solve it again.
    """

    verdict: Verdict
    actions: NDArray[np.float32]


def run_expert(task: Any, set_up: Callable[[], None], action_type: str) -> ExpertRun:
    """Sets a scene up and lets the expert play; the caller closes the scene.

    Args:
        task: RoboTwin's task object.
        set_up: sets its scene up.
        action_type: "qpos" or "ee", which says what is recorded.
    """
    recorded: list[NDArray[np.float32]] = []

    def record(*_: Any, **__: Any) -> None:  # called every save_freq physics steps, in place of _take_picture
        recorded.append(proprioception(task, action_type))

    try:
        set_up()
        task._take_picture = record
        info = task.play_once()
        # Before closing: newer versions of close_env drop the robot that check_success asks.
        planned, solved = bool(task.plan_success), bool(task.check_success())
        reason = "" if planned and solved else "the task is not solved" if planned else "no motion plan was found"
        verdict = Verdict(not reason, reason, _placeholders(info))
    except UserError:
        raise
    except Exception as error:  # as upstream: whatever goes wrong in the check, this seed does not count
        verdict = Verdict(False, f"{type(error).__name__}: {error}")
    finally:
        task.__dict__.pop("_take_picture", None)
    return ExpertRun(verdict, _as_actions(recorded))


def proprioception(task: Any, action_type: str) -> NDArray[np.float32]:
    """The targets of the arms, (action_dim,) float32, in the order of an action.

    Joint targets (rad), not measured angles, or hand poses (m, quaternion wxyz); after each arm its gripper, 0 to 1.
    """
    robot = task.robot
    if action_type == "qpos":
        return np.array(robot.get_left_arm_jointState() + robot.get_right_arm_jointState(), np.float32)
    left, right = list(task.get_arm_pose("left")), list(task.get_arm_pose("right"))
    return np.array([*left, robot.get_left_gripper_val(), *right, robot.get_right_gripper_val()], np.float32)


def close(task: Any, clear_cache: bool = False) -> None:
    """Closes a scene, also one that broke while it was set up."""
    try:
        task.close_env(clear_cache=clear_cache)
    except Exception as error:
        print(f"close_env failed: {type(error).__name__}: {error}")  # the next set-up starts afresh anyhow


def _placeholders(info: Mapping[str, Any] | None) -> dict[str, str]:
    """The scene's placeholders as text, which the seed book can keep."""
    return {str(key): str(value) for key, value in (info or {}).get("info", {}).items()}


def _as_actions(recorded: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The recorded targets without the first (it is the initial state) and without pauses, and time to arrive."""
    moves = [new for old, new in zip(recorded, recorded[1:]) if not np.array_equal(old, new)]  # noqa: B905, RUF007
    return np.array(moves + moves[-1:] * SETTLING_ACTIONS, np.float32)
