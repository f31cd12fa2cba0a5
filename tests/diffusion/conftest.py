"""A toy network whose every state can be enumerated, and a test of observed against expected frequencies."""

import pytest
import torch


class TableNetwork:
    """Logits looked up by the whole masked state: every position depends on every other, exactly and in any batch.

    Attributes:
        table: float64 (states, L, V), requires grad.
        mask_id: V.
    """

    def __init__(self, length: int, vocab_size: int, seed: int = 0, spread: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.length, self.vocab_size, self.mask_id = length, vocab_size, vocab_size
        # one row per state while there are few; longer chunks share rows, which does no harm
        num_states = min((vocab_size + 1) ** length, 4099)
        table = torch.randn(num_states, length, vocab_size, generator=generator, dtype=torch.float64) * spread
        self.table = table.requires_grad_()
        self.place_values = (vocab_size + 1) ** torch.arange(length)

    def logits(self, noisy_XL: torch.Tensor) -> torch.Tensor:
        """(..., L) int64 -> (..., L, V) float64."""
        return self.table[(noisy_XL * self.place_values).sum(-1) % len(self.table)]

    def denoise(self, noisy_NL: torch.Tensor, rows_N: torch.Tensor) -> torch.Tensor:
        """The sampler's callback."""
        return self.logits(noisy_NL)

    def sample(self, sampler, num_steps, seeds):
        return sampler.sample(self.denoise, self.length, self.mask_id, num_steps, seeds)


@pytest.fixture
def make_network():
    return TableNetwork


def _check_frequencies(counts, probabilities):
    """Pearson's chi-square of observed counts, with a bound that a right sampler passes at any ordinary seed."""
    counts, probabilities = torch.as_tensor(counts).double(), torch.as_tensor(probabilities).double()
    assert not counts[probabilities == 0].any()
    counts, probabilities = counts[probabilities > 0], probabilities[probabilities > 0]
    expected = counts.sum() * probabilities / probabilities.sum()
    degrees = max(len(expected) - 1, 1)
    # mean of chi-square is `degrees`, standard deviation sqrt(2 degrees); rare cells have heavier tails, hence + 5
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 5 * (2 * degrees) ** 0.5 + 5


@pytest.fixture
def check_frequencies():
    return _check_frequencies
