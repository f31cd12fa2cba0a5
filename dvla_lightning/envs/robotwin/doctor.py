"""`dvla doctor` for RoboTwin: checkout, assets, Python, Vulkan, one frame."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dvla_lightning.envs.base import Environment
from dvla_lightning.envs.check import Check, NoAnswer, Simulator
from dvla_lightning.envs.robotwin.recipe import RoboTwin
from dvla_lightning.envs.robotwin.simulator.checkout import ASSETS_REMEDY, IMPORTED_ASSETS, Checkout
from dvla_lightning.envs.robotwin.simulator.stage import VULKAN_REMEDY
from dvla_lightning.envs.robotwin.tasks import PRIMITIVE_TASKS
from dvla_lightning.errors import UserError
from dvla_lightning.files import atomic_file

Start = Callable[[Environment], Simulator]

# Ray tracing on a CPU does not come to an end (measured: no frame in 100 s), and nobody wants to wait for it; a
# rasteriser that compiles its shaders on a busy CPU does.
FRAME_SECONDS = {"rt": 180.0, "default": 600.0, "minimal": 600.0}
RENDERERS = {
    "ray tracing": {"shader": "rt", "shadow": True},
    "rasteriser without shadows": {"shader": "default", "shadow": False},
}


def check_robotwin(required: bool, environment: RoboTwin | None, start: Start, pictures: Path) -> Iterator[Check]:
    """Checks a checkout with the Python it is installed in.

    Args:
        required: whether what is missing is broken instead of optional.
        environment: what is looked at, and the one way to render that is tried. None: the checkout in ROBOTWIN_ROOT
            with the Python in ROBOTWIN_PYTHON and its own robot, rendered in every way.
        start: starts a simulator.
        pictures: folder for a picture of all cameras.
    """
    absent = False if required else None
    renderers = RENDERERS if environment is None else {"renderer": {}}
    environment = environment or RoboTwin()
    try:
        options = environment.simulator_options()
        checkout = Checkout(options["root"], options["assets_root"])
    except UserError as error:
        yield Check(absent, "RoboTwin", str(error))  # says itself what to do
        return
    yield Check(True, "RoboTwin", f"{checkout.root}, layout {checkout.layout}, commit {checkout.commit()[:12]}")
    yield from _assets(checkout, environment, absent)
    description = _describe(environment, start)
    if "planner: mplib" in str(description):
        yield Check(
            None, "RoboTwin planner", "no curobo", "install curobo for the published expert; planner: mplib works too"
        )
        environment = _changed(environment, planner="mplib")
        description = _describe(environment, start)
    if isinstance(description, str):
        yield Check(absent, "RoboTwin Python", description)
        return
    versions = ", ".join(f"{name} {version}" for name, version in description["versions"].items() if version)
    yield Check(True, "RoboTwin Python", f"{description['python']}: {versions}")
    devices = ", ".join(" ".join(line.split()) for line in description["devices"].splitlines())
    yield Check(bool(devices) or absent, "Vulkan", devices or "no device", VULKAN_REMEDY)
    ways = {name: _changed(environment, validity="none", **options) for name, options in renderers.items()}
    yield from _frames(checkout, ways, absent, start, pictures)


def _changed(environment: RoboTwin, **options: Any) -> RoboTwin:
    """The same recipe with other options."""
    changed = copy.copy(environment)
    for name, value in options.items():
        setattr(changed, name, value)
    return changed


def _assets(checkout: Checkout, environment: RoboTwin, absent: bool | None) -> Iterator[Check]:
    """Checks that the robot and the tasks' models are there; other robots are checked when they are used."""
    remedy = ASSETS_REMEDY.format(checkout.assets)
    needed = [*IMPORTED_ASSETS, *([] if environment.embodiment else ["embodiments/aloha-agilex/config.yml"])]
    missing = [name for name in needed if not (checkout.assets / name).is_file()]
    yield Check(
        not missing or absent,
        "RoboTwin assets",
        f"missing: {', '.join(missing)}" if missing else str(checkout.assets),
        remedy,
    )
    lacking = {task: models for task in RoboTwin.tasks if (models := checkout.missing_models(task))}
    finding = f"{len(RoboTwin.tasks) - len(lacking)} of {len(RoboTwin.tasks)} tasks have their models"
    if lacking:
        finding += "; missing: " + "; ".join(f"{task} ({', '.join(models)})" for task, models in lacking.items())
    yield Check(not lacking or None, "RoboTwin models", finding, remedy)


def _describe(environment: RoboTwin, start: Start) -> dict[str, Any] | str:
    """The simulator's description of itself, or why there is none."""
    try:
        simulator = start(environment)
    except UserError as error:
        return str(error)
    try:
        description = simulator.call("describe", None, FRAME_SECONDS[environment.shader])
        hello = simulator.hello
        return {**description, "python": f"{hello['executable']} {hello['python']}" if hello else "?"}
    except (UserError, NoAnswer) as error:
        return str(error)
    finally:
        simulator.close()


def _frames(
    checkout: Checkout, ways: dict[str, RoboTwin], absent: bool | None, start: Start, pictures: Path
) -> Iterator[Check]:
    """Renders one scene in each way; one that works is enough."""
    tasks = [task for task in (*PRIMITIVE_TASKS, *RoboTwin.tasks) if not checkout.missing_models(task)]
    if not tasks:
        yield Check(absent, "RoboTwin frame", "no task has its models")
        return
    works = False
    for name, environment in ways.items():
        check = _frame(environment, tasks[0], name, start, pictures / f"robotwin-{name.split()[0]}.png")
        works |= bool(check.ok)
        yield check
    yield Check(works or absent, "RoboTwin rendering", "works" if works else "works in no way", VULKAN_REMEDY)


def _frame(environment: RoboTwin, task: str, name: str, start: Start, picture: Path) -> Check:
    """Sets a scene up, observes, and holds the arms still for one step."""
    title, seconds = f"RoboTwin {name}", FRAME_SECONDS[environment.shader]
    simulator = start(environment)
    started_at = time.perf_counter()
    try:
        first = simulator.reset(task, "train", seconds)
        ready = time.perf_counter() - started_at
        hold = np.asarray(first["observation"]["proprioception"])[None]
        then = simulator.call("execute", hold, seconds)
    except (UserError, NoAnswer) as error:
        return Check(None, title, str(error))
    finally:
        simulator.close()
    images = first["observation"]["images"]
    _save(np.concatenate(list(images.values()), axis=1), picture)
    # Not a matter of contrast: a wrist camera may well see nothing but the table.
    if blank := [camera for camera, image in images.items() if image.max() == image.min()]:
        return Check(None, title, f"blank picture from {', '.join(blank)}", VULKAN_REMEDY)
    return Check(
        True,
        title,
        f"{task}: {ready:.1f} s to start, set up and observe for the first time; then "
        f"{then['rendering_seconds']:.2f} s for an observation, {then['simulation_seconds']:.2f} s for a step; "
        f"saved as {picture}",
    )


def _save(pixels: np.ndarray, picture: Path) -> None:
    from PIL import Image

    with atomic_file(picture) as file:
        Image.fromarray(pixels).save(file, format="png")
