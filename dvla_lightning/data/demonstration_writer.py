"""Writes demonstrations, episode by episode: the directory is a valid data set at every moment, and can be continued.

An episode's file is written beside its place and renamed, then its line is added to the log. A crash in between
leaves a file that no line names, or half a line; neither counts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from dvla_lightning.data.demonstration_checks import FORMAT_VERSION, check_content, check_layout
from dvla_lightning.data.episode_files import read_header, read_log
from dvla_lightning.envs.base import Environment
from dvla_lightning.errors import UserError
from dvla_lightning.files import atomic_file, atomic_text, disk_faults, make_folder, remove_partial
from dvla_lightning.locks import Held, ProcessLock
from dvla_lightning.rollout.episode import Episode


class DemonstrationWriter:
    """Adds episodes to a directory; those that are there are kept, so an interrupted collection continues.

    One writer at a time: it holds a lock until `close`, or until its process ends.

    Args:
        path: the directory; made if missing.
        environment: where the episodes come from.
        observe_every: control steps between observations.
        expert_noise: of the expert that makes them.

    Attributes:
        rows: the log, without the episodes whose files are gone.
        lost: names of the files that are gone.

    Raises:
        UserError: if the directory holds demonstrations made with other settings, is damaged, cannot be written, or
            another process is writing there.
    """

    def __init__(self, path: Path, environment: Environment, observe_every: int, expert_noise: float) -> None:
        self.path, self.log = path, path / "episodes.jsonl"
        header = {
            "format_version": FORMAT_VERSION,
            "environment": dict(environment.identity()),
            "cameras": list(environment.cameras),
            "action_dim": environment.action_dim,
            "proprioception_dim": environment.proprioception_dim,
            "observe_every": observe_every,
            "expert_noise": expert_noise,
        }
        self.header = json.loads(json.dumps(header))  # tuples become lists, as they will when read back
        with disk_faults(path):
            self._lock = _lock(make_folder(path))
        try:
            with disk_faults(path):
                self._begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the directory."""
        self._lock.release()

    def add(self, episode: Episode) -> None:
        """Writes an episode with all its observations; failed ones and errors are only counted.

        A successful one that would be no valid demonstration (a NaN, a picture of floats) becomes an error.

        Raises:
            UserError: if the disk is full or the directory cannot be written.
        """
        arrays = self._arrays(episode) if episode.success else None
        number = self.rows[-1]["number"] + 1 if self.rows else 0
        name = f"episode_{number:06d}.npz"
        row = {
            "number": number,
            "task": episode.spec.task,
            "initial_state": episode.spec.initial_state,
            "seed": episode.spec.seed,
            "attempt": episode.spec.expert_attempt,
            "success": episode.success,
            "num_env_steps": episode.num_env_steps,
            "seconds": round(episode.seconds, 3),
            "error": episode.error,
            "file": name if arrays else None,
        }
        if arrays:
            with atomic_file(self.path / name) as file:
                np.savez_compressed(file, **arrays)
        with disk_faults(self.log), self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
            log.flush()
            os.fsync(log.fileno())
        self.rows.append(row)

    def _begin(self) -> None:
        """Continues the data set that is there, and removes the leftovers of a crash."""
        file = self.path / "dataset.json"
        holds_episodes = self.log.exists() and self.log.stat().st_size > 0
        if not holds_episodes and not (file.exists() and file.stat().st_size):  # an empty one is left by a full disk
            atomic_text(file, json.dumps(self.header, indent=2) + "\n")
        if not file.exists():
            raise UserError(f"{self.path} holds episodes but no dataset.json: restore it, or choose a new directory")
        found = read_header(file)
        different = [key for key in {**self.header, **found} if found.get(key) != self.header.get(key)]
        if different:
            raise UserError(f"{self.path} holds demonstrations with another {different[0]}: choose a new directory")
        remove_partial(self.path)
        rows = read_log(self.log)
        self.lost = [row["file"] for row in rows if row["success"] and not (self.path / row["file"]).exists()]
        self.rows = [row for row in rows if row["file"] is None or row["file"] not in self.lost]
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        if holds_episodes and self.log.read_text(encoding="utf-8") != text:
            atomic_text(self.log, text)

    def _arrays(self, episode: Episode) -> dict[str, Any] | None:
        """The arrays of an episode's file; None, and an error in the episode, if it is no valid demonstration."""
        try:
            # Without the last observation: no action follows it.
            observations: list[Any] = [transition.observation for transition in episode.transitions[:-1]]
            chunks = [transition.actions for transition in episode.transitions[1:]]
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused as that
                arrays: dict[str, Any] = {
                    "actions": np.concatenate(chunks).astype(np.float32),
                    "observed_at": np.cumsum([0, *[len(chunk) for chunk in chunks[:-1]]]),
                    "proprioception": np.stack([seen["proprioception"] for seen in observations]).astype(np.float32),
                    "instruction": np.array(observations[0]["instruction"]),
                    "task": np.array(episode.spec.task),
                }
            for camera in self.header["cameras"]:
                arrays[f"image_{camera}"] = np.stack([seen["images"][camera] for seen in observations])
            check_layout(arrays, self.header, episode.num_env_steps)
            check_content(arrays, episode.spec.task)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            episode.error = f"the episode is no demonstration: {type(error).__name__}: {error}"
            return None
        return arrays


def _lock(path: Path) -> ProcessLock:
    """Locks the directory."""
    try:
        return ProcessLock(path / ".lock")
    except Held as owner:
        raise UserError(
            f"another `dvla collect` ({owner}) is writing to {path}: wait until it has ended, or choose a new directory"
        ) from owner
