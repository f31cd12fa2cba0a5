"""The keyword arguments of RoboTwin's `setup_demo`, composed as its script/eval_policy.py does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .checkout import Checkout
from .errors import UserError
from .options import Options


def setup_arguments(checkout: Checkout, task: str, options: Options) -> dict[str, Any]:
    """Arguments of `setup_demo` that do not change from episode to episode.

    Args:
        checkout: entered.
        task: its name.
        options: of the run.

    Returns:
        A new dict: the YAML of the task configuration with robots, cameras and what is recorded filled in.

    Raises:
        UserError: for an unknown configuration, camera or embodiment, or missing assets.
    """
    arguments = checkout.load(f"{options.task_config}.yml")
    arguments.update(task_name=task, task_config=options.task_config, render_freq=0, save_data=False, need_plan=True)
    arguments["data_type"] = {"rgb": True, "qpos": True, "endpose": True}
    arguments.setdefault("save_freq", 15)  # physics steps between recorded frames, as in all shipped configurations
    if arguments.get("domain_randomization", {}).get("random_background"):
        checkout.require_assets(["background_texture"])
    if options.planner == "mplib" and checkout.layout == "RLinf_support":
        arguments["planner_backend"] = "mplib"
    _add_cameras(arguments, checkout.load("_camera_config.yml"), options.camera_type)
    _add_robots(arguments, checkout, options.embodiment or arguments["embodiment"])
    return arguments


def _add_cameras(arguments: dict[str, Any], known: Mapping[str, Any], wanted: str | None) -> None:
    camera = arguments["camera"]
    if wanted:
        camera.update(head_camera_type=wanted, wrist_camera_type=wanted)
    camera.update(collect_head_camera=True, collect_wrist_camera=True)
    head = camera["head_camera_type"]
    if head not in known:
        raise UserError(f"RoboTwin has no camera type {head!r}; choose from: {', '.join(known)}")
    arguments.update(head_camera_h=known[head]["h"], head_camera_w=known[head]["w"])


def _add_robots(arguments: dict[str, Any], checkout: Checkout, embodiment: Sequence[str | float]) -> None:
    """One name is a robot with two arms; [left, right, distance in m] are two robots with one arm each."""
    if len(embodiment) not in (1, 3):
        raise UserError(f"embodiment {embodiment} must be one name, or left name, right name and distance in m")
    known = checkout.load("_embodiment_config.yml")
    left, right = (_robot_folder(name, known, checkout) for name in (embodiment[0], embodiment[len(embodiment) // 2]))
    arguments.update(
        embodiment=list(embodiment),
        left_robot_file=left,
        right_robot_file=right,
        left_embodiment_config=checkout.load(os.path.join(left, "config.yml")),
        right_embodiment_config=checkout.load(os.path.join(right, "config.yml")),
        dual_arm_embodied=len(embodiment) == 1,
    )
    if len(embodiment) == 3:
        arguments["embodiment_dis"] = float(embodiment[2])


def _robot_folder(name: str | float, known: Mapping[str, Any], checkout: Checkout) -> str:
    """Folder of a robot, which may also be named by its path."""
    name = str(name)
    if name in known:
        folder = str(checkout.assets.parent / known[name]["file_path"])
    elif os.path.isdir(name):
        folder = os.path.abspath(name)
    else:
        raise UserError(
            f"RoboTwin has no embodiment {name!r}; choose from: {', '.join(known)}, or give a robot's folder"
        )
    checkout.require_assets([os.path.join(folder, "config.yml")])
    return folder
