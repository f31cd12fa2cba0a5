"""Writes demonstrations, episode by episode: what is on disk is a valid data set at every moment, and continues.

An episode's file is written beside its place and renamed, then its line is added to the log. A crash in between
leaves a file that no line names, or half a line; neither counts.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from dvla_lightning.data.demonstration_checks import FORMAT_VERSION, check_content, check_layout
from dvla_lightning.data.episode_files import read_header, read_log
from dvla_lightning.envs.base import Environment
from dvla_lightning.errors import UserError
from dvla_lightning.locks import Held, ProcessLock
from dvla_lightning.rollout.episode import Episode

PARTIAL = ".partial"  # ending of a file that is being written


class DemonstrationWriter:
    """Adds episodes to a directory; what is there already is kept, so an interrupted collection continues.

    One writer at a time: it holds a lock until `close`, or until its process ends.

    Args:
        path: the directory; made if missing.
        environment: what the episodes come from.
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
        with _disk_faults(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
        try:
            with _disk_faults(path):
                self._begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others write."""
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
        with _disk_faults(self.path):
            if arrays:
                _write_whole(self.path / name, lambda file: np.savez_compressed(file, **arrays))
            with self.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
                log.flush()
                os.fsync(log.fileno())
        self.rows.append(row)

    def _begin(self) -> None:
        """Takes up what is there and clears away what a crash left."""
        file = self.path / "dataset.json"
        holds_episodes = self.log.exists() and self.log.stat().st_size > 0
        if not holds_episodes and not (file.exists() and file.stat().st_size):  # an empty one is left by a full disk
            text = json.dumps(self.header, indent=2) + "\n"
            _write_whole(file, lambda out: out.write(text.encode()))
        if not file.exists():
            raise UserError(f"{self.path} holds episodes but no dataset.json: restore it, or choose a new directory")
        found = read_header(file)
        different = [key for key in {**self.header, **found} if found.get(key) != self.header.get(key)]
        if different:
            raise UserError(f"{self.path} holds demonstrations with another {different[0]}: choose a new directory")
        for leftover in self.path.glob(f"*{PARTIAL}"):
            leftover.unlink()
        rows = read_log(self.log)
        self.lost = [row["file"] for row in rows if row["success"] and not (self.path / row["file"]).exists()]
        self.rows = [row for row in rows if row["file"] is None or row["file"] not in self.lost]
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        if holds_episodes and self.log.read_text(encoding="utf-8") != text:
            _write_whole(self.log, lambda out: out.write(text.encode()))

    def _arrays(self, episode: Episode) -> dict[str, Any] | None:
        """What goes into the file; None, and an error in the episode, if that is no demonstration."""
        try:
            # The last observation is nobody's input: the episode is over.
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
    """What keeps others out."""
    try:
        return ProcessLock(path / ".lock")
    except Held as owner:
        raise UserError(
            f"another `dvla collect` ({owner}) is writing to {path}: wait until it has ended, or choose a new directory"
        ) from owner


def _write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file that is there whole or not at all, also after a crash of the machine."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@contextlib.contextmanager
def _disk_faults(path: Path) -> Iterator[None]:
    """One sentence for a full disk, a read-only directory and the like."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): mend that or choose another directory, and run the "
            "same command again; what is there is kept"
        ) from error
