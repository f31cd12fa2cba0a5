"""The episodes to run: training specs of an RL iteration, the grid of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dvla_lightning.envs.base import SPLIT_NAMES, Environment
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.episode import EpisodeSpec
from dvla_lightning.seeding import derived_seed, seed_sequence

MAX_EPISODES = 1_000_000  # of an evaluation; far more than anybody runs, and few enough to be held in memory
NO_STATES = "choose tasks that have some, or set data.evaluation.num_episodes: 0"
Use = Literal["rollouts", "demonstrations", "schedule"]


class SpecBatch:
    """Episodes for one rank to run; opaque, because Lightning cannot transfer frozen dataclasses."""

    def __init__(self, specs: list[EpisodeSpec]) -> None:
        self.specs = specs

    def __len__(self) -> int:
        return len(self.specs)


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of an evaluation, which independent processes or machines run."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """Reads "i/n" with 0 <= i < n; None is everything.

        Raises:
            UserError: for anything else.
        """
        if text is None:
            return cls()
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UserError(f"data.evaluation: shard {text!r}: give i/n with i from 0 to n - 1, for example 0/2")
        return cls(int(index), int(count))

    def of(self, specs: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
        """This shard's share: every `count`-th initial state of each task, so that a grid may grow under its shards."""
        numbers = {task: number for number, task in enumerate(dict.fromkeys(spec.task for spec in specs))}
        return [spec for spec in specs if (numbers[spec.task] + spec.initial_state) % self.count == self.index]


def training_specs(
    tasks: Sequence[str],
    num_episodes: int,
    num_steps: int | Mapping[str, int],
    seed: int,
    iteration: int,
    group_size: int = 1,
    refill: int = 0,
    use: Use = "rollouts",
) -> list[EpisodeSpec]:
    """Fresh training episodes, spread evenly over the tasks; fewer episodes are the first ones of more.

    Args:
        tasks: names of the tasks; where they do not divide the groups, the surplus rotates with the iteration.
        num_episodes: of all ranks together, a multiple of `group_size`.
        num_steps: denoising steps K, or K of each task.
        seed: of the run.
        iteration: number of the RL iteration, from 0; of the task, where each is drawn by itself.
        group_size: consecutive episodes that begin in the same initial state and differ in their seeds.
        refill: number of the collection inside the iteration, from 0.
        use: purpose of the episodes; no two uses have a stream in common.

    Returns:
        The specs, group after group; a rank takes every world-size-th group.
    """
    stream = (use, seed, iteration, refill)
    states = seed_sequence("training initial states", *stream).generate_state(num_episodes, np.uint32) >> 1
    seeds = seed_sequence("training episodes", *stream).generate_state(num_episodes, np.uint64) >> 11
    specs = []
    for number in range(num_episodes):
        group = number // group_size
        task = tasks[(iteration + group) % len(tasks)]
        specs.append(EpisodeSpec(task, "train", int(states[group]), int(seeds[number]), _steps(num_steps, task)))
    return specs


def evaluation_specs(
    environment: Environment,
    split: str,
    tasks: Sequence[str],
    num_episodes: int,
    num_steps: int | Mapping[str, int],
    seed: int,
) -> list[EpisodeSpec]:
    """The evaluation grid: initial states 0, 1, 2, ... of a split of every task, the same at every call.

    An episode does not depend on how many others there are: a larger grid has the smaller one in it.

    Args:
        environment: knows how many initial states there are.
        split: "heldout", or "selection".
        tasks: names of the tasks.
        num_episodes: of all tasks together; a multiple of the number of tasks.
        num_steps: denoising steps K, or K of each task.
        seed: of the evaluation; policy draws follow from it.

    Raises:
        UserError: if the episodes cannot be spread evenly, or a task has fewer initial states.
    """
    per_task, rest = divmod(num_episodes, len(tasks))
    if rest or per_task < 1:
        raise UserError(
            f"data.evaluation: num_episodes ({num_episodes}) must be a positive multiple of the {len(tasks)} tasks"
        )
    if num_episodes > MAX_EPISODES:
        raise UserError(f"data.evaluation: num_episodes ({num_episodes}) can be {MAX_EPISODES} at most")
    specs = []
    for task in tasks:
        available = environment.num_states(task, split)
        if available is not None and per_task > available:
            remedy = f"set data.evaluation.num_episodes to at most {available * len(tasks)}" if available else NO_STATES
            states = f"{available} {SPLIT_NAMES[split]} initial states"
            raise UserError(f"task {task!r} has {states}, {per_task} were asked for: {remedy}")
        steps = _steps(num_steps, task)
        specs += [
            EpisodeSpec(task, split, state, evaluation_seed(split, seed, task, state), steps)
            for state in range(per_task)
        ]
    return specs


def evaluation_seed(split: str, seed: int, task: str, initial_state: int) -> int:
    """The seed of an evaluation's episode, in [0, 2^53).

    Args:
        split: of the initial state.
        seed: of the evaluation.
        task: name of the task.
        initial_state: its number.
    """
    return derived_seed("evaluation episode", split, seed, task, initial_state)


def num_protocol_episodes(environment: Environment, tasks: Sequence[str]) -> int:
    """Number of held-out episodes of all tasks that the environment's protocol asks for.

    Raises:
        UserError: if it does not say.
    """
    numbers = [environment.num_trials(task) for task in tasks]
    if None in numbers:
        raise UserError(
            f"data.evaluation.num_episodes: all: {type(environment).__name__} does not say how many; give a number"
        )
    return sum(number for number in numbers if number is not None)


def _steps(num_steps: int | Mapping[str, int], task: str) -> int:
    return num_steps if isinstance(num_steps, int) else num_steps[task]
