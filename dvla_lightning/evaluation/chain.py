"""Chained lines of JSON: each ends with a checksum over the line before it and its content.

This shows a line that was changed, left out, added or moved, by a disk, an editor or a script that does not know of the
chain; also a single flipped byte. It cannot show a forgery: there is no key, so whoever knows this file can write a new
chain, and a file whose last lines are missing looks like one that was not finished. To check the numbers of a stranger,
run some of the episodes again: they have the same outcome.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NoReturn

KEY = "chain"
START = ""  # what the first line follows


def checksum(previous: str, content: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of SHA-256 over the checksum before and the content, as JSON."""
    return hashlib.sha256((previous + json.dumps(content)).encode()).hexdigest()[:16]


def seal(previous: str, content: Mapping[str, Any]) -> tuple[bytes, str]:
    """The line of a content, with its line break, and its checksum, which the next line follows."""
    digest = checksum(previous, content)
    return json.dumps({**content, KEY: digest}).encode() + b"\n", digest


def unseal(previous: str, line: bytes) -> tuple[dict[str, Any], str]:
    """The content of a line, without its line break, and its checksum.

    Raises:
        ValueError: if it does not follow `previous`, in a few words.
    """
    content = parse(line)
    content.pop(KEY, None)
    sealed, digest = seal(previous, content)
    if sealed != line + b"\n":
        raise ValueError("its checksum does not fit: a line was changed, left out or added")
    return content, digest


def parse(text: str | bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if it is none, in a few words.
    """
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # also of bytes that are not UTF-8, and of numbers with thousands of digits
        raise ValueError("it is no JSON") from None
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
