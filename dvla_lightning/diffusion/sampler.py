"""From all-masked to tokens: K denoising steps, recording the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.diffusion.schedule import MaskSchedule, commit_counts
from dvla_lightning.diffusion.selection import Confidence, confidence_score, rank_masked

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy_NL int64, rows_N int64 into the batch) -> logits_NLV: the network in one masked state of some rows."""


@dataclass
class Sampler:
    """How tokens are drawn and which positions are committed first.

    The probabilities used for drawing, for confidence and for the recorded log-probability are one and the same:
    softmax(logits / temperature) in float32 over the action vocabulary.

    Attributes:
        temperature: of the token distribution, > 0.
        confidence: what ranks the positions, see `confidence_score`. The default is sample-free.
        selection_temperature: scale T of the Gumbel noise on the confidence; it shrinks to T (1 - k / K) after k of K
            steps (MM-ACT). 0 commits the most confident positions. Ignored by confidence "random".
        schedule: mask schedule that sets how many positions each step commits.
        greedy: take the most probable token instead of drawing one.
    """

    temperature: float = 1.0
    confidence: Confidence = "max_prob"
    selection_temperature: float = 0.0
    schedule: MaskSchedule = "cosine"
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"sampler temperature must be > 0, got {self.temperature}; use greedy: true for argmax")
        if self.selection_temperature < 0:
            raise ValueError(f"sampler selection_temperature must be >= 0, got {self.selection_temperature}")

    def log_probs(self, logits_BLV: Tensor) -> Tensor:
        """Log-probabilities at the sampling temperature, float32, same shape."""
        return (logits_BLV.float() / self.temperature).log_softmax(-1)

    def selection_noise_scale(self, step: int, num_steps: Tensor) -> Tensor:
        """Scale of the Gumbel noise in a step: (B,) float32 from K of each row (B,)."""
        if self.confidence == "random":
            return torch.ones_like(num_steps, dtype=torch.float32)
        # not 1 - (step + 1) / K: in float32 that leaves 9e-8 in the last step of K = 55
        return self.selection_temperature * ((num_steps - step - 1) / num_steps)

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
            seeds: one per row; a row's draws depend on its seed alone, not on the batch it is in. Torch's generator
                reads the low 32 bits.

        Returns:
            The path, on the device of the network's output.

        Raises:
            ValueError: if a K is not in 1..L.
        """
        counts = [commit_counts(num_positions, steps, self.schedule) for steps in num_steps]
        max_steps = max(num_steps)
        uniform_BKNL = _row_uniforms(seeds, num_steps, num_positions)
        logits_BLV = denoise(torch.full((len(counts), num_positions), mask_id), torch.arange(len(counts)))
        state = _State(counts, max_steps, num_positions, mask_id, logits_BLV.device)
        uniform_BKNL = uniform_BKNL.to(logits_BLV.device)
        for step in range(max_steps):
            if step > 0:
                rows = (state.num_steps_B > step).nonzero()[:, 0]
                logits_BLV = denoise(state.tokens_BL[rows], rows)
            else:
                rows = torch.arange(len(counts), device=logits_BLV.device)
            self._commit(state, step, rows, logits_BLV, uniform_BKNL[rows, step])
        return DenoisingPath(
            state.tokens_BL, state.commit_step_BL, state.commit_order_BL, state.log_prob_BL, state.num_steps_B
        )

    def _commit(self, state: _State, step: int, rows: Tensor, logits_BLV: Tensor, uniform_BNL: Tensor) -> None:
        log_probs_BLV = self.log_probs(logits_BLV)
        drawn_BL = log_probs_BLV.argmax(-1) if self.greedy else _inverse_cdf(log_probs_BLV, uniform_BNL[:, 0])
        score_BL = confidence_score(log_probs_BLV, drawn_BL, self.confidence)
        scale_B = self.selection_noise_scale(step, state.num_steps_B[rows])
        score_BL = score_BL + scale_B[:, None] * _gumbel(uniform_BNL[:, 1])
        masked_BL = state.commit_step_BL[rows] < 0
        rank_BL = rank_masked(score_BL, masked_BL)
        now_BL = masked_BL & (rank_BL < state.counts_BK[rows, step][:, None])
        done_B = (~masked_BL).sum(-1, keepdim=True)
        log_prob_BL = log_probs_BLV.gather(-1, drawn_BL[..., None])[..., 0]
        state.tokens_BL[rows] = torch.where(now_BL, drawn_BL, state.tokens_BL[rows])
        state.commit_step_BL[rows] = torch.where(now_BL, step, state.commit_step_BL[rows])
        state.commit_order_BL[rows] = torch.where(now_BL, done_B + rank_BL, state.commit_order_BL[rows])
        state.log_prob_BL[rows] = torch.where(now_BL, log_prob_BL, state.log_prob_BL[rows])


class _State:
    """The partly masked batch; commit_step is -1 where a position is still masked."""

    def __init__(
        self, counts: Sequence[Sequence[int]], max_steps: int, length: int, mask_id: int, device: torch.device
    ) -> None:
        shape = (len(counts), length)
        self.num_steps_B = torch.tensor([len(row) for row in counts], device=device)
        self.counts_BK = torch.tensor([[*row, *[0] * (max_steps - len(row))] for row in counts], device=device)
        self.tokens_BL = torch.full(shape, mask_id, device=device)
        self.commit_step_BL = torch.full(shape, -1, device=device)
        self.commit_order_BL = torch.zeros(shape, dtype=torch.int64, device=device)
        self.log_prob_BL = torch.zeros(shape, dtype=torch.float32, device=device)


def _row_uniforms(seeds: Sequence[int], num_steps: Sequence[int], length: int) -> Tensor:
    """(B, K, 2, L) float64 in [0, 1): token and selection draws; row b is filled from its own seed up to its own K."""
    uniform_BKNL = torch.zeros(len(seeds), max(num_steps), 2, length, dtype=torch.float64)
    generator = torch.Generator()
    for row, (seed, steps) in enumerate(zip(seeds, num_steps, strict=True)):
        generator.manual_seed(seed)
        torch.rand((steps, 2, length), generator=generator, dtype=torch.float64, out=uniform_BKNL[row, :steps])
    return uniform_BKNL


def _inverse_cdf(log_probs_BLV: Tensor, uniform_BL: Tensor) -> Tensor:
    """Draws one token per position: the first whose cumulative probability exceeds the uniform number."""
    cumulative_BLV = log_probs_BLV.double().exp().cumsum(-1)
    # Scaling by the total instead of 1 keeps rounding of the sum from ever reaching past the last token.
    target_BL1 = (uniform_BL * cumulative_BLV[..., -1])[..., None]
    return torch.searchsorted(cumulative_BLV, target_BL1, right=True)[..., 0].clamp_max(log_probs_BLV.shape[-1] - 1)


def _gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, from uniform numbers in [0, 1); computed in float64, where its tails survive."""
    tiny = torch.finfo(torch.float64).tiny
    return -torch.log(-torch.log(uniform.clamp_min(tiny))).float()
