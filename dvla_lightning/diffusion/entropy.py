"""Entropy of token distributions, safe where a token is impossible."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy of distributions in nats: -sum p log p, with 0 log 0 = 0 in the value and in the gradient.

    Neither of the usual forms will do. exp(log p) * log p is 0 * inf where a network forbids a token; xlogy(p, p) has
    the derivative log p + 1, which is infinite where p underflows although log p is an ordinary number.

    Args:
        log_probs: (..., V) floating log-softmax; -inf where a token is impossible.

    Returns:
        (...) of the same dtype.
    """
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
    return -(log_probs.exp() * finite).sum(-1)
