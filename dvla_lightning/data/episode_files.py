"""Demonstrations on disk: a directory with dataset.json, episodes.jsonl and one .npz file per successful episode.

dataset.json   format_version, environment (its identity), cameras, action_dim, proprioception_dim, observe_every,
               expert_noise
episodes.jsonl one line per episode that was tried: number, task, initial_state, seed, attempt, success, num_env_steps,
               seconds, error, file (null unless successful)
episode_*.npz  actions (T, action_dim) float32; observed_at (N,) int64, the control step before which each observation
               was made; proprioception (N, proprioception_dim) float32; image_<camera> (N, H, W, 3) uint8;
               instruction; task
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.base import Environment, Observation
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.episode import Episode

FORMAT_VERSION = 1


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
    images: Mapping[str, NDArray[np.uint8]]
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


class DemonstrationWriter:
    """Adds episodes to a directory; what is there already is kept, so an interrupted collection continues.

    Args:
        path: the directory; made if missing.
        environment: what the episodes come from.
        observe_every: control steps between observations.
        expert_noise: of the expert that makes them.

    Raises:
        UserError: if the directory holds demonstrations made with other settings.
    """

    def __init__(self, path: Path, environment: Environment, observe_every: int, expert_noise: float) -> None:
        self.path = path
        header = {
            "format_version": FORMAT_VERSION,
            "environment": dict(environment.identity()),
            "cameras": list(environment.cameras),
            "action_dim": environment.action_dim,
            "proprioception_dim": environment.proprioception_dim,
            "observe_every": observe_every,
            "expert_noise": expert_noise,
        }
        header = json.loads(json.dumps(header))  # tuples become lists, as they will when read back
        path.mkdir(parents=True, exist_ok=True)
        file = path / "dataset.json"
        if not file.exists():
            file.write_text(json.dumps(header, indent=2) + "\n")
        elif (found := _read_header(file)) != header:
            different = [key for key in header if found.get(key) != header[key]]
            raise UserError(f"{path} holds demonstrations with another {different[0]}: choose a new directory")
        self.rows = _read_log(path / "episodes.jsonl")

    def add(self, episode: Episode) -> None:
        """Writes an episode with all its observations; failed ones and errors are only counted."""
        number = len(self.rows)
        name = f"episode_{number:06d}.npz" if episode.success else None
        if name:
            _write_npz(self.path / name, episode)
        spec = episode.spec
        row = {
            "number": number,
            "task": spec.task,
            "initial_state": spec.initial_state,
            "seed": spec.seed,
            "attempt": spec.expert_attempt,
            "success": episode.success,
            "num_env_steps": episode.num_env_steps,
            "seconds": round(episode.seconds, 3),
            "error": episode.error,
            "file": name,
        }
        self.rows.append(row)
        with (self.path / "episodes.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")


def _write_npz(path: Path, episode: Episode) -> None:
    # The last observation is nobody's input: the episode is over.
    observations = [transition.observation for transition in episode.transitions[:-1]]
    chunks = [transition.actions for transition in episode.transitions[1:]]
    arrays: dict[str, Any] = {
        "actions": np.concatenate(chunks).astype(np.float32),
        "observed_at": np.cumsum([0, *[len(chunk) for chunk in chunks[:-1]]]),
        "proprioception": np.stack([observation["proprioception"] for observation in observations]),
        "instruction": np.array(observations[0]["instruction"]),
        "task": np.array(episode.spec.task),
    }
    for camera in observations[0]["images"]:
        arrays[f"image_{camera}"] = np.stack([observation["images"][camera] for observation in observations])
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    partial.rename(path)


def load_demonstrations(path: Path) -> tuple[dict[str, Any], list[Demonstration]]:
    """Reads a directory of demonstrations.

    Returns:
        The content of dataset.json, and the episodes in the order of their numbers.

    Raises:
        UserError: if the directory is missing, empty, of another format version, or a file is damaged.
    """
    header_file = path / "dataset.json"
    if not header_file.exists():
        raise UserError(f"{path} is no directory of demonstrations (no dataset.json): make one with `dvla collect`")
    header = _read_header(header_file)
    if header.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{header_file} has format_version {header.get('format_version')}, this release reads {FORMAT_VERSION}"
        )
    # Only what the log names: a crash between the two leaves a file that counts for nothing.
    files = [path / row["file"] for row in _read_log(path / "episodes.jsonl") if row["file"]]
    if not files:
        raise UserError(f"{path} holds no successful episode: collect some with `dvla collect`")
    return header, [_read_npz(file, header) for file in files]


def _read_header(file: Path) -> dict[str, Any]:
    try:
        header = json.loads(file.read_text())
        if not isinstance(header, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): collect into a new directory") from error
    return header


def _read_log(file: Path) -> list[dict[str, Any]]:
    """The episodes tried so far; a last line cut short by a crash is removed from the file."""
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): collect into a new directory") from error
    if whole != text:
        file.write_text(whole)
    return rows


def _read_npz(path: Path, header: Mapping[str, Any]) -> Demonstration:
    try:
        with np.load(path, allow_pickle=False) as file:
            return Demonstration(
                file["actions"],
                file["observed_at"],
                {camera: file[f"image_{camera}"] for camera in header["cameras"]},
                file["proprioception"],
                str(file["instruction"]),
                str(file["task"]),
            )
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and collect again") from error
