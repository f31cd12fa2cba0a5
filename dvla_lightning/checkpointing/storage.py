"""Writes and reads checkpoint files; nothing in a file is executed."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from dvla_lightning.checkpointing.contents import check_contents, check_finite
from dvla_lightning.errors import UserError
from dvla_lightning.files import atomic_file

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The end of the last epoch, and of the one before; the first takes the place of the second when it is whole."""


class RunCheckpointIO(TorchCheckpointIO):
    """Writes every checkpoint beside its place, checks whatever it reads and unpickles plain values alone.

    Lightning's own writes to $TMPDIR and copies from there over the only checkpoint.
    """

    def __init__(self) -> None:
        self._read: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a file; if that fails, what was there before stays, and nothing else.

        Raises:
            UserError: if a number in it is not finite, or the disk is full or may not be written to.
        """
        if "://" in str(path):  # a ModelCheckpoint of the user's own that writes elsewhere
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        check_finite(checkpoint, f"{path} was not written")
        place = Path(path)
        previous = place.with_name(PREVIOUS)
        # A run that went on from the previous one did so because the last one is damaged: do not keep that.
        keeps = place.name == LAST and (self._read is None or self._read != previous.resolve())
        with atomic_file(place, previous if keeps else None) as file:
            torch.save(checkpoint, file)
        self._read = None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file that `save_checkpoint` wrote, onto the CPU. Whatever is asked for, only plain values are read.

        Raises:
            UserError: if it is damaged, no checkpoint of a run, or holds numbers that are not finite.
        """
        self._read = Path(path).resolve()
        return read_checkpoint(Path(path))


def guard_checkpoints(trainer: Trainer) -> None:
    """Makes a trainer read and write its checkpoints through `RunCheckpointIO`, unless the user gave another plugin.

    And a ModelCheckpoint that does not say where it writes does so beside `last.ckpt`, whatever the loggers are.

    Raises:
        UserError: if one would take the place of `last.ckpt` or `previous.ckpt`.
    """
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = RunCheckpointIO()
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.dirpath is None:
            callback.dirpath = str(checkpoint_folder(trainer))
        is_here = Path(callback.dirpath).resolve() == checkpoint_folder(trainer).resolve()
        if is_here and (callback.save_last or f"{callback.filename}.ckpt" in (LAST, PREVIOUS)):
            raise UserError(
                f"trainer.callbacks: {LAST} and {PREVIOUS} in {callback.dirpath} are the run's own and always written: "
                "leave out save_last, or give that ModelCheckpoint another dirpath or filename"
            )


def checkpoint_folder(trainer: Trainer) -> Path:
    """The folder of a run's checkpoints."""
    return Path(trainer.default_root_dir) / "checkpoints"


def check_file(path: Path) -> None:
    """Raises `UserError` for a path that is no checkpoint of a run, as far as that shows without reading it."""
    if not path.exists():
        raise UserError(f"the checkpoint {path} does not exist")
    if (path / "config.json").exists():
        raise UserError(f"{path} is a policy directory: start from it with --model.policy.pretrained")
    if path.is_dir():
        raise UserError(f"{path} is a directory: give a file, for example checkpoints/{LAST} of a run")
    if path.suffix == ".safetensors":
        raise UserError(f"{path} holds the weights of a policy: give its directory to --model.policy.pretrained")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is damaged or no checkpoint of a run{_way_out(path)}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, all of which are plain values and finite tensors on the CPU.

    Raises:
        UserError: if the file is damaged or no checkpoint of a run.
    """
    check_file(path)
    if damage := _damage(path):
        raise UserError(f"{path} is {damage}{_way_out(path)}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds something other than tensors and plain values, which may be code, and was not read: "
            "only checkpoints that `dvla fit` wrote can be resumed"
        ) from error
    except Exception as error:  # a pickle that is not torch's raises whatever comes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is damaged or no checkpoint of a run ({reason}){_way_out(path)}") from error
    check_contents(checkpoint, path)
    check_finite(checkpoint, f"{path} cannot be used")
    return dict(checkpoint)


def _damage(path: Path) -> str | None:
    """Says what is wrong with a file, by its checksums; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if not any(member.filename.endswith("/data.pkl") for member in members):
                return "no checkpoint of a run, but another archive"
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # torch never compresses
                return "no checkpoint of a run, but a compressed archive"
            broken = archive.testzip()
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        return f"damaged ({' '.join(str(error).split())})"
    return f"damaged (the checksum of {broken} is wrong)" if broken else None


def _way_out(path: Path) -> str:
    """Names the newest whole checkpoint beside a damaged one."""
    others = [other for other in path.parent.glob("*.ckpt") if other.is_file() and other.name != path.name]
    for other in sorted(others, key=lambda file: file.stat().st_mtime, reverse=True):
        if zipfile.is_zipfile(other) and _damage(other) is None:
            return f": {other} is whole, go on from there with --ckpt_path {other}"
    return ": there is no other one in its directory"
