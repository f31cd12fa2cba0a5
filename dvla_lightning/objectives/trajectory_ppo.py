"""RL: PPO on the probability of the sampled denoising path (dVLA-RL, arXiv 2606.23623)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dvla_lightning.backbones.base import Prompt
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.diffusion.views import ESTIMATORS, EstimatorName, MaskedViews
from dvla_lightning.errors import UserError
from dvla_lightning.objectives.base import LossOutput, Objective
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rl.kl import KLKind, kl_estimate
from dvla_lightning.rl.losses import aggregate_log_ratio, policy_loss, value_loss


@dataclass
class RolloutBatch:
    """B decisions of one iteration.

    Attributes:
        prompt: what the policy saw.
        path: how it decoded its chunk.
        old_log_prob_BL: float32, log-probability of each token under the behaviour policy, as the estimator scores it.
        advantages_B: float32, normalised over all ranks.
        returns_B: float32, targets of the value head.
        old_values_B: float32, its estimates at collection.
        weight: float32 scalar, this rank's share of the minibatch over all ranks times their number; 1 on one rank.
        is_first: whether this is the first minibatch after collection (nothing has been updated yet).
    """

    prompt: Prompt
    path: DenoisingPath
    old_log_prob_BL: Tensor
    advantages_B: Tensor
    returns_B: Tensor
    old_values_B: Tensor
    weight: Tensor
    is_first: bool = False

    def __len__(self) -> int:
        return len(self.path)

    def select(self, rows: Tensor, weight: float | None = None, is_first: bool | None = None) -> RolloutBatch:
        """Some of the decisions."""
        return RolloutBatch(
            {name: value[rows] for name, value in self.prompt.items()},
            self.path.select(rows),
            self.old_log_prob_BL[rows],
            self.advantages_B[rows],
            self.returns_B[rows],
            self.old_values_B[rows],
            self.weight if weight is None else torch.tensor(weight),
            self.is_first if is_first is None else is_first,
        )


class _Terms(NamedTuple):
    """Loss terms of decisions with one K; each is a mean, `share` is their part of the minibatch."""

    share: float
    values: dict[str, Tensor]
    max_abs_log_ratio: Tensor


class TrajectoryPPO(Objective):
    """Clipped PPO whose policy ratio comes from masked views of the denoising path.

    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy + kl_coef * KL(policy || reference)

    Args:
        estimator: which masked views score a path; "trajectory" scores every token in the state in which it was
            committed (the paper), "full_mask" all tokens in the all-masked state (d1).
        ratio_level: what is clipped: the ratio of each token, or of the whole chunk's path.
        clip_ratio_low: the ratio may fall to 1 - clip_ratio_low.
        clip_ratio_high: the ratio may rise to 1 + clip_ratio_high (DAPO's clip-higher).
        value_coef: weight of the value loss.
        value_clip: how far the value may move from its estimate at collection, in units of reward; null: no clip.
        huber_delta: error, in units of reward, from which on the value loss is linear.
        value_gradient: let the value loss train the backbone, too; with a small backbone that destroys the policy.
        value_warmup_iterations: iterations in which only the value head learns.
        entropy_coef: weight of the entropy bonus (mean nats per scored token).
        kl_coef: weight of the KL to the reference policy (adapters off, or the weights at the start of training).
        kl_kind: estimator of that KL, see `rl.kl`.
        target_kl: stop updating on an iteration's data once approx_kl (at the ratio level) exceeds this; null: never.
        parity_tolerance: largest |log-ratio| allowed in the first minibatch after collection, where it must be 0 up to
            float error; use 1e-3 in float32 and about 0.1 in bfloat16.

    Raises:
        UserError: for values that make no sense; during training if the parity check fails.
    """

    def __init__(
        self,
        estimator: EstimatorName = "trajectory",
        ratio_level: Literal["token", "chunk"] = "token",
        clip_ratio_low: float = 0.2,
        clip_ratio_high: float = 0.28,
        value_coef: float = 0.5,
        value_clip: float | None = 0.2,
        huber_delta: float = 10.0,
        value_gradient: bool = False,
        value_warmup_iterations: int = 0,
        entropy_coef: float = 0.0,
        kl_coef: float = 0.0,
        kl_kind: KLKind = "k3",
        target_kl: float | None = None,
        parity_tolerance: float = 1e-3,
    ) -> None:
        if not (0 < clip_ratio_low < 1 and clip_ratio_high > 0):
            raise UserError(
                f"TrajectoryPPO: need 0 < clip_ratio_low < 1 and clip_ratio_high > 0, "
                f"got {clip_ratio_low} and {clip_ratio_high}"
            )
        self.estimator: EstimatorName = estimator
        self.ratio_level = ratio_level
        self.clip_ratio_low, self.clip_ratio_high = clip_ratio_low, clip_ratio_high
        self.value_coef, self.value_clip, self.huber_delta = value_coef, value_clip, huber_delta
        self.value_gradient, self.value_warmup_iterations = value_gradient, value_warmup_iterations
        self.entropy_coef, self.kl_coef, self.kl_kind = entropy_coef, kl_coef, kl_kind
        self.target_kl, self.parity_tolerance = target_kl, parity_tolerance
        self.policy_coef = 1.0

    def prepare(self, policy: DVLAPolicy) -> None:
        policy.eval()  # dropout would score a path under another policy than the one that drew it
        if self.kl_coef:
            policy.keep_reference()

    def begin_iteration(self, iteration: int) -> None:
        # A zero weight instead of frozen parameters: every parameter keeps a gradient, as ddp wants.
        self.policy_coef = 0.0 if iteration < self.value_warmup_iterations else 1.0

    @torch.no_grad()
    def behaviour_log_prob(self, policy: DVLAPolicy, prompt: Prompt, path: DenoisingPath) -> Tensor:
        """(B, L) log-probabilities before the update, as this estimator scores them.

        The sampler's own record is what "trajectory" would compute again; other estimators score other states.
        """
        if self.estimator == "trajectory":
            return path.log_prob_BL
        old_BL = torch.empty_like(path.log_prob_BL)
        for rows in _buckets(path):
            part = {name: value[rows] for name, value in prompt.items()}
            views = self._views(policy, path.select(rows))
            log_prob_BSL = policy.score(part, views, policy.sampler.temperature).log_prob_BSL
            old_BL[rows] = (log_prob_BSL * views.scored_BSL).sum(1)
        return old_BL

    def __call__(self, policy: DVLAPolicy, batch: RolloutBatch) -> LossOutput:
        # Rows with equal K are scored together, so that mixing K in a minibatch costs no padding.
        terms = [self._terms(policy, batch.select(rows), len(rows) / len(batch)) for rows in _buckets(batch.path)]
        mean = {name: sum(t.share * t.values[name] for t in terms) for name in terms[0].values}
        max_abs_log_ratio = torch.stack([t.max_abs_log_ratio for t in terms]).max()
        loss = (
            self.policy_coef * (mean["policy_loss"] - self.entropy_coef * mean["entropy"])
            + self.value_coef * mean["value_loss"]
            + self.policy_coef * self.kl_coef * mean["reference_kl"]
        )
        metrics = {name: value.detach() for name, value in mean.items()}
        if not self.kl_coef:
            del metrics["reference_kl"]
        if batch.is_first:
            self._check_parity(max_abs_log_ratio)
            metrics["first_max_abs_log_ratio"] = max_abs_log_ratio
        if self.target_kl is None:
            return LossOutput(loss * batch.weight, metrics)
        return LossOutput(loss * batch.weight, metrics, metrics["approx_kl"], self.target_kl)

    def _terms(self, policy: DVLAPolicy, batch: RolloutBatch, share: float) -> _Terms:
        """Loss terms of decisions that all have the same K."""
        views = self._views(policy, batch.path)
        temperature = policy.sampler.temperature
        scores = policy.score(batch.prompt, views, temperature, self.value_gradient)
        log_ratio = aggregate_log_ratio(
            scores.log_prob_BSL - batch.old_log_prob_BL[:, None], views.scored_BSL, self.ratio_level
        )
        policy_terms = policy_loss(
            log_ratio.log_ratio, batch.advantages_B, log_ratio.mask, self.clip_ratio_low, self.clip_ratio_high
        )
        values = {
            "policy_loss": policy_terms.loss,
            "value_loss": value_loss(
                scores.value_B, batch.old_values_B, batch.returns_B, self.value_clip, self.huber_delta
            ),
            "entropy": _scored_mean(scores.entropy_BSL, views),
            "approx_kl": policy_terms.approx_kl,
            "clip_fraction": policy_terms.clip_fraction,
            "reference_kl": torch.zeros((), device=scores.value_B.device),
        }
        if self.kl_coef:
            reference_BSL = policy.reference_log_prob(batch.prompt, views, temperature)
            values["reference_kl"] = _scored_mean(kl_estimate(scores.log_prob_BSL, reference_BSL, self.kl_kind), views)
        return _Terms(share, values, policy_terms.max_abs_log_ratio)

    def _views(self, policy: DVLAPolicy, path: DenoisingPath) -> MaskedViews:
        return ESTIMATORS[self.estimator](path, policy.mask_id)

    def _check_parity(self, max_abs_log_ratio: Tensor) -> None:
        if float(max_abs_log_ratio) > self.parity_tolerance:
            raise UserError(
                f"the policy scores its own rollouts differently in the update: |log-ratio| is "
                f"{float(max_abs_log_ratio):.2g} before any update (allowed: {self.parity_tolerance:g}). Look for "
                "dropout, another precision, or a changed sampler; in bfloat16 set parity_tolerance to about 0.1"
            )


def _scored_mean(x_BSL: Tensor, views: MaskedViews) -> Tensor:
    return (x_BSL * views.scored_BSL).sum() / views.scored_BSL.sum().clamp_min(1)


def _buckets(path: DenoisingPath) -> list[Tensor]:
    """Rows with equal K, one index tensor per K in increasing order."""
    return [(path.num_steps_B == steps).nonzero()[:, 0] for steps in path.num_steps_B.unique()]
