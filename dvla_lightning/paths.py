"""Turns a path that somebody typed into a place on this machine, in one way for the whole package."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dvla_lightning.errors import UserError

SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def local_path(given: str | os.PathLike[str], name: str) -> Path:
    """The path that is meant: `~`, `$NAME`, `${NAME}` and `file://` are resolved; a relative one stays relative.

    Args:
        given: as the user wrote it.
        name: what it is, for the message: an option, a key or a variable.

    Raises:
        UserError: for an empty path, another machine's, a variable that is not set or a user that does not exist.
    """
    text = os.fspath(given)
    if not text.strip() or "\0" in text:
        raise UserError(f"{name} {text!r} is no path: give the name of a file or directory")
    if text.startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise UserError(f"{name} {text} is on the machine {parts.netloc!r}: write file:///path for a local path")
        text = unquote(parts.path) or "/"
    elif scheme := SCHEME.match(text):
        raise UserError(f"{name} {text}: {scheme[1]}:// is not supported: copy or mount it, and give a local path")
    text = os.path.expandvars(os.path.expanduser(text))
    if not os.path.lexists(text):  # what looks like a variable may be a name
        if text.startswith("~"):
            raise UserError(f"{name} {text}: there is no such user: give the path without ~")
        if unset := VARIABLE.search(text):
            raise UserError(f"{name} {text}: the environment variable {unset[1].strip('{}')} is not set")
    return Path(text)


def writable_directory(given: str | os.PathLike[str], name: str) -> Path:
    """A directory that exists or can be made, `local_path` of it; nothing is made yet.

    Raises:
        UserError: as `local_path`, or if it is a file, lies below one, or may not be written to.
    """
    path = Path(os.path.normpath(local_path(given, name)))
    try:
        existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise UserError(f"{name} {path} cannot be used ({error.strerror}): choose another directory") from error
    if not existing.is_dir():
        where = "is a file" if existing == path else f"lies below {existing}, which is a file"
        raise UserError(f"{name} {path} {where}: choose another directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{name} {path}: {existing} may not be written to: choose another directory")
    return path
