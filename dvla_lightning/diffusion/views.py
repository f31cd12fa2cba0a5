"""Masked views: partly masked copies of a chunk and the positions each of them scores.

Everything that is trained is a masked view. SFT turns a demonstration into views by random masking; estimators
(estimators.py) turn a denoising path into views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dvla_lightning.diffusion.schedule import MaskSchedule, mask_ratio


@dataclass
class MaskedViews:
    """S views of each of B chunks.

    Attributes:
        noisy_BSL: int64 tokens with MASK where the view hides them.
        scored_BSL: bool, positions whose tokens this view scores.
        tokens_BSL: int64, the clean tokens that are scored; (B, 1, L) where all views score the same chunk.
    """

    noisy_BSL: Tensor
    scored_BSL: Tensor
    tokens_BSL: Tensor


def corrupted_views(
    tokens_BL: Tensor,
    valid_BL: Tensor,
    mask_id: int,
    num_views: int,
    schedule: MaskSchedule = "cosine",
    generator: torch.Generator | None = None,
) -> MaskedViews:
    """SFT: hides a random share of each chunk and scores what is hidden.

    Per view t ~ U(0, 1), max(1, round(n * mask_ratio(t))) of the chunk's n valid positions are hidden, drawn uniformly
    (MaskGIT training; MM-ACT uses the same counts). Positions beyond the end of a demonstration are always hidden,
    never scored and not counted, so that every view of a chunk with a valid position scores one.

    Args:
        tokens_BL: int64 demonstrated chunk.
        valid_BL: bool, False where the demonstration had ended.
        mask_id: id of MASK.
        num_views: S, independent maskings of the same chunk.
        schedule: mask schedule.
        generator: source of randomness on the device of `tokens_BL`; None is torch's global one.

    Returns:
        S views per row.
    """
    batch, length = tokens_BL.shape
    time_BS = torch.rand(batch, num_views, generator=generator, device=tokens_BL.device)
    count_BS = (valid_BL.sum(-1, keepdim=True) * mask_ratio(time_BS, schedule)).round().clamp_min(1)
    noise_BSL = torch.rand(batch, num_views, length, generator=generator, device=tokens_BL.device)
    noise_BSL = noise_BSL.masked_fill(~valid_BL[:, None, :], torch.inf)  # valid positions are ranked first
    hidden_BSL = noise_BSL.argsort(-1).argsort(-1) < count_BS[..., None]
    hidden_BSL |= ~valid_BL[:, None, :]
    noisy_BSL = torch.where(hidden_BSL, mask_id, tokens_BL[:, None, :])
    return MaskedViews(noisy_BSL, hidden_BSL & valid_BL[:, None, :], tokens_BL[:, None])
