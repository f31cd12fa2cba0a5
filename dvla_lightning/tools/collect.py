"""`dvla collect`: demonstrations from an environment's scripted expert."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import dvla_lightning.envs.libero
import dvla_lightning.envs.robotwin
import dvla_lightning.envs.tabletop  # noqa: F401 - short class names resolve to what is imported
from dvla_lightning.data.episode_files import DemonstrationWriter
from dvla_lightning.errors import UserError, last_line
from dvla_lightning.evaluation.specs import training_specs
from dvla_lightning.evaluation.success import SuccessCount, success_table
from dvla_lightning.paths import local_path
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from dvla_lightning.tools.parser import run_tool

# Offset that keeps the initial states of demonstrations apart from those of RL iterations with the same seed.
FIRST_ITERATION = 2**31
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
        UserError: if the expert keeps failing, or the directory holds something else.
    """
    names = collector.environment.select_tasks(tasks)
    if num_episodes < len(names):
        raise UserError(f"num_episodes must be at least the number of tasks ({len(names)}), got {num_episodes}")
    wanted = {task: num_episodes // len(names) + (n < num_episodes % len(names)) for n, task in enumerate(names)}
    writer = DemonstrationWriter(local_path(out, "--out"), collector.environment, observe_every, expert_noise)
    candidates = {
        task: [
            dataclasses.replace(spec, expert_noise=expert_noise)
            for spec in training_specs([task], STATES_PER_DEMONSTRATION * count, 0, seed, FIRST_ITERATION + n)
        ]
        for n, (task, count) in enumerate(wanted.items())
    }
    try:
        while specs := [
            spec for task in names for spec in _next_specs(writer, candidates[task], wanted[task], num_attempts)
        ]:
            episodes = collector.demonstrate(specs, observe_every, writer.add)
            if all(episode.error for episode in episodes):
                raise UserError(f"every episode ended in an error, the first one in: {last_line(episodes[0].error)}")
    finally:
        collector.close()
    _print_summary(writer, wanted)


def _next_specs(
    writer: DemonstrationWriter, candidates: Sequence[EpisodeSpec], wanted: int, num_attempts: int
) -> list[EpisodeSpec]:
    """What to try next for one task: as many initial states as demonstrations are missing, each with its next plan."""
    tried: dict[int, list[bool]] = {}
    for row in writer.rows:
        if row["task"] == candidates[0].task:
            tried.setdefault(row["initial_state"], []).append(row["success"])
    missing = wanted - sum(any(outcomes) for outcomes in tried.values())
    specs = []
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
