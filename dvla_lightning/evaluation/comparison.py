"""Two evaluations of the same episodes: the difference of their success rates, paired episode by episode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.header import Header, differences
from dvla_lightning.evaluation.noninferiority import paired_difference_interval
from dvla_lightning.evaluation.records import EpisodeKey, EpisodeRecord

SAME = ("environment", "split", "seed", "episodes_per_task")  # these, and the tasks, must be equal in both headers
CONFIDENCE = 0.95
Records = Mapping[EpisodeKey, EpisodeRecord]


@dataclass(frozen=True)
class PairedDifference:
    """After - before on the same episodes, with the interval of Newcombe's method 10 (`paired_difference_interval`).

    Attributes:
        value: difference of the success rates, in [-1, 1]; 0 without a pair.
        low: lower end of its 95 % interval; -1 without a pair.
        high: upper end; 1 without a pair.
        n: pairs.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[EpisodeRecord, EpisodeRecord]]) -> PairedDifference:
        """The difference over some pairs (before, after)."""
        if not pairs:
            return cls(0.0, -1.0, 1.0, 0)
        before, after = ([record.success for record in side] for side in zip(*pairs, strict=True))
        return cls(*paired_difference_interval(after, before, CONFIDENCE), len(pairs))

    def __str__(self) -> str:
        return f"{100 * self.value:+6.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}] (n = {self.n})"


@dataclass(frozen=True)
class Comparison:
    """The differences between two evaluations.

    Attributes:
        by_task: task -> difference of its pairs.
        total: of all pairs.
        dropped: episodes that ended in an error in either evaluation, which say nothing about the difference.
    """

    by_task: Mapping[str, PairedDifference]
    total: PairedDifference
    dropped: Sequence[EpisodeKey]


def check_comparable(before: Header, after: Header) -> None:
    """Raises `UserError` if two evaluations are not of the same episodes."""
    different = differences({key: before[key] for key in SAME}, {key: after[key] for key in SAME})
    if not different and [*before["num_steps"]] != [*after["num_steps"]]:
        different = f"tasks ({', '.join(before['num_steps'])} there, {', '.join(after['num_steps'])} here)"
    if different:
        raise UserError(f"before and after are not evaluations of the same episodes; different are: {different}")


def compare(tasks: Iterable[str], before: Records, after: Records) -> Comparison:
    """Pairs the episodes of two evaluations of one grid.

    Args:
        tasks: of both.
        before: all records of one evaluation.
        after: all records of the other.
    """
    ran = [key for key in sorted(before) if before[key].error is None and after[key].error is None]
    pairs = {task: [(before[key], after[key]) for key in ran if key.task == task] for task in tasks}
    return Comparison(
        {task: PairedDifference.of(part) for task, part in pairs.items()},
        PairedDifference.of([pair for part in pairs.values() for pair in part]),
        sorted(set(before) - set(ran)),
    )
