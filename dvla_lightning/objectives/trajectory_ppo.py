"""RL: PPO on the probability of the sampled denoising path (dVLA-RL, arXiv 2606.23623)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from itertools import chain
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from dvla_lightning.backbones.base import Prompt
from dvla_lightning.diffusion.estimators import Estimator, Trajectory
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.diffusion.selection import confidence_score
from dvla_lightning.diffusion.views import MaskedViews
from dvla_lightning.errors import UserError, check_number
from dvla_lightning.objectives.base import LossOutput, Objective
from dvla_lightning.objectives.diagnostics import scored_mean, view_diagnostics
from dvla_lightning.objectives.rollout_batch import RolloutBatch, Rollouts, rows_by_num_steps
from dvla_lightning.policy import DVLAPolicy, Scores
from dvla_lightning.rl.kl import KLKind, kl_estimate
from dvla_lightning.rl.losses import RatioLevel, aggregate_log_ratio, policy_loss, step_weights, value_loss

TRAJECTORY = Trajectory()


class _Scored(NamedTuple):
    """One scoring pass over decisions with one K; `log_prob_BSL` includes the selection term."""

    views: MaskedViews
    scores: Scores
    log_prob_BSL: Tensor


class _Terms(NamedTuple):
    """Loss terms of decisions with one K; each is a mean, `share` is their part of the minibatch."""

    share: float
    values: dict[str, Tensor]
    max_abs_log_ratio: Tensor
    diagnostics: dict[str, Tensor]


class TrajectoryPPO(Objective):
    """Clipped PPO whose policy ratio comes from masked views of the denoising path.

    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy + kl_coef * KL(policy || reference)

    Args:
        estimator: which masked views score a path: Trajectory (the paper: every token in the state in which it was
            committed), LastStep, FullMask (d1), RandomMask (UniGRPO), Coupled (coupled-GRPO) or StepMerge (d2).
        selection_term: "plackett_luce" adds the probability of the order in which positions were committed, for
            samplers that choose it at random; "none" treats the order as given (the paper).
        ratio_level: what is clipped: the ratio of each token, of each denoising step, or of the whole chunk's path.
        clip_ratio_low: the ratio may fall to 1 - clip_ratio_low.
        clip_ratio_high: the ratio may rise to 1 + clip_ratio_high (DAPO's clip-higher).
        dual_clip: at negative advantages the surrogate is at least dual_clip * advantage, > 1; null: no bound.
        credit: "uniform" gives every token the same weight (the paper), "per_step" every denoising step, whatever
            number of tokens it commits. At ratio_level step each step counts once anyway.
        value_coef: weight of the value loss.
        value_clip: how far the value may move from its estimate at collection, in units of reward; null: no clip.
        huber_delta: error, in units of reward, above which the value loss is linear.
        value_gradient: let the value loss train the backbone, too; with a small backbone that destroys the policy.
        value_warmup_iterations: iterations in which only the value head learns; with value_gradient, too, all other
            weights stay as they are, and so does the optimizer's state of them.
        entropy_coef: weight of the entropy bonus (mean nats per scored token).
        kl_coef: weight of the KL to the reference policy: the one that training started from. The trained weights are
            then kept twice, in checkpoints, too.
        kl_kind: estimator of that KL, see `rl.kl`. As a loss k2 has the gradient of KL(policy || reference), k3 that of
            KL(reference || policy), and k1 none on average: use it to measure, not to regularise.
        target_kl: stop updating on an iteration's data once approx_kl (at the ratio level) exceeds this; the minibatch
            that shows it makes no update either, nor those accumulated with it. null: never.
        parity_tolerance: largest |log-ratio| allowed between collection and the first update, where it must be 0 up to
            float error; use 1e-3 in float32 and about 0.1 in bfloat16.

    Raises:
        UserError: for values that make no sense; before training for a sampler whose paths cannot be scored; during
            training if the parity check fails.
    """

    batch_type = RolloutBatch

    def __init__(
        self,
        estimator: Estimator = TRAJECTORY,
        selection_term: Literal["none", "plackett_luce"] = "none",
        ratio_level: RatioLevel = "token",
        clip_ratio_low: float = 0.2,
        clip_ratio_high: float = 0.28,
        dual_clip: float | None = None,
        credit: Literal["uniform", "per_step"] = "uniform",
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
        for name, number in (("value_coef", value_coef), ("kl_coef", kl_coef)):
            check_number("TrajectoryPPO", name, number, low=0)
        check_number("TrajectoryPPO", "entropy_coef", entropy_coef)
        check_number("TrajectoryPPO", "value_warmup_iterations", value_warmup_iterations, low=0)
        limits = {"clip_ratio_high": clip_ratio_high, "value_clip": value_clip, "huber_delta": huber_delta}
        limits |= {"target_kl": target_kl, "parity_tolerance": parity_tolerance, "dual_clip": dual_clip}
        for name, limit in limits.items():
            if limit is not None:
                check_number("TrajectoryPPO", name, limit, above=0)
        check_number("TrajectoryPPO", "clip_ratio_low", clip_ratio_low, above=0, below=1)
        if dual_clip is not None and dual_clip <= 1:
            raise UserError(f"TrajectoryPPO: dual_clip must be above 1 (or null), got {dual_clip}")
        if credit == "per_step" and ratio_level != "token":
            raise UserError(
                f"TrajectoryPPO: credit per_step weighs tokens and needs ratio_level token, got {ratio_level}; at "
                "ratio_level step every denoising step already counts once"
            )
        if selection_term == "plackett_luce" and not isinstance(estimator, Trajectory):
            raise UserError(
                "TrajectoryPPO: selection_term plackett_luce needs the states that the sampler passed through: use "
                f"estimator Trajectory, not {type(estimator).__name__}"
            )
        self.estimator = estimator
        self.selection_term, self.ratio_level, self.credit = selection_term, ratio_level, credit
        self.clip_ratio_low, self.clip_ratio_high, self.dual_clip = clip_ratio_low, clip_ratio_high, dual_clip
        self.value_coef, self.value_clip, self.huber_delta = value_coef, value_clip, huber_delta
        self.value_gradient, self.value_warmup_iterations = value_gradient, value_warmup_iterations
        self.entropy_coef, self.kl_coef, self.kl_kind = entropy_coef, kl_coef, kl_kind
        self.target_kl, self.parity_tolerance = target_kl, parity_tolerance
        self.policy_coef = 1.0

    def check_policy(self, policy: DVLAPolicy) -> None:
        sampler = policy.sampler
        if sampler.greedy:
            raise UserError(
                "TrajectoryPPO: a greedy sampler draws nothing that could be reinforced: train with greedy: false, and "
                "evaluate with greedy: true if you like"
            )
        try:
            self.estimator.check_sampler(sampler)
            if self.selection_term == "plackett_luce":
                sampler.check_selection_term()
        except ValueError as error:
            raise UserError(f"TrajectoryPPO: {error}") from error

    def prepare(self, policy: DVLAPolicy) -> None:
        policy.eval()  # dropout would score a path under another policy than the one that drew it

    @property
    def needs_reference(self) -> bool:
        return bool(self.kl_coef)

    def begin_iteration(self, iteration: int) -> None:
        # A zero weight instead of frozen parameters: every parameter keeps a gradient, as ddp wants.
        self.policy_coef = 0.0 if iteration < self.value_warmup_iterations else 1.0

    def held_parameters(self, policy: DVLAPolicy) -> Iterable[Parameter]:
        if self.policy_coef:
            return ()
        value = {id(parameter) for parameter in policy.value_head.parameters()}
        return [parameter for parameter in policy.parameters() if id(parameter) not in value]

    @torch.no_grad()
    def prepare_batch(self, policy: DVLAPolicy, rollouts: Rollouts, rows_at_once: int | None = None) -> None:
        """Scores the decisions before the update as this estimator sees them.

        The sampler's own record is what `Trajectory` would compute again; everything else has to be scored.
        """
        if (
            isinstance(self.estimator, Trajectory)
            and rollouts.path.states_BKL is None
            and self.selection_term == "none"
        ):
            return
        parts = []
        buckets = [rows.split(rows_at_once or len(rollouts)) for rows in rows_by_num_steps(rollouts.path)]
        for rows in chain.from_iterable(buckets):
            batch = rollouts.batch(rows, policy.collate)
            parts.append((rows, self._old_log_prob(policy, batch.prompt, batch.path.to(policy.device)).cpu()))
        most = max(part.shape[1] for _, part in parts)
        rollouts.old_log_prob_NSL = rollouts.old_log_prob_NSL.new_zeros(
            len(rollouts), most, rollouts.path.tokens_BL.shape[1]
        )
        for rows, part in parts:
            rollouts.old_log_prob_NSL[rows, : part.shape[1]] = part

    def _old_log_prob(self, policy: DVLAPolicy, prompt: Prompt, path: DenoisingPath) -> Tensor:
        """(B, S, L) of rows with one K; S as in `Rollouts`."""
        scored = self._score(policy, prompt, path)
        # not a product: a token that a view does not score may be impossible there, and 0 * -inf is NaN
        old_BSL = scored.log_prob_BSL.masked_fill(~scored.views.scored_BSL, 0.0)
        once = self.estimator.scores_once and path.states_BKL is None
        return old_BSL.sum(1, keepdim=True) if once else old_BSL

    def __call__(self, policy: DVLAPolicy, batch: RolloutBatch) -> LossOutput:
        # Rows with equal K are scored together, so that mixing K in a minibatch costs no padding.
        buckets = rows_by_num_steps(batch.path)
        terms = [self._terms(policy, batch.select(rows), len(rows) / len(batch)) for rows in buckets]
        diagnostics = {name: value for term in terms for name, value in term.diagnostics.items()}
        missing = range(len(buckets), batch.num_passes)
        terms += [self._terms(policy, batch.select(buckets[0][:1]), share=0.0) for _ in missing]
        mean = {name: reduce(torch.add, (t.share * t.values[name] for t in terms)) for name in terms[0].values}
        max_abs_log_ratio = torch.stack([t.max_abs_log_ratio for t in terms]).max()
        loss = (
            self.policy_coef * (mean["policy_loss"] - self.entropy_coef * mean["entropy"])
            + self.value_coef * mean["value_loss"]
        )
        if self.kl_coef:
            loss = loss + self.policy_coef * self.kl_coef * mean["reference_kl"]
        metrics = {name: value.detach() for name, value in mean.items()}
        is_fresh = bool((batch.version_B == policy.version).all())
        if is_fresh and torch.is_grad_enabled():  # before an update, not when looking at what came of it
            self._check_parity(max_abs_log_ratio)
            metrics["first_max_abs_log_ratio"] = max_abs_log_ratio
        output = LossOutput(loss * batch.weight, metrics)
        output.diagnostics |= diagnostics
        if self.target_kl is not None:
            output.stop, output.stop_limit = metrics["approx_kl"], self.target_kl
        return output

    def _score(self, policy: DVLAPolicy, prompt: Prompt, path: DenoisingPath, value_gradient: bool = False) -> _Scored:
        """Scores rows with one K as this objective's ratio needs them."""
        views = self.estimator.views(path, policy.mask_id)
        scores = policy.score(prompt, views, policy.sampler.temperature, value_gradient)
        log_prob_BSL = scores.log_prob_BSL
        if self.selection_term == "plackett_luce":
            clean_BSL = views.tokens_BSL.expand_as(log_prob_BSL)
            confidence_BSL = confidence_score(scores.log_probs_BSLV, clean_BSL, policy.sampler.confidence)
            log_prob_BSL = log_prob_BSL + policy.sampler.selection_log_prob(confidence_BSL, path)
        return _Scored(views, scores, log_prob_BSL)

    def _terms(self, policy: DVLAPolicy, batch: RolloutBatch, share: float) -> _Terms:
        """Loss terms of decisions that all have the same K."""
        value_gradient = self.value_gradient and self.policy_coef > 0
        views, scores, log_prob_BSL = self._score(policy, batch.prompt, batch.path, value_gradient)
        old_BSL = batch.old_log_prob_BSL[:, : log_prob_BSL.shape[1]]  # other K may have more views
        log_ratio = aggregate_log_ratio(
            log_prob_BSL - old_BSL, views.scored_BSL, self.ratio_level, average_views=not self.estimator.scores_once
        )
        policy_terms = policy_loss(
            log_ratio.log_ratio,
            batch.advantages_B,
            step_weights(views.scored_BSL) if self.credit == "per_step" else log_ratio.mask,
            self.clip_ratio_low,
            self.clip_ratio_high,
            self.dual_clip,
        )
        values = {
            "policy_loss": policy_terms.loss,
            "value_loss": value_loss(
                scores.value_B, batch.old_values_B, batch.returns_B, self.value_clip, self.huber_delta
            ),
            "entropy": self._entropy(scores, views.scored_BSL),
            "approx_kl": policy_terms.approx_kl,
            "clip_fraction": policy_terms.clip_fraction,
        }
        if self.kl_coef:
            reference_BSL = policy.reference_log_prob(batch.prompt, views, policy.sampler.temperature)
            # A token that a view does not score may be impossible in it, under both: inf - inf is NaN.
            ours_BSL, reference_BSL = (
                x.masked_fill(~views.scored_BSL, 0.0) for x in (scores.log_prob_BSL, reference_BSL)
            )
            kl_BSL = kl_estimate(ours_BSL, reference_BSL, self.kl_kind)
            values["reference_kl"] = scored_mean(kl_BSL, views.scored_BSL)
        diagnostics = {}
        if torch.is_grad_enabled() and self.estimator.scores_once:
            diagnostics = view_diagnostics(policy_terms.loss, scores, views.scored_BSL, int(batch.path.num_steps_B[0]))
        return _Terms(share, values, policy_terms.max_abs_log_ratio, diagnostics)

    def _entropy(self, scores: Scores, scored_BSL: Tensor) -> Tensor:
        """Mean entropy of the scored tokens' distributions; with a graph only where the loss has it."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.entropy_coef != 0):
            return scored_mean(scores.entropy_BSL, scored_BSL)

    def _check_parity(self, max_abs_log_ratio: Tensor) -> None:
        if not float(max_abs_log_ratio) <= self.parity_tolerance:  # NaN fails, too
            raise UserError(
                f"the policy scores its own rollouts differently in the update: |log-ratio| is "
                f"{float(max_abs_log_ratio):.2g} before any update (allowed: {self.parity_tolerance:g}). Look for "
                "dropout, another precision, or a changed sampler; in bfloat16 set parity_tolerance to about 0.1"
            )
