"""The manifest of an evaluation: JSON lines that grow episode by episode, so that a killed evaluation can go on.

evaluation.jsonl          first line: the header, what is evaluated and how; then one line per episode that has ended
evaluation.rank-1.jsonl   the same of rank 1, and so on: no two processes ever write to one file

An evaluation that goes on with more episodes adds a line {"episodes_per_task": ...}. Every line carries a checksum over
the line before and its own content (`chain`), and must fit the header (`validation`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from dvla_lightning.errors import UserError
from dvla_lightning.evaluation import chain
from dvla_lightning.evaluation.header import Header, differences, grid, grown
from dvla_lightning.evaluation.records import EpisodeKey, EpisodeRecord, one_per_episode
from dvla_lightning.evaluation.validation import check_header, check_new, check_size, read_record
from dvla_lightning.files import whole_file
from dvla_lightning.locks import Held, ProcessLock

NAME = "evaluation.jsonl"
ELSEWHERE = "choose another directory with --trainer.default_root_dir"


@dataclasses.dataclass
class Contents:
    """The contents of one file of a manifest.

    Attributes:
        header: None of a file without a whole line; `episodes_per_task` is the last one written.
        records: in the order in which they were written.
        size: bytes of the whole lines; a line behind them was cut short when the process was killed.
        last: checksum of the last line.
    """

    header: Header | None = None
    records: list[EpisodeRecord] = dataclasses.field(default_factory=list)
    size: int = 0
    last: str = chain.START

    def add(self, line: bytes, known: dict[EpisodeKey, EpisodeRecord]) -> None:
        """Reads the next line, without its line break; raises `ValueError` if it does not belong there."""
        if self.header is None:
            check_header(chain.parse(line))  # before the checksum, which other versions compute differently, if at all
        row, self.last = chain.unseal(self.last, line)
        if self.header is None:
            self.header = row
        elif set(row) == {"episodes_per_task"}:
            check_size(self.header["num_steps"], row["episodes_per_task"])
            self.header = grown(self.header, row["episodes_per_task"])
        else:
            record = read_record(row, self.header)
            check_new(record, known)
            known[record.key] = record
            self.records.append(record)
        self.size += len(line) + 1


def read_file(path: Path) -> Contents:
    """Reads one file. A last line without its line break is dropped.

    Raises:
        UserError: if the file cannot be read or a line is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    contents, known = Contents(), dict[EpisodeKey, EpisodeRecord]()
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            contents.add(line, known)
        except ValueError as error:
            raise UserError(
                f"{path} is damaged in line {number} ({error}): delete the file to run its episodes again, or "
                f"{ELSEWHERE}"
            ) from error
    return contents


def find_files(directory: Path) -> list[Path]:
    """The files of all ranks, in order.

    Raises:
        UserError: if the directory cannot be looked into.
    """
    try:
        return sorted(directory.glob("evaluation*.jsonl"))
    except OSError as error:  # of a name that is too long, or a directory that may not be read
        raise UserError(f"{directory} cannot be read ({error.strerror})") from error


def read_directory(directory: Path, header: Header | None = None) -> tuple[Header | None, list[EpisodeRecord]]:
    """Reads the files of all ranks, whose headers must be equal but for the number of episodes.

    Args:
        directory: of the run.
        header: what the headers must be, but for the number of episodes; None takes the first one found.

    Returns:
        The header, with the largest number of episodes (None where there is none), and all records.

    Raises:
        UserError: if a file is damaged or belongs to another evaluation.
    """
    records: list[EpisodeRecord] = []
    most = 0
    for path in find_files(directory):
        contents = read_file(path)
        records += contents.records
        if contents.header is None:
            continue
        there = contents.header["episodes_per_task"]
        if header is not None and grown(contents.header, 0) != grown(header, 0):
            raise UserError(
                f"{path} is the manifest of another evaluation; different are: "
                f"{differences(contents.header, header)}: {ELSEWHERE}, or delete the file to start again"
            )
        header, most = header or contents.header, max(most, there)
    return (None if header is None else grown(header, max(most, header["episodes_per_task"]))), records


def read_evaluation(directory: Path) -> tuple[Header, dict[EpisodeKey, EpisodeRecord]]:
    """The evaluation that a directory holds: its header, and one record of each episode that has ended.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    header, records = read_directory(directory)
    if header is not None:
        return header, one_per_episode(records)
    if (directory / "evaluation.json").is_file():
        raise UserError(f"{directory} holds only the evaluation.json of an older release: run `dvla validate` again")
    raise UserError(f"{directory} holds no {NAME}: `dvla validate` writes it")


def read_whole_evaluation(directory: Path) -> tuple[Header, dict[EpisodeKey, EpisodeRecord]]:
    """As `read_evaluation`, of an evaluation whose every episode has ended.

    Raises:
        UserError: if there is none, or it is damaged, or episodes are missing.
    """
    header, records = read_evaluation(directory)
    if len(records) < len(grid(header)):
        raise UserError(
            f"{directory} holds {len(records)} of {len(grid(header))} episodes: run its command again to finish it, or "
            "join its shards with `dvla merge`"
        )
    return header, records


class Manifest:
    """The manifest of a running evaluation, of one rank.

    Creating it locks this rank's file and reads those of all ranks; nothing is written before `begin`.

    Args:
        directory: of the run; created.
        header: of the evaluation; with more episodes than the directory holds, it is the same evaluation that grows.
        rank: number of this process among those of the run.

    Attributes:
        found: the records that were there before.

    Raises:
        UserError: if the directory holds another or a larger evaluation, a damaged one, or one that is running now.
    """

    def __init__(self, directory: Path, header: Header, rank: int = 0) -> None:
        self.header = header
        self.path = directory / (NAME if rank == 0 else f"evaluation.rank-{rank}.jsonl")
        self._last = chain.START
        # Not on the manifest itself: on Windows a locked file cannot be read, and all ranks read all manifests.
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = ProcessLock(directory / f".{self.path.name}.lock")
            try:
                self._file: IO[bytes] = self.path.open("ab", buffering=0)
            except OSError:
                self._lock.release()
                raise
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror})") from error
        except Held as owner:
            raise UserError(
                f"{self.path} belongs to an evaluation that is running now ({owner}): wait for its end, or {ELSEWHERE}"
            ) from owner
        try:
            there, records = read_directory(directory, header)
            if there is not None and there["episodes_per_task"] > header["episodes_per_task"]:
                raise UserError(
                    f"{directory} holds an evaluation of {there['episodes_per_task']} episodes per task, asked for are "
                    f"{header['episodes_per_task']}: set data.evaluation.num_episodes to as many, or {ELSEWHERE}"
                )
            self.found = one_per_episode(records)
        except UserError:
            self.close()
            raise

    def begin(self) -> None:
        """Drops a last line that was cut short; writes the header of a new file, or how far an old one grows."""
        contents = read_file(self.path)
        self._file.truncate(contents.size)
        self._last = contents.last
        if contents.header is None:
            self._write(self.header)
        elif contents.header != self.header:
            self._write({"episodes_per_task": self.header["episodes_per_task"]})

    def append(self, record: EpisodeRecord) -> None:
        """Adds an episode that has ended; from now on it survives the end of the process.

        Raises:
            UserError: if the disk is full; the lines before stay whole.
        """
        self._write(dataclasses.asdict(record))

    def close(self) -> None:
        """Releases the file; an empty one is removed."""
        if not self._file.closed:
            is_empty = self._file.tell() == 0
            self._file.close()
            if is_empty:
                self.path.unlink(missing_ok=True)
            self._lock.release()

    def _write(self, content: Mapping[str, Any]) -> None:
        line, digest = chain.seal(self._last, content)
        size = self._file.tell()
        try:
            rest = line
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)  # part of the line may be there
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): what it holds is safe; make room, and the same "
                "command runs the other episodes"
            ) from error
        self._last = digest


def write_manifest(directory: Path, header: Header, records: list[EpisodeRecord]) -> Path:
    """Writes the manifest of an evaluation that has ended; it appears whole or not at all."""
    last, lines = chain.START, []
    for content in (header, *map(dataclasses.asdict, records)):
        line, last = chain.seal(last, content)
        lines.append(line)
    with whole_file(directory / NAME) as partial:
        partial.write_bytes(b"".join(lines))
    return directory / NAME
