"""Groups: episodes that begin in the same initial state and are compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from dvla_lightning.data.rollout_metrics import Gather
from dvla_lightning.errors import UserError, check_number, last_line
from dvla_lightning.rl.advantages import informative_groups
from dvla_lightning.rollout.episode import Episode, EpisodeSpec

AdvantageName = Literal["gae", "grpo", "rloo", "reinforce++"]


class EpisodeGroups:
    """Groups the episodes of an iteration, shares them among the ranks, and chooses which of them to train on.

    Args:
        advantage: "grpo" and "rloo" compare inside groups.
        size: episodes of a group.
        max_refills: leave out groups in which all episodes had the same outcome and collect others in their place, at
            most this many times; None: train on every group.
        num_episodes: per iteration, over all ranks.

    Raises:
        UserError: if these do not fit together.
    """

    def __init__(self, advantage: AdvantageName, size: int, max_refills: int | None, num_episodes: int) -> None:
        check_number("data", "group_size", size, low=1)
        if advantage in ("grpo", "rloo") and size < 2:
            raise UserError(
                f"data: advantage {advantage} compares episodes that begin alike: set group_size to at least 2, got "
                f"{size}"
            )
        if num_episodes % size:
            raise UserError(f"data: episodes_per_iteration ({num_episodes}) must be a multiple of group_size ({size})")
        if max_refills is not None:
            check_number("data", "max_refills", max_refills, low=0)
            if size < 2:
                raise UserError("data: max_refills needs groups: set group_size to at least 2")
        self.compares = advantage in ("grpo", "rloo")
        self.size, self.max_refills = size, max_refills

    def share(self, specs: Sequence[EpisodeSpec], rank: int, world_size: int) -> list[EpisodeSpec]:
        """A rank's share of specs in the order of their groups: every world-size-th group."""
        groups = [specs[start : start + self.size] for start in range(0, len(specs), self.size)]
        return [spec for group in groups[rank::world_size] for spec in group]

    def fill(self, run: Callable[[int, int], list[Episode]], num_episodes: int) -> tuple[list[Episode], list[Episode]]:
        """Runs episodes until there are enough to train on (dynamic sampling of DAPO, arXiv 2503.14476, Sec. 3.2).

        Args:
            run: (number of the refill, from 0; number of episodes) -> finished episodes, whole groups.
            num_episodes: wanted.

        Returns:
            All episodes that ran, and those to train on.
        """
        ran: list[Episode] = []
        chosen: list[Episode] = []
        for refill in range(1 + (self.max_refills or 0)):
            missing = (num_episodes - len(chosen)) // self.size  # whole groups, also after errors
            if not missing:
                break
            episodes = run(refill, missing * self.size)
            ran += episodes
            chosen += episodes if self.max_refills is None else informative_episodes(episodes)
        if not chosen:  # nothing to learn here: advantages of 0 keep the run going
            chosen = ran
        return ran, comparable_episodes(chosen) if self.compares else chosen

    def check_share(self, num_episodes: int, world_size: int) -> None:
        """Raises `UserError`, on every rank, if one would get no group: alone it would leave the others waiting."""
        if num_episodes < world_size * self.size:
            raise UserError(
                f"data: {num_episodes} episodes_per_iteration cannot be shared by {world_size} ranks in groups of "
                f"{self.size}: raise it"
            )

    def check_trainable(self, ran: Sequence[Episode], chosen: Sequence[Episode], gather: Gather) -> None:
        """Raises `UserError`, on every rank, if one has nothing to train on."""
        usable = sum(episode.error is None for episode in chosen)
        if gather(torch.tensor([float(usable)])).min():
            return
        what = "every training episode of a rank ended in an error"
        if self.compares:
            what = "no group of a rank has two episodes without an error"
        first = next((last_line(e.error) for e in ran if e.error), "see the output of the other ranks")
        raise UserError(f"{what}, the first one in: {first}")


def comparable_episodes(episodes: Sequence[Episode]) -> list[Episode]:
    """Episodes without an error that began like another one; the rest of a group may have ended in errors."""
    episodes = [episode for episode in episodes if episode.error is None and episode.decisions]
    numbers_E = group_numbers(episodes)
    return [episode for episode, number in zip(episodes, numbers_E, strict=True) if (numbers_E == number).sum() > 1]


def group_numbers(episodes: Sequence[Episode]) -> Tensor:
    """(E,) int64: episodes of one task that began in the same initial state have the same number."""
    numbers: dict[tuple[str, int], int] = {}
    keys = [(episode.spec.task, episode.spec.initial_state) for episode in episodes]
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def group_returns(episodes: Sequence[Episode]) -> Tensor:
    """(E,) float64: the sums of rewards, which are compared inside a group.

    Not discounted: where all episodes of a group succeed, the lengths alone teach nothing.
    """
    return torch.tensor([episode.episode_return for episode in episodes], dtype=torch.float64)


def informative_episodes(episodes: Sequence[Episode]) -> list[Episode]:
    """Episodes without an error of groups with more than one sum of rewards; advantages are 0 in exactly the others."""
    episodes = [episode for episode in episodes if episode.error is None and episode.decisions]
    if not episodes:
        return []
    keep_E = informative_groups(group_returns(episodes), group_numbers(episodes))
    return [episode for episode, keep in zip(episodes, keep_E.tolist(), strict=True) if keep]
