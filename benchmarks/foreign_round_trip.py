"""Cost of a simulator in another Python: one action there, and three 320 x 240 pictures back.

The simulator only hands out its pictures, so the time is that of the transport through a socket pair: a command out,
691 kB back. The same command in this process is the baseline.

    python -m benchmarks.foreign_round_trip [--interpreter /path/to/python]

Prints the medians, their difference and ratio; exits 1 if the difference is above --limit milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulators.pictures import Pictures
from dvla_lightning.envs.base import Environment
from dvla_lightning.rollout.episode import EpisodeSpec
from dvla_lightning.rollout.foreign_slot import ForeignSlot
from dvla_lightning.rollout.worker import LocalSlot, Slot

ACTIONS = np.zeros((1, 14), np.float32)
SPEC = EpisodeSpec("none", "train", 0, seed=0)


class PictureEnvironment(Environment):
    action_dim = 14

    def __init__(self, interpreter: str) -> None:
        self.interpreter = interpreter

    def make(self) -> Any:
        return Pictures()

    def num_heldout_states(self, task: str) -> None:
        return None

    def foreign_build(self) -> dict[str, Any]:
        folder = Path(__file__).parent / "simulators"
        return {"packages": {"simulators": str(folder)}, "factory": "simulators.pictures:Pictures", "arguments": {}}


def median_ms(command: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        command()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def execute(slot: Slot) -> Any:
    slot.send("execute", ACTIONS, 60.0)
    while (result := slot.receive()) is None:  # a mere sign of life
        slot.connection.poll(60.0)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--interpreter", default=sys.executable)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--limit", type=float, default=5.0, help="milliseconds")
    args = parser.parse_args()
    environment = PictureEnvironment(args.interpreter)
    foreign, local = ForeignSlot(environment), LocalSlot(environment)
    try:
        foreign.call("reset", SPEC, 60.0)
        local.send("reset", SPEC, 60.0)
        there, here = (median_ms(lambda slot=slot: execute(slot), args.repeats) for slot in (foreign, local))
        versions = f"python {foreign.hello['python']}, numpy {foreign.hello['numpy']}"
    finally:
        foreign.close()
    print(f"in this process   {here:8.3f} ms")
    print(f"in another Python {there:8.3f} ms   ({versions})")
    print(f"transport         {there - here:8.3f} ms, {there / here:.0f} times an in-process call that does nothing")
    sys.exit(there - here > args.limit)


if __name__ == "__main__":
    main()
