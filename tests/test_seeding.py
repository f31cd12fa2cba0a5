"""No two streams of the package are one: parts in any order, of any size; purposes read from the source."""

import ast
import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from dvla_lightning import seeding
from dvla_lightning.seeding import derived_seed, seed_sequence

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("dvla_lightning/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])
# Scenes that every recorded result rests on keep the entropy they always had, which is of one length and has its tag.
KEEP_THEIR_ENTROPY = {"envs/tabletop/tasks.py", "envs/libero/states.py"}

NUMBERS = [0, 1, 2, 3, 5, -1, -5, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63, 2**64, -(2**64), 10**40]
TEXTS = ["", "0", "1", "a", "b", "ab", "0, 1", '", "', "[", "\\", "\0", "\n", "\u00e9", "e\u0301", "\ud800", "reach"]


def stream(*parts):
    return tuple(seed_sequence("test", *parts).generate_state(4).tolist())


def part_lists():
    """All lists of up to two parts, those with zeros behind them, and some random ones."""
    every = [*NUMBERS, *TEXTS]
    lists = {parts for length in range(3) for parts in itertools.product(every, repeat=length)}
    lists |= {(*parts, *[0] * zeros) for parts in set(lists) for zeros in (1, 2, 7)}
    draw = random.Random(0)
    lists |= {tuple(draw.choices(every, k=draw.randint(3, 12))) for _ in range(1000)}
    return lists


def test_no_two_part_lists_share_a_stream():
    lists = part_lists()
    assert len(lists) > 4000
    assert len({stream(*parts) for parts in lists}) == len(lists)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((3, 1), (3, 1, 0)),  # SeedSequence drops trailing zeros
        ((2**32 + 5,), (5, 1)),  # and writes numbers in words of 32 bits
        ((1,), ("1",)),
        (("ab", "c"), ("a", "bc")),
        ((-1,), (2**32 - 1,)),
        (('a", "b',), ("a", "b")),
    ],
)
def test_lists_that_look_alike_are_told_apart(one, other):
    assert stream(*one) != stream(*other)


def test_numbers_of_numpy_are_numbers():
    assert stream(np.int64(7), np.uint32(3)) == stream(7, 3) and stream(np.str_("a")) == stream("a")


@pytest.mark.parametrize("part", [1.5, None, [1], b"a"])
def test_other_parts_are_refused(part):
    with pytest.raises(TypeError):
        stream(part)


def test_streams_are_the_same_everywhere_and_always():
    """Golden: SHA-256 by coreutils (printf '["golden", 1, "x"]' | sha256sum), read as little-endian words."""
    digest = "c852969f3cb65d9024791c1f95199e8d58a2fe64e40b64fa7c058453b0d91e62"
    words = [int.from_bytes(bytes.fromhex(digest[n : n + 8]), "little") for n in range(0, 64, 8)]
    assert seed_sequence("golden", 1, "x").entropy == words
    assert seed_sequence("golden", 1, "x").generate_state(2).tolist() == [4057433211, 3454428777]
    assert derived_seed("golden", 1, "x", bits=64) == 14836658627633710203


def test_a_derived_seed_has_so_many_bits():
    seeds = [derived_seed("test", n) for n in range(2000)]
    assert len(set(seeds)) == 2000 and 2**52 < max(seeds) < 2**53
    for bits in (1, 32, 63, 64):
        largest = max(derived_seed("test", n, bits=bits) for n in range(64))
        assert 2 ** (bits - 1) <= largest < 2**bits


def calls(source, names):
    """(line, function, first argument) of the calls of some functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if name in names:
                yield node.lineno, name, node.args[0] if node.args else None


def test_each_call_has_a_purpose_of_its_own_written_out_there():
    purposes = {}
    for path in SOURCES:
        if path == Path(seeding.__file__):
            continue
        for line, _, purpose in calls(path.read_text(), ("seed_sequence", "derived_seed")):
            where = f"{path.relative_to(ROOT)}:{line}"
            assert isinstance(purpose, ast.Constant) and isinstance(purpose.value, str), where
            assert purpose.value not in purposes, f"{where} and {purposes[purpose.value]} have the same purpose"
            purposes[purpose.value] = where
    assert len(purposes) >= 7


def test_every_seed_sequence_of_the_package_begins_here():
    found = {
        path.relative_to(ROOT / "dvla_lightning").as_posix()
        for path in SOURCES
        if path.is_relative_to(ROOT / "dvla_lightning") and [*calls(path.read_text(), ("SeedSequence", "default_rng"))]
    }
    assert found == {"seeding.py"} | KEEP_THEIR_ENTROPY


def test_the_order_of_minibatches_is_no_stream_of_the_process():
    """They were one: [seed, iteration, rank] seeded both."""
    assert derived_seed("epoch", 0, 3, 0, bits=32) != derived_seed("minibatch order", 0, 3, 0, bits=32)
