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
"""How the name of a file ends that is being written; one that stays behind was left by a process that was killed."""

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
    """What the operating system said behind an error; torch.save hides a full disk in a RuntimeError."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def make_folder(path: str | Path) -> Path:
    """Makes a directory and those above it.

    Raises:
        UserError: if that is not possible.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    return Path(path)


@contextmanager
def atomic_file(path: str | Path, previous: str | Path | None = None) -> Iterator[IO[bytes]]:
    """Opens a file beside `path` that takes its place at the end of the block, when it is whole and on the disk.

    If the block fails, or the process dies, what was at `path` stays as it was. Access rights follow the umask.

    Args:
        path: where to; missing folders are made.
        previous: keeps what was at `path` before under this name, in the same directory.

    Raises:
        UserError: if the operating system refuses (full disk, no permission, ...).
    """
    path = Path(path)
    make_folder(path.parent)
    # Not tempfile, whose files are readable for their owner alone; not in $TMPDIR, which may be another disk.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None:
            _keep(path, Path(previous))
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        refusal = os_error(error)
        if refusal is None:
            raise
        raise unwritable(path, refusal) from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """As `atomic_file`, for libraries that open a file by its name: gives the name to write to.

    Raises:
        UserError: if it cannot be written; what stood in its place stays.
    """
    make_folder(path.parent)
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()


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
    """Gives the file at `path` a second name, so that it is never without one."""
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
    """Brings a renaming to the disk, where the file system can do that for a directory."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
