"""Runs what is missing of the experiment, side by side on the cores: one arm after another, each with all its seeds."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path

from benchmarks.settle.arms import ARMS, CONFIG, NUM_EVAL_EPISODES, SCHEDULE_CHOICES, SCHEDULE_EPISODES, TRAINING, Arm
from benchmarks.settle.run_folder import difference, is_finished
from benchmarks.settle.workers import workers

# A worker grows by about 60 MB with each unit, so a batch of units gets new ones. (`max_tasks_per_child` of
# ProcessPoolExecutor does not: with a queue it hangs, https://github.com/python/cpython/issues/115634.)
UNITS_PER_WORKER = 10


def dvla(log: Path, verb: str, config: str, **options: str | int | Path) -> None:
    """One `dvla` command in this process, its output appended to a file.

    Raises:
        RuntimeError: if it did not end well; the message is the last line it printed.
    """
    from dvla_lightning.cli import main  # in the worker, where the number of threads is already set

    arguments = [verb, "--config", str(CONFIG / config)]
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with _output_to(log):
        print("dvla", *arguments)
        try:
            main(arguments)
        except SystemExit as stop:
            if stop.code:
                sys.stderr.flush()
                raise RuntimeError(log.read_text().splitlines()[-1]) from stop


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Appends what this process prints, at the level of file descriptors: Lightning's logger keeps its stream."""
    with log.open("a") as file:
        sys.stdout.flush(), sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os.dup2(saved[0], 1), os.dup2(saved[1], 2)
            os.close(saved[0]), os.close(saved[1])


def fit(log: Path, config: str, run: Path, **options: str | int | Path) -> None:
    """`dvla fit`, continued where it was interrupted; nothing if its policy is there."""
    if (run / "policy").exists():
        return
    resume = {"ckpt_path": "last"} if (run / "checkpoints" / "last.ckpt").exists() else {}
    quiet = {"trainer.enable_progress_bar": "false", "trainer.default_root_dir": run}
    dvla(log, "fit", config, **quiet, **options, **resume)


def measure_schedule(log: Path, policy: Path, out: Path, seed: int) -> None:
    """`dvla schedule` and its seconds beside it; nothing if the file is there."""
    if not out.exists():
        choices = {"num_steps": SCHEDULE_CHOICES, "episodes_per_task": SCHEDULE_EPISODES}
        start = time.perf_counter()
        dvla(log, "schedule", "schedule.yaml", policy=policy, out=out, seed=seed, **choices)
        out.with_suffix(".seconds").write_text(f"{time.perf_counter() - start:.1f}\n")


def prepare(root: Path, seed: int) -> None:
    """Demonstrations, SFT policy and its step schedule of one seed."""
    folder = root / f"seed-{seed}"
    log = folder / "sft.log"
    if not (folder / "sft" / "policy").exists():
        dvla(log, "collect", "collect.yaml", out=folder / "data", seed=seed)
    sft = {"data.path": folder / "data", "data.evaluation.num_episodes": 0}
    fit(log, "sft.yaml", folder / "sft", seed_everything=seed, **sft)
    measure_schedule(log, folder / "sft" / "policy", folder / "schedule.yaml", seed)


def train_and_evaluate(root: Path, seed: int, arm: Arm) -> None:
    """One arm of one seed, continued where it was interrupted.

    Raises:
        RuntimeError: if its folder holds the run of another arm, or a command failed.
    """
    folder = root / f"seed-{seed}"
    run, log = folder / arm.name, folder / f"{arm.name}.log"
    other = difference(run, arm)
    if other is not None:
        raise RuntimeError(f"{run} holds another run ({other}): move it away")
    policy = folder / "sft" / "policy"
    steps = arm.steps(str(folder / "schedule.yaml"))
    common = {"seed_everything": seed, "model.policy.sampler": arm.sampler}
    if arm.trained:
        start = {"model.policy.pretrained": policy, **common}
        fit(log, "rl.yaml", run, **start, **steps, **TRAINING, **arm.changes)
        policy = run / "policy"
    if arm.name in ("trajectory-K4", "schedule"):  # RL may remove the need for steps: measured again afterwards
        measure_schedule(log, policy, run / "schedule.yaml", seed)
    evaluation = {"data.evaluation.num_episodes": NUM_EVAL_EPISODES, "data.evaluation.num_recorded_episodes": 0}
    where = {"trainer.default_root_dir": run, "trainer.enable_progress_bar": "false"}
    dvla(log, "validate", "rl.yaml", **{"model.policy.pretrained": policy}, **common, **steps, **evaluation, **where)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def run_all(root: Path, seeds: Iterable[int], jobs: int) -> list[str]:
    """Runs what is not there yet. Ctrl-C, or any exception, stops at once; the next call goes on from there.

    Returns:
        One sentence for each unit that failed; the others have run.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # one core for each worker; read when torch is loaded there
    failures, start, number = [], time.monotonic(), 0
    todo = [(seed, arm) for arm in ARMS for seed in seeds if not _is_done(root, seed, arm)]

    def ended(job: Future, what: str) -> bool:
        minutes, error = (time.monotonic() - start) / 60, job.exception()
        print(f"{minutes:6.1f} min  {what}: {f'FAILED: {error}' if error else 'done'}", flush=True)
        if error:
            failures.append(f"{what}: {error}")
        return error is None

    with workers(jobs) as pool:
        jobs_of = {seed: pool.submit(prepare, root, seed) for seed in dict.fromkeys(seed for seed, _ in todo)}
        ready = [seed for seed, job in jobs_of.items() if ended(job, f"seed {seed}, SFT policy and schedule")]
    todo = [(seed, arm) for seed, arm in todo if seed in ready]
    batch = jobs * UNITS_PER_WORKER
    for first in range(0, len(todo), batch):
        with workers(jobs) as pool:
            units = {pool.submit(train_and_evaluate, root, *unit): unit for unit in todo[first : first + batch]}
            for job in as_completed(units):
                seed, arm = units[job]
                number += 1
                ended(job, f"{number}/{len(todo)}  seed {seed}, {arm.name}")
    return failures


def _is_done(root: Path, seed: int, arm: Arm) -> bool:
    folder = root / f"seed-{seed}" / arm.name
    return is_finished(folder) and difference(folder, arm) is None
