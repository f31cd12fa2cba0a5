"""`dvla collect`: demonstrations from an environment's scripted expert."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence

import dvla_lightning.envs.libero
import dvla_lightning.envs.robotwin
import dvla_lightning.envs.tabletop  # noqa: F401 - short class names resolve to what is imported
from dvla_lightning.data.demonstration_writer import DemonstrationWriter
from dvla_lightning.envs.base import Environment
from dvla_lightning.errors import UserError, last_line
from dvla_lightning.evaluation.specs import training_specs
from dvla_lightning.evaluation.success import SuccessCount, success_table
from dvla_lightning.paths import local_path
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from dvla_lightning.tools.parser import run_tool

# An expert that fails this often on every initial state is broken: give up instead of trying forever.
STATES_PER_DEMONSTRATION = 20


def main(args: Sequence[str]) -> None:
    """Runs the command line."""
    run_tool(collect, args, "dvla collect")


def collect(
    collector: Collector,
    out: str,
    num_episodes: int,
    tasks: str | list[str] = "all",
    expert_noise: float = 0.0,
    num_attempts: int = 1,
    observe_every: int = 1,
    seed: int = 0,
) -> None:
    """Collects demonstrations from training initial states; run it again to continue an interrupted collection.

    Args:
        collector: environment and workers.
        out: directory of the demonstrations.
        num_episodes: successful episodes wanted, over all tasks together, spread evenly.
        tasks: "all", one name, or a list of names.
        expert_noise: how far the expert strays from its best action; 0 = not at all.
        num_attempts: plans the expert may try on an initial state before it is given up.
        observe_every: control steps between observations.
        seed: of initial states and noise.

    Raises:
        UserError: if the expert keeps failing, the directory holds something else, cannot be written, or another
            process is collecting there.
    """
    names = collector.environment.select_tasks(tasks)
    _check_numbers(expert_noise, num_attempts, observe_every, seed)
    if not out:
        raise UserError("--out is empty: give a directory for the demonstrations")
    if num_episodes < len(names):
        raise UserError(f"num_episodes must be at least the number of tasks ({len(names)}), got {num_episodes}")
    wanted = {task: num_episodes // len(names) + (n < num_episodes % len(names)) for n, task in enumerate(names)}
    candidates = {
        task: [
            dataclasses.replace(spec, expert_noise=expert_noise)
            for spec in _candidates(collector.environment, task, STATES_PER_DEMONSTRATION * count, seed)
        ]
        for task, count in wanted.items()
    }
    with DemonstrationWriter(local_path(out, "--out"), collector.environment, observe_every, expert_noise) as writer:
        if writer.lost:
            print(f"{len(writer.lost)} files are gone, {writer.lost[0]} the first: those episodes are run again")
        _fill(writer, collector, candidates, wanted, num_attempts)
        _print_summary(writer, names)


def _check_numbers(expert_noise: float, num_attempts: int, observe_every: int, seed: int) -> None:
    if not (math.isfinite(expert_noise) and expert_noise >= 0):
        raise UserError(f"--expert_noise must be a number from 0, got {expert_noise}")
    for name, value in (("num_attempts", num_attempts), ("observe_every", observe_every)):
        if value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    if seed < 0:
        raise UserError(f"--seed must not be negative, got {seed}")


def _fill(
    writer: DemonstrationWriter,
    collector: Collector,
    candidates: Mapping[str, Sequence[EpisodeSpec]],
    wanted: Mapping[str, int],
    num_attempts: int,
) -> None:
    """Runs the expert until every task has its demonstrations.

    Which episodes are kept depends neither on the number of workers nor on interruptions: for each task, those of the
    first initial states that the expert solves.
    """
    try:
        while specs := [
            spec for task in wanted for spec in _next_specs(writer, candidates[task], wanted[task], num_attempts)
        ]:
            episodes = collector.demonstrate(specs, writer.header["observe_every"], writer.add)
            if all(episode.error for episode in episodes):
                raise UserError(f"every episode ended in an error, the first one in: {last_line(episodes[0].error)}")
    finally:
        collector.close()


def _candidates(environment: Environment, task: str, count: int, seed: int) -> list[EpisodeSpec]:
    """Episodes of one task, whatever other tasks are collected; fewer are the first ones of more."""
    return training_specs([task], count, 0, seed, environment.tasks.index(task), use="demonstrations")


def _next_specs(
    writer: DemonstrationWriter, candidates: Sequence[EpisodeSpec], wanted: int, num_attempts: int
) -> list[EpisodeSpec]:
    """Chooses the next episodes of a task: as many states as demonstrations are missing, each with its next plan."""
    tried: dict[int, list[bool]] = {}
    for row in writer.rows:
        if row["task"] == candidates[0].task:
            tried.setdefault(row["initial_state"], []).append(row["success"])
    missing = wanted - sum(any(outcomes) for outcomes in tried.values())
    specs: list[EpisodeSpec] = []
    for spec in candidates:
        outcomes = tried.get(spec.initial_state, [])
        if len(specs) < missing and not any(outcomes) and len(outcomes) < num_attempts:
            specs.append(dataclasses.replace(spec, expert_attempt=len(outcomes)))
    if missing > 0 and not specs:
        raise UserError(
            f"the expert failed on {len(candidates)} initial states of task {candidates[0].task!r}: "
            "lower --expert_noise or raise --num_attempts"
        )
    return specs


def _print_summary(writer: DemonstrationWriter, tasks: Sequence[str]) -> None:
    counts = {}
    for task in tasks:
        rows = [row for row in writer.rows if row["task"] == task]
        errors = sum(row["error"] is not None for row in rows)
        kept = sum(row["success"] for row in rows)
        counts[f"{task}: kept {kept} of {len(rows)} tried"] = SuccessCount(kept, len(rows) - errors, errors)
    print(success_table(counts, f"expert episodes; the kept ones, all successful, are in {writer.path}"))
    seconds = sum(row["seconds"] for row in writer.rows) / max(1, len(writer.rows))
    print(f"{seconds:.2f} s per episode and simulator", file=sys.stderr)
