"""The choice of the masked positions that a denoising step commits, and its probability."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dvla_lightning.diffusion.entropy import entropy

Confidence = Literal["max_prob", "drawn_prob", "entropy", "random"]


def confidence_score(log_probs_BLV: Tensor, drawn_BL: Tensor, confidence: Confidence) -> Tensor:
    """The network's confidence in each position, as a log-scale score; larger is committed earlier.

    Args:
        log_probs_BLV: float32 log-softmax of logits / temperature.
        drawn_BL: int64, the token drawn at every position in this step.
        confidence: "max_prob" (log of the largest probability) and "entropy" (negative entropy) look at the
            distribution alone ("sample-free": the committed-token product is then the exact transition probability);
            "drawn_prob" is the log-probability of the drawn token (MaskGIT, MM-ACT, dVLA-RL); "random" ignores the
            network.

    Returns:
        (B, L) float32.
    """
    if confidence == "max_prob":
        return log_probs_BLV.amax(-1)
    if confidence == "drawn_prob":
        return log_probs_BLV.gather(-1, drawn_BL[..., None])[..., 0]
    if confidence == "entropy":
        return -entropy(log_probs_BLV)
    if confidence == "random":
        return torch.zeros_like(drawn_BL, dtype=torch.float32)
    raise ValueError(f"unknown confidence {confidence!r}: choose max_prob, drawn_prob, entropy or random")


def rank_masked(score_BL: Tensor, masked_BL: Tensor) -> Tensor:
    """Rank of every masked position by decreasing score; ties go to the lower position.

    Args:
        score_BL: float.
        masked_BL: bool.

    Returns:
        (B, L) int64; masked positions hold 0..M-1, the others larger ranks.
    """
    order_BL = score_BL.masked_fill(~masked_BL, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return order_BL.argsort(dim=-1)


def plackett_luce_log_prob(score_BL: Tensor, commit_order_BL: Tensor, committed_BL: Tensor) -> Tensor:
    """Log-probability that one step commits its positions in the recorded order, under Gumbel top-n.

    Adding Gumbel noise of scale T to the confidences and taking the n best draws n positions without replacement with
    weights exp(confidence / T). The j-th position taken contributes s_j - logsumexp of s over the positions not yet
    taken (Plackett-Luce; Kool et al., arXiv 1903.06059, Sec. 3); the sum over positions is the term of the step.

    Args:
        score_BL: (..., L) confidence / T in the state before the step, float32.
        commit_order_BL: (..., L) int64, as in `DenoisingPath`.
        committed_BL: (..., L) bool, the positions this step commits; everything later in the order was masked, too.

    Returns:
        (..., L) float32, the contribution of each position; 0 where nothing was committed.
    """
    by_order_BL = commit_order_BL.argsort(dim=-1)
    sorted_BL = score_BL.gather(-1, by_order_BL)
    remaining_BL = sorted_BL.flip(-1).logcumsumexp(-1).flip(-1)
    # commit_order is the inverse permutation: it brings the terms back to their positions
    terms_BL = (sorted_BL - remaining_BL).gather(-1, commit_order_BL)
    return terms_BL * committed_BL
