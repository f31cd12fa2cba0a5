"""Measures a step schedule: the same episodes at several K, and per task the smallest K that is no worse."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dvla_lightning.envs.base import Observation
from dvla_lightning.errors import UserError, last_line
from dvla_lightning.evaluation.noninferiority import lower_bound
from dvla_lightning.evaluation.ranks import gather_or_raise, rank_share
from dvla_lightning.evaluation.specs import training_specs
from dvla_lightning.evaluation.step_schedule import StepSchedule
from dvla_lightning.evaluation.success import wilson_interval
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.policy_directory import policy_fingerprint
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import Episode

# Decisions per K behind the median that is reported; a measured figure, nothing follows from it.
TIMED_DECISIONS = 20


@dataclass(frozen=True)
class Outcome:
    """The outcome of an episode: thousands of whole ones, with their pictures, would not fit into memory.

    Attributes:
        success: whether the task was solved.
        num_decisions: policy calls.
        error: why the episode could not be run, in one line; else None.
        observation: the last one, for a few episodes.
    """

    success: bool
    num_decisions: int
    error: str | None = None
    observation: Observation | None = None


def measure_schedule(
    policy: DVLAPolicy,
    collector: Collector,
    tasks: Sequence[str],
    num_steps: Sequence[int],
    episodes_per_task: int,
    seed: int = 0,
    margin: float = 0.05,
    confidence: float = 0.95,
    before_decision: Callable[[], None] | None = None,
) -> StepSchedule:
    """Runs the same training episodes at every K and chooses K per task.

    It chooses, so held-out initial states stay untouched, and so do those of selection, on which the result is judged.

    Args:
        policy: in eval mode, on its device.
        collector: runs this rank's share of the episodes; stays open.
        tasks: of the collector's environment.
        num_steps: the K to choose from.
        episodes_per_task: at every K, of all ranks together; in a process group every rank must call this function.
        seed: of initial states and policy draws.
        margin: the loss of success rate that is accepted, in (0, 1).
        confidence: of the one-sided test that the loss is not larger, in (0.5, 1).
        before_decision: called before every batch of decisions; it may raise to end the measurement.

    Returns:
        The schedule and its evidence; all but the milliseconds follows from the arguments.

    Raises:
        UserError: for arguments that do not fit, or if no episode of a task could be run at every K.
    """
    check_measurement(policy, collector, tasks, num_steps, episodes_per_task, margin, confidence)
    rows: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        runs = _run(policy, collector, task, sorted(num_steps), episodes_per_task, seed, before_decision)
        found = compare(task, runs, margin, confidence)
        milliseconds = decision_milliseconds(policy, _observations(runs), sorted(num_steps))
        rows[task] = [{**row, "milliseconds": round(milliseconds[row["num_steps"]], 3)} for row in found]
    evidence = {
        "policy": policy_fingerprint(policy),
        "sampler": dataclasses.asdict(policy.sampler),
        "num_action_steps": policy.num_action_steps,
        "environment": dict(collector.environment.identity()),
        "split": "train",
        "seed": seed,
        "episodes_per_task": episodes_per_task,
        "margin": margin,
        "confidence": confidence,
        "tasks": rows,
    }
    return StepSchedule({task: choose_num_steps(rows[task]) for task in tasks}, evidence)


def choose_num_steps(rows: Sequence[Mapping[str, Any]]) -> int:
    """The smallest K that is non-inferior to the best K (dVLA-RL, arXiv 2606.23623, Sec. 5.4).

    The best of several noisy rates is on average too high, which errs towards a larger K.

    Args:
        rows: of one task, from `compare`.
    """
    return min(row["num_steps"] for row in rows if row["noninferior"])


def compare(task: str, runs: Mapping[int, Sequence[Outcome]], margin: float, confidence: float) -> list[dict[str, Any]]:
    """The results at each K, in plain YAML types; the best K has most successes, the smaller one of equals.

    Args:
        task: its name, for the error message.
        runs: K -> outcomes on the same initial states in the same order. An outcome whose partner at another K is an
            error is left out: it says nothing about a difference.
        margin: the loss of success rate that is accepted, in (0, 1).
        confidence: of the one-sided test, in (0.5, 1).

    Raises:
        UserError: if no episode ran at every K.
    """
    kept = [row for row in zip(*runs.values(), strict=True) if all(outcome.error is None for outcome in row)]
    if not kept:
        first = next(outcome.error for run in runs.values() for outcome in run if outcome.error is not None)
        raise UserError(f"no episode of task {task!r} ran at every K without an error, the first one was: {first}")
    success = {steps: [row[n].success for row in kept] for n, steps in enumerate(runs)}
    best = max(runs, key=lambda steps: (sum(success[steps]), -steps))
    rows = []
    for number, steps in enumerate(runs):
        decisions = sum(row[number].num_decisions for row in kept)
        successes, n = sum(success[steps]), len(kept)
        bound = 0.0 if steps == best else lower_bound(success[steps], success[best], confidence)
        rows.append(
            {
                "num_steps": steps,
                "successes": successes,
                "n": n,
                "errors": sum(outcome.error is not None for outcome in runs[steps]),
                "decisions": decisions,
                "rate": round(successes / n, 4),
                "wilson_95": [round(end, 4) for end in wilson_interval(successes, n)],
                "difference_to_best": round((successes - sum(success[best])) / n, 4),
                "lower_bound": round(bound, 4),
                "noninferior": bound >= -margin,
                "network_evaluations": steps,
                "network_evaluations_per_episode": round(steps * decisions / n, 2),
            }
        )
    return rows


def decision_milliseconds(
    policy: DVLAPolicy, observations: Sequence[Observation], num_steps: Sequence[int]
) -> dict[int, float]:
    """Median wall time of one decision on one observation at each K, in milliseconds.

    The K take turns, so that a busy machine slows all of them down alike.
    """
    times: dict[int, list[float]] = {steps: [] for steps in num_steps}
    for repetition in range(TIMED_DECISIONS + 1):
        for steps in num_steps:
            start = time.perf_counter()
            # cpu(): the time until the robot could move, not until the GPU's queue is filled
            policy.act(observations[repetition % len(observations)], steps, seed=repetition).actions.cpu()
            times[steps].append(1000 * (time.perf_counter() - start))
    return {steps: statistics.median(values[1:]) for steps, values in times.items()}  # the first one warms up


def check_measurement(
    policy: DVLAPolicy,
    collector: Collector,
    tasks: Sequence[str],
    num_steps: Sequence[int],
    episodes_per_task: int,
    margin: float,
    confidence: float,
) -> None:
    """Raises `UserError` for arguments that do not fit, before the first episode."""
    check_choice(num_steps, episodes_per_task, margin, confidence)
    for steps in num_steps:
        policy.check_num_steps(steps)
    policy.check_environment(collector.environment)


def check_choice(num_steps: Sequence[int], episodes_per_task: int, margin: float, confidence: float) -> None:
    """Raises `UserError` for values with which no policy could be measured."""
    if not 0 < margin < 1:
        raise UserError(f"margin must be a success rate between 0 and 1, such as 0.05, got {margin}")
    if not 0.5 < confidence < 1:
        raise UserError(f"confidence must be between 0.5 and 1, such as 0.95, got {confidence}")
    if not num_steps or len(set(num_steps)) < len(num_steps):
        raise UserError(f"num_steps must be a list of different numbers, such as [1, 2, 4], got {list(num_steps)}")
    if episodes_per_task < 1:
        raise UserError(f"episodes_per_task must be at least 1, got {episodes_per_task}")


def _run(
    policy: DVLAPolicy,
    collector: Collector,
    task: str,
    num_steps: Sequence[int],
    episodes_per_task: int,
    seed: int,
    before_decision: Callable[[], None] | None,
) -> dict[int, list[Outcome]]:
    """K -> outcomes of all ranks, on every rank, in an order that is the same at every K.

    A rank that cannot run its share stops the others, too: they would wait for it.
    """
    number = collector.environment.tasks.index(task)
    outcomes: dict[int, list[Outcome]] = {}
    problem: UserError | None = None
    try:
        for steps in num_steps:
            specs = rank_share(training_specs([task], episodes_per_task, steps, seed, number, use="schedule"))
            title = f"{task}, K = {steps}"
            episodes = collector.run(policy, specs, title, before_decision, keep_decisions=False)
            outcomes[steps] = _outcomes(episodes, TIMED_DECISIONS if steps == min(num_steps) else 0)
    except UserError as error:
        problem = error
    ranks = gather_or_raise(problem or outcomes)
    return {steps: [outcome for part in ranks for outcome in part[steps]] for steps in num_steps}


def _observations(runs: Mapping[int, Sequence[Outcome]]) -> list[Observation]:
    return [outcome.observation for run in runs.values() for outcome in run if outcome.observation is not None]


def _outcomes(episodes: Sequence[Episode], num_observations: int) -> list[Outcome]:
    """The outcomes; the first ones that ran keep an observation, any of which serves to time decisions."""
    outcomes = []
    for episode in episodes:
        if episode.error is not None:
            outcomes.append(Outcome(False, episode.num_decisions, last_line(episode.error)))
            continue
        observation = episode.transitions[-1].observation if num_observations > 0 else None
        num_observations -= 1
        outcomes.append(Outcome(episode.success, episode.num_decisions, None, observation))
    return outcomes
