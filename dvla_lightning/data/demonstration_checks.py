"""Checks of demonstrations, when they are read and before they are written.

Each raises a ValueError that says what is wrong; the caller knows the file and the remedy.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1


class Declared(Protocol):
    """Shape and type of an array, known before its numbers are read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


def check_header(header: Any) -> dict[str, Any]:
    """Checks the content of dataset.json and returns it."""
    return _check_fields(header, _HEADER)


def check_row(row: Any) -> dict[str, Any]:
    """Checks a line of episodes.jsonl and returns it."""
    _check_fields(row, _ROW)
    if row["success"] != (row["file"] is not None):
        raise ValueError(f"success is {row['success']}, but file is {row['file']!r}")
    return row


def check_log(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses numbers that do not increase, and an episode or a file that is named twice."""
    seen: dict[Any, int] = {}
    previous = -1
    for row in rows:
        number = row["number"]
        if number <= previous:
            raise ValueError(f"number {number} follows number {previous}")
        previous = number
        episode = (row["task"], row["initial_state"], row["seed"], row["attempt"])
        for key in (episode, row["file"]) if row["success"] else ():
            if key in seen:
                raise ValueError(f"numbers {seen[key]} and {number} are the same episode; remove one of the two lines")
            seen[key] = number


def array_names(header: Mapping[str, Any]) -> list[str]:
    """The arrays of an episode's file."""
    images = [f"image_{camera}" for camera in header["cameras"]]
    return ["actions", "observed_at", "proprioception", *images, "instruction", "task"]


def check_layout(arrays: Mapping[str, Declared], header: Mapping[str, Any], num_env_steps: int) -> None:
    """Checks shapes and types.

    Args:
        arrays: those of `array_names`.
        header: of the data set.
        num_env_steps: T, from the log.
    """
    num_observations = arrays["observed_at"].shape[0] if arrays["observed_at"].shape else 0
    shapes: dict[str, tuple[int | None, ...]] = {
        "actions": (num_env_steps, header["action_dim"]),
        "observed_at": (num_observations,),
        "proprioception": (num_observations, header["proprioception_dim"]),
    }
    types: dict[str, Any] = {"actions": np.float32, "observed_at": np.int64, "proprioception": np.float32}
    for name in array_names(header):
        if name.startswith("image_"):
            shapes[name], types[name] = (num_observations, None, None, 3), np.uint8
        array, wanted = arrays[name], shapes.get(name, ())
        if array.dtype.kind != "U" if name not in types else array.dtype != types[name]:
            raise ValueError(f"{name} has type {array.dtype}, it must be {types.get(name, str).__name__}")
        if len(array.shape) != len(wanted) or any(w not in (None, s) for s, w in zip(array.shape, wanted, strict=True)):
            sizes = ", ".join("any" if size is None else str(size) for size in wanted)
            raise ValueError(f"{name} has shape {array.shape}, it must be ({sizes})")
        if 0 in array.shape:
            raise ValueError(f"{name} is empty: its shape is {array.shape}")


def check_content(arrays: Mapping[str, NDArray[Any]], task: str) -> None:
    """Checks the numbers and texts of arrays whose layout is right; `task` is the one that the log names."""
    for name in ("actions", "proprioception"):
        bad = np.argwhere(~np.isfinite(arrays[name]))
        if len(bad):
            row, column = bad[0]
            more = f", the first of {len(bad)} such values" if len(bad) > 1 else ""
            raise ValueError(f"{name} holds {arrays[name][row, column]} in row {row}, dimension {column}{more}")
    observed_at = arrays["observed_at"]
    if observed_at[0] != 0 or (np.diff(observed_at) <= 0).any() or observed_at[-1] >= len(arrays["actions"]):
        raise ValueError(
            f"observed_at must begin with 0, increase, and stay below {len(arrays['actions'])}, the number of actions; "
            f"it is {reprlib.repr(observed_at.tolist())}"
        )
    if not str(arrays["instruction"]).strip():
        raise ValueError("instruction is empty")
    if str(arrays["task"]) != task:
        raise ValueError(f"task is {str(arrays['task'])!r}, the log says {task!r}")


def _check_fields(record: Any, fields: Mapping[str, tuple[Callable[[Any], bool], str]]) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    for name, (fits, wanted) in fields.items():
        if name not in record:
            raise ValueError(f"it has no {name}")
        if not fits(record[name]):
            raise ValueError(f"{name} is {reprlib.repr(record[name])}, it must be {wanted}")
    return record


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # a bool is an int, too


def _is_positive(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_environment(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("class"))
        and ("training_remark" not in value or _is_text(value["training_remark"]))
    )


def _is_file(value: Any) -> bool:
    """A name without a folder: a data set has no files outside its directory."""
    if value is None:
        return True
    return _is_text(value) and PurePath(value).name == value != ".." and not {"\\", "\0"} & set(value)


_COUNT = (_is_count, "a whole number from 0")
_POSITIVE = (_is_positive, "a positive whole number")
_HEADER = {
    "format_version": (lambda value: value is not True and value == FORMAT_VERSION, str(FORMAT_VERSION)),
    "environment": (_is_environment, "an object with the class of the environment"),
    "cameras": (_are_names, "a list of different names"),
    "action_dim": _POSITIVE,
    "proprioception_dim": _POSITIVE,
    "observe_every": _POSITIVE,
    "expert_noise": (_is_number, "a number from 0"),
}
_ROW = {
    "number": _COUNT,
    "task": (_is_text, "the name of a task"),
    "initial_state": _COUNT,
    "seed": _COUNT,
    "attempt": _COUNT,
    "success": (lambda value: isinstance(value, bool), "true or false"),
    "num_env_steps": _COUNT,
    "seconds": (_is_number, "a number from 0"),
    "error": (lambda value: value is None or isinstance(value, str), "null or a text"),
    "file": (_is_file, "null or the name of a file in this directory"),
}
