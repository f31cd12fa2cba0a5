"""Decisions: what the policy knew and did when it was asked, batch by batch and row by row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dvla_lightning.backbones.base import PromptRow
from dvla_lightning.diffusion.path import DenoisingPath


@dataclass
class Decision:
    """One decision as it is kept for learning, on the CPU; nothing is asked of the policy again afterwards.

    Attributes:
        prompt: the observation as the backbone read it.
        path: how the chunk was decoded, with its behaviour log-probabilities; one row.
        value: the value head's estimate of the return.
        outside: share of the proprioception vector beyond the range of the training data.
        version: of the policy that decided, see `DVLAPolicy.version`.
        next_value: the estimate for the observation that followed, where the episode was truncated there; None
            elsewhere, and where nobody asked for it.
    """

    prompt: PromptRow
    path: DenoisingPath
    value: float
    outside: float
    version: int
    next_value: float | None = None


@dataclass
class Decisions:
    """The policy's decisions for a batch of observations.

    Attributes:
        actions: (B, num_action_steps, action_dim) float32 in the robot's units.
        rows: what the backbone read, B prompt rows on the CPU.
        path: how the chunks were decoded.
        values_B: float32, the value head's estimates of the return.
        outside_B: float32 on the CPU, share of each proprioception vector beyond the range of the training data.
        version: of the policy.
    """

    actions: Tensor
    rows: list[PromptRow]
    path: DenoisingPath
    values_B: Tensor
    outside_B: Tensor
    version: int

    def unbind(self) -> list[Decision]:
        """The decisions one by one, on the CPU."""
        numbers = zip(self.values_B.tolist(), self.outside_B.tolist(), strict=True)
        return [
            Decision(row, path, value, outside, self.version)
            for row, path, (value, outside) in zip(self.rows, self.path.to("cpu").unbind(), numbers, strict=True)
        ]
