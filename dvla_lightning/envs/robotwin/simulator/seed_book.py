"""Verdicts on seeds, on disk and shared by workers: JSON, one file per task, split, configuration, robots and commit.

{task: {"task_name", "success_seeds": [...], ...}} as RLinf and SimpleVLA-RL write their lists of seeds, so each reads
the others'; failed seeds carry the reason, successful ones the placeholders of their instruction, and `begun` counts
checks that have not come to an end.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UserError

WRITING = 2**40  # byte of the lock file that guards the JSON; the bytes below guard one seed each


class Verdict(NamedTuple):
    """The result of the expert on a seed.

    Attributes:
        valid: it solved the task.
        reason: why not, else empty.
        info: the placeholders of the instruction, such as {"{A}": "020_hammer/base0"}.
    """

    valid: bool
    reason: str = ""
    info: dict[str, str] = {}  # noqa: RUF012 - never changed


class SeedBook:
    """The verdicts on the seeds of one task and split.

    Args:
        folder: of the cache; made if missing.
        task: name of the task.
        facts: what the verdicts depend on (split, configuration, robots, commit); names the file and is kept in it.
    """

    def __init__(self, folder: str, task: str, facts: Mapping[str, str]) -> None:
        self.task, self.facts = task, facts
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = ".".join([task, *(fact.replace("/", "_") for fact in facts.values())])
        self.path = Path(folder) / f"{name}.json"
        # Locks of a file end with any descriptor of it in the process, so this one stays open.
        self._locks = os.open(str(self.path) + ".lock", os.O_RDWR | os.O_CREAT, 0o666)

    def read(self) -> dict[int, Verdict]:
        """The verdict on every seed that was checked."""
        entry = self._entry()
        info = entry["info"]
        verdicts = {seed: Verdict(True, "", info.get(str(seed), {})) for seed in entry["success_seeds"]}
        verdicts.update({int(seed): Verdict(False, reason) for seed, reason in entry["failed_seeds"].items()})
        return verdicts

    def begin(self, seed: int) -> int:
        """Notes that a check begins; returns how many of this seed have begun without a verdict, this one included."""
        with self._change() as entry:
            entry["begun"][str(seed)] = entry["begun"].get(str(seed), 0) + 1
            return int(entry["begun"][str(seed)])

    def add(self, seed: int, verdict: Verdict) -> None:
        """Notes a verdict."""
        with self._change() as entry:
            entry["begun"].pop(str(seed), None)
            if verdict.valid:
                entry["success_seeds"] = sorted({*entry["success_seeds"], seed})
                entry["info"][str(seed)] = verdict.info
            else:
                entry["failed_seeds"][str(seed)] = verdict.reason

    def _entry(self) -> dict[str, Any]:
        lists: dict[str, Any] = {"success_seeds": [], "failed_seeds": {}, "info": {}, "begun": {}}
        if self.path.exists():
            try:
                entry: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))[self.task]
                if any(type(entry[name]) is not type(empty) for name, empty in lists.items()):
                    raise ValueError("an entry has another type")
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{self.path} is damaged ({error!r}): delete it; its seeds are checked anew") from error
            return entry
        return dict(self.facts, task_name=self.task, **lists)

    @contextlib.contextmanager
    def _change(self) -> Iterator[dict[str, Any]]:
        """The entry, to be changed; no other process writes meanwhile, and the file is whole at every moment."""
        with self._locked(WRITING, wait=True):
            entry = self._entry()
            yield entry
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps({self.task: entry}, indent=1) + "\n", encoding="utf-8")
            os.replace(str(partial), str(self.path))

    def claim(self, seed: int) -> contextlib.AbstractContextManager[bool]:
        """Keeps other processes from checking a seed, as a context; yields False if one does so already.

        The claim of a process that dies is void at once: the system drops its locks.
        """
        return self._locked(seed, wait=False)

    @contextlib.contextmanager
    def _locked(self, byte: int, wait: bool) -> Iterator[bool]:
        import fcntl  # not on Windows, where the command line imports this file and no simulator runs

        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
        except OSError:
            if wait:
                raise
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, byte)
