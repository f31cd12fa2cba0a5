"""Memory of one LIBERO worker over many resets, of one task or of several in turns.

Drives the child process that training uses (`rollout.worker.ProcessSlot`); every reset simulates the wait and renders
both cameras.

    python -m benchmarks.libero_memory                              # 200 soft resets of one task
    python -m benchmarks.libero_memory --tasks 4 --resets 40        # four tasks in turns: a new simulator at each reset

Prints the resident memory; exits 1 if the peak of the last round of tasks is more than --limit percent above that of
the first --warm-up resets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from dvla_lightning.envs.libero import Libero
from dvla_lightning.rollout.episode import EpisodeSpec
from dvla_lightning.rollout.worker import ProcessSlot

TIMEOUT = 600.0  # seconds per command
NUM_STATES = 50  # initial states taken in turns


def resident_megabytes(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return int(kilobytes) / 1024


def memory_after_resets(recipe: Libero, num_tasks: int, num_resets: int) -> Iterator[float]:
    """Yields the worker's memory in megabytes after every reset."""
    slot = ProcessSlot(recipe)
    try:
        for reset in range(num_resets):
            task, state = recipe.tasks[reset % num_tasks], reset // num_tasks % NUM_STATES
            slot.call("reset", EpisodeSpec(task, "heldout", state, seed=reset), TIMEOUT)
            yield resident_megabytes(slot.process.pid)
    finally:
        slot.close()


def growth(memory: list[float], warm_up: int, num_tasks: int) -> float:
    """How far the peak of the last round is above that of the warm-up, in percent."""
    return 100 * (max(memory[-num_tasks:]) / max(memory[:warm_up]) - 1)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="libero_spatial", help="default: libero_spatial")
    parser.add_argument("--tasks", type=int, default=1, help="tasks taken in turns; default: 1")
    parser.add_argument("--resets", type=int, default=200, help="of all tasks together; default: 200")
    parser.add_argument("--reset-mode", default="soft", choices=["soft", "hard"])
    parser.add_argument("--warm-up", type=int, help="resets before memory counts as growing; default: 5, or two rounds")
    parser.add_argument("--limit", type=float, default=5.0, help="growth allowed, percent; default: 5")
    options = parser.parse_args(arguments)
    warm_up = options.warm_up or max(5, 2 * options.tasks if options.tasks > 1 else 0)
    recipe = Libero(suite=options.suite, reset_mode=options.reset_mode)
    memory = []
    for megabytes in memory_after_resets(recipe, options.tasks, options.resets):
        memory.append(megabytes)
        if len(memory) % max(options.tasks, options.resets // 10) == 0 or len(memory) in (1, warm_up):
            print(f"reset {len(memory)}: {megabytes:.0f} MB", flush=True)
    percent = growth(memory, warm_up, options.tasks)
    what = f"{options.resets} {options.reset_mode} resets of {options.tasks} task(s)"
    print(f"{what}: {percent:+.1f} % above the peak of the first {warm_up}")
    if failed := percent > options.limit:
        print(f"FAILED: allowed {options.limit:g} %")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
