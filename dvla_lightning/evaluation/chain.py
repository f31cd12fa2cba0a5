"""Lines of JSON that hang together: each ends with a checksum over the one before it and its own content.

What that shows: a line that was changed, left out, added or moved, by a disk, an editor or a script that does not know
of the chain; also a single flipped byte. What it cannot show: a forgery. There is no key, so whoever knows this file
can write a chain anew, and a file whose last lines are missing looks like one that was not finished. Who must trust the
numbers of a stranger runs some of the episodes again: they have the same outcome.
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
    own = checksum(previous, content)
    return json.dumps({**content, KEY: own}).encode() + b"\n", own


def unseal(previous: str, line: bytes) -> tuple[dict[str, Any], str]:
    """The content of a line, without its line break, and its checksum.

    Raises:
        ValueError: if it is no such line, in a few words.
    """
    content = parse(line)
    content.pop(KEY, None)
    sealed, own = seal(previous, content)
    if sealed != line + b"\n":
        raise ValueError("its checksum does not fit: a line was changed, left out or added")
    return content, own


def parse(text: str | bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if it is none, in a few words.
    """
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # of bytes that are no UTF-8, of numbers with thousands of digits, too
        raise ValueError("it is no JSON") from None
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
