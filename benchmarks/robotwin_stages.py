"""Seconds per stage of a RoboTwin episode, on the user's own checkout; needs ROBOTWIN_ROOT (docs/robotwin.md).

Every stage is timed as the trainer sees it: start of the worker, set-up of a scene, first observation (shaders are
compiled), a later one, one control step, the expert's whole episode, and the transport of an action to the other Python
and of the pictures back, which is the rest of a command's time.

    python -m benchmarks.robotwin_stages --environment RoboTwin --tasks stack_blocks_two [--policy runs/x/policy]

Prints medians, and each as a ratio to a later observation; exits 1 if the transport is above --limit milliseconds.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from typing import Any

import numpy as np

from dvla_lightning.envs.robotwin import RoboTwin
from dvla_lightning.rollout.episode import EpisodeSpec
from dvla_lightning.rollout.foreign_slot import ForeignSlot
from dvla_lightning.tools.parser import run_tool

SECONDS = 1800.0  # a worker's patience; a busy CPU compiles shaders for minutes


def timed(slot: ForeignSlot, command: str, argument: Any) -> tuple[dict[str, Any], float]:
    """A command's result and how long it took."""
    start = time.perf_counter()
    result = slot.call(command, argument, SECONDS)
    return result, time.perf_counter() - start


def episode(slot: ForeignSlot, task: str, number: int, steps: int, times: dict[str, list[float]]) -> Any:
    """Sets a scene up, holds the arms still for some steps, then lets the expert solve it; returns an observation."""
    first, setting_up = timed(slot, "reset", EpisodeSpec(task, "heldout", number, seed=0))
    hold = np.asarray(first["observation"]["proprioception"])[None]
    observing = []
    for _ in range(steps):
        then, whole = timed(slot, "execute", hold)
        observing.append(then["rendering_seconds"])
        times["transport"].append(whole - then["simulation_seconds"] - then["rendering_seconds"])
    times["observation"] += observing
    if number == 0:
        times["first set-up and observation"].append(setting_up)
    else:
        times["set-up"].append(setting_up - statistics.median(observing))
    solved, _ = timed(slot, "demonstrate", 1)
    times["expert, with a set-up before and after"].append(solved["simulation_seconds"])
    if not solved["truncated"]:  # the expert knows what to do
        moved, _ = timed(slot, "demonstrate", steps)
        times["control step"].append(moved["simulation_seconds"] / len(moved["actions"]))
    return first["observation"]


def decisions(policy: str, observation: Any, repeats: int) -> list[float]:
    """Seconds of a decision with four denoising steps."""
    from dvla_lightning.policy import DVLAPolicy

    loaded, seconds = DVLAPolicy.from_pretrained(policy), []
    for _ in range(repeats):
        start = time.perf_counter()
        loaded.act(observation, num_steps=4)
        seconds.append(time.perf_counter() - start)
    return seconds


def stages(
    environment: RoboTwin,
    tasks: list[str],
    policy: str | None = None,
    repeats: int = 3,
    steps: int = 10,
    limit: float = 5.0,
) -> bool:
    """Times the stages of a RoboTwin episode.

    Args:
        environment: what is driven; no seed is checked.
        tasks: to set up.
        policy: directory of a policy that decides.
        repeats: scenes of each task.
        steps: control steps and observations in each scene.
        limit: of the transport, in milliseconds.

    Returns:
        Whether the transport keeps it.
    """
    unchecked = copy.copy(environment)
    unchecked.validity = "none"
    slot = ForeignSlot(unchecked)
    try:
        start = timed(slot, "describe", None)[1]
        print(f"{'start of a worker':42} {start:9.3f} s")
        for task in tasks:
            names = ("first set-up and observation", "set-up", "observation", "control step", "transport")
            times: dict[str, list[float]] = {name: [] for name in (*names, "expert, with a set-up before and after")}
            for number in range(repeats):
                observation = episode(slot, task, number, steps, times)
            if policy:
                times["decision, K = 4"] = decisions(policy, observation, steps)
            base = statistics.median(times["observation"])
            print(f"{task}, {repeats} scenes, {steps} steps in each")
            for name, seconds in times.items():
                if seconds:
                    median = statistics.median(seconds)
                    print(f"  {name:40} {median:9.4f} s  {median / base:9.3f} x an observation   (n = {len(seconds)})")
    finally:
        slot.close()
    return 1000 * statistics.median(times["transport"]) <= limit


if __name__ == "__main__":
    sys.exit(not run_tool(stages, sys.argv[1:], "benchmarks.robotwin_stages"))
