"""Demonstrations for SFT, whatever format they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.data.demonstration_checks import check_content, check_layout
from dvla_lightning.envs.base import Observation


class Frames(Protocol):
    """The pictures of one camera: an array, or an object that reads or decodes one of them when it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always uint8."""

    def __getitem__(self, number: int, /) -> NDArray[np.uint8]:
        """The n-th picture, (H, W, 3)."""


@dataclass
class Demonstration:
    """One successful episode.

    Attributes:
        actions: (T, action_dim) float32 in the robot's units.
        observed_at: (N,) int64, increasing; observation n was made before action observed_at[n].
        images: camera -> (N, H, W, 3) uint8.
        proprioception: (N, proprioception_dim) float32.
        instruction: one sentence.
        task: name of the task.
    """

    actions: NDArray[np.float32]
    observed_at: NDArray[np.int64]
    images: Mapping[str, Frames]
    proprioception: NDArray[np.float32]
    instruction: str
    task: str

    def observation(self, number: int) -> Observation:
        """The n-th observation."""
        return {
            "images": {camera: frames[number] for camera, frames in self.images.items()},
            "proprioception": self.proprioception[number],
            "instruction": self.instruction,
        }


@dataclass
class DemonstrationSet:
    """The demonstrations that `DemonstrationDataModule.read` returns.

    Attributes:
        demonstrations: at least one, all of one robot and the same cameras; any sequence, also one that reads each
            when it is indexed. Training follows its order, which must not depend on the file system.
        training_remark: the note under every table about a policy trained on them; None if there is none.
    """

    demonstrations: Sequence[Demonstration]
    training_remark: str | None = None

    @property
    def shape(self) -> dict[str, Any]:
        """action_dim, proprioception_dim, cameras and the size of their images, of the first demonstration."""
        return _shape(self.demonstrations[0])

    def check(self) -> None:
        """Checks all demonstrations, but none of their pictures.

        Raises:
            ValueError: if one does not fit; it says which one, and why.
        """
        if not self.demonstrations:
            raise ValueError("there is no demonstration")
        first: dict[str, Any] = {}
        for number, demonstration in enumerate(self.demonstrations):
            try:
                _check(demonstration)
            except ValueError as error:
                raise ValueError(f"demonstration {number}: {error}") from error
            here = _shape(demonstration)
            first = first or here
            for name, value in here.items():
                if value != first[name]:
                    raise ValueError(f"demonstration {number} has {name} {value}, demonstration 0 has {first[name]}")


def _check(demonstration: Demonstration) -> None:
    arrays: dict[str, Any] = {
        "actions": demonstration.actions,
        "observed_at": demonstration.observed_at,
        "proprioception": demonstration.proprioception,
        **{f"image_{camera}": frames for camera, frames in demonstration.images.items()},
        "instruction": np.array(demonstration.instruction),
        "task": np.array(demonstration.task),
    }
    for name, array in arrays.items():
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise ValueError(f"{name} is of type {type(array).__name__}, it must be an array")
    anything = {"cameras": [*demonstration.images], "action_dim": None, "proprioception_dim": None}
    check_layout(arrays, anything, len(demonstration.actions) if arrays["actions"].shape else 0)
    check_content(arrays, demonstration.task)


def _shape(demonstration: Demonstration) -> dict[str, Any]:
    return {
        "action_dim": demonstration.actions.shape[1],
        "proprioception_dim": demonstration.proprioception.shape[1],
        "cameras": sorted(demonstration.images),
        "images of size": {camera: frames.shape[1:3] for camera, frames in sorted(demonstration.images.items())},
    }
