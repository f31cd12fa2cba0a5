"""Memory of the decisions of an RL iteration, at two cameras of 256 x 256 pixels.

    python -m benchmarks.rollout_memory [NUM_DECISIONS]

Compares what is kept with the bare pictures; 12,800 decisions are 512 episodes of 25.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import torch

from dvla_lightning.actions.tokenizer import UniformBins
from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.data.assembly import assemble
from dvla_lightning.decisions import Decision
from dvla_lightning.envs.base import Observation
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.episode import Episode, EpisodeSpec, Transition

SIZE, CAMERAS, BATCH, LENGTH = 256, ("front", "wrist"), 64, 25
MIB = 2**20


def resident() -> float:
    """Resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def make_policy() -> DVLAPolicy:
    """The smallest policy that reads these pictures: what it computes does not matter here."""
    backbone = MiniBackbone(56, 256, list(CAMERAS), SIZE, 8, dim=16, num_layers=1, num_heads=2, channels=8)
    policy = DVLAPolicy(
        backbone=backbone, action_tokenizer=UniformBins(256), action_dim=7, chunk_size=8, normalization="identity"
    )
    policy.is_fitted = True
    return policy


def decide(policy: DVLAPolicy, rng: np.random.Generator, first: int) -> list[Decision]:
    """A batch of decisions on noise."""
    pictures = rng.integers(0, 256, (BATCH, len(CAMERAS), SIZE, SIZE, 3), dtype=np.uint8)
    observations: list[Observation] = [
        {
            "images": dict(zip(CAMERAS, views, strict=True)),
            "proprioception": np.zeros(8, np.float32),
            "instruction": "x",
        }
        for views in pictures
    ]
    return policy.decide(observations, [1] * BATCH, range(first, first + BATCH)).unbind()


def episode(number: int, decisions: list[Decision]) -> Episode:
    """One that made these decisions and then ended."""
    transitions = [Transition(None, np.zeros((1, 7), np.float32)) for _ in range(len(decisions) + 1)]
    transitions[-1].terminated = True
    return Episode(EpisodeSpec("task", "train", number, number, 1), transitions, decisions)


def main(num_decisions: int) -> float:
    """Prints the memory; returns what is kept over the bare pictures."""
    torch.manual_seed(0)
    policy, rng = make_policy(), np.random.default_rng(0)
    decide(policy, rng, 0)  # what torch allocates once
    before = resident()
    decisions = [d for first in range(0, num_decisions, BATCH) for d in decide(policy, rng, first)]
    kept = resident() - before
    episodes = [episode(n, decisions[n : n + LENGTH]) for n in range(0, len(decisions), LENGTH)]
    rollouts = assemble(episodes, gamma=0.9, gae_lambda=0.9)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    pictures = len(rollouts) * len(CAMERAS) * SIZE * SIZE * 3 / MIB
    print(f"{len(rollouts)} decisions: {kept:.0f} MiB kept, {peak:.0f} MiB at the peak, {pictures:.0f} MiB of pictures")
    print(f"{kept * 1024 / len(rollouts):.0f} KiB per decision, {kept / pictures:.2f} x its pictures")
    return kept / pictures


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3200)
