"""Writing files that appear whole or not at all, and saying in one sentence why one cannot be written."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dvla_lightning.errors import UserError

PARTIAL = ".partial"
"""Ending of the name of a file that is being written; one that stays was left by a process that was killed."""

FULL = "free some space, or choose another disk"
FORBIDDEN = "choose a directory that you may write to"
NO_FOLDER = "a part of that path is a file: choose another directory"
REMEDIES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: FORBIDDEN,
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.ENOTDIR: NO_FOLDER,
    errno.EEXIST: NO_FOLDER,
    errno.EISDIR: "there is a directory of that name: choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk",
}
"""Errors that say something about the disk or the path, and not about this program."""


def unwritable(path: str | Path, error: OSError) -> UserError:
    """The sentence for a file or directory that cannot be written."""
    remedy = REMEDIES.get(error.errno or 0, "choose another place")
    return UserError(f"{path} cannot be written ({error.strerror or error}): {remedy}")


def os_error(error: BaseException | None) -> OSError | None:
    """Finds the operating system's error behind another one; torch.save hides a full disk in a RuntimeError."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def disk_faults(path: str | Path) -> Iterator[None]:
    """Raises `UserError`, which names `path`, where the operating system refuses."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refusal = os_error(error)
        if refusal is None:
            raise
        raise unwritable(path, refusal) from error


def make_folder(path: str | Path) -> Path:
    """Makes a directory and those above it.

    Raises:
        UserError: if that is not possible.
    """
    with disk_faults(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


@contextmanager
def whole_file(path: Path, previous: str | Path | None = None, mark: str = "") -> Iterator[Path]:
    """Yields the name of a file that takes the place of `path` at the end of the block, when it is on the disk.

    If the block fails, or the process dies, what was at `path` stays as it was. What a process leaves behind that is
    killed is overwritten by the next one that writes the same file.

    Args:
        path: where to; missing folders are made.
        previous: keeps what was at `path` before under this name, in the same directory.
        mark: in the name of the file, for several that are written to one place at the same time.

    Raises:
        UserError: if the operating system refuses (full disk, no permission, ...).
    """
    make_folder(path.parent)
    # Not tempfile, whose files are readable for their owner alone; not in $TMPDIR, which may be another disk.
    partial = path.with_name(f".{path.name}{mark}{PARTIAL}")
    try:
        with disk_faults(path):
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            if previous is not None:
                _keep(path, Path(previous))
            os.replace(partial, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def atomic_file(path: str | Path, previous: str | Path | None = None) -> Iterator[IO[bytes]]:
    """As `whole_file`, open for writing; access rights follow the umask."""
    with (
        whole_file(Path(path), previous, f".{secrets.token_hex(4)}") as partial,
        open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file,
    ):
        yield file


def atomic_text(path: str | Path, text: str) -> None:
    """Writes text as UTF-8; see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(text.encode())


def remove_partial(folder: Path) -> None:
    """Removes what processes left in a directory that were killed while they wrote; nobody may be writing there."""
    for file in folder.glob(f".*{PARTIAL}"):
        with suppress(OSError):
            file.unlink()


def _keep(path: Path, previous: Path) -> None:
    """Links the file at `path` under a second name, so that it is never without one."""
    if not path.exists():
        return
    link = previous.with_name(f".{previous.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: for a moment there is `previous` alone
        os.replace(path, previous)
    else:
        os.replace(link, previous)


def _sync_folder(folder: Path) -> None:
    """Flushes a renaming to the disk, where the file system can do that for a directory."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
