"""The directory of a run: its contents, what is resumed from it, and who may write to it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dvla_lightning.errors import UserError
from dvla_lightning.locks import Held, ProcessLock
from dvla_lightning.paths import local_path, writable_directory

LOCK = ".lock"
EVENTS = "events.out.tfevents.*.{}.*"
"""The files that TensorBoard writes in the process with this id."""
OTHER_DIRECTORY = "choose another directory with --trainer.default_root_dir"
CKPT_PATH_HELP = (
    'Checkpoint to go on from: a file; "last": checkpoints/last.ckpt of trainer.default_root_dir; "auto" (fit only): '
    "last if there is one, else a new run, so that one command serves the first start and every one after it. None "
    "starts a new run, or evaluates the policy as it is given."
)


class RunDirectory:
    """`trainer.default_root_dir`.

    Args:
        given: as the user wrote it.

    Attributes:
        root: the directory; it need not exist yet.

    Raises:
        UserError: if it cannot be used.
    """

    def __init__(self, given: str | os.PathLike[str] | None) -> None:
        if given is None:
            raise UserError("trainer.default_root_dir: give the directory to write the run to")
        self.root = writable_directory(given, "trainer.default_root_dir")
        self._lock: ProcessLock | None = None
        self._made: list[Path] = []  # directories that `lock` had to make, the innermost first

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, whatever the loggers are."""
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint of `--ckpt_path last`."""
        return self.checkpoints / "last.ckpt"

    def checkpoint(self, verb: str, given: str | os.PathLike[str] | None) -> Path | None:
        """The checkpoint that --ckpt_path means; None starts anew.

        Raises:
            UserError: if it names no file.
        """
        if given is None:
            return None
        if given == "auto" and verb != "fit":
            raise UserError(f"--ckpt_path auto is for fit: `dvla {verb}` takes last, or a file")
        if given in ("auto", "last") and self.last.exists():
            return self.last
        # Where there are no hard links, a process that is killed while it writes may leave only this one.
        previous = self.checkpoints / "previous.ckpt"
        if given == "auto":
            return previous if previous.exists() else None
        if given == "last":
            way_out = f"go on from {previous}, the one before" if previous.exists() else "there is no run to resume"
            raise UserError(f"--ckpt_path last: {self.last} does not exist, {way_out}")
        path = local_path(given, "--ckpt_path")
        if not path.exists():
            raise UserError(f"--ckpt_path: {path} does not exist")
        return path

    def check_free(self, resumed: Path | None) -> None:
        """Raises `UserError` if a new run, or one resumed from elsewhere, would overwrite the run that is here.

        Args:
            resumed: the checkpoint that training goes on from.
        """
        if resumed is not None and self.root.resolve() in resumed.resolve().parents:
            return
        if resumed is not None and self._holds_a_run():
            raise UserError(
                f"{self.root} already holds a run, and --ckpt_path {resumed} is of another one: {OTHER_DIRECTORY}"
            )
        if self.last.exists():
            raise UserError(f"{self.root} already holds a run: continue it with --ckpt_path last, or {OTHER_DIRECTORY}")
        if self._holds_a_run():
            raise UserError(
                f"{self.root} already holds a run, without a last checkpoint to go on from: {OTHER_DIRECTORY}"
            )

    def _holds_a_run(self) -> bool:
        return any(self.checkpoints.glob("*.ckpt")) or (self.root / "policy").exists()

    def lock(self) -> None:
        """Makes the directory and keeps every other fit out of it until `release`, or the end of this process.

        Raises:
            UserError: if another fit is writing to it, or it cannot be written to.
        """
        path = self.root / LOCK
        self._made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = ProcessLock(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): {OTHER_DIRECTORY}") from error
        except Held as owner:
            raise UserError(
                f"{self.root} is being written to by another fit ({owner}): wait for its end, or {OTHER_DIRECTORY}"
            ) from owner
        if self._lock.is_removed:  # just now, by the `release` of another run
            self._lock.release()
            self.lock()

    def release(self) -> None:
        """Unlocks the directory, and removes it again if `lock` made it and no run began in it."""
        if self._lock is not None:
            if self._made:
                self._remove_unused()
            self._lock.release()
            self._lock = None

    def _remove_unused(self) -> None:
        """Removes the files of a run that ended before it trained; nothing if there are others."""
        with suppress(OSError):
            self.checkpoints.rmdir()
        ours = [self.root / LOCK, *self.root.glob(EVENTS.format(os.getpid()))]
        if set(self.root.iterdir()) <= set(ours):
            with suppress(OSError):
                for file in ours:
                    file.unlink()
                for folder in self._made:
                    folder.rmdir()
