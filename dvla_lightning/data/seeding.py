"""Everything random in an epoch follows from the run's seed, the epoch's number and the rank: resuming repeats it."""

from __future__ import annotations

import random

import numpy as np
import torch


def rank_seed(seed: int, epoch: int, rank: int) -> int:
    """The seed of one epoch (RL: one iteration) on one rank."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seeds torch, numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
