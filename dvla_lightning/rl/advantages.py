"""Advantages over decisions. T decisions lie in one flat row: the episodes one after another, each in time order."""

from __future__ import annotations

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
