"""One process at a time: a lock that is gone with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

# What a file system without locks answers; what is written there is not protected.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Held(Exception):
    """Another process holds the lock; the message says which one, as far as that is known."""


class ProcessLock:
    """Keeps others out until `release`, or the end of this process.

    Args:
        path: the lock file. It stays behind, and says who held it last: only the lock in it counts. On a file system
            without locks there is a remark on stderr instead of one.

    Raises:
        Held: if another process, or another lock of this one, holds it.
        OSError: if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+", encoding="utf-8")
        try:
            is_free = lock_descriptor(self._file.fileno(), blocking=False)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                self._file.close()
                raise
            is_free = True
            print(
                f"{path}: no locks on this file system ({error.strerror}): nobody else is kept from writing beside it",
                file=sys.stderr,
            )
        if not is_free:
            owner = _owner(self._file)
            self._file.close()
            raise Held(owner)
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        self._file.flush()

    @property
    def is_removed(self) -> bool:
        """Whether the file is gone from its directory: another process may hold a new one there."""
        return not os.fstat(self._file.fileno()).st_nlink

    def release(self) -> None:
        """Releases the lock."""
        self._file.close()


def _owner(file: IO[str]) -> str:
    try:
        file.seek(0)
        owner = json.loads(file.read())
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # OSError: on Windows a locked file cannot be read
        return "a process that has not said which"
