"""Demonstrations on disk: a directory with dataset.json, episodes.jsonl and one .npz file per successful episode.

dataset.json   format_version, environment (its identity), cameras, action_dim, proprioception_dim, observe_every,
               expert_noise
episodes.jsonl one line per episode that was tried: number, task, initial_state, seed, attempt, success, num_env_steps,
               seconds, error, file (null unless successful)
episode_*.npz  actions (T, action_dim) float32; observed_at (N,) int64, the control step before which each observation
               was made; proprioception (N, proprioception_dim) float32; image_<camera> (N, H, W, 3) uint8;
               instruction; task

This file reads; `demonstration_writer.py` writes, and `demonstration_checks.py` says what is accepted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.data.demonstration_checks import (
    FORMAT_VERSION,
    array_names,
    check_content,
    check_header,
    check_layout,
    check_log,
    check_row,
)
from dvla_lightning.data.demonstration_set import Demonstration
from dvla_lightning.errors import UserError


def load_demonstrations(path: Path) -> tuple[dict[str, Any], list[Demonstration]]:
    """Reads a directory of demonstrations.

    Returns:
        The content of dataset.json, and the episodes by task, initial state and attempt: the order in which they were
        collected depends on the number of workers, and training must not.

    Raises:
        UserError: if the directory is missing, empty or of another format version, or a file is damaged, missing, or
            no valid demonstration.
    """
    if not (path / "dataset.json").exists():
        raise UserError(f"{path} is no directory of demonstrations (no dataset.json): make one with `dvla collect`")
    header = read_header(path / "dataset.json")
    # Only files that the log names: a crash can leave another one, which does not count.
    rows = [row for row in read_log(path / "episodes.jsonl") if row["success"]]
    if not rows:
        raise UserError(f"{path} holds no successful episode: collect some with `dvla collect`")
    rows.sort(key=lambda row: (row["task"], row["initial_state"], row["seed"], row["attempt"]))
    demonstrations = [_read_episode(path, row, header) for row in rows]
    for camera in header["cameras"]:
        sizes = [demonstration.images[camera].shape[1:3] for demonstration in demonstrations]
        other = next((n for n, size in enumerate(sizes) if size != sizes[0]), None)
        if other is not None:
            raise UserError(
                f"{path / rows[other]['file']} has images of camera {camera!r} of size {sizes[other]}, "
                f"{rows[0]['file']} of size {sizes[0]}: keep episodes of one size"
            )
    return header, demonstrations


def num_copies(demonstrations: Sequence[Demonstration]) -> int:
    """Number of demonstrations with the content of an earlier one: scenes that repeat, or files that were copied."""
    return len(demonstrations) - len({_digest(demonstration) for demonstration in demonstrations})


def _digest(demonstration: Demonstration) -> bytes:
    digest = hashlib.blake2b(demonstration.instruction.encode())
    pictures = [frames[number] for frames in demonstration.images.values() for number in range(frames.shape[0])]
    for array in (demonstration.actions, demonstration.proprioception, *pictures):
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def read_header(file: Path) -> dict[str, Any]:
    """The content of dataset.json.

    Raises:
        UserError: if it is damaged, or of another format version.
    """
    with _read_faults(file, "collect into a new directory"):
        header = json.loads(_text(file))
        version = header.get("format_version", FORMAT_VERSION) if isinstance(header, dict) else FORMAT_VERSION
        if version != FORMAT_VERSION:
            raise UserError(f"{file} has format_version {version!r}, this release reads {FORMAT_VERSION}")
        return check_header(header)


def read_log(file: Path) -> list[dict[str, Any]]:
    """The episodes tried so far, without a last line that a crash cut short.

    Raises:
        UserError: for a line that is no record of an episode, or an episode that is there twice.
    """
    with _read_faults(file, "collect into a new directory"):
        lines = _text(file).split("\n")[:-1] if file.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        with _read_faults(file, f"remove line {number} and run `dvla collect` again", f" in line {number}"):
            rows.append(check_row(json.loads(line)))
    with _read_faults(file, "repair it, or collect into a new directory"):
        check_log(rows)
    return rows


class _Layout(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _read_episode(folder: Path, row: Mapping[str, Any], header: Mapping[str, Any]) -> Demonstration:
    path = folder / row["file"]
    if os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder):
        raise UserError(f"{path} is a link to a file outside of the data set: put the file itself there")
    if not path.is_file():
        raise UserError(f"{path} is missing or no file, though the log names it: run `dvla collect` again, as before")
    with _read_faults(path, "delete it and collect again"):
        arrays = _read_arrays(path, row, header)
    images = {camera: arrays[f"image_{camera}"] for camera in header["cameras"]}
    instruction, task = str(arrays["instruction"]), str(arrays["task"])
    return Demonstration(arrays["actions"], arrays["observed_at"], images, arrays["proprioception"], instruction, task)


def _read_arrays(path: Path, row: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    names = array_names(header)
    with zipfile.ZipFile(path) as archive:
        if missing := [name for name in names if f"{name}.npy" not in archive.namelist()]:
            raise ValueError(f"it has no array {missing[0]}")
        # Before the numbers: a file of a megabyte can hold terabytes of zeros.
        check_layout({name: _declared(archive, name) for name in names}, header, row["num_env_steps"])
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in names}
    check_content(arrays, row["task"])
    return arrays


def _declared(archive: zipfile.ZipFile, name: str) -> _Layout:
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} is of NumPy's format {version}")
        old = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return _Layout(shape, dtype)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@contextlib.contextmanager
def _read_faults(file: Path, remedy: str, where: str = "") -> Iterator[None]:
    """Turns every error while a file is read into one sentence about the file."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # json, zipfile and numpy have many for broken bytes: RecursionError, zlib.error, ...
        raise UserError(f"{file} is damaged{where} ({error}): {remedy}") from error
