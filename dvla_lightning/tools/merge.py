"""`dvla merge`: joins the shards of an evaluation into the manifest and table of one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.header import Header, differences, grid
from dvla_lightning.evaluation.manifest import find_files, read_evaluation, write_manifest
from dvla_lightning.evaluation.records import EpisodeKey, EpisodeRecord
from dvla_lightning.evaluation.summary import evaluation_report
from dvla_lightning.paths import local_path
from dvla_lightning.tools.parser import OneSentenceParser


def main(args: Sequence[str]) -> None:
    """Runs the command line."""
    parser = OneSentenceParser(prog="dvla merge", description=(merge.__doc__ or "").split("\n")[0])
    parser.add_argument("shards", nargs="+", help="run directories of `dvla validate --data.evaluation.shard i/n`")
    parser.add_argument("--out", required=True, help="directory for the manifest of the whole")
    config = parser.parse_args(list(args))
    merge(config.shards, config.out)


def merge(shards: Sequence[str], out: str) -> None:
    """Joins the shards of an evaluation, writes its manifest and prints its table.

    Args:
        shards: run directories of `dvla validate --data.evaluation.shard i/n`.
        out: directory for the result.

    Raises:
        UserError: if a directory is no shard, the shards are of different evaluations, an episode is in two of them,
            or one is in none.
    """
    directory = local_path(out, "--out")
    if find_files(directory):
        raise UserError(f"--out {out} holds an evaluation already: choose another directory")
    header, records = _join([local_path(shard, "shard") for shard in shards])
    missing = [key for key in grid(header) if key not in records]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(grid(header))} episodes are in none of the shards, the first one is {missing[0]}: "
            "run the shard that lacks it again, which adds what is missing"
        )
    write_manifest(directory, header, [records[key] for key in grid(header)])
    print(evaluation_report(directory, header, records))


def _join(directories: Sequence[Path]) -> tuple[Header, dict[EpisodeKey, EpisodeRecord]]:
    """The common header, and one record per episode."""
    joined: dict[EpisodeKey, EpisodeRecord] = {}
    found_in: dict[EpisodeKey, Path] = {}
    first, _ = read_evaluation(directories[0])
    for directory in directories:
        header, records = read_evaluation(directory)
        if header != first:
            raise UserError(
                f"{directory} and {directories[0]} are shards of different evaluations; different are: "
                f"{differences(first, header)}"
            )
        for key, record in records.items():
            if key in joined:
                raise UserError(f"{key} is in both {found_in[key]} and {directory}: name each shard once")
            joined[key], found_in[key] = record, directory
    return first, joined
