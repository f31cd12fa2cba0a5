"""Files that appear whole or not at all, and end in a sentence where the disk is full or may not be written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dvla_lightning.errors import UserError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the name of a file to write, which takes its place when the block ends well; missing folders are made.

    Raises:
        UserError: if it cannot be written; what stood in its place stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path} cannot be written ({why}): make room, or write elsewhere") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
