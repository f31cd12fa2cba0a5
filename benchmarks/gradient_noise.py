"""Signal and noise of a policy gradient, for several ways to compute advantages from the same episodes.

The episodes are split into parts, and the gradient of each part is one independent draw. Products of different parts
estimate s, the squared length of the expected gradient, without bias; the rest of each part's own square is noise. The
benchmark prints the cosine between the expected gradient and that of an iteration, sqrt(s / (s + noise of the
iteration)), with its 95 % interval. That tells how repeatable a gradient is, not whether it is right: with a wrong
value head, the expectation at a small `gae_lambda` is not the policy gradient.

    python -m benchmarks.gradient_noise --policy runs/libero-rl/policy --environment.class_path Libero \
        --environment.init_args.suite libero_spatial --tasks "[<task>, <task>]" --num_steps 1

The policy needs a trained value head, so take one that RL has trained for some iterations.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import torch
from torch import Tensor

import dvla_lightning.envs.libero
import dvla_lightning.envs.tabletop  # noqa: F401 - short class names resolve to what is imported
from dvla_lightning.data.assembly import assemble
from dvla_lightning.data.groups import AdvantageName
from dvla_lightning.envs.base import Environment
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.specs import training_specs
from dvla_lightning.objectives import Rollouts, TrajectoryPPO
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import Episode
from dvla_lightning.tools.parser import run_tool

ITERATION = 2**29  # of the seeds: no training run comes this far


class Advantages(NamedTuple):
    """One way to compute them."""

    label: str
    gamma: float
    gae_lambda: float
    advantage: AdvantageName = "gae"


class Measured(NamedTuple):
    """Of a part's gradient: squared length of its expectation, standard error of that, variance over all parameters."""

    signal: float
    standard_error: float
    noise: float

    def cosine(self, num_parts: float, errors: float = 0.0) -> float:
        """Between the true gradient and the sum of so many parts; 0 where no signal was found.

        Args:
            num_parts: how many parts an iteration has.
            errors: how many standard errors the signal is taken to be larger.
        """
        signal = max(0.0, self.signal + errors * self.standard_error) * num_parts
        return math.sqrt(signal / (signal + self.noise)) if signal > 0 else 0.0


def measure(gradients_PN: Tensor) -> Measured:
    """Unbiased estimates from P independent gradients of equal distribution.

    The signal is the mean product of two different gradients, its standard error the jackknife's over gradients (Efron
    and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11), which is rather too large than too small.
    """
    count = len(gradients_PN)
    products_PP = (gradients_PN @ gradients_PN.T).double()
    squares_P = products_PP.diagonal()
    pairs = products_PP.sum() - squares_P.sum()
    without_P = (pairs - 2 * (products_PP.sum(1) - squares_P)) / max(1, (count - 1) * (count - 2))
    error = ((count - 1) * without_P.var(correction=0)).sqrt()
    signal = float(pairs / (count * (count - 1)))
    return Measured(signal, float(error), float(squares_P.mean()) - signal)


def part_gradients(policy: DVLAPolicy, rollouts: Rollouts, sizes: list[int], rows_at_once: int) -> Tensor:
    """(P, N): the summed policy gradient of consecutive parts with so many decisions each."""
    objective = TrajectoryPPO(value_clip=None, value_coef=0.0)
    gradients, begin = [], 0
    for size in sizes:
        policy.zero_grad()
        for rows in torch.arange(begin, begin + size).split(rows_at_once):
            (objective(policy, rollouts.batch(rows, policy.collate)).loss * len(rows)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
        begin += size
    return torch.stack(gradients)


def decisions_per_part(episodes: list[Episode], num_parts: int) -> list[int]:
    """How many decisions each of `num_parts` equal runs of consecutive episodes has."""
    size = len(episodes) // num_parts
    return [sum(len(e.decisions) for e in episodes[n * size : (n + 1) * size]) for n in range(num_parts)]


def gradient_noise(
    policy: str,
    environment: Environment,
    tasks: str | list[str] = "all",
    num_steps: int = 1,
    num_episodes: int = 192,
    num_parts: int = 16,
    episodes_per_iteration: int = 60,
    gamma: float = 0.95,
    bootstrap_truncated: bool = True,
    num_workers: int = 3,
    rows_at_once: int = 64,
) -> dict[str, Measured]:
    """Measures signal and noise of the policy gradient.

    Args:
        policy: directory of a policy with a trained value head.
        environment: where the episodes run, on training placements.
        tasks: "all", one name, or a list of names.
        num_steps: denoising steps K.
        num_episodes: all of them together, a multiple of `num_parts`.
        num_parts: independent gradients, at least 3.
        episodes_per_iteration: for which the cosine is printed.
        gamma: discount per decision, of all but Monte Carlo returns.
        bootstrap_truncated: as in `RolloutDataModule`; Monte Carlo returns never are.
        num_workers: child processes with a simulator each.
        rows_at_once: decisions in one pass.

    Returns:
        Label of the advantages -> what was measured.
    """
    if num_parts < 3 or num_episodes % num_parts:
        raise UserError(f"num_episodes {num_episodes} is not a multiple of num_parts {num_parts}, or that is below 3")
    loaded = DVLAPolicy.from_pretrained(policy)
    specs = training_specs(environment.select_tasks(tasks), num_episodes, num_steps, seed=0, iteration=ITERATION)
    collector = Collector(environment, num_workers=num_workers)
    try:
        episodes = collector.run(loaded, specs)
    finally:
        collector.close()
    if errors := sum(episode.error is not None for episode in episodes):
        raise UserError(f"{errors} episodes ended in an error: every part needs all of its episodes")
    print(f"{sum(e.success for e in episodes)} of {num_episodes} episodes succeeded, K = {num_steps}")

    ways = [Advantages(f"gae_lambda {value}", gamma, value) for value in (0.0, 0.5, 0.95)]
    ways.append(Advantages("Monte Carlo, gamma 0.99", 0.99, 1.0, "reinforce++"))
    sizes, found = decisions_per_part(episodes, num_parts), {}
    for label, *how in ways:
        with torch.no_grad():
            rollouts = assemble(episodes, *how, bootstrap_truncated)
            rollouts.advantages_N -= rollouts.advantages_N.mean()
        found[label] = measure(part_gradients(loaded, rollouts, sizes, rows_at_once))
        parts = episodes_per_iteration * num_parts / num_episodes
        cosine, low, high = (found[label].cosine(parts, errors) for errors in (0, -1.96, 1.96))
        print(f"{label:26} cosine of {episodes_per_iteration} episodes: {cosine:.2f} [{low:.2f}, {high:.2f}]")
    return found


if __name__ == "__main__":
    run_tool(gradient_noise, sys.argv[1:], "benchmarks.gradient_noise")
