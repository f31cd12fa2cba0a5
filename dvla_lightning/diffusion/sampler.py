"""From all-masked to tokens: K denoising steps, recording the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any, get_args

import torch
from torch import Tensor

from dvla_lightning.diffusion.draws import gumbel, inverse_cdf, row_uniforms
from dvla_lightning.diffusion.partial_chunks import PartialChunks
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.diffusion.schedule import MaskSchedule, commit_counts
from dvla_lightning.diffusion.selection import Confidence, confidence_score, plackett_luce_log_prob, rank_masked

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy_NL int64, rows_N int64 into the batch) -> logits_NLV: the network in one masked state of some rows."""

RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("> 0", lambda x: 0 < x < inf),
    "selection_temperature": (">= 0", lambda x: 0 <= x < inf),
    "remask_threshold": (">= 0 and < 1", lambda x: 0 <= x < 1),
    "remask_drop": ("> 0 and <= 1", lambda x: 0 < x <= 1),
}
"""Numbers of a `Sampler`: what they must be."""


@dataclass
class SamplerOverrides:
    """Fields of a `Sampler` to replace; None keeps what the policy was saved with.

    Attributes:
        temperature: of the token distribution, > 0.
        confidence: what ranks the positions.
        selection_temperature: scale of the Gumbel noise on the confidence; 0 commits the most confident positions.
        schedule: mask schedule that sets how many positions each step commits.
        greedy: take the most probable token instead of drawing one.
        remask_threshold: committed tokens less probable than this are masked again; 0 = commits are permanent.
        remask_drop: the same for tokens whose probability has fallen by more than this; 1 = never.
    """

    temperature: float | None = None
    confidence: Confidence | None = None
    selection_temperature: float | None = None
    schedule: MaskSchedule | None = None
    greedy: bool | None = None
    remask_threshold: float | None = None
    remask_drop: float | None = None

    def over(self, saved: Sampler) -> Sampler:
        """The sampler `saved` with the fields that are given here."""
        return replace(saved, **self.given())

    def given(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class Sampler:
    """Draws tokens, and chooses which positions are committed first.

    The probabilities used for drawing, for confidence and for the recorded log-probability are one and the same:
    softmax(logits / temperature) in float32 over the action vocabulary.

    Attributes:
        temperature: of the token distribution, > 0.
        confidence: what ranks the positions, see `confidence_score`. The default is sample-free.
        selection_temperature: scale T of the Gumbel noise on the confidence; it shrinks to T (1 - k / K) after k of K
            steps (MM-ACT). 0 commits the most confident positions. Ignored by confidence "random".
        schedule: mask schedule that sets how many positions each step commits.
        greedy: take the most probable token instead of drawing one.
        remask_threshold: before a step commits, committed tokens whose probability in the present state is below this
            are masked again (secondary re-masking of Discrete Diffusion VLA, arXiv 2508.20072); 0 = commits are
            permanent. As many positions more are committed, so that K steps suffice.
        remask_drop: the same for tokens whose probability has fallen by more than this since they were committed;
            1 = never.
    """

    temperature: float = 1.0
    confidence: Confidence = "max_prob"
    selection_temperature: float = 0.0
    schedule: MaskSchedule = "cosine"
    greedy: bool = False
    remask_threshold: float = 0.0
    remask_drop: float = 1.0

    def __post_init__(self) -> None:
        for name, (words, fits) in RANGES.items():
            number = getattr(self, name)
            if not isinstance(number, (int, float)) or isinstance(number, bool) or not fits(number):
                hint = "; use greedy: true for argmax" if name == "temperature" else ""
                raise ValueError(f"sampler {name} must be {words}, got {number!r}{hint}")
        for name, value, options in (
            ("confidence", self.confidence, get_args(Confidence)),
            ("schedule", self.schedule, get_args(MaskSchedule)),
            ("greedy", self.greedy, (True, False)),
        ):
            if type(value) is not type(options[0]) or value not in options:  # the text "false" would be true
                raise ValueError(f"sampler {name} must be one of {', '.join(map(str, options))}, got {value!r}")

    @property
    def remasks(self) -> bool:
        """Whether a committed token may be masked again."""
        return self.remask_threshold > 0 or self.remask_drop < 1

    @property
    def is_selection_random(self) -> bool:
        """Whether noise takes part in choosing the positions that a step commits."""
        return self.confidence == "random" or self.selection_temperature > 0

    def log_probs(self, logits_BLV: Tensor) -> Tensor:
        """Log-probabilities at the sampling temperature, float32, same shape."""
        return (logits_BLV.float() / self.temperature).log_softmax(-1)

    def selection_noise_scale(self, step: int | Tensor, num_steps: Tensor) -> Tensor:
        """Scale of the Gumbel noise in a step: float64 of the shape of `num_steps` (K of each row)."""
        if self.confidence == "random":
            return torch.ones_like(num_steps, dtype=torch.float64)
        # not 1 - (step + 1) / K: rounding would leave a trace of noise in the last step
        return self.selection_temperature * ((num_steps - step - 1).double() / num_steps)

    def check_selection_term(self) -> None:
        """Raises `ValueError` unless `selection_log_prob` is the probability of this sampler's choices."""
        if not self.is_selection_random:
            raise ValueError(
                "selection_term plackett_luce needs a random selection: set the sampler's selection_temperature above "
                "0, or use selection_term none"
            )
        if self.confidence == "drawn_prob" or self.remasks:
            what = "confidence drawn_prob" if self.confidence == "drawn_prob" else "remasking"
            raise ValueError(
                f"selection_term plackett_luce has no tractable form for {what}, where the choice depends on tokens "
                "that are thrown away: use confidence max_prob or entropy without remasking, or selection_term none"
            )

    def selection_log_prob(self, confidence_BSL: Tensor, path: DenoisingPath) -> Tensor:
        """Log-probability of committing each position when it was committed (Plackett-Luce).

        Args:
            confidence_BSL: `confidence_score` in the state before each of the K steps (S = K).
            path: rows with that K.

        Returns:
            (B, K, L) float32, nonzero in the step that committed the position; the sum over positions and steps is the
            log-probability of the order of the whole path. 0 in the last step, which has no choice.
        """
        num_steps = confidence_BSL.shape[1]
        steps_S = torch.arange(num_steps - 1, device=confidence_BSL.device)
        scale_S = self.selection_noise_scale(steps_S, torch.full_like(steps_S, num_steps)).to(confidence_BSL.dtype)
        score_BSL = confidence_BSL[:, :-1] / scale_S[:, None]
        order_BSL = path.commit_order_BL[:, None].expand_as(score_BSL)
        committed_BSL = path.commit_step_BL[:, None] == steps_S[:, None]
        terms_BSL = plackett_luce_log_prob(score_BSL, order_BSL, committed_BSL)
        return torch.cat([terms_BSL, torch.zeros_like(confidence_BSL[:, :1])], dim=1)

    @torch.no_grad()
    def sample(
        self, denoise: Denoise, num_positions: int, mask_id: int, num_steps: Sequence[int], seeds: Sequence[int]
    ) -> DenoisingPath:
        """Decodes one chunk per row; rows may differ in K.

        Args:
            denoise: the network, called once per step with the rows that still have steps to go.
            num_positions: L.
            mask_id: id of MASK.
            num_steps: K of each of the B rows, 1 <= K <= L.
            seeds: one per row; a row's draws depend on its seed alone, not on the batch it is in.

        Returns:
            The path, on the device of the network's output.

        Raises:
            ValueError: if a K is not in 1..L, or there are more or fewer seeds than rows.
        """
        if len(seeds) != len(num_steps):
            raise ValueError(f"{len(num_steps)} rows need as many seeds, got {len(seeds)}")
        counts = [commit_counts(num_positions, steps, self.schedule) for steps in num_steps]
        max_steps = max(num_steps)
        uniform_BKNL = row_uniforms(seeds, max_steps, num_positions)
        logits_BLV = denoise(torch.full((len(counts), num_positions), mask_id), torch.arange(len(counts)))
        state = PartialChunks(counts, max_steps, num_positions, mask_id, logits_BLV.device)
        uniform_BKNL = uniform_BKNL.to(logits_BLV.device)
        states = []
        for step in range(max_steps):
            states.append(state.tokens_BL.clone())
            if step > 0:
                rows = (state.num_steps_B > step).nonzero()[:, 0]
                logits_BLV = denoise(state.tokens_BL[rows], rows)
            else:
                rows = torch.arange(len(counts), device=logits_BLV.device)
            self._commit(state, step, rows, logits_BLV, uniform_BKNL[rows, step])
        return state.path(torch.tensor(seeds), torch.stack(states, dim=1) if self.remasks else None)

    def _commit(self, state: PartialChunks, step: int, rows: Tensor, logits_BLV: Tensor, uniform_BNL: Tensor) -> None:
        log_probs_BLV = self.log_probs(logits_BLV)
        drawn_BL = log_probs_BLV.argmax(-1) if self.greedy else inverse_cdf(log_probs_BLV, uniform_BNL[:, 0])
        score_BL = confidence_score(log_probs_BLV, drawn_BL, self.confidence)
        scale_B = self.selection_noise_scale(step, state.num_steps_B[rows]).float()
        score_BL = score_BL + scale_B[:, None] * gumbel(uniform_BNL[:, 1])
        masked_BL = state.commit_step_BL[rows] < 0
        count_B = state.counts_BK[rows, step]
        if self.remasks:
            again_BL = self._remask(state, rows, log_probs_BLV, masked_BL.sum(-1) - count_B)
            state.forget(rows, again_BL)
            count_B = count_B + again_BL.sum(-1)
        rank_BL = rank_masked(score_BL, masked_BL)
        now_BL = masked_BL & (rank_BL < count_B[:, None])
        log_prob_BL = log_probs_BLV.gather(-1, drawn_BL[..., None])[..., 0]
        state.commit(rows, step, now_BL, drawn_BL, rank_BL, log_prob_BL)

    def _remask(self, state: PartialChunks, rows: Tensor, log_probs_BLV: Tensor, most_B: Tensor) -> Tensor:
        """(B, L) bool: committed tokens the network no longer believes in, the `most_B` least probable of each row.

        No more than stay masked after this step can be masked again: every position is committed in the last step.
        """
        committed_BL = state.commit_step_BL[rows] >= 0
        tokens_BL = state.tokens_BL[rows].masked_fill(~committed_BL, 0)
        prob_BL = log_probs_BLV.gather(-1, tokens_BL[..., None])[..., 0].exp()
        drop_BL = state.log_prob_BL[rows].exp() - prob_BL
        doubtful_BL = committed_BL & ((prob_BL < self.remask_threshold) | (drop_BL > self.remask_drop))
        return doubtful_BL & (rank_masked(-prob_BL, doubtful_BL) < most_B[:, None])
