"""Training of the bandit's policies: demonstrations, the exact gradient, REINFORCE; all members at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.settle.bandit_moments import score_log_prob
from benchmarks.settle.bandit_paths import (
    LENGTH,
    MASK,
    WAYS,
    chunk_index,
    enumerate_paths,
    members_log_probs,
    random_parameters,
    state_index,
)
from dvla_lightning.diffusion.estimators import Estimator
from dvla_lightning.diffusion.sampler import Sampler

SFT_LEARNING_RATE, LEARNING_RATE = 0.02, 0.01


def exact_value(theta_EP: Tensor, reward_EX: Tensor, sampler: Sampler, num_steps: int) -> Tensor:
    """(E,) E[R] by enumeration, with gradient."""
    paths = enumerate_paths(members_log_probs(theta_EP), sampler, num_steps)
    return (paths.marginal(len(theta_EP)) * reward_EX).sum(-1)


def optimize(
    theta_EP: Tensor, loss: Callable[[Tensor, int], Tensor], steps: int, learning_rate: float = LEARNING_RATE
) -> Tensor:
    """Adam on the sum of the members' losses: every member moves as it would alone."""
    theta_EP = theta_EP.clone().requires_grad_()
    adam = torch.optim.Adam([theta_EP], lr=learning_rate)
    for step in range(steps):
        adam.zero_grad()
        loss(theta_EP, step).backward()
        adam.step()
    return theta_EP.detach()


def two_way_parameters(members: int, steps: int = 8) -> Tensor:
    """(E, P): SFT on both ways' chunks in all their masked states; stopped early, so that it explores."""
    hidden_ML = torch.tensor(list(itertools.product([False, True], repeat=LENGTH))[1:])
    clean_WML = torch.tensor(WAYS)[:, None, None].expand(-1, *hidden_ML.shape)
    states_WM = state_index(torch.where(hidden_ML, MASK, clean_WML))

    def loss(theta_EP: Tensor, step: int) -> Tensor:
        log_prob = members_log_probs(theta_EP)[:, states_WM].gather(
            -1, clean_WML[None, ..., None].expand(len(theta_EP), -1, -1, -1, -1)
        )
        per_view = (log_prob[..., 0] * hidden_ML).sum(-1) / hidden_ML.sum(-1)
        return -per_view.mean((1, 2)).sum()

    return optimize(torch.stack([random_parameters(seed) for seed in range(members)]), loss, steps, SFT_LEARNING_RATE)


def ascended(theta_EP: Tensor, reward_EX: Tensor, sampler: Sampler, num_steps: int, steps: int) -> Tensor:
    """(E, P) after steps up the exact gradient."""
    return optimize(theta_EP, lambda theta, _: -exact_value(theta, reward_EX, sampler, num_steps).sum(), steps)


class Reinforce:
    """REINFORCE for all members at once, with a running mean of earlier batches as baseline.

    Args:
        estimator: what scores a path; None: the exact marginal.
        with_selection: add the Plackett-Luce term.
        sampler: draws the paths.
        num_steps: K.
        reward_EX: reward of every member's chunks.
        batch: samples per member and step.
        seed: the first of the samples' seeds.
    """

    def __init__(
        self,
        estimator: Estimator | None,
        with_selection: bool,
        sampler: Sampler,
        num_steps: int,
        reward_EX: Tensor,
        batch: int,
        seed: int,
    ) -> None:
        self.estimator, self.with_selection = estimator, with_selection
        self.sampler, self.num_steps, self.reward_EX = sampler, num_steps, reward_EX
        self.batch, self.seed = batch, seed
        self.member_N = torch.arange(len(reward_EX)).repeat_interleave(batch)
        self.baseline_E = torch.zeros(len(reward_EX), dtype=torch.float64)

    def loss(self, theta_EP: Tensor, step: int) -> Tensor:
        """Sum over members of - mean (R - b) log p; paths come from the package's sampler."""
        log_probs_ESLV, rows = members_log_probs(theta_EP), len(self.member_N)
        known_ESLV = log_probs_ESLV.detach()
        path = self.sampler.sample(
            lambda noisy_NL, rows_N: known_ESLV[self.member_N[rows_N], state_index(noisy_NL)],
            *(LENGTH, MASK, [self.num_steps] * rows),
            range(self.seed + step * rows, self.seed + (step + 1) * rows),
        )
        chunk_N = chunk_index(path.tokens_BL)
        reward_N = self.reward_EX[self.member_N, chunk_N]
        advantage_N = reward_N - self.baseline_E[self.member_N]
        # updated after its use: a baseline that knows the sample would bias the gradient
        self.baseline_E = 0.9 * self.baseline_E + 0.1 * reward_N.view(-1, self.batch).mean(-1)
        if self.estimator is None:
            marginal_EX = enumerate_paths(log_probs_ESLV, self.sampler, self.num_steps).marginal(len(theta_EP))
            log_prob_N = marginal_EX[self.member_N, chunk_N].log()
        else:
            views = self.estimator.views(path, MASK)
            used_NSLV = log_probs_ESLV[self.member_N[:, None], state_index(views.noisy_BSL)]
            sampler = self.sampler if self.with_selection else None
            log_prob_N = score_log_prob(used_NSLV, views, path, self.estimator, sampler)
        return -(advantage_N * log_prob_N).sum() / self.batch
