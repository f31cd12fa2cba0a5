"""Success rate of LIBERO's scripted expert on each task, and the cost of a demonstration.

Runs the expert as `dvla collect` does: on training initial states drawn from the same seed, with noise, and with
further plans on a state where the first one fails. Nothing is rendered.

    python -m benchmarks.libero_expert --out libero_expert.jsonl

Appends one line per episode to a file; a second call continues there. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dvla_lightning.envs.base import SimulatorEnv
from dvla_lightning.envs.libero import Libero
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.specs import training_specs
from dvla_lightning.evaluation.success import SuccessCount
from dvla_lightning.rollout.episode import EpisodeSpec

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


def run_episode(env: SimulatorEnv, spec: EpisodeSpec) -> dict[str, Any]:
    """One line of the log; `error` says why the expert has no skill for the task."""
    start, num_steps, info, error = time.process_time(), 0, {"is_success": False}, None
    env.reset(**spec.reset_arguments())
    ended = False
    try:
        while not ended:
            _, terminated, truncated, info = env.advance(env.expert_action())
            num_steps += 1
            ended = terminated or truncated
    except UserError as problem:
        error = str(problem)
    return {
        "state": spec.initial_state,
        "attempt": spec.expert_attempt,
        "success": bool(info["is_success"]),
        "num_steps": num_steps,
        "seconds": round(time.process_time() - start, 2),
        "error": error,
    }


def next_spec(specs: Sequence[EpisodeSpec], rows: Sequence[dict[str, Any]], num_attempts: int) -> EpisodeSpec | None:
    """The first state that is neither solved nor given up, with its next plan."""
    for spec in specs:
        tried = [row for row in rows if row["state"] == spec.initial_state]
        given_up = len(tried) >= num_attempts or any(row["error"] for row in tried)
        if not given_up and not any(row["success"] for row in tried):
            return dataclasses.replace(spec, expert_attempt=len(tried))
    return None


def table(log: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown, one row per task."""
    yield "| suite | task | first plan [95 % Wilson] | states solved [95 % Wilson] | episodes | steps | CPU s |"
    yield "|---|---|---|---|---|---|---|"
    for suite, task in dict.fromkeys((row["suite"], row["task"]) for row in log):
        rows = [row for row in log if (row["suite"], row["task"]) == (suite, task)]
        solved = [row for row in rows if row["success"]]
        num_states = len({row["state"] for row in rows})
        first = SuccessCount(sum(row["attempt"] == 0 for row in solved), num_states)
        steps = f"{sum(row['num_steps'] for row in solved) / len(solved):.0f}" if solved else "-"
        seconds = f"{sum(row['seconds'] for row in rows) / len(solved):.1f}" if solved else "-"
        whole = SuccessCount(len(solved), num_states)
        yield f"| {suite} | {task} | {first} | {whole} | {len(rows)} | {steps} | {seconds} |"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="log of episodes, JSON lines; continued if it exists")
    parser.add_argument("--suites", nargs="+", default=list(SUITES), help=f"default: {' '.join(SUITES)}")
    parser.add_argument("--tasks", nargs="+", help="names; default: all of the suites")
    parser.add_argument("--states", type=int, default=20, help="initial states per task; default: 20")
    parser.add_argument("--attempts", type=int, default=3, help="plans per initial state; default: 3")
    parser.add_argument("--noise", type=float, default=0.1, help="of the expert; default: 0.1")
    parser.add_argument("--seed", type=int, default=0, help="of states and noise; default: 0")
    options = parser.parse_args(arguments)
    log = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    with options.out.open("a") as file:
        for suite in options.suites:
            recipe = Libero(suite=suite, cameras=())
            env = recipe.make()
            for number, task in enumerate(recipe.tasks):
                if options.tasks and task not in options.tasks:
                    continue
                specs = [
                    dataclasses.replace(spec, expert_noise=options.noise)
                    for spec in training_specs([task], options.states, 0, options.seed, number, use="demonstrations")
                ]
                rows = [row for row in log if (row["suite"], row["task"]) == (suite, task)]
                while spec := next_spec(specs, rows, options.attempts):
                    rows.append({"suite": suite, "task": task, **run_episode(env, spec)})
                    log.append(rows[-1])
                    file.write(json.dumps(rows[-1]) + "\n")
                    file.flush()
                print(f"{suite} {task}: {sum(row['success'] for row in rows)}/{options.states}", file=sys.stderr)
            env.close()
    print("\n".join(table(log)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
