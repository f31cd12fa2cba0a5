"""Success rates with their intervals, counted over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import torch
import torchmetrics

from dvla_lightning.evaluation.records import EpisodeRecord

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion (Wilson 1927, JASA 22, p. 209).

    Args:
        successes: 0 <= successes <= n.
        n: number of episodes.
        confidence: that the interval covers the true rate, in (0, 1).

    Returns:
        Lower and upper end in [0, 1]; (0, 1) for n = 0.
    """
    if n == 0:
        return 0.0, 1.0
    z = Z_95 if confidence == 0.95 else NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / n
    shrink = 1 + z**2 / n
    centre = (rate + z**2 / (2 * n)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n * n)) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class SuccessCount:
    """Outcome of some episodes.

    Attributes:
        successes: solved episodes.
        n: episodes that ran; those with errors are not among them.
        errors: episodes that could not be run.
        decisions: policy calls in those that ran.
    """

    successes: int
    n: int
    errors: int = 0
    decisions: int = 0

    @property
    def rate(self) -> float:
        """Successes per episode; 0 when none ran."""
        return self.successes / self.n if self.n else 0.0

    def __add__(self, other: SuccessCount) -> SuccessCount:
        return SuccessCount(
            self.successes + other.successes,
            self.n + other.n,
            self.errors + other.errors,
            self.decisions + other.decisions,
        )

    def __str__(self) -> str:
        low, high = wilson_interval(self.successes, self.n)
        return f"{100 * self.rate:5.1f} % [{100 * low:.1f}, {100 * high:.1f}] (n = {self.n})"


def count_by_task(tasks: Iterable[str], records: Iterable[EpisodeRecord]) -> dict[str, SuccessCount]:
    """Task -> its count, in the order of `tasks`; every record's task must be among them."""
    counts = dict.fromkeys(tasks, SuccessCount(0, 0))
    for record in records:
        ran = record.error is None
        one = SuccessCount(int(record.success), int(ran), int(not ran), record.num_decisions if ran else 0)
        counts[record.task] += one
    return counts


class TaskSuccess(torchmetrics.Metric):
    """Counts episodes per task; every episode once, whatever the number of ranks.

    Args:
        tasks: names of the tasks, one row each.
    """

    full_state_update = False
    counts: torch.Tensor

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.add_state("counts", torch.zeros(len(self.tasks), 4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, records: Iterable[EpisodeRecord]) -> None:
        """Adds episodes that have ended."""
        rows = [(c.successes, c.n, c.errors, c.decisions) for c in count_by_task(self.tasks, records).values()]
        # Out of place: with ddp_spawn the ranks share the tensor's memory.
        self.counts = self.counts + self.counts.new_tensor(rows)

    def compute(self) -> torch.Tensor:
        """(tasks, 4) float64: successes, n, errors, decisions; summed over ranks."""
        return self.counts

    def by_task(self) -> dict[str, SuccessCount]:
        """Task -> its count over all ranks; every rank must call it."""
        return {
            task: SuccessCount(*map(int, row)) for task, row in zip(self.tasks, self.compute().tolist(), strict=True)
        }


class NetworkEvaluations(NamedTuple):
    """Network evaluations of episodes, K per decision; 0 where there was none."""

    per_decision: float
    per_episode: float


def network_evaluations(counts: Mapping[str, SuccessCount], num_steps: Mapping[str, int]) -> NetworkEvaluations:
    """Network evaluations of some tasks together, by task -> K."""
    total = sum(counts.values(), SuccessCount(0, 0))
    evaluations = sum(num_steps[task] * count.decisions for task, count in counts.items())
    return NetworkEvaluations(evaluations / max(1, total.decisions), evaluations / max(1, total.n))


def success_by_steps(counts: Mapping[str, SuccessCount], num_steps: Mapping[str, int]) -> dict[int, SuccessCount]:
    """K -> the tasks that run at it together, by task -> K."""
    by_steps: dict[int, SuccessCount] = {}
    for task, count in counts.items():
        by_steps[num_steps[task]] = by_steps.get(num_steps[task], SuccessCount(0, 0)) + count
    return by_steps


def steps_text(num_steps: Mapping[str, int]) -> str:
    """Task -> K for a headline: `K = 4`, or `K = 1 (reach, push), 2 (detour)`."""
    by_steps: dict[int, list[str]] = {}
    for task, steps in num_steps.items():
        by_steps.setdefault(steps, []).append(task)
    if len(by_steps) == 1:
        return f"K = {next(iter(by_steps))}"
    return "K = " + ", ".join(f"{steps} ({', '.join(tasks)})" for steps, tasks in sorted(by_steps.items()))


def success_table(counts: dict[str, SuccessCount], title: str, num_steps: Mapping[str, int] | None = None) -> str:
    """A table for people: one line per task, the total last; every rate with n and its 95 % Wilson interval.

    Args:
        counts: per task.
        title: its first line.
        num_steps: task -> K; adds the network evaluations per decision and per episode.
    """
    width = max(len(name) for name in [*counts, "all tasks"])
    head = f"{'task':<{width}}  success [95 % Wilson]"
    lines = [title, head if num_steps is None else f"{head:<{width + 36}}  network evaluations per decision, episode"]
    for name, part in [*((task, {task: count}) for task, count in counts.items()), ("all tasks", counts)]:
        count = sum(part.values(), SuccessCount(0, 0))
        line = f"{name:<{width}}  {count!s}" + (f", {count.errors} errors" if count.errors else "")
        if num_steps is not None:
            cost = network_evaluations(part, num_steps)
            line = f"{line:<{width + 36}}  {cost.per_decision:>32.2f}  {cost.per_episode:>7.1f}"
        lines.append(line)
    return "\n".join(lines)
