"""Advantages, per decision from rewards and values, or per episode from comparing the episodes of a group.

T decisions lie in one flat row: the episodes one after another, each in time order. E episodes are in any order; a
group is the episodes that began alike (same task, same initial state) and differ by what the policy drew.
"""

from __future__ import annotations

import torch
from torch import Tensor, tensor


def gae(
    rewards_T: Tensor,
    values_T: Tensor,
    next_values_T: Tensor,
    terminated_T: Tensor,
    done_T: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2015, arXiv 1506.02438, eq. 11-16).

    delta_t = r_t + gamma (1 - terminated_t) V(o_{t+1}) - V(o_t)
    A_t     = delta_t + gamma lambda (1 - done_t) A_{t+1}

    Termination ends the reward, so nothing follows it. Truncation only stops looking: the value of the last
    observation stands for what would have come, but no advantage of the next episode leaks in. Computed in float64.

    Args:
        rewards_T: (T,) floating, reward of each decision.
        values_T: (T,) floating, value of the observation the decision was made on.
        next_values_T: (T,) floating, value of the observation that followed; at the end of a truncated episode that
            is its last observation, not the first one of the next episode. Ignored where terminated.
        terminated_T: (T,) bool, the task itself ended the episode here.
        done_T: (T,) bool, the episode ended here, by termination or truncation. A row that does not end in done is
            continued by its next value.
        gamma: discount per decision (not per control step), in [0, 1].
        gae_lambda: 0 = one-step advantage, 1 = return minus value.

    Returns:
        advantages (T,) and returns (T,) = advantages + values, in the dtype and on the device of `values_T`.

    Raises:
        ValueError: for inputs that are not all (T,), or a decision that is terminated but not done.
    """
    inputs = (rewards_T, values_T, next_values_T, terminated_T, done_T)
    if any(x.ndim != 1 or x.shape != values_T.shape for x in inputs):
        raise ValueError(f"gae() needs five tensors of one shape (T,), got {[tuple(x.shape) for x in inputs]}")
    if bool((terminated_T.bool() & ~done_T.bool()).any()):
        raise ValueError("gae() got a decision that is terminated but not done: done must include termination")

    # where() and not a product: a next value that must be ignored may be NaN
    bootstrap_T = next_values_T.double().masked_fill(terminated_T.bool(), 0.0)
    delta_T = (rewards_T.double() + gamma * bootstrap_T - values_T.double()).tolist()
    carry_T = (gamma * gae_lambda * (~done_T.bool()).double()).tolist()

    # The recursion is sequential and T is thousands: plain floats are some 50 times faster than 0-d tensors.
    advantages: list[float] = [0.0] * len(delta_T)
    following = 0.0
    for t in reversed(range(len(delta_T))):
        following = delta_T[t] + carry_T[t] * following
        advantages[t] = following
    advantages_T = tensor(advantages, dtype=values_T.dtype, device=values_T.device)
    return advantages_T, advantages_T + values_T


def normalize(advantages: Tensor, mean: Tensor | float, std: Tensor | float, eps: float = 1e-5) -> Tensor:
    """(advantages - mean) / (std + eps).

    The statistics are arguments because they must be those of all ranks together, not of the part at hand.

    Args:
        advantages: any shape, floating.
        mean: scalar.
        std: scalar, >= 0.
        eps: what keeps equal advantages at about 0 instead of blowing up their rounding error; in units of reward.

    Returns:
        Same shape and dtype as `advantages`.
    """
    return (advantages - mean) / (std + eps)


def discounted_returns(rewards_T: Tensor, done_T: Tensor, gamma: float) -> Tensor:
    """Reward still to come in the episode, the advantage of REINFORCE++ before it is normalised.

    G_t = r_t + gamma (1 - done_t) G_{t+1}

    REINFORCE++ (Hu 2025, arXiv 2501.03262) has neither values nor groups: its only baseline is the mean over the whole
    batch, so the caller applies normalize() with the mean and std of the decisions of all ranks. The discount is as in
    verl (verl/trainer/ppo/core_algos.py). The KL penalty that the paper subtracts from the reward is left out: here it
    is a term of the loss. This is gae() with gae_lambda 1 and values 0, hence a truncated episode counts as ended:
    nothing estimates what would have followed.

    Args:
        rewards_T: (T,) floating, reward of each decision.
        done_T: (T,) bool, the episode ended here, by termination or truncation. After a row that does not end in done,
            nothing is assumed to follow.
        gamma: discount per decision (not per control step), in [0, 1].

    Returns:
        (T,) in units of reward, in the dtype and on the device of `rewards_T`. Computed in float64.

    Raises:
        ValueError: for inputs that are not both (T,).
    """
    no_value_T = torch.zeros_like(rewards_T)
    returns_T, _ = gae(rewards_T, no_value_T, no_value_T, done_T, done_T, gamma, gae_lambda=1.0)
    return returns_T


def grpo(returns_E: Tensor, groups_E: Tensor, eps: float = 1e-6) -> Tensor:
    """(R - mean of the group) / (std of the group + eps), GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

    The paper does not say which std. This is the sample one (n - 1), the default of torch.std, which others call: verl
    (verl/trainer/ppo/core_algos.py), TRL (trl/trainer/grpo_trainer.py), RLinf (rlinf/algorithms/advantages.py). The
    population std would make advantages sqrt(n / (n - 1)) larger.

    Args:
        returns_E: (E,) floating, return of each episode.
        groups_E: (E,) int64, group number of each episode; any numbers, in any order, groups of any sizes >= 2.
        eps: keeps nearly equal returns from blowing up; in units of reward. 1e-6 as in verl and RLinf (TRL: 1e-4).

    Returns:
        (E,) advantages without unit, in the dtype and on the device of `returns_E`; exactly 0 in a group of equal
        returns. Computed in float64. All decisions of an episode share its advantage.

    Raises:
        ValueError: for inputs that are not both (E,), or a group of a single episode.
    """
    index_E, size_E = _groups(returns_E, groups_E, "grpo")
    deviation_E = _deviation(returns_E, index_E, size_E)
    variance_E = _group_sum(deviation_E.square(), index_E) / (size_E - 1)
    return (deviation_E / (variance_E.sqrt() + eps)).to(returns_E.dtype)


def rloo(returns_E: Tensor, groups_E: Tensor) -> Tensor:
    """R minus the mean return of the others in the group, REINFORCE leave-one-out (Ahmadian et al. 2024, 2402.14740).

    A_i = R_i - 1 / (n - 1) sum_{j != i} R_j = n / (n - 1) (R_i - mean of the group)

    The baseline of an episode does not contain the episode, so the policy gradient stays unbiased.

    Args:
        returns_E: (E,) floating, return of each episode.
        groups_E: (E,) int64, group number of each episode; any numbers, in any order, groups of any sizes >= 2.

    Returns:
        (E,) advantages in units of reward, in the dtype and on the device of `returns_E`; exactly 0 in a group of equal
        returns. Computed in float64. All decisions of an episode share its advantage.

    Raises:
        ValueError: for inputs that are not both (E,), or a group of a single episode.
    """
    index_E, size_E = _groups(returns_E, groups_E, "rloo")
    return (_deviation(returns_E, index_E, size_E) * size_E / (size_E - 1)).to(returns_E.dtype)


def informative_groups(returns_E: Tensor, groups_E: Tensor) -> Tensor:
    """Marks episodes of groups whose returns are not all equal: in the others grpo() and rloo() are 0.

    The filter of DAPO's dynamic sampling (arXiv 2503.14476, eq. 11), where the returns are 0 and 1: a task that always
    succeeds or always fails teaches nothing, and its zeros would only dilute the mean over the batch.

    Args:
        returns_E: (E,) floating, return of each episode.
        groups_E: (E,) int64, group number of each episode. A group of a single episode is not informative.

    Returns:
        (E,) bool.
    """
    index_E = torch.unique(groups_E, return_inverse=True)[1]
    return _group_reduce(returns_E, index_E, "amin") != _group_reduce(returns_E, index_E, "amax")


def _groups(returns_E: Tensor, groups_E: Tensor, caller: str) -> tuple[Tensor, Tensor]:
    """Number of the group (0, 1, ...) and size of the group of each episode, both (E,) int64."""
    if returns_E.ndim != 1 or returns_E.shape != groups_E.shape:
        shapes = [tuple(returns_E.shape), tuple(groups_E.shape)]
        raise ValueError(f"{caller}() needs two tensors of one shape (E,), got {shapes}")
    numbers, index_E, sizes = torch.unique(groups_E, return_inverse=True, return_counts=True)
    single = numbers[sizes == 1].tolist()
    if single:
        raise ValueError(f"{caller}() compares the episodes of a group, but group {single[0]} has a single episode")
    return index_E, sizes[index_E]


def _deviation(returns_E: Tensor, index_E: Tensor, size_E: Tensor) -> Tensor:
    """(E,) float64, return minus the mean of the group."""
    # Measured from the lowest return of the group, equal returns deviate by exactly 0 and not by rounding error.
    shifted_E = returns_E.double() - _group_reduce(returns_E.double(), index_E, "amin")
    return shifted_E - _group_sum(shifted_E, index_E) / size_E


def _group_sum(x_E: Tensor, index_E: Tensor) -> Tensor:
    """(E,) for each episode the sum over its group."""
    # index_add and not bincount or scatter_reduce("sum"): it has a deterministic kernel on CUDA
    return torch.zeros_like(x_E).index_add(0, index_E, x_E)[index_E]


def _group_reduce(x_E: Tensor, index_E: Tensor, reduce: str) -> Tensor:
    """(E,) for each episode the lowest ("amin") or highest ("amax") of its group."""
    return torch.zeros_like(x_E).scatter_reduce(0, index_E, x_E, reduce, include_self=False)[index_E]
