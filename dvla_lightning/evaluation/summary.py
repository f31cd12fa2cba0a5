"""The printed report of an evaluation: its table, and what to do or read next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvla_lightning.envs.base import SPLIT_NAMES
from dvla_lightning.evaluation.header import Header, grid
from dvla_lightning.evaluation.manifest import NAME
from dvla_lightning.evaluation.records import EpisodeKey, EpisodeRecord
from dvla_lightning.evaluation.success import count_by_task, steps_text, success_table


def evaluation_report(directory: Path, header: Header, records: Mapping[EpisodeKey, EpisodeRecord]) -> str:
    """The report that `dvla validate` and `dvla merge` print at their end.

    Args:
        directory: which holds the manifest.
        header: of the evaluation.
        records: of all ranks.
    """
    lines = [evaluation_table(header, records)]
    if errors := sum(record.error is not None for record in records.values()):
        lines.append(f"episodes with errors: {errors}; the same `dvla validate` into {directory} runs them again")
    if len(records) < len(grid(header)):
        lines.append(f"join the shards with: dvla merge {directory} <other directories> --out <directory>")
    else:
        lines.append(f"every episode is a line of {directory / NAME}")
    return "\n".join(lines)


def evaluation_table(header: Header, records: Mapping[EpisodeKey, EpisodeRecord]) -> str:
    """The table for people: per task and for all of them, n and Wilson intervals; under it the remarks.

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
    """The lines under every table of an evaluation."""
    return [f"note: {remark}" for remark in header["remarks"]]
