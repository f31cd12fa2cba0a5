"""The record of one episode of an evaluation, in plain types."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dvla_lightning.errors import UserError
from dvla_lightning.rollout.episode import Episode


class EpisodeKey(NamedTuple):
    """The key of an episode in an evaluation's grid."""

    task: str
    initial_state: int

    def __str__(self) -> str:
        return f"task {self.task!r}, initial state {self.initial_state}"


@dataclass(frozen=True)
class EpisodeRecord:
    """The record of one episode: what was asked for, and what happened.

    Attributes:
        task: name of the task.
        initial_state: number of the held-out initial state.
        seed: of the policy's draws.
        num_steps: denoising steps K of every decision.
        success: whether the task was solved; False with an error.
        num_env_steps: executed actions.
        num_decisions: policy calls.
        seconds: wall time from reset to end.
        error: why the episode could not be run, else None.
    """

    task: str
    initial_state: int
    seed: int
    num_steps: int
    success: bool
    num_env_steps: int
    num_decisions: int
    seconds: float
    error: str | None

    @classmethod
    def of(cls, episode: Episode) -> EpisodeRecord:
        """The record of an episode that has ended."""
        spec = episode.spec
        return cls(
            spec.task,
            spec.initial_state,
            spec.seed,
            spec.num_steps,
            episode.success,
            episode.num_env_steps,
            episode.num_decisions,
            round(episode.seconds, 3),
            episode.error,
        )

    @property
    def key(self) -> EpisodeKey:
        return EpisodeKey(self.task, self.initial_state)

    @property
    def outcome(self) -> tuple[bool, int, int]:
        """The part that is the same whenever and wherever the episode is run."""
        return self.success, self.num_env_steps, self.num_decisions


def one_per_episode(records: Iterable[EpisodeRecord]) -> dict[EpisodeKey, EpisodeRecord]:
    """The record of each episode; one that ended in an error gives way to one that ran.

    Raises:
        UserError: if an episode ran twice and came out differently, so that neither can be trusted.
    """
    chosen: dict[EpisodeKey, EpisodeRecord] = {}
    for record in records:
        known = chosen.get(record.key)
        if known is None or known.error is not None:
            chosen[record.key] = record
        elif record.error is None and record.outcome != known.outcome:
            raise UserError(
                f"{record.key} is recorded twice with different outcomes: evaluate again in another directory"
            )
    return chosen
