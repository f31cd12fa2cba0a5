"""What is made of an evaluation's manifest: evaluation.json and the table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvla_lightning.envs.base import SPLIT_NAMES
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation import chain
from dvla_lightning.evaluation.header import Header, grid
from dvla_lightning.evaluation.manifest import NAME
from dvla_lightning.evaluation.records import EpisodeKey, EpisodeRecord
from dvla_lightning.evaluation.success import (
    SuccessCount,
    count_by_task,
    network_evaluations,
    steps_text,
    success_table,
    wilson_interval,
)
from dvla_lightning.evaluation.validation import check_header, read_record
from dvla_lightning.files import whole_file

ADDED = ("tasks", "total", "episodes", "checksum")  # by evaluation.json to the header


def conclude(directory: Path, header: Header, records: Mapping[EpisodeKey, EpisodeRecord]) -> str:
    """Writes evaluation.json, unless other shards are missing.

    Args:
        directory: which holds the manifest.
        header: of the evaluation.
        records: of all ranks.

    Returns:
        What to print: the table, and what there is to do or to read.
    """
    lines = [evaluation_table(header, records)]
    if errors := sum(record.error is not None for record in records.values()):
        lines.append(f"episodes with errors: {errors}; the same `dvla validate` into {directory} runs them again")
    if len(records) < len(grid(header)):
        lines.append(f"join the shards with: dvla merge {directory} <other directories> --out <directory>")
    else:
        path = write_summary(directory / "evaluation.json", summarize(header, records))
        lines.append(f"every episode is listed in {path}")
    return "\n".join(lines)


def summarize(header: Header, records: Mapping[EpisodeKey, EpisodeRecord]) -> dict[str, Any]:
    """The content of evaluation.json: what was run and how, counts per task, and every episode.

    Args:
        header: of the evaluation.
        records: of all its episodes.

    Returns:
        Plain JSON types.
    """
    counts, num_steps = count_by_task(header["num_steps"], records.values()), header["num_steps"]
    summary = {
        **header,
        "tasks": {task: _count_record({task: count}, num_steps) for task, count in counts.items()},
        "total": _count_record(counts, num_steps),
        "episodes": [dataclasses.asdict(record) for _, record in sorted(records.items())],
    }
    return {**summary, "checksum": chain.checksum(chain.START, summary)}


def evaluation_table(header: Header, records: Mapping[EpisodeKey, EpisodeRecord]) -> str:
    """The table for people: per task and for all of them, n and Wilson intervals; under it what must not be missed.

    Args:
        header: of the evaluation.
        records: of its episodes; where some are missing, the first line says so.
    """
    num_steps, environment = header["num_steps"], header["environment"]
    title = f"{SPLIT_NAMES[header['split']]} episodes, {steps_text(num_steps)}"
    if "suite" in environment:
        protocol = f", protocol {environment['protocol']}" if environment.get("protocol") else ""
        title = f"{environment['suite']}{protocol}: {title}"
    if len(records) < len(grid(header)):
        title += f"; {len(records)} of {len(grid(header))} episodes"
    table = success_table(count_by_task(num_steps, records.values()), title, num_steps)
    return "\n".join([table, *remark_lines(header)])


def remark_lines(header: Mapping[str, Any]) -> list[str]:
    """What every table made from an evaluation says under its rows."""
    return [f"note: {remark}" for remark in header["remarks"]]


def write_summary(path: Path, summary: Mapping[str, Any]) -> Path:
    """Writes evaluation.json; the file appears whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(summary, indent=1) + "\n")
    return path


def read_summary(path: Path) -> tuple[Header, dict[EpisodeKey, EpisodeRecord]]:
    """The evaluation behind an evaluation.json, in which everything must follow from header and episodes.

    Raises:
        UserError: if the file is missing, or no summary, or changed since it was written.
    """
    try:
        content = chain.parse(path.read_bytes())
        check_header(content)
        header = {name: value for name, value in content.items() if name not in ADDED}
        records = _read_episodes(content.get("episodes"), header)
        if json.dumps(summarize(header, records)) != json.dumps(content):
            raise ValueError("its counts or its checksum do not follow from its episodes")
    except (FileNotFoundError, NotADirectoryError):
        if path.with_name(NAME).exists():
            raise UserError(
                f"{path.parent} holds an evaluation without its end: run its command again to finish it, or join "
                "its shards with `dvla merge`"
            ) from None
        raise UserError(f"{path} does not exist: `dvla validate` writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not the record of an evaluation ({error}): the same `dvla validate` writes it anew from its "
            "manifest"
        ) from error
    return header, records


def _read_episodes(rows: Any, header: Header) -> dict[EpisodeKey, EpisodeRecord]:
    """The records of a whole evaluation; raises `ValueError` if they are none."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it has no list of episodes")
    records: dict[EpisodeKey, EpisodeRecord] = {}
    for row in rows:
        record = read_record(row, header)
        if record.key in records:
            raise ValueError(f"{record.key} is there twice")
        records[record.key] = record
    if len(records) < len(grid(header)):
        raise ValueError(f"{len(records)} of {len(grid(header))} episodes are there")
    return records


def _count_record(counts: Mapping[str, SuccessCount], num_steps: Mapping[str, int]) -> dict[str, Any]:
    """Some tasks together."""
    count = sum(counts.values(), SuccessCount(0, 0))
    cost = network_evaluations(counts, num_steps)
    return {
        **dataclasses.asdict(count),
        "rate": count.rate,
        "wilson_95": list(wilson_interval(count.successes, count.n)),
        "network_evaluations_per_decision": cost.per_decision,
        "network_evaluations_per_episode": cost.per_episode,
    }
