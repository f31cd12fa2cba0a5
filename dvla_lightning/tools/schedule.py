"""`dvla schedule`: how many denoising steps each task needs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import dvla_lightning.envs.libero
import dvla_lightning.envs.robotwin
import dvla_lightning.envs.tabletop  # noqa: F401 - short class names resolve to what is imported
from dvla_lightning.diffusion.sampler import SamplerOverrides
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.step_measurement import measure_schedule
from dvla_lightning.evaluation.step_schedule import StepSchedule
from dvla_lightning.evaluation.success import SuccessCount
from dvla_lightning.paths import local_path
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.tools.parser import run_tool


def main(args: Sequence[str]) -> None:
    """Runs the command line."""
    run_tool(schedule, args, "dvla schedule", command=shlex.join(["dvla", "schedule", *args]))


def schedule(
    policy: str,
    collector: Collector,
    out: str,
    tasks: str | list[str] = "all",
    num_steps: list[int] = [1, 2, 4],  # noqa: B006 - never changed, and --help shows it
    episodes_per_task: int = 1000,
    margin: float = 0.05,
    confidence: float = 0.95,
    sampler: SamplerOverrides | None = None,
    seed: int = 0,
    trusted_modules: list[str] = [],  # noqa: B006
    command: str = "dvla schedule",
) -> None:
    """Chooses denoising steps K per task: the smallest K whose success is no worse than the best K's.

    Args:
        policy: policy directory, or the id of a Hugging Face repository with that content.
        collector: environment and workers.
        out: YAML file of the schedule; an older one is replaced.
        tasks: "all", one name, or a list of names.
        num_steps: the K to choose from.
        episodes_per_task: training episodes of each task at every K. Where a K as good as the best one comes out behind
            it, it passes the test in 0, 30 and 75 % of cases with 200, 500 and 1000 episodes (simulated: margin 0.05,
            success rate 0.75, correlation 0.2 of the outcomes on a state; at rate 0.9 in 7, 77 and 98 %).
        margin: accepted loss of success rate against the best K, between 0 and 1.
        confidence: of the one-sided test that the loss is not larger, between 0.5 and 1.
        sampler: how tokens are drawn and committed; the schedule holds for it alone. Fields that are not given stay as
            the policy has them.
        seed: of initial states and policy draws.
        trusted_modules: modules of yours that may be imported because the policy names a class in them.
        command: its origin, for the comment at the head of the file.

    Raises:
        UserError: for arguments that do not fit, or if no episode of a task could be run.
    """
    names = collector.environment.select_tasks(tasks)
    _prepare(local_path(out, "--out"))
    loaded = DVLAPolicy.from_pretrained(policy, sampler=sampler, trusted_modules=trusted_modules)
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        measured = measure_schedule(loaded, collector, names, num_steps, episodes_per_task, seed, margin, confidence)
    finally:
        collector.close()
    measured.write(out, command)
    print(schedule_table(measured))
    print(f"schedule: {out}")


def schedule_table(measured: StepSchedule) -> str:
    """A table for people: a line per task and K, `*` where K was chosen, and what the schedule saves."""
    evidence = measured.evidence
    percent = f"{100 * evidence['confidence']:g} %"
    width = max(len("task"), *map(len, measured))
    lines = [
        f"the same training episodes at every K; * = smallest K within {100 * evidence['margin']:g} points of the best",
        f"{'task':<{width}}    K  {'success [95 % Wilson]':<33}  {f'to best (at least, {percent})':<23}  "
        "evaluations per decision, episode      ms",
    ]
    for task, rows in evidence["tasks"].items():
        for row in rows:
            count = SuccessCount(row["successes"], row["n"], row["errors"], row["decisions"])
            difference = f"{100 * row['difference_to_best']:+6.1f} ({100 * row['lower_bound']:+.1f})"
            mark = "*" if measured[task] == row["num_steps"] else " "
            errors = f"  {count.errors} errors" if count.errors else ""
            lines.append(
                f"{task:<{width}}  {mark} {row['num_steps']:<2} {count!s:<33}  {difference:<23}  "
                f"{row['network_evaluations']:>24}  {row['network_evaluations_per_episode']:>7.1f}"
                f"  {row['milliseconds']:>6.2f}{errors}"
            )
    return "\n".join([*lines, *_saving(measured)])


def _saving(measured: StepSchedule) -> list[str]:
    """Network evaluations of the schedule against the largest K everywhere, in the measured episodes."""
    tasks = measured.evidence["tasks"]
    chosen = [row for task, rows in tasks.items() for row in rows if row["num_steps"] == measured[task]]
    most = [rows[-1] for rows in tasks.values()]
    lines = []
    for unit in ("decision", "episode"):
        scheduled, largest = (_mean_evaluations(rows, unit) for rows in (chosen, most))
        lines.append(
            f"scheduled: mean network evaluations per {unit} {scheduled:.2f} against {largest:.2f} at "
            f"K = {most[0]['num_steps']} ({100 * scheduled / largest:.0f} %)"
        )
    return lines


def _mean_evaluations(rows: Sequence[dict[str, Any]], unit: str) -> float:
    """Network evaluations per decision or episode; a task weighs as much as its episodes' decisions."""
    units: int = sum(row["decisions"] if unit == "decision" else row["n"] for row in rows)
    evaluations: int = sum(row["num_steps"] * row["decisions"] for row in rows)
    return evaluations / units


def _prepare(out: Path) -> None:
    """Makes the folder of the file and checks now, not after the last episode, that it can be written.

    Raises:
        UserError: if it cannot.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a directory: give the name of a YAML file")
    probe = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror})") from error
