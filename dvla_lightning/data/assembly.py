"""Turns episodes into the decisions of an iteration with their advantages; needs neither policy nor objective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dvla_lightning.data.groups import AdvantageName, group_numbers, group_returns
from dvla_lightning.decisions import Decision
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.ranks import gather_or_raise
from dvla_lightning.objectives.finite import not_finite_place
from dvla_lightning.objectives.rollout_batch import Rollouts
from dvla_lightning.rl.advantages import discounted_returns, gae, grpo, rloo
from dvla_lightning.rollout.episode import Episode


def assemble(
    episodes: Sequence[Episode],
    gamma: float,
    gae_lambda: float,
    advantage: AdvantageName = "gae",
    bootstrap_truncated: bool = True,
) -> Rollouts:
    """Lays the decisions of all episodes in one row, time order inside an episode, and computes their advantages.

    Args:
        episodes: finished ones with their decisions, at least one without an error; those with an error are left out.
        gamma: discount per decision.
        gae_lambda: of GAE.
        advantage: "gae" uses the value head; "grpo" and "rloo" compare the undiscounted returns of episodes that
            began alike and give every decision of an episode the same advantage; "reinforce++" takes the discounted
            return from each decision on. The value head learns that discounted return then.
        bootstrap_truncated: with "gae", whether a truncated episode is followed by the value of its last observation,
            or by 0, as with the other advantages.

    Returns:
        The decisions; their advantages are not normalised yet, and their old log-probabilities are the sampler's.

    Raises:
        ValueError: if the value that follows a truncated episode is wanted and was not estimated.
    """
    episodes = [episode for episode in episodes if episode.error is None and episode.decisions]
    decisions: list[Decision] = [decision for episode in episodes for decision in episode.decisions]
    values_N = torch.tensor([decision.value for decision in decisions])
    advantages_N, returns_N = _advantages(episodes, values_N, gamma, gae_lambda, advantage, bootstrap_truncated)
    path = DenoisingPath.cat([decision.path for decision in decisions])
    return Rollouts(
        [decision.prompt for decision in decisions],
        path,
        path.log_prob_BL[:, None],
        advantages_N,
        returns_N,
        values_N,
        torch.tensor([decision.version for decision in decisions]),
    )


def check_finite(rollouts: Rollouts) -> None:
    """Checks the parts of the loss, each before those that are computed from it; every rank must call it.

    Raises:
        UserError: on all ranks, if a number of one of them is not finite. The statistics that normalise advantages
            would carry it into every other decision.
    """
    names = ("old_values_N", "old_log_prob_NSL", "returns_N", "advantages_N")
    fault = not_finite_place({name: getattr(rollouts, name) for name in names})
    error = UserError(
        f"nothing can be learned from this collection: {fault}; look at the rewards and at the last losses"
    )
    gather_or_raise(error if fault else None)


def _advantages(
    episodes: Sequence[Episode],
    values_N: Tensor,
    gamma: float,
    gae_lambda: float,
    advantage: AdvantageName,
    bootstrap_truncated: bool,
) -> tuple[Tensor, Tensor]:
    """(N,) advantages and (N,) returns that the value head learns; arguments as in `assemble`."""
    transitions = [transition for episode in episodes for transition in episode.transitions[1:]]
    rewards_N = torch.tensor([transition.reward for transition in transitions])
    done_N = torch.tensor([transition.done for transition in transitions])
    if advantage == "gae":
        terminated_N = done_N
        if bootstrap_truncated:
            terminated_N = torch.tensor([transition.terminated for transition in transitions])
        next_values_N = _next_values(episodes, values_N, terminated_N, done_N)
        return gae(rewards_N, values_N, next_values_N, terminated_N, done_N, gamma, gae_lambda)
    returns_N = discounted_returns(rewards_N, done_N, gamma)
    if advantage == "reinforce++":
        return returns_N, returns_N
    compare = {"grpo": grpo, "rloo": rloo}[advantage]
    lengths_E = torch.tensor([episode.num_decisions for episode in episodes])
    advantages_E = compare(group_returns(episodes), group_numbers(episodes)).float()
    return advantages_E.repeat_interleave(lengths_E), returns_N


def _next_values(episodes: Sequence[Episode], values_N: Tensor, terminated_N: Tensor, done_N: Tensor) -> Tensor:
    """Value of what followed each decision; 0 after termination, the last observation's value after truncation."""
    next_values_N = torch.cat([values_N[1:], values_N.new_zeros(1)]).masked_fill(done_N, 0.0)
    for episode, end in zip(episodes, done_N.nonzero()[:, 0].tolist(), strict=True):
        if not terminated_N[end]:
            value = episode.decisions[-1].next_value
            if value is None:
                raise ValueError("episodes were collected without bootstrap: the value after truncation is not known")
            next_values_N[end] = value
    return next_values_N
