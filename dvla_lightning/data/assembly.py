"""Episodes -> one batch of decisions with advantages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dvla_lightning.data.groups import AdvantageName, group_numbers
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.ranks import gather_or_raise
from dvla_lightning.objectives.base import Objective
from dvla_lightning.objectives.finite import not_finite_place
from dvla_lightning.objectives.rollout_batch import RolloutBatch
from dvla_lightning.objectives.trajectory_ppo import TrajectoryPPO
from dvla_lightning.policy import Decisions, DVLAPolicy
from dvla_lightning.rl.advantages import discounted_returns, gae, grpo, rloo
from dvla_lightning.rollout.collector import DecisionRef
from dvla_lightning.rollout.episode import Episode


def assemble(
    policy: DVLAPolicy,
    objective: Objective,
    episodes: Sequence[Episode],
    gamma: float,
    gae_lambda: float,
    advantage: AdvantageName = "gae",
    bootstrap_truncated: bool = True,
    rows_at_once: int | None = None,
) -> RolloutBatch:
    """Lays the decisions of all episodes in one row, time order inside an episode, and computes their advantages.

    Args:
        policy: estimates the value of the last observation of truncated episodes.
        objective: knows how old log-probabilities are scored.
        episodes: finished ones, at least one without an error; those with an error are left out.
        gamma: discount per decision.
        gae_lambda: of GAE.
        advantage: "gae" uses the value head; "grpo" and "rloo" compare the discounted returns of episodes that began
            alike and give every decision of an episode the same advantage; "reinforce++" takes the discounted return
            from each decision on. The value head learns that return then.
        bootstrap_truncated: with "gae", whether the value of the last observation follows a truncated episode, or 0,
            as the other advantages have it.
        rows_at_once: decisions scored in one pass where the objective has to score them again; None is all.

    Returns:
        One batch; its advantages are not normalised yet.

    Raises:
        UserError: if the objective is not one for rollouts.
    """
    if not isinstance(objective, TrajectoryPPO):
        raise UserError(f"RolloutDataModule trains with TrajectoryPPO, not with {type(objective).__name__}")
    episodes = [episode for episode in episodes if episode.error is None and episode.decisions]
    decisions = _gather_decisions([ref for episode in episodes for ref in episode.decisions])
    advantages_B, returns_B = _advantages(
        policy, episodes, decisions.values_B, gamma, gae_lambda, advantage, bootstrap_truncated
    )
    return RolloutBatch(
        decisions.prompt,
        decisions.path,
        objective.behaviour_log_prob(policy, decisions.prompt, decisions.path, rows_at_once),
        advantages_B,
        returns_B,
        decisions.values_B,
        weight=torch.ones(()),
    )


def check_finite(batch: RolloutBatch) -> None:
    """Looks at what the loss is made of, in the order in which one comes of the other; every rank must call it.

    Raises:
        UserError: on all ranks, if a number of one of them is not finite. The statistics that normalise advantages
            would carry it into every other decision.
    """
    names = ("old_values_B", "old_log_prob_BSL", "returns_B", "advantages_B")
    fault = not_finite_place({name: getattr(batch, name) for name in names})
    error = UserError(
        f"nothing can be learned from this collection: {fault}; look at the rewards and at the last losses"
    )
    gather_or_raise(error if fault else None)


def _advantages(
    policy: DVLAPolicy,
    episodes: Sequence[Episode],
    values_B: Tensor,
    gamma: float,
    gae_lambda: float,
    advantage: AdvantageName,
    bootstrap_truncated: bool,
) -> tuple[Tensor, Tensor]:
    """(B,) advantages and (B,) returns that the value head learns; arguments as in `assemble`."""
    device = values_B.device
    transitions = [transition for episode in episodes for transition in episode.transitions[1:]]
    rewards_B = torch.tensor([transition.reward for transition in transitions], device=device)
    done_B = torch.tensor([transition.done for transition in transitions], device=device)
    if advantage == "gae":
        terminated_B = done_B
        if bootstrap_truncated:
            terminated_B = torch.tensor([transition.terminated for transition in transitions], device=device)
        next_values_B = _next_values(policy, episodes, values_B, terminated_B, done_B)
        return gae(rewards_B, values_B, next_values_B, terminated_B, done_B, gamma, gae_lambda)
    returns_B = discounted_returns(rewards_B, done_B, gamma)
    if advantage == "reinforce++":
        return returns_B, returns_B
    compare = {"grpo": grpo, "rloo": rloo}[advantage]
    lengths_E = torch.tensor([episode.num_decisions for episode in episodes], device=device)
    first_E = lengths_E.cumsum(0) - lengths_E
    advantages_E = compare(returns_B[first_E], group_numbers(episodes).to(device))
    return advantages_E.repeat_interleave(lengths_E), returns_B


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


def _next_values(
    policy: DVLAPolicy, episodes: Sequence[Episode], values_B: Tensor, terminated_B: Tensor, done_B: Tensor
) -> Tensor:
    """Value of what followed each decision; 0 after termination, the last observation's value after truncation."""
    next_values_B = torch.cat([values_B[1:], values_B.new_zeros(1)]).masked_fill(done_B, 0.0)
    ends = done_B.nonzero()[:, 0]
    truncated = [n for n, is_terminated in enumerate(terminated_B[ends].tolist()) if not is_terminated]
    if truncated:
        last = [episodes[n].transitions[-1].observation for n in truncated]
        next_values_B[ends[truncated]] = policy.estimate_values(last)
    return next_values_B
