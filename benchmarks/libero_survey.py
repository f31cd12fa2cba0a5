"""Constructs, resets, steps and renders every task of LIBERO, and names those that fail.

Tasks run in batches, each batch in a process of its own, so that a crash or a hang costs one task. Finished tasks are
kept in a file of JSON lines; a second call continues there.

    python -m benchmarks.libero_survey

Prints a Markdown table; exits 1 if something failed. With --manifest it also writes down which files of LIBERO's assets
each suite needs, as they were opened, which is what `dvla doctor` looks for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from dvla_lightning.envs.libero.assets import resolve_assets
from dvla_lightning.envs.libero.launch import build_simulator, import_libero
from dvla_lightning.envs.libero.options import CAMERAS
from dvla_lightning.envs.libero.preflight import is_blank
from dvla_lightning.envs.libero.suites import MAX_STEPS, suite_tasks

STAGES = ("constructed", "reset", "stepped", "rendered")
NUM_STEPS = 8  # control steps per task: one action chunk


class Visit:
    """One task, stage by stage."""

    def __init__(self, suite: str, name: str) -> None:
        self.task = suite_tasks(suite)[name]
        self.control: Any = None

    def constructed(self) -> None:
        self.control = build_simulator(self.task.bddl, hard_reset=False)

    def reset(self) -> None:
        from dvla_lightning.envs.libero.states import InitialStates

        InitialStates(self.control, self.task).place("heldout", 0)

    def stepped(self) -> None:
        from dvla_lightning.envs.libero.physics import control_step

        for action in np.random.default_rng(0).uniform(-1, 1, (NUM_STEPS, 7)):
            control_step(self.control.env, action)
        if not np.isfinite(self.control.sim.data.qpos).all():
            raise RuntimeError("the simulation diverged")

    def rendered(self) -> None:
        from dvla_lightning.envs.libero.cameras import Cameras

        sim = self.control.env.sim
        cameras = Cameras(sim.model._model, faithful=False)
        try:
            for ours, theirs in CAMERAS.items():
                if is_blank(cameras.picture(sim.data._data, theirs, 128)):
                    raise RuntimeError(f"the picture of camera {ours} is blank")
        finally:
            cameras.close()

    def close(self) -> None:
        if self.control is not None:
            self.control.close()

    def files(self) -> set[str]:
        """Meshes and textures of the compiled model."""
        if self.control is None:
            return set()
        return {e.get("file", "") for e in ElementTree.fromstring(self.control.env.model.get_xml()).iter()}


def visit(suite: str, name: str, opened: set[str], root: Path | None) -> dict[str, Any]:
    """The record of one task.

    Args:
        suite: of the task.
        name: of the task.
        opened: all files that Python opens in this process; emptied here.
        root: the asset folder; without it no files are recorded.
    """
    start = time.perf_counter()
    opened.clear()
    record: dict[str, Any] = {"suite": suite, "task": name, "stages": [], "error": None}
    task = Visit(suite, name)
    try:
        for stage in STAGES:
            getattr(task, stage)()
            record["stages"].append(stage)
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
    files = {Path(os.path.normpath(file)) for file in opened | task.files()}  # a scene names ../textures
    record["assets"] = sorted(str(file.relative_to(root)) for file in files if root and file.is_relative_to(root))
    task.close()
    return {**record, "seconds": round(time.perf_counter() - start, 1)}


def visit_all(batch: list[tuple[str, str]], assets_dir: str | None, gl_backend: str, out: Path) -> None:
    """Main function of a child process: appends one record per task."""
    root = resolve_assets(assets_dir)
    import_libero(gl_backend, root)
    opened: set[str] = set()
    sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
    for suite, name in batch:
        append(out, visit(suite, name, opened, root))


def append(out: Path, record: dict[str, Any]) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Records by suite and task."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return {(record["suite"], record["task"]): record for record in map(json.loads, lines)}


def survey(
    tasks: list[tuple[str, str]], out: Path, target: Callable[..., None], arguments: tuple[Any, ...], **limits: int
) -> None:
    """Runs `target(batch, *arguments, out)` in child processes until every task has a record.

    Args:
        tasks: suite and name of each.
        out: file of records.
        target: appends a record of each task of a batch to `out`.
        arguments: further arguments of it.
        limits: `batch`, tasks per process, and `timeout`, seconds for each of them.
    """
    while todo := [task for task in tasks if task not in read(out)]:
        batch = todo[: limits["batch"]]
        process = get_context("spawn").Process(target=target, args=(batch, *arguments, out))
        process.start()
        process.join(limits["timeout"] * len(batch))
        died = not process.is_alive()
        process.kill()
        process.join()
        if unfinished := [task for task in batch if task not in read(out)]:
            suite, name = unfinished[0]
            error = f"its process ended with code {process.exitcode}" if died else "its process hung"
            append(out, {"suite": suite, "task": name, "stages": [], "error": error, "assets": [], "seconds": 0.0})
        done = len(tasks) - len(todo) + len(batch) - len(unfinished[1:])
        print(f"{done} of {len(tasks)}", file=sys.stderr, flush=True)


def table(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: how many tasks of each suite came how far."""
    by_suite: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_suite.setdefault(record["suite"], []).append(record)
    by_suite["**all**"] = [record for group in by_suite.values() for record in group]
    lines = [f"| suite | tasks | {' | '.join(STAGES)} |", "|---" * (2 + len(STAGES)) + "|"]
    for suite, group in by_suite.items():
        counts = [str(sum(stage in record["stages"] for record in group)) for stage in STAGES]
        lines.append(f"| {suite} | {len(group)} | {' | '.join(counts)} |")
    return "\n".join(lines)


def manifest(records: Iterable[dict[str, Any]]) -> str:
    """One line per asset file: its path, then the suites that need it."""
    suites: dict[str, set[str]] = {}
    for record in records:
        for file in record["assets"]:
            suites.setdefault(file, set()).add(record["suite"])
    order = list(MAX_STEPS)
    return "".join(f"{file} {' '.join(sorted(suites[file], key=order.index))}\n" for file in sorted(suites))


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=list(MAX_STEPS), choices=list(MAX_STEPS), metavar="SUITE")
    parser.add_argument("--out", type=Path, default=Path("runs/libero-survey.jsonl"), help="default: %(default)s")
    parser.add_argument("--assets-dir", help="default: LIBERO_ASSETS")
    parser.add_argument("--gl-backend", default="auto", choices=["auto", "egl", "osmesa"])
    parser.add_argument("--batch", type=int, default=10, help="tasks per process; default: 10")
    parser.add_argument("--timeout", type=int, default=300, help="seconds per task; default: 300")
    parser.add_argument("--manifest", type=Path, help="write the asset files of each suite here")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tasks = [(suite, name) for suite in options.suites for name in suite_tasks(suite)]
    survey(
        tasks,
        options.out,
        visit_all,
        (options.assets_dir, options.gl_backend),
        batch=options.batch,
        timeout=options.timeout,
    )
    found = read(options.out)
    records = [found[task] for task in tasks]
    print(table(records))
    for record in records:
        if record["error"]:
            print(f"FAILED: {record['suite']} {record['task']}: {record['error']}")
    if options.manifest:
        options.manifest.write_text(manifest(records), encoding="utf-8")
    return int(any(record["error"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
