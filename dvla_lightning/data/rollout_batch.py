"""Episodes -> one batch of decisions with advantages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.errors import UserError
from dvla_lightning.objectives.base import Objective
from dvla_lightning.objectives.trajectory_ppo import RolloutBatch, TrajectoryPPO
from dvla_lightning.policy import Decisions, DVLAPolicy
from dvla_lightning.rl.advantages import gae
from dvla_lightning.rollout.collector import DecisionRef
from dvla_lightning.rollout.episode import Episode


def assemble(
    policy: DVLAPolicy, objective: Objective, episodes: Sequence[Episode], gamma: float, gae_lambda: float
) -> RolloutBatch:
    """Lays the decisions of all episodes in one row, time order inside an episode, and computes GAE over them.

    Args:
        policy: estimates the value of the last observation of truncated episodes.
        objective: knows how old log-probabilities are scored.
        episodes: finished ones, at least one without an error; those with an error are left out.
        gamma: discount per decision.
        gae_lambda: of GAE.

    Returns:
        One batch; its advantages are not normalised yet.

    Raises:
        UserError: if the objective is not one for rollouts.
    """
    if not isinstance(objective, TrajectoryPPO):
        raise UserError(f"RolloutDataModule trains with TrajectoryPPO, not with {type(objective).__name__}")
    episodes = [episode for episode in episodes if episode.error is None and episode.decisions]
    decisions = _gather_decisions([ref for episode in episodes for ref in episode.decisions])
    rewards, terminated, done = [], [], []
    for episode in episodes:
        for transition in episode.transitions[1:]:
            rewards.append(transition.reward)
            terminated.append(transition.terminated)
            done.append(transition.done)
    device = decisions.values_B.device
    done_B = torch.tensor(done, device=device)
    next_values_B = _next_values(policy, episodes, decisions.values_B, done_B)
    advantages_B, returns_B = gae(
        torch.tensor(rewards, device=device),
        decisions.values_B,
        next_values_B,
        torch.tensor(terminated, device=device),
        done_B,
        gamma,
        gae_lambda,
    )
    return RolloutBatch(
        decisions.prompt,
        decisions.path,
        objective.behaviour_log_prob(policy, decisions.prompt, decisions.path),
        advantages_B,
        returns_B,
        decisions.values_B,
        weight=torch.ones(()),
    )


def _gather_decisions(refs: Sequence[DecisionRef]) -> Decisions:
    """The referenced rows, in order, from the batches in which they were decided."""
    batches = list({id(ref.batch): ref.batch for ref in refs}.values())
    start, offset = 0, {}
    for batch in batches:
        offset[id(batch)] = start
        start += len(batch.path)
    rows = torch.tensor([offset[id(ref.batch)] + ref.row for ref in refs], device=batches[0].values_B.device)
    prompt = {name: torch.cat([batch.prompt[name] for batch in batches])[rows] for name in batches[0].prompt}
    path = DenoisingPath.cat([batch.path for batch in batches]).select(rows)
    return Decisions(
        torch.cat([batch.actions for batch in batches])[rows],
        prompt,
        path,
        torch.cat([batch.values_B for batch in batches])[rows],
    )


def _next_values(policy: DVLAPolicy, episodes: Sequence[Episode], values_B: Tensor, done_B: Tensor) -> Tensor:
    """Value of what followed each decision; 0 after termination, the last observation's value after truncation."""
    next_values_B = torch.cat([values_B[1:], values_B.new_zeros(1)]).masked_fill(done_B, 0.0)
    ends = done_B.nonzero()[:, 0]
    truncated = [n for n, episode in enumerate(episodes) if not episode.transitions[-1].terminated]
    if truncated:
        last = [episodes[n].transitions[-1].observation for n in truncated]
        next_values_B[ends[truncated]] = policy.estimate_values(last)
    return next_values_B
