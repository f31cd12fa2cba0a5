"""Checks the header and the lines of an evaluation, which may be a stranger's: nothing in them is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dvla_lightning.evaluation.header import FORMAT_VERSION, Header
from dvla_lightning.evaluation.records import EpisodeKey, EpisodeRecord
from dvla_lightning.evaluation.specs import MAX_EPISODES, evaluation_seed

MOST = 2**53  # beyond any count, and far below what a float holds
HEADER_TYPES = {
    "policy": str,
    "environment": dict,
    "split": str,
    "seed": int,
    "num_steps": dict,
    "episodes_per_task": int,
    "num_action_steps": int,
    "sampler": dict,
    "precision": str,
    "remarks": list,
    "versions": dict,
}
RECORD_TYPES = {
    "task": (str,),
    "initial_state": (int,),
    "seed": (int,),
    "num_steps": (int,),
    "success": (bool,),
    "num_env_steps": (int,),
    "num_decisions": (int,),
    "seconds": (int, float),
    "error": (str, type(None)),
}


def check_header(header: Header) -> None:
    """Raises `ValueError`, in a few words, if it is no header."""
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"it has format version {version!r}, this release of dvla-lightning reads {FORMAT_VERSION}")
    for name, kind in HEADER_TYPES.items():
        if type(header.get(name)) is not kind:  # not isinstance: true is no number
            raise ValueError(f"{name} is missing or of a wrong type")
    num_steps = header["num_steps"]
    if header["split"] not in ("selection", "heldout"):
        raise ValueError(f"unknown split {header['split']!r}")
    if not num_steps or any(type(steps) is not int or not 1 <= steps <= MOST for steps in num_steps.values()):
        raise ValueError("num_steps must say K, a positive integer, for every task")
    check_size(num_steps, header["episodes_per_task"])
    shown = [*num_steps, *header["remarks"], *(header["environment"].get(key) or "" for key in ("suite", "protocol"))]
    if not all(isinstance(text, str) and text.isprintable() for text in shown):
        raise ValueError("tasks, remarks, suite and protocol must be printable text")


def check_size(num_steps: Mapping[str, int], episodes_per_task: Any) -> None:
    """Raises `ValueError`, in a few words, for a grid without episodes, or with more than anybody runs."""
    if type(episodes_per_task) is not int or not 1 <= episodes_per_task <= MAX_EPISODES // len(num_steps):
        raise ValueError(f"episodes_per_task cannot be {episodes_per_task!s:.20}")


def read_record(row: Mapping[str, Any], header: Header) -> EpisodeRecord:
    """The record of an episode that belongs to an evaluation.

    Args:
        row: its fields in plain JSON types.
        header: of the evaluation, checked.

    Raises:
        ValueError: if it is none, in a few words.
    """
    if set(row) != set(RECORD_TYPES):
        raise ValueError(f"{', '.join(sorted(set(row) ^ set(RECORD_TYPES)))[:60]!r} is missing or unknown")
    for name, kinds in RECORD_TYPES.items():
        if type(row[name]) not in kinds:
            raise ValueError(f"{name} is of a wrong type")
    record = EpisodeRecord(**row)
    _check_question(record, header)
    _check_answer(record)
    return record


def check_new(record: EpisodeRecord, known: Mapping[EpisodeKey, EpisodeRecord]) -> None:
    """Raises `ValueError`, in a few words, if the episode is there already and did not end in an error."""
    before = known.get(record.key)
    if before is not None and before.error is None:
        raise ValueError(f"{record.key} is there already")


def _check_question(record: EpisodeRecord, header: Header) -> None:
    if record.task not in header["num_steps"]:
        raise ValueError(f"the evaluation has no task {record.task[:60]!r}")
    if not 0 <= record.initial_state < header["episodes_per_task"]:
        raise ValueError(f"the evaluation has no initial state {record.initial_state!s:.20}")
    if record.seed != evaluation_seed(header["split"], header["seed"], *record.key):
        raise ValueError("the seed is not the one of this episode")
    if record.num_steps != header["num_steps"][record.task]:
        raise ValueError("num_steps is not the one of this task")


def _check_answer(record: EpisodeRecord) -> None:
    if not all(0 <= number <= MOST for number in (record.num_env_steps, record.num_decisions, record.seconds)):
        raise ValueError("num_env_steps, num_decisions and seconds cannot be negative or so large")
    if record.error is not None and record.success:
        raise ValueError("an episode with an error cannot be a success")
