"""The seed of every random stream of the package: a purpose, and the numbers and names that tell its streams apart.

numpy's SeedSequence alone does not keep streams apart: it drops trailing zeros ([3, 1] and [3, 1, 0] are one stream)
and runs large numbers together ([2^32 + 5] and [5, 1]). Here purpose and parts are written as JSON, in which no two
lists look alike, and the SHA-256 digest of that text, always eight 32-bit words, is the entropy. The same on every
platform and with every numpy (NEP 19 keeps SeedSequence as it is). numpy alone: simulators' interpreters import this.
"""

from __future__ import annotations

import hashlib
import json
import operator

import numpy as np


def seed_sequence(purpose: str, *parts: int | str) -> np.random.SeedSequence:
    """The seed sequence of one stream.

    Args:
        purpose: what is drawn; each call in the source has its own, written out there.
        parts: integers of any size and sign, and text; 1 and "1" are different parts.

    Raises:
        TypeError: for any other part.
    """
    plain = [part if isinstance(part, str) else operator.index(part) for part in parts]
    digest = hashlib.sha256(json.dumps([purpose, *plain]).encode()).digest()
    return np.random.SeedSequence([int(word) for word in np.frombuffer(digest, "<u4")])


def derived_seed(purpose: str, *parts: int | str, bits: int = 53) -> int:
    """One number in [0, 2^bits), the first of its stream.

    Args:
        purpose: as of `seed_sequence`.
        parts: as of `seed_sequence`.
        bits: 1 to 64; 53 is what every reader of JSON keeps exactly.
    """
    return int(seed_sequence(purpose, *parts).generate_state(1, np.uint64)[0]) >> (64 - bits)
