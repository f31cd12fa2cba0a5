"""The contribution of each denoising step: entropy of its tokens and share of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from dvla_lightning.policy import Scores


def view_diagnostics(policy_loss: Tensor, scores: Scores, scored_BSL: Tensor, num_steps: int) -> dict[str, Tensor]:
    """Entropy of each view's tokens, and its share of the policy gradient with respect to the logits.

    Args:
        policy_loss: scalar with a graph through `scores.log_prob_BSL`.
        scores: of views of rows with one K.
        scored_BSL: what the views score.
        num_steps: that K.

    Returns:
        entropy/K<K>_view<s> (nats per token) and gradient_share/K<K>_view<s> (sums to 1 over s): the sum over tokens of
        |d loss / d log_prob| |d log_prob / d logits|. With estimator trajectory, view s is denoising step s. Views that
        score nothing are left out. A selection term's own gradient is not part of it.
    """
    (pull_BSL,) = torch.autograd.grad(policy_loss, scores.log_prob_BSL, retain_graph=True)
    with torch.no_grad():
        pull_S = (pull_BSL.abs() * _logit_gradient_norm(scores) * scored_BSL).sum((0, 2))
        share_S = pull_S / pull_S.sum().clamp_min(torch.finfo(pull_S.dtype).tiny)
        entropy_BSL = scores.entropy_BSL
    diagnostics = {}
    for view in scored_BSL.any(-1).any(0).nonzero()[:, 0].tolist():
        diagnostics[f"entropy/K{num_steps}_view{view}"] = scored_mean(entropy_BSL[:, view], scored_BSL[:, view])
        diagnostics[f"gradient_share/K{num_steps}_view{view}"] = share_S[view]
    return diagnostics


def _logit_gradient_norm(scores: Scores) -> Tensor:
    """(B, S, L): |onehot(x) - p|, how hard a token of weight 1 in the loss pulls at its logits (log-softmax)."""
    squares_BSL = scores.log_probs_BSLV.exp().square().sum(-1) - 2 * scores.log_prob_BSL.exp() + 1
    return squares_BSL.clamp_min(0).sqrt()


def scored_mean(x: Tensor, scored: Tensor) -> Tensor:
    """Mean of `x` over what is scored; 0 if nothing is. What is not scored may be infinite."""
    return x.masked_fill(~scored, 0.0).sum() / scored.sum().clamp_min(1)
