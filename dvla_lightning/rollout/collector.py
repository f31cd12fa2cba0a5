"""The only door to the simulators: `run` a policy, or `demonstrate` with the scripted expert, on a list of specs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from dvla_lightning.envs.base import Environment
from dvla_lightning.errors import check_number
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.episode import Episode, EpisodeSpec
from dvla_lightning.rollout.pool import Actor, Command, WorkerPool
from dvla_lightning.seeding import derived_seed


@dataclass
class CollectionTimes:
    """Wall time of the last collection by part, in seconds.

    Attributes:
        policy: inference, prompt building included.
        simulation: physics and resets, summed over simulators (they may run side by side).
        rendering: observations, summed over simulators.
    """

    policy: float = 0.0
    simulation: float = 0.0
    rendering: float = 0.0


class Collector:
    """Runs episodes of an environment; opens its simulators at the first call and keeps them until `close`.

    Args:
        environment: recipe of the simulator.
        num_workers: child processes with one simulator each, per rank; 0 runs the simulators in this process, or one
            child process where the environment has an interpreter of its own.
        num_envs: simulators in this process when `num_workers` is 0; the policy decides for all of them at once.
        reset_timeout: seconds a reset may take in a child process (building the simulator included).
        step_timeout: seconds a chunk may take in a child process.
        max_retries: how often an episode is run again after its worker died or hung; then it counts as an error.
        progress: show a progress bar.
        reproducible: decide for one episode at a time. Together they are faster, but a batch of another size may round
            the network's output differently in the last bit, and with child processes it is timing that says who is in
            a batch: now and then another token is drawn. Set it where results must not depend on the number of
            simulators, or a resumed run with child processes must equal an uninterrupted one to the bit.

    Raises:
        UserError: for numbers that make no sense.
    """

    def __init__(
        self,
        environment: Environment,
        num_workers: int = 0,
        num_envs: int = 64,
        reset_timeout: float = 300.0,
        step_timeout: float = 60.0,
        max_retries: int = 2,
        progress: bool = True,
        reproducible: bool = False,
    ) -> None:
        check_number("collector", "num_workers", num_workers, low=0)
        check_number("collector", "num_envs", num_envs, low=1)
        check_number("collector", "reset_timeout", reset_timeout, above=0)
        check_number("collector", "step_timeout", step_timeout, above=0)
        check_number("collector", "max_retries", max_retries, low=0)
        self.environment = environment
        self.num_workers, self.num_envs = num_workers, num_envs
        self.reset_timeout, self.step_timeout, self.max_retries = reset_timeout, step_timeout, max_retries
        self.progress, self.reproducible = progress, reproducible
        self.times = CollectionTimes()
        self._pool: WorkerPool | None = None

    def run(
        self,
        policy: DVLAPolicy,
        specs: Sequence[EpisodeSpec],
        title: str = "rollout",
        before_decision: Callable[[], None] | None = None,
        keep_decisions: bool = True,
        bootstrap: bool = True,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """Runs the policy on every spec.

        Args:
            policy: in eval mode, on its device.
            specs: what to run; draws depend on each spec's seed alone.
            title: shown on the progress bar.
            before_decision: called before every batch of decisions; it may raise to end the collection.
            keep_decisions: keep what learning needs of every decision; prompts take memory.
            bootstrap: of kept decisions, also estimate the value of what followed a truncated episode.
            on_episode: called with each episode as soon as it has ended.

        Returns:
            One episode per spec, in the order of `specs`, whose `decisions` are `Decision`, or None each.

        Raises:
            UserError: if K is not in 1..L, or the simulator cannot be used.
        """
        for spec in specs:
            policy.check_num_steps(spec.num_steps)

        def decide(episodes: Sequence[Episode]) -> list[Command]:
            if before_decision:
                before_decision()
            start = time.perf_counter()
            batches = [[episode] for episode in episodes] if self.reproducible else [episodes]
            commands = [command for batch in batches for command in _decide(policy, batch, keep_decisions)]
            self.times.policy += time.perf_counter() - start
            return commands

        episodes = self._in_order(specs, decide, False, title, on_episode)
        if keep_decisions and bootstrap:
            ended = [episode for episode in episodes if episode.error is None]
            truncated = [episode for episode in ended if not episode.transitions[-1].terminated]
            self._value_last(policy, truncated, before_decision)
        return episodes

    def _value_last(
        self, policy: DVLAPolicy, episodes: Sequence[Episode], before_batch: Callable[[], None] | None
    ) -> None:
        """Estimates the value of each episode's last observation, as many at once as in a decision."""
        start = time.perf_counter()
        size = 1 if self.reproducible else self.num_workers or self.num_envs
        for batch in (episodes[first : first + size] for first in range(0, len(episodes), size)):
            if before_batch:
                before_batch()
            values_B = policy.estimate_values([episode.observation for episode in batch])
            for episode, value in zip(batch, values_B.tolist(), strict=True):
                episode.decisions[-1].next_value = value
        self.times.policy += time.perf_counter() - start

    def demonstrate(
        self, specs: Sequence[EpisodeSpec], observe_every: int, on_episode: Callable[[Episode], None] | None = None
    ) -> list[Episode]:
        """Runs every spec with the scripted expert, keeping all observations.

        Args:
            specs: what to run.
            observe_every: control steps between observations.
            on_episode: called with each episode as soon as it has ended; the observations are dropped afterwards.

        Returns:
            One episode per spec, in the order of `specs`.
        """

        def act(episodes: Sequence[Episode]) -> list[Command]:
            return [Command("demonstrate", observe_every)] * len(episodes)

        def hand_over(episode: Episode) -> None:
            if on_episode:
                on_episode(episode)
                for transition in episode.transitions:
                    transition.observation = None

        return self._in_order(specs, act, True, "demonstrations", hand_over)

    def close(self) -> None:
        """Ends the simulators; the next call opens new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _in_order(
        self,
        specs: Sequence[EpisodeSpec],
        actor: Actor,
        keep_observations: bool,
        title: str,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        if not specs:
            return []
        self.times = CollectionTimes()
        finished: dict[EpisodeSpec, Episode] = {}
        try:
            for episode in self._with_progress(self._open().run(specs, actor, keep_observations), len(specs), title):
                self.times.simulation += sum(t.simulation_seconds for t in episode.transitions)
                self.times.rendering += sum(t.rendering_seconds for t in episode.transitions)
                if on_episode:
                    on_episode(episode)
                finished[episode.spec] = episode
        except BaseException:  # Ctrl-C included: simulators in the middle of an episode cannot be used again
            self.close()
            raise
        return [finished[spec] for spec in specs]

    def _open(self) -> WorkerPool:
        if self._pool is None:
            self._pool = WorkerPool(
                self.environment,
                self.num_workers,
                self.num_envs,
                self.reset_timeout,
                self.step_timeout,
                self.max_retries,
            )
        return self._pool

    def _with_progress(self, episodes: Iterator[Episode], total: int, title: str) -> Iterator[Episode]:
        successes = errors = steps = 0
        # One bar for all ranks; None lets tqdm hide it where the output is no terminal.
        hidden = True if not self.progress or os.environ.get("LOCAL_RANK", "0") != "0" else None
        with tqdm(total=total, desc=title, unit="ep", leave=False, disable=hidden) as bar:
            start = time.perf_counter()
            for episode in episodes:
                successes += episode.success
                errors += episode.error is not None
                steps += episode.num_env_steps
                rate = steps / (time.perf_counter() - start)
                bar.set_postfix_str(f"success {successes}/{bar.n + 1}, errors {errors}, {rate:.0f} env steps/s")
                bar.update()
                yield episode


def _decide(policy: DVLAPolicy, episodes: Sequence[Episode], keep_decisions: bool) -> list[Command]:
    """The next chunk of each episode, decided together."""
    decisions = policy.decide(
        [episode.observation for episode in episodes],
        [episode.spec.num_steps for episode in episodes],
        [derived_seed("decision", episode.spec.seed, episode.num_decisions, bits=63) for episode in episodes],
    )
    actions = decisions.actions.float().cpu().numpy()
    notes = decisions.unbind() if keep_decisions else [None] * len(episodes)
    return [Command("execute", action, note) for action, note in zip(actions, notes, strict=True)]
