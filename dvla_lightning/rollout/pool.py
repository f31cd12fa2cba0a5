"""The pool: takes specs off a queue, keeps every simulator busy, survives simulators that die or hang."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from dvla_lightning.envs.base import Environment
from dvla_lightning.rollout.checks import check_transition
from dvla_lightning.rollout.episode import Episode, EpisodeSpec, Transition
from dvla_lightning.rollout.foreign_slot import ForeignSlot
from dvla_lightning.rollout.worker import CLOSE_SECONDS, LocalSlot, ProcessSlot, Slot, WorkerFailure


@dataclass
class Command:
    """An order of the actor: a method of `Runner`, its argument, and a note to keep with the episode."""

    name: str
    argument: Any
    note: Any = None


Actor = Callable[[Sequence[Episode]], Sequence[Command]]
"""Sees the running episodes that wait for a decision (the last transition holds the observation)."""


class WorkerPool:
    """Runs episodes on a fixed number of simulators.

    Args:
        environment: recipe of the simulator.
        num_workers: child processes with one simulator each; 0 runs `num_envs` simulators in this process, or one
            child process where the environment has an interpreter of its own.
        num_envs: simulators in this process when `num_workers` is 0.
        reset_timeout: seconds a reset may take in a child process (building the simulator included).
        step_timeout: seconds a chunk may take in a child process.
        max_retries: how often an episode is run again after its worker failed.
    """

    def __init__(
        self,
        environment: Environment,
        num_workers: int,
        num_envs: int,
        reset_timeout: float,
        step_timeout: float,
        max_retries: int,
    ) -> None:
        self.timeouts = {"reset": reset_timeout, "execute": step_timeout, "demonstrate": step_timeout}
        self.environment, self.max_retries = environment, max_retries
        self._asked: dict[int, int] = {}  # slot -> how many actions it was last asked for
        self.slots: list[Slot]
        if environment.interpreter:
            self.slots = [ForeignSlot(environment) for _ in range(max(1, num_workers))]
        elif num_workers:
            self.slots = [ProcessSlot(environment) for _ in range(num_workers)]
        else:
            self.slots = [LocalSlot(environment) for _ in range(num_envs)]

    def run(self, specs: Sequence[EpisodeSpec], actor: Actor, keep_observations: bool = False) -> Iterator[Episode]:
        """Runs every spec once and yields its episode as soon as it ends (not in the order of `specs`).

        Args:
            specs: what to run.
            actor: decides for all waiting episodes at once.
            keep_observations: keep every observation in the episode instead of the last one alone.

        Yields:
            One episode per spec; one that failed `max_retries` + 1 times carries its `error`.

        Raises:
            UserError: if the simulator cannot be used at all, as it says itself.
        """
        queue = _Queue(specs)
        running: dict[int, Episode] = {}
        last_task: dict[int, str] = {}
        while queue or running:
            for index in range(len(self.slots)):
                if index not in running and (episode := queue.take(last_task.get(index))):
                    running[index], last_task[index] = episode, episode.spec.task
                    self._start(index, episode)
            waiting: list[int] = []
            for index in self._ready(running):
                episode = running[index]
                try:
                    transition = self.slots[index].receive()
                    if transition is not None:
                        before = episode.transitions[-1] if episode.transitions else None
                        check_transition(transition, episode.spec, before, self._asked[index], self.environment)
                except WorkerFailure as failure:
                    self.slots[index].replace()
                    del running[index]
                    if episode.retries < self.max_retries:
                        queue.put_back(Episode(episode.spec, retries=episode.retries + 1))
                    else:
                        yield Episode(episode.spec, error=str(failure), retries=episode.retries)
                    continue
                if transition is None:
                    continue
                _append(episode, transition, keep_observations)
                if transition.done:
                    episode.seconds += time.perf_counter()
                    yield running.pop(index)
                else:
                    waiting.append(index)
            if waiting:
                commands = actor([running[index] for index in waiting])
                for index, command in zip(waiting, commands, strict=True):
                    running[index].decisions.append(command.note)
                    argument = command.argument
                    self._asked[index] = argument if isinstance(argument, int) else len(argument)
                    self.slots[index].send(command.name, argument, self.timeouts[command.name])

    def close(self) -> None:
        """Ends all simulators, side by side; those that do not listen are killed after `CLOSE_SECONDS` together."""
        for slot in self.slots:
            slot.stop()
        deadline = time.monotonic() + CLOSE_SECONDS
        for slot in self.slots:
            slot.close(max(0.0, deadline - time.monotonic()))
        self.slots = []

    def _start(self, index: int, episode: Episode) -> None:
        episode.seconds = -time.perf_counter()
        self._asked[index] = 0
        self.slots[index].send("reset", episode.spec, self.timeouts["reset"])

    def _ready(self, running: dict[int, Episode]) -> list[int]:
        """Slots whose result can be fetched, waiting for the first; a slot past its deadline counts as ready."""
        slots = {index: self.slots[index] for index in running}
        connections = [slot.connection for slot in slots.values() if slot.connection]
        if not connections:
            return list(running)
        answered = wait(connections, max(0.0, min(slot.deadline for slot in slots.values()) - time.monotonic()))
        now = time.monotonic()
        return [index for index, slot in slots.items() if slot.connection in answered or slot.deadline <= now]


class _Queue:
    """Specs still to be run. A simulator is handed its last task again where possible: changing tasks is expensive."""

    def __init__(self, specs: Sequence[EpisodeSpec]) -> None:
        self.pending = [Episode(spec) for spec in specs]

    def __len__(self) -> int:
        return len(self.pending)

    def take(self, task: str | None) -> Episode | None:
        if not self.pending:
            return None
        counts = Counter(episode.spec.task for episode in self.pending)
        wanted = task if task in counts else counts.most_common(1)[0][0]
        index = next(i for i, episode in enumerate(self.pending) if episode.spec.task == wanted)
        return self.pending.pop(index)

    def put_back(self, episode: Episode) -> None:
        self.pending.insert(0, episode)


def _append(episode: Episode, transition: Transition, keep_observations: bool) -> None:
    if episode.transitions and not keep_observations:
        episode.transitions[-1].observation = None
    episode.transitions.append(transition)
