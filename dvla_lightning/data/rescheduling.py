"""Measures the step schedule again while RL runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvla_lightning.errors import check_number
from dvla_lightning.evaluation.step_measurement import check_choice, check_measurement, measure_schedule
from dvla_lightning.evaluation.step_schedule import StepSchedule
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector

LAST_SCHEDULE = "schedule.yaml"
"""In the run directory: a copy of the last schedule that was measured."""


@dataclass
class Rescheduling:
    """Measures the step schedule during RL, first before the first collection, unless a schedule is given.

    Attributes:
        every: iterations between measurements.
        num_steps: the K to choose from.
        episodes_per_task: training-split episodes of each task at every K; see `dvla schedule --help` for how many.
        margin: loss of success rate that is accepted for fewer steps.
        confidence: of the one-sided non-inferiority test.
    """

    every: int
    num_steps: list[int] = field(default_factory=lambda: [1, 2, 4])
    episodes_per_task: int = 1000
    margin: float = 0.05
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_number("data.reschedule", "every", self.every, low=1)
        check_choice(self.num_steps, self.episodes_per_task, self.margin, self.confidence)

    def check(self, policy: DVLAPolicy, collector: Collector, tasks: Sequence[str]) -> None:
        """Raises `UserError` if the schedule cannot be measured."""
        check_measurement(
            policy, collector, tasks, self.num_steps, self.episodes_per_task, self.margin, self.confidence
        )

    def is_due(self, iteration: int, is_given: bool) -> bool:
        """Whether to measure before the collection of an iteration; a given schedule holds until iteration `every`."""
        return iteration % self.every == 0 and not (iteration == 0 and is_given)

    def measure(
        self,
        trainer: Any,
        policy: DVLAPolicy,
        collector: Collector,
        tasks: Sequence[str],
        seed: int,
        iteration: int,
        before_decision: Callable[[], None] | None = None,
    ) -> tuple[StepSchedule, dict[str, float]]:
        """The schedule of the policy as it is now, the same on every rank, and what it cost, as metrics.

        Rank 0 also writes it to the run directory: `schedules/iteration-*.yaml`, and a copy as `schedule.yaml`.

        Raises:
            UserError: on every rank, if the episodes of a task cannot be run.
        """
        start = time.perf_counter()
        episodes_per_task = 1 if trainer.fast_dev_run else self.episodes_per_task
        episodes = (policy, collector, tasks, self.num_steps, episodes_per_task, seed)
        schedule = measure_schedule(*episodes, self.margin, self.confidence, before_decision)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            run = Path(trainer.default_root_dir)
            for name in (f"schedules/iteration-{iteration:04}.yaml", LAST_SCHEDULE):
                schedule.write(run / name, f"iteration {iteration} of the RL run in {run}")
        num_episodes = len(tasks) * len(self.num_steps) * episodes_per_task
        return schedule, measurement_metrics(num_episodes, time.perf_counter() - start)


def measurement_metrics(num_episodes: int = 0, seconds: float = 0.0) -> dict[str, float]:
    """Metrics of a measurement's cost in an iteration; zeros where there was none."""
    return {"rollout/num_measured_episodes": float(num_episodes), "time/measure_seconds": seconds}
