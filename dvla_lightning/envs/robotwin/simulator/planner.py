"""A stand-in for RoboTwin's GPU planner: `CuroboPlanner` with its interface, on mplib, for machines without CUDA.

RoboTwin's robot.py names the class at import; without curobo its planner.py does not define it. This is not the
published expert: evaluation seeds that were checked with it are cached apart.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkout import Checkout

if TYPE_CHECKING:
    from numpy.typing import ArrayLike  # numpy 1.17 has none

TIME_STEP = 1 / 250  # s; RoboTwin's physics
PLANNING_SECONDS = 1.0
GRIPPER_STEPS = 200


def install_mplib(checkout: Checkout) -> None:
    """Puts a `CuroboPlanner` into `envs.robot.planner`; call it before any task is imported."""
    importlib.import_module("mplib")  # what is missing is better said now than in the middle of a set-up
    name = "envs.robot.planner"
    planner: Any = sys.modules.get(name)
    if planner is None:
        file = checkout.root / "envs" / "robot" / "planner.py"
        spec = importlib.util.spec_from_file_location(name, str(file))
        assert spec is not None and spec.loader is not None  # of a file whose name ends in .py
        planner = importlib.util.module_from_spec(spec)
        sys.modules[name] = planner  # before robot.py, which the package imports, asks for the class
        spec.loader.exec_module(planner)
    planner.CuroboPlanner = MplibPlanner


class MplibPlanner:
    """Plans for one arm.

    Args:
        robot_origion_pose: pose of the robot's base in the world (upstream's spelling).
        active_joints_name: joints of the arm.
        all_joints: all joints of the robot.
        yml_path: curobo's file, which need not exist; the robot's config.yml lies beside it.
    """

    def __init__(
        self, robot_origion_pose: Any, active_joints_name: Sequence[str], all_joints: Sequence[str], yml_path: str
    ) -> None:
        import mplib
        import yaml

        folder = Path(yml_path).parent
        robot = yaml.safe_load((folder / "config.yml").read_text(encoding="utf-8"))
        urdf = folder / robot["urdf_path"]
        arm = robot["arm_joints_name"].index(active_joints_name)
        self.planner = mplib.Planner(
            urdf=str(urdf),
            srdf=str(folder / robot["srdf_path"] if robot.get("srdf_path") else urdf.with_suffix(".srdf")),
            move_group=robot["move_group"][arm],
            user_link_names=[],
            user_joint_names=all_joints,
        )
        self.planner.set_base_pose(_mplib_pose(robot_origion_pose))

    def plan_path(
        self, curr_joint_pos: ArrayLike, target_gripper_pose: Any, constraint_pose: Any = None, arms_tag: Any = None
    ) -> dict[str, Any]:
        """Plans to a pose of the hand.

        Returns:
            {"status": "Success", "position": (T, joints) rad, "velocity": (T, joints) rad/s}, or {"status": "Fail"}.
        """
        start, goal = np.asarray(curr_joint_pos), _mplib_pose(target_gripper_pose)
        result = self.planner.plan_screw(goal, start, time_step=TIME_STEP)
        if result["status"] != "Success":
            result = self.planner.plan_pose(goal, start, time_step=TIME_STEP, planning_time=PLANNING_SECONDS)
        if result["status"] != "Success":
            return {"status": "Fail"}
        position, velocity = result["position"], result["velocity"]
        if len(position) == 0:  # already there; RoboTwin's take_action divides by the number of steps
            position = start[None, self.planner.move_group_joint_indices]
            velocity = np.zeros_like(position)
        return {"status": "Success", "position": position, "velocity": velocity}

    def plan_batch(
        self,
        curr_joint_pos: ArrayLike,
        target_gripper_pose_list: Sequence[Any],
        constraint_pose: Any = None,
        arms_tag: Any = None,
    ) -> dict[str, Any]:
        """Plans to several poses; statuses are "Success" or "Failure", as curobo's."""
        plans = [self.plan_path(curr_joint_pos, goal) for goal in target_gripper_pose_list]
        good = [plan["status"] == "Success" for plan in plans]
        return {
            "status": np.array(["Success" if ok else "Failure" for ok in good], dtype=object),
            "position": [plan.get("position") for plan in plans],
            "velocity": [plan.get("velocity") for plan in plans],
        }

    def plan_grippers(self, now_val: float, target_val: float) -> dict[str, Any]:
        """A straight line from one opening to the other."""
        per_step = (target_val - now_val) / GRIPPER_STEPS
        values = np.linspace(now_val, target_val, GRIPPER_STEPS)
        return {"num_step": GRIPPER_STEPS, "per_step": per_step, "result": values}


def _mplib_pose(pose: Any) -> Any:
    import mplib

    if hasattr(pose, "p"):
        return mplib.Pose(p=pose.p, q=pose.q)
    pose = np.asarray(pose, np.float64)
    return mplib.Pose(p=pose[:3], q=pose[3:7])
