"""Checks what simulators return: the one place where their numbers become the package's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from dvla_lightning.envs.base import Environment
from dvla_lightning.rollout.episode import EpisodeSpec, Transition
from dvla_lightning.rollout.worker import WorkerFailure


def check_transition(
    transition: Transition, spec: EpisodeSpec, before: Transition | None, most_actions: int, environment: Environment
) -> None:
    """Checks all that a worker returns; numpy's numbers and bools become Python's.

    Args:
        transition: as it came.
        spec: of the episode.
        before: the last transition of the episode with its observation; None after a reset.
        most_actions: how many actions were asked for; 0 after a reset.
        environment: recipe of the simulator.

    Raises:
        WorkerFailure: naming task and field, if anything is missing, of another type or shape, or not finite. It is
            this simulator's fault: neither a failed episode nor a solved one.
    """
    try:
        for name in ("terminated", "truncated", "is_success"):
            setattr(transition, name, _flag(name, getattr(transition, name)))
        for name in ("reward", "simulation_seconds", "rendering_seconds"):
            setattr(transition, name, _number(name, getattr(transition, name)))
        for name in ("simulation_seconds", "rendering_seconds"):
            if getattr(transition, name) < 0:
                raise ValueError(f"{name} is {getattr(transition, name)}, below 0")
        _check_actions(transition.actions, before is not None, most_actions, environment.action_dim)
        earlier = before.observation["images"] if before is not None and before.observation else {}
        _check_observation(transition.observation, earlier, environment)
        if spec.pictures:
            _check_picture("picture", transition.picture)
    except (TypeError, ValueError) as error:
        raise WorkerFailure(f"the simulator of task {spec.task!r} returned what cannot be used: {error}") from error


def _flag(name: str, value: Any) -> bool:
    # Not bool(value): a dict or a string that says "no" would be a success.
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {_short(value)}, not true or false")
    return bool(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (Real, np.floating, np.integer)):
        raise ValueError(f"{name} is {_short(value)}, no number")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}")
    return number


def _check_actions(actions: Any, follows: bool, most: int, action_dim: int) -> None:
    _check_numbers("actions", actions)
    low, high = (1, most) if follows else (0, 0)
    if actions.ndim != 2 or actions.shape[1] != action_dim or not low <= len(actions) <= high:
        raise ValueError(f"actions have shape {actions.shape}, expected ({low} to {high}, {action_dim})")


def _check_observation(observation: Any, earlier: Mapping[str, Any], environment: Environment) -> None:
    if not isinstance(observation, Mapping):
        raise ValueError(f"the observation is {_short(observation)}")
    missing = {"images", "proprioception", "instruction"} - observation.keys()
    if missing:
        raise ValueError(f"the observation has no {min(missing)}")
    images, proprioception = observation["images"], observation["proprioception"]
    if not isinstance(images, Mapping):
        raise ValueError(f"images are {_short(images)}")
    for camera in environment.cameras:
        if camera not in images:
            raise ValueError(f"there is no image of camera {camera!r}, only of {sorted(images)}")
        _check_picture(f"the image of camera {camera!r}", images[camera])
        if camera in earlier and images[camera].shape != earlier[camera].shape:
            shapes = f"{earlier[camera].shape} before and {images[camera].shape} now"
            raise ValueError(f"the image of camera {camera!r} has shape {shapes}")
    _check_numbers("proprioception", proprioception)
    if proprioception.shape != (environment.proprioception_dim,):
        raise ValueError(f"proprioception has shape {proprioception.shape}, not ({environment.proprioception_dim},)")
    instruction = observation["instruction"]
    if not (isinstance(instruction, str) and instruction.strip()):
        raise ValueError(f"the instruction is {_short(instruction)}")
    instruction.encode()  # a lone surrogate is no text: it could not be written to any file


def _check_numbers(name: str, values: Any) -> None:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        what = values.dtype if isinstance(values, np.ndarray) else _short(values)
        raise ValueError(f"{name} is {what}, no array of numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite for the policy
        bad = np.argwhere(~np.isfinite(values.astype(np.float32, copy=False)))
    if len(bad):
        raise ValueError(f"{name} holds {values[tuple(bad[0])]} at {bad[0].tolist()}")


def _check_picture(name: str, picture: Any) -> None:
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        what = f"of {picture.dtype}" if isinstance(picture, np.ndarray) else _short(picture)
        raise ValueError(f"{name} is {what}, not of uint8")
    if picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
        raise ValueError(f"{name} has shape {picture.shape}, not (H, W, 3)")


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
