"""A minibatch with mixed denoising steps K against its buckets: equal gradients, and the cost of each.

Collects decisions of the built-in environment with another K for every task, and times the update of the shipped policy
(forward and backward) for three cases: the whole minibatch at once, the bucket of each K by itself, and as many
decisions all at the largest K, as padding would have it.

    python -m benchmarks.mixed_steps

Prints seconds and ratios; exits 1 if the mixed minibatch costs more than --limit times its buckets, or the gradients
differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from torch import Tensor

from benchmarks.encode_once import measure
from dvla_lightning.data.assembly import assemble
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.evaluation.specs import training_specs
from dvla_lightning.objectives import RolloutBatch, TrajectoryPPO
from dvla_lightning.objectives.rollout_batch import rows_by_num_steps
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector

STEPS = {"reach": 1, "carry": 1, "push": 2, "collect": 2, "detour": 4}
MAX_GRADIENT_DIFFERENCE = 1e-5


class Update:
    """Gradients of minibatches under one objective."""

    def __init__(self, policy: DVLAPolicy) -> None:
        self.policy, self.objective = policy, TrajectoryPPO(value_clip=None)
        self.objective.prepare(policy)

    def batch(self, steps: dict[str, int], num_episodes: int) -> RolloutBatch:
        """Decisions of episodes with these K; the advantages are made up."""
        specs = training_specs(list(steps), num_episodes, steps, seed=0, iteration=0)
        episodes = Collector(Tabletop(), num_envs=96, progress=False).run(self.policy, specs)
        rollouts = assemble(episodes, gamma=0.9, gae_lambda=0.95)
        rollouts.advantages_N = torch.linspace(-1, 1, len(rollouts))
        return rollouts.batch(torch.arange(len(rollouts)), self.policy.collate)

    def gradient(self, *parts: RolloutBatch) -> Tensor:
        """Of all parameters in one vector; the parts count by their sizes."""
        self.policy.zero_grad()
        total = sum(map(len, parts))
        for part in parts:
            (self.objective(self.policy, part).loss * (len(part) / total)).backward()
        return torch.cat([p.grad.flatten() for p in self.policy.parameters() if p.grad is not None])


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="checkpoints/tabletop-sft")
    parser.add_argument("--decisions", type=int, default=256, help="size of the minibatch; default: 256")
    parser.add_argument("--repetitions", type=int, default=9, help="the median of so many is printed; default: 9")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; default: 1")
    parser.add_argument("--limit", type=float, default=1.1, help="largest ratio mixed / buckets; 0: any; default: 1.1")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    update = Update(DVLAPolicy.from_pretrained(options.policy))
    rows = torch.arange(options.decisions)
    mixed = update.batch(STEPS, options.decisions).select(rows)
    padded = update.batch(dict.fromkeys(STEPS, max(STEPS.values())), options.decisions).select(rows)
    buckets = [mixed.select(bucket) for bucket in rows_by_num_steps(mixed.path)]
    whole = update.gradient(mixed)
    difference = float((whole - update.gradient(*buckets)).norm() / whole.norm())
    seconds = measure(
        {
            "mixed": lambda: update.gradient(mixed),
            "buckets": lambda: update.gradient(*buckets),
            "all at the largest K": lambda: update.gradient(padded),
        },
        options.repetitions,
    )
    sizes = ", ".join(f"{len(bucket)} at K = {int(bucket.path.num_steps_B[0])}" for bucket in buckets)
    print(f"{options.decisions} decisions: {sizes}; median of {options.repetitions}, {options.threads} thread(s)")
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds["buckets"], strict=True))
        print(f"{name:22}{statistics.median(values):8.3f}s  {ratio:5.2f} x the buckets one by one")
    print(f"relative difference of the gradients, mixed and buckets: {difference:.1e}")
    ratio = statistics.median(a / b for a, b in zip(seconds["mixed"], seconds["buckets"], strict=True))
    failed = (options.limit > 0 and ratio > options.limit) or difference > MAX_GRADIENT_DIFFERENCE
    print("FAILED" if failed else "passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
