"""Entropy where tokens are impossible or nearly so."""

import numpy as np
import pytest
import torch

from dvla_lightning.diffusion.entropy import entropy
from dvla_lightning.diffusion.selection import confidence_score, plackett_luce_log_prob


@pytest.mark.parametrize("forbidden", [0, 1, 3])
def test_value_is_that_of_the_possible_tokens(forbidden):
    logits = torch.randn(5, 4, dtype=torch.float64)
    logits[:, :forbidden] = -torch.inf
    possible = np.exp(logits[:, forbidden:].numpy())
    possible /= possible.sum(-1, keepdims=True)
    expected = [-sum(p * np.log(p) for p in row) for row in possible]
    assert entropy(logits.log_softmax(-1)).tolist() == pytest.approx(expected, abs=1e-12)


def test_known_values():
    assert entropy(torch.zeros(2, 8, dtype=torch.float64).log_softmax(-1)).tolist() == pytest.approx(
        [3 * np.log(2)] * 2
    )
    certain = torch.tensor([0.0, -torch.inf, -torch.inf])
    assert entropy(certain.log_softmax(-1)).item() == 0


@pytest.mark.parametrize("forbidden", [(), (0,), (1, 4)])
def test_gradient_is_that_of_finite_differences(forbidden):
    logits = torch.randn(3, 6, dtype=torch.float64)
    free = [token for token in range(6) if token not in forbidden]

    def of_free(x):
        whole = torch.full_like(logits, -torch.inf)
        whole[:, free] = x
        return entropy(whole.log_softmax(-1))

    assert torch.autograd.gradcheck(of_free, logits[:, free].clone().requires_grad_())


def test_gradient_stays_finite_where_probabilities_underflow():
    """V = 64, logits of standard deviation 6 at temperature 0.2: most probabilities are 0 in float32."""
    logits = (6 * torch.randn(48, 64)).requires_grad_()
    log_probs = (logits / 0.2).log_softmax(-1)
    assert (log_probs.exp() == 0).float().mean() > 0.1
    score = confidence_score(log_probs, log_probs.argmax(-1), "entropy").reshape(8, 6)
    order = torch.arange(6).expand(8, 6)
    plackett_luce_log_prob(score, order, order < 4).sum().backward()
    assert logits.grad.isfinite().all()
    exact = logits.detach().double().requires_grad_()
    log_probs = (exact / 0.2).log_softmax(-1)  # in float64 the usual form does not underflow
    score = (log_probs.exp() * log_probs).sum(-1).reshape(8, 6)
    plackett_luce_log_prob(score, order, order < 4).sum().backward()
    assert torch.allclose(logits.grad.double(), exact.grad, atol=1e-4, rtol=1e-3)
