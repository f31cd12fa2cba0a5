"""Masked views: partly masked copies of a chunk and the positions each of them scores.

Everything that is trained is a masked view. Estimators turn a denoising path into views; SFT turns a demonstration
into views by random masking. View 0 of an estimator is always the all-masked chunk, which the value head reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.diffusion.schedule import MaskSchedule, mask_ratio


@dataclass
class MaskedViews:
    """S views of each of B chunks.

    Attributes:
        noisy_BSL: int64 tokens with MASK where the view hides them.
        scored_BSL: bool, positions whose tokens this view scores.
        tokens_BL: int64, the clean chunk that is scored.
    """

    noisy_BSL: Tensor
    scored_BSL: Tensor
    tokens_BL: Tensor


def trajectory_views(path: DenoisingPath, mask_id: int) -> MaskedViews:
    """The paper's estimator: view k is the state before step k and scores the positions committed in step k.

    Every token is scored exactly once, in the state in which it was drawn (arXiv 2606.23623, Eq. 3-6; TraceRL).

    Args:
        path: rows that all have the same K.
        mask_id: id of MASK.

    Returns:
        K views per row.
    """
    steps_K = torch.arange(_common_num_steps(path), device=path.tokens_BL.device)
    commit_step_BSL = path.commit_step_BL[:, None, :].expand(-1, len(steps_K), -1)
    hidden_BSL = commit_step_BSL >= steps_K[:, None]
    noisy_BSL = torch.where(hidden_BSL, mask_id, path.tokens_BL[:, None, :])
    return MaskedViews(noisy_BSL, commit_step_BSL == steps_K[:, None], path.tokens_BL)


def full_mask_views(path: DenoisingPath, mask_id: int) -> MaskedViews:
    """One all-masked view that scores every token, whatever K was (diffu-GRPO of d1, arXiv 2504.12216, Sec. 3).

    Args:
        path: rows with any K.
        mask_id: id of MASK.

    Returns:
        One view per row.
    """
    noisy_BSL = torch.full_like(path.tokens_BL, mask_id)[:, None, :]
    return MaskedViews(noisy_BSL, torch.ones_like(noisy_BSL, dtype=torch.bool), path.tokens_BL)


EstimatorName = Literal["trajectory", "full_mask"]

ESTIMATORS: dict[EstimatorName, Callable[[DenoisingPath, int], MaskedViews]] = {
    "trajectory": trajectory_views,
    "full_mask": full_mask_views,
}
"""Every estimator is only a choice of views; a new one is a function here."""


def corrupted_views(
    tokens_BL: Tensor,
    valid_BL: Tensor,
    mask_id: int,
    num_views: int,
    schedule: MaskSchedule = "cosine",
    generator: torch.Generator | None = None,
) -> MaskedViews:
    """SFT: hides a random share of each chunk and scores what is hidden.

    Per view t ~ U(0, 1), max(1, round(L * mask_ratio(t))) positions are hidden, drawn uniformly (MaskGIT training;
    MM-ACT uses the same counts). Positions beyond the end of a demonstration are always hidden and never scored.

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
    count_BS = (length * mask_ratio(time_BS, schedule)).round().clamp_min(1)
    noise_BSL = torch.rand(batch, num_views, length, generator=generator, device=tokens_BL.device)
    hidden_BSL = noise_BSL.argsort(-1).argsort(-1) < count_BS[..., None]
    hidden_BSL |= ~valid_BL[:, None, :]
    noisy_BSL = torch.where(hidden_BSL, mask_id, tokens_BL[:, None, :])
    return MaskedViews(noisy_BSL, hidden_BSL & valid_BL[:, None, :], tokens_BL)


def _common_num_steps(path: DenoisingPath) -> int:
    num_steps = int(path.num_steps_B[0])
    if bool((path.num_steps_B != num_steps).any()):
        raise ValueError("views need rows with the same number of denoising steps: bucket the batch by num_steps first")
    return num_steps
