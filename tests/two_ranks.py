"""A fit on two ranks with given minibatches, and the same worked out by hand in one process.

`python -m tests.two_ranks DIRECTORY` writes the weights of each rank to DIRECTORY/rank<r>.pt; Lightning starts it again
for the second rank.
"""

import os
import sys
from pathlib import Path

import torch

from dvla_lightning.actions.tokenizer import UniformBins
from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.module import DVLAModule
from dvla_lightning.objectives import TrajectoryPPO
from dvla_lightning.policy import DVLAPolicy
from tests.short_fits import fit, rollout_minibatches

LR, ACCUMULATE, WARM_UP = 0.1, 2, 1


def make_policy():
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "channels": 8}
    policy = DVLAPolicy(
        backbone=MiniBackbone(8, 8, ["top"], 32, 4, **sizes),
        action_tokenizer=UniformBins(8), action_dim=2, chunk_size=4, normalization="identity", value_hidden_dims=[8],
    )  # fmt: skip
    policy.is_fitted = True
    return policy


def epochs_of(policy, rank):
    """One of warm-up, then one whose first window is bad on rank 1 and whose last one is short."""
    minibatches = rollout_minibatches(policy, 6)[rank::2]
    second = [batch.select(torch.arange(len(batch))) for batch in minibatches]
    if rank == 1:
        second[0].returns_B[2] = float("nan")
    return [minibatches, second]


def by_hand():
    """Weights at the end: SGD on the mean over ranks of the mean over each window, where all of it is finite."""
    policy = make_policy()
    epochs = [epochs_of(policy, rank) for rank in (0, 1)]
    windows = [(0, 0, 2), (0, 2, 3), (1, 2, 3)]  # epoch, from, to; (1, 0, 2) is the bad one
    objective = TrajectoryPPO()
    for epoch, start, end in windows:
        policy.zero_grad()
        losses = [objective(policy, batch).loss for rank in (0, 1) for batch in epochs[rank][epoch][start:end]]
        torch.stack(losses).mean().backward()
        moving = policy.value_head if epoch < WARM_UP else policy
        with torch.no_grad():
            for weight in moving.parameters():
                weight -= LR * weight.grad
    return policy.state_dict()


if __name__ == "__main__":
    directory, rank = Path(sys.argv[1]), int(os.environ.get("LOCAL_RANK", "0"))
    policy = make_policy()
    module = DVLAModule(
        policy, TrajectoryPPO(value_warmup_iterations=WARM_UP), lambda parameters: torch.optim.SGD(parameters, lr=LR)
    )
    fit(module, epochs_of(policy, rank), directory, strategy="ddp", devices=2, accumulate_grad_batches=ACCUMULATE)
    torch.save(policy.state_dict(), directory / f"rank{rank}.pt")
