"""SFT: predict the hidden tokens of demonstrated chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dvla_lightning.backbones.base import Prompt
from dvla_lightning.diffusion.schedule import MaskSchedule
from dvla_lightning.diffusion.views import corrupted_views
from dvla_lightning.errors import check_number
from dvla_lightning.objectives.base import LossOutput, Objective
from dvla_lightning.objectives.diagnostics import scored_mean
from dvla_lightning.policy import DVLAPolicy


@dataclass
class DemonstrationBatch:
    """B demonstrated chunks.

    Attributes:
        prompt: of the observation at which the chunk starts.
        actions: (B, chunk_size, action_dim) float32 in the robot's units.
        is_pad: (B, chunk_size) bool, True after the end of the demonstration.
    """

    prompt: Prompt
    actions: Tensor
    is_pad: Tensor


class SupervisedObjective(Objective):
    """Cross-entropy on randomly hidden action tokens (masked diffusion training, MaskGIT / MM-ACT).

    The chunk is partly hidden, so that the policy has seen the states that K > 1 denoising steps pass through.

    Args:
        num_views: independent maskings of each chunk per step; they share one prompt pass, so more of them are cheap.
        schedule: mask schedule from which the hidden share is drawn.

    Raises:
        UserError: if num_views < 1.
    """

    batch_type = DemonstrationBatch

    def __init__(self, num_views: int = 4, schedule: MaskSchedule = "cosine") -> None:
        check_number("SupervisedObjective", "num_views", num_views, low=1)
        self.num_views = num_views
        self.schedule: MaskSchedule = schedule

    def prepare(self, policy: DVLAPolicy) -> None:
        policy.train()
        policy.value_head.requires_grad_(False)  # nothing to learn from here; ddp refuses parameters without a gradient

    def __call__(self, policy: DVLAPolicy, batch: DemonstrationBatch) -> LossOutput:
        tokens_BL = policy.encode_actions(batch.actions)
        valid_BL = (~batch.is_pad).repeat_interleave(policy.action_dim, dim=1)
        views = corrupted_views(tokens_BL, valid_BL, policy.mask_id, self.num_views, self.schedule)
        scores = policy.score(batch.prompt, views)
        loss = -scored_mean(scores.log_prob_BSL, views.scored_BSL)
        with torch.no_grad():
            entropy = scored_mean(scores.entropy_BSL, views.scored_BSL)
        return LossOutput(loss, {"loss": loss.detach(), "entropy": entropy})
