"""Estimators: which masked views stand for the probability of a denoising path.

View 0 of every estimator is the all-masked chunk, because the value head reads it; an estimator that has no use for
that view scores nothing in it. All but `Trajectory` are surrogates of the path's probability, kept for comparison.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from dvla_lightning.diffusion.draws import Purpose, seeded_uniforms
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.diffusion.views import MaskedViews


class Estimator(ABC):
    """Turns denoising paths into views."""

    scores_once = True
    """Whether every position is scored by one view at most."""

    @abstractmethod
    def views(self, path: DenoisingPath, mask_id: int) -> MaskedViews:
        """The views of some paths, equal at every call.

        Args:
            path: rows that all have the same K.
            mask_id: id of MASK.
        """

    def check_sampler(self, sampler: Sampler) -> None:  # noqa: B027
        """Raises `ValueError` if the paths of this sampler cannot be scored."""


@dataclass(frozen=True)
class Trajectory(Estimator):
    """The paper's: view k is the state before step k and scores the positions committed in step k.

    Every token is scored once, in the state in which it was drawn (arXiv 2606.23623, Eq. 3-6; TraceRL, arXiv
    2509.06949). With remasking a position is scored at every commit, with the token it then got.
    """

    def views(self, path: DenoisingPath, mask_id: int) -> MaskedViews:
        num_steps = _common_num_steps(path)
        if path.states_BKL is None:
            return _merged_views(path, path.commit_step_BL, num_steps, mask_id)
        noisy_BSL = path.states_BKL[:, :num_steps]
        after_BSL = torch.cat([noisy_BSL[:, 1:], path.tokens_BL[:, None]], dim=1)
        scored_BSL = (noisy_BSL == mask_id) & (after_BSL != mask_id)
        return MaskedViews(noisy_BSL, scored_BSL, after_BSL.masked_fill(~scored_BSL, 0))


@dataclass(frozen=True)
class StepMerge(Estimator):
    """The trajectory with neighbouring steps merged: all their tokens are scored in the first one's state.

    d2-StepMerge (arXiv 2509.21474) and the "shrink" of TraceRL. Step k of K belongs to group floor(k G / K).

    Attributes:
        num_groups: G, number of views; at most K of them are used. G = K is `Trajectory`, G = 1 is `FullMask`.
    """

    num_groups: int = 2

    def __post_init__(self) -> None:
        if self.num_groups < 1:
            raise ValueError(f"StepMerge needs at least 1 group, got {self.num_groups}")

    def views(self, path: DenoisingPath, mask_id: int) -> MaskedViews:
        num_steps = _common_num_steps(path)
        num_groups = min(self.num_groups, num_steps)
        return _merged_views(path, path.commit_step_BL * num_groups // num_steps, num_groups, mask_id)

    def check_sampler(self, sampler: Sampler) -> None:
        if sampler.remasks:
            raise ValueError("StepMerge cannot score a sampler with remasking: use Trajectory or RandomMask")


@dataclass(frozen=True)
class LastStep(Estimator):
    """Only the tokens committed in the last step, in their true state: the paper's negative ablation (Fig. 3)."""

    def views(self, path: DenoisingPath, mask_id: int) -> MaskedViews:
        num_steps = _common_num_steps(path)
        hidden_BSL = (path.commit_step_BL == num_steps - 1)[:, None]
        return _hidden_views(hidden_BSL, path, mask_id, value_view=num_steps > 1)


@dataclass(frozen=True)
class FullMask(Estimator):
    """One all-masked view that scores every token, whatever K was (diffu-GRPO of d1, arXiv 2504.12216, Sec. 3)."""

    def views(self, path: DenoisingPath, mask_id: int) -> MaskedViews:
        hidden_BSL = torch.ones_like(path.tokens_BL, dtype=torch.bool)[:, None]
        return _hidden_views(hidden_BSL, path, mask_id, value_view=False)


@dataclass(frozen=True)
class RandomMask(Estimator):
    """Views with random masks, each scoring what it hides (UniGRPO of MMaDA, arXiv 2505.15809).

    A view hides every position with probability t ~ U(low, high), and one position at least.

    Attributes:
        num_masks: m, views per decision.
        low: smallest t.
        high: largest t; 0.1 to 0.9 as in dLLM-RL.
    """

    num_masks: int = 2
    low: float = 0.1
    high: float = 0.9
    scores_once = False

    def __post_init__(self) -> None:
        if self.num_masks < 1 or not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"RandomMask needs num_masks >= 1 and 0 <= low <= high <= 1, got {self}")

    def views(self, path: DenoisingPath, mask_id: int) -> MaskedViews:
        time_BS1, noise_BSL = _mask_uniforms(path, self.num_masks)
        hidden_BSL = noise_BSL < self.low + (self.high - self.low) * time_BS1
        hidden_BSL |= noise_BSL == noise_BSL.amin(-1, keepdim=True)
        return _hidden_views(hidden_BSL, path, mask_id)


@dataclass(frozen=True)
class Coupled(Estimator):
    """Pairs of complementary random masks, so that a pair scores every token once (coupled-GRPO, arXiv 2506.20639).

    Attributes:
        num_pairs: m; two views each. The first of a pair hides every position with probability t ~ U(0, 1).
    """

    num_pairs: int = 1
    scores_once = False

    def __post_init__(self) -> None:
        if self.num_pairs < 1:
            raise ValueError(f"Coupled needs at least 1 pair of masks, got {self.num_pairs}")

    def views(self, path: DenoisingPath, mask_id: int) -> MaskedViews:
        time_BS1, noise_BSL = _mask_uniforms(path, self.num_pairs)
        hidden_BSL = noise_BSL < time_BS1
        return _hidden_views(torch.cat([hidden_BSL, ~hidden_BSL], dim=1), path, mask_id)


def _merged_views(path: DenoisingPath, group_BL: Tensor, num_groups: int, mask_id: int) -> MaskedViews:
    """One view per group of commits: the state before the group, scoring the positions of the group."""
    groups_S = torch.arange(num_groups, device=group_BL.device)[:, None]
    group_BSL = group_BL[:, None, :].expand(-1, num_groups, -1)
    noisy_BSL = torch.where(group_BSL >= groups_S, mask_id, path.tokens_BL[:, None, :])
    return MaskedViews(noisy_BSL, group_BSL == groups_S, path.tokens_BL[:, None])


def _hidden_views(hidden_BSL: Tensor, path: DenoisingPath, mask_id: int, value_view: bool = True) -> MaskedViews:
    """Views that score what they hide, behind an all-masked one that scores nothing (`value_view`)."""
    scored_BSL = hidden_BSL
    if value_view:
        nothing_B1L = torch.zeros_like(hidden_BSL[:, :1])
        hidden_BSL = torch.cat([~nothing_B1L, hidden_BSL], dim=1)
        scored_BSL = torch.cat([nothing_B1L, scored_BSL], dim=1)
    noisy_BSL = torch.where(hidden_BSL, mask_id, path.tokens_BL[:, None])
    return MaskedViews(noisy_BSL, scored_BSL, path.tokens_BL[:, None])


def _mask_uniforms(path: DenoisingPath, count: int) -> tuple[Tensor, Tensor]:
    """Uniform numbers in [0, 1) that depend on each row's seed alone: (B, count, 1) and (B, count, L) float64."""
    batch, length = path.tokens_BL.shape
    uniform_BN = seeded_uniforms(path.seed_B.tolist(), Purpose.MASKS, count * (1 + length))
    uniform_BSN = uniform_BN.view(batch, count, 1 + length).to(path.tokens_BL.device)
    return uniform_BSN[..., :1], uniform_BSN[..., 1:]


def _common_num_steps(path: DenoisingPath) -> int:
    num_steps = int(path.num_steps_B[0])
    if bool((path.num_steps_B != num_steps).any()):
        raise ValueError("views need rows with the same number of denoising steps: bucket the batch by num_steps first")
    return num_steps
