"""Metrics of a collection, but for its times computed from sums over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.objectives.rollout_batch import Rollouts
from dvla_lightning.rl.advantages import normalize
from dvla_lightning.rollout.collector import CollectionTimes
from dvla_lightning.rollout.episode import Episode

Gather = Callable[[Tensor], Tensor]
"""(N,) values of this rank -> (world_size, N) values of every rank, on the CPU."""


class Moments:
    """Mean and population variance from a count, a sum and a sum of squares."""

    def __init__(self, n: float, total: float, squares: float) -> None:
        self.mean = total / n
        self.variance = max(0.0, squares / n - self.mean**2)


def normalize_advantages(rollouts: Rollouts, gather: Gather, in_place: bool = True) -> dict[str, float]:
    """Normalises the advantages with the statistics of all ranks.

    Args:
        rollouts: of this rank.
        gather: collects from all ranks.
        in_place: False leaves the advantages as they are and only measures.

    Returns:
        Metrics of advantages and value estimates.
    """
    columns = [rollouts.advantages_N, rollouts.returns_N, rollouts.returns_N - rollouts.old_values_N]
    columns = [x.double() for x in columns]  # variances from sums of squares need the digits
    sums = [float(len(rollouts)), *(float(part) for x in columns for part in (x.sum(), (x * x).sum()))]
    n, *moments = gather(torch.tensor(sums, dtype=torch.float64)).sum(0).tolist()
    advantage, returns, residual = (Moments(n, *moments[i : i + 2]) for i in (0, 2, 4))
    if in_place:
        rollouts.advantages_N = normalize(rollouts.advantages_N, advantage.mean, advantage.variance**0.5)
    explained = 1 - residual.variance / returns.variance if returns.variance > 1e-12 else 0.0
    return {
        "rollout/value_mean": returns.mean - residual.mean,
        "rollout/advantage_std": advantage.variance**0.5,
        "train/explained_variance": explained,
    }


def episode_metrics(
    episodes: Sequence[Episode], steps: Mapping[str, int], seconds: float, gather: Gather
) -> dict[str, float]:
    """Success by task and by K, length and speed over the episodes of all ranks.

    Args:
        episodes: of this rank.
        steps: task -> K, on every rank the same.
        seconds: wall time of the collection on this rank.
        gather: collects from all ranks.
    """
    ran = [episode for episode in episodes if episode.error is None]
    tasks = list(steps)
    by_task = [[episode for episode in ran if episode.spec.task == task] for task in tasks]
    counts = [
        float(len(episodes) - len(ran)),
        float(sum(episode.retries for episode in episodes)),
        float(sum(episode.num_env_steps for episode in ran)),
        float(sum(episode.episode_return for episode in ran)),
        *[float(len(group)) for group in by_task],
        *[float(sum(episode.success for episode in group)) for group in by_task],
        *[float(sum(episode.num_decisions for episode in group)) for group in by_task],
    ]
    errors, retries, env_steps, total_return, *per_task = gather(torch.tensor(counts)).sum(0).tolist()
    runs, wins, decisions = (per_task[n * len(tasks) : (n + 1) * len(tasks)] for n in range(3))
    evaluations = sum(steps[task] * count for task, count in zip(tasks, decisions, strict=True))
    metrics = {
        "rollout/success_rate": sum(wins) / max(1.0, sum(runs)),
        "rollout/episode_return": total_return / max(1.0, sum(runs)),
        "rollout/episode_length": env_steps / max(1.0, sum(runs)),
        "rollout/num_episodes": sum(runs),
        "rollout/network_evaluations_per_decision": evaluations / max(1.0, sum(decisions)),
        "rollout/num_errors": errors,
        "rollout/num_retries": retries,
        "time/env_steps_per_second": env_steps / seconds,
        "time/collect_seconds": seconds,
    }
    for task, wins_here, runs_here in zip(tasks, wins, runs, strict=True):
        if runs_here:
            metrics[f"rollout/success_rate/{task}"] = wins_here / runs_here
    for num_steps in sorted(set(steps.values())):
        rows = [n for n, task in enumerate(tasks) if steps[task] == num_steps]
        if runs_here := sum(runs[n] for n in rows):
            metrics[f"rollout/success_rate/K{num_steps}"] = sum(wins[n] for n in rows) / runs_here
    return metrics


def mean_commit_order(path: DenoisingPath) -> dict[int, Tensor]:
    """K -> (L,) float32: mean place of each position in the order of commits, 0 = first, 1 = last."""
    last = max(1, path.commit_order_BL.shape[1] - 1)
    order_BL = path.commit_order_BL.float() / last
    steps_B = path.num_steps_B
    return {int(steps): order_BL[steps_B == steps].mean(0) for steps in steps_B.unique()}


def time_metrics(times: Sequence[CollectionTimes], num_workers: int) -> dict[str, float]:
    """Seconds of this rank's collections by activity; simulators that run side by side count once."""
    side_by_side = max(1, num_workers)
    return {
        "time/policy_seconds": sum(time.policy for time in times),
        "time/simulation_seconds": sum(time.simulation for time in times) / side_by_side,
        "time/rendering_seconds": sum(time.rendering for time in times) / side_by_side,
    }
