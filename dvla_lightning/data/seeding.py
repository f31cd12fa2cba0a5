"""Seeds the process at the start of an epoch, so that a resumed run repeats what torch, numpy and random draw in it."""

from __future__ import annotations

import random

import numpy as np
import torch

from dvla_lightning.seeding import derived_seed


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seeds torch, numpy and random for one epoch (RL: one iteration) of one rank."""
    number = derived_seed("epoch", seed, epoch, rank, bits=32)  # numpy's and torch's generators read no more
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)
