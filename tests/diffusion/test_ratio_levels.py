"""Token, step and chunk: how loss, gradient and KL of the three levels compare, exactly, over all paths."""

from types import SimpleNamespace

import pytest
import torch

from dvla_lightning.diffusion.estimators import Trajectory
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.objectives import TrajectoryPPO
from dvla_lightning.objectives.rollout_batch import RolloutBatch
from dvla_lightning.policy import Scores
from dvla_lightning.rl.losses import aggregate_log_ratio, policy_loss
from tests.diffusion.enumeration import (
    DETERMINISTIC,
    GUMBEL,
    describe,
    enumerate_paths,
    exact_objective,
    gradient,
    maskgit_paths,
    path_probabilities,
    reward,
    score_tokens,
    to_batch,
)

LENGTH, NUM_STEPS = 4, 3
LEVELS = {"token": LENGTH, "step": NUM_STEPS, "chunk": 1}
"""Number of terms of a decision."""


def expected_loss(level, log_ratio_BSL, scored_BSL, advantages, probability):
    """`policy_loss` over all paths, weighted with their probability: its means become expectations."""
    terms = aggregate_log_ratio(log_ratio_BSL, scored_BSL, level)
    weight = terms.mask * probability.reshape(-1, *[1] * (terms.mask.ndim - 1))
    return policy_loss(terms.log_ratio, advantages, weight, 0.2, 0.28)


def scaled_kls(old_network, new_network, sampler, path, probability):
    """approx_kl of each level times its number of terms."""
    views = Trajectory().views(path, old_network.mask_id)
    old, new = (score_tokens(network, sampler, views) for network in (old_network, new_network))
    nothing = torch.zeros(len(path), dtype=torch.float64)
    arguments = new - old, views.scored_BSL, nothing, probability
    kls = {level: expected_loss(level, *arguments).approx_kl.item() * count for level, count in LEVELS.items()}
    return kls, (probability * ((old - new) * views.scored_BSL).sum((1, 2))).sum().item()


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *GUMBEL], ids=describe)
def test_approx_kl_times_the_number_of_terms_is_one_number(make_network, sampler):
    """KL(old || new) of the tokens at the positions that the old policy committed, at every level."""
    old, new = make_network(LENGTH, 2, seed=1), make_network(LENGTH, 2, seed=2)
    paths = enumerate_paths(old, sampler, NUM_STEPS)
    probability = path_probabilities(paths).detach()
    kls, exact = scaled_kls(old, new, sampler, to_batch(paths, NUM_STEPS), probability)
    assert exact > 0.1
    assert list(kls.values()) == pytest.approx([exact] * 3, rel=1e-10)


def test_approx_kl_differs_between_the_levels_under_drawn_prob(make_network):
    old, new = make_network(LENGTH, 2, seed=1), make_network(LENGTH, 2, seed=2)
    kls, exact = scaled_kls(old, new, Sampler(confidence="drawn_prob"), *maskgit_paths(old, NUM_STEPS))
    for level in ("token", "step", "chunk"):
        assert abs(kls[level] - exact) > 0.02 * exact
    assert abs(kls["token"] - kls["chunk"]) > 0.02 * exact


@pytest.mark.parametrize(("level", "count"), LEVELS.items())
def test_gradient_at_ratio_one_is_the_exact_one_divided_by_the_number_of_terms(make_network, level, count):
    network, sampler = make_network(LENGTH, 2, seed=1), Sampler()
    paths = enumerate_paths(network, sampler, NUM_STEPS)
    batch = to_batch(paths, NUM_STEPS)
    views = Trajectory().views(batch, network.mask_id)
    log_prob = score_tokens(network, sampler, views)
    loss = expected_loss(
        level,
        log_prob - log_prob.detach(),
        views.scored_BSL,
        reward(batch.tokens_BL),
        path_probabilities(paths).detach(),
    ).loss
    exact = gradient(network, exact_objective(network, sampler, NUM_STEPS))
    torch.testing.assert_close(gradient(network, loss), -exact / count, rtol=0, atol=1e-12)


class RecordingPolicy:
    """Gives every token the log-probability -1 and keeps the tensors, so that their gradients can be read."""

    mask_id, sampler, version = 2, SimpleNamespace(temperature=1.0), 1

    def __init__(self):
        self.scored = {}

    def score(self, prompt, views, temperature, value_gradient):
        log_prob = torch.full(views.noisy_BSL.shape, -1.0, requires_grad=True)
        self.scored[views.noisy_BSL.shape[1]] = log_prob, views.scored_BSL
        return Scores(torch.zeros(*log_prob.shape, 2), log_prob, torch.zeros(len(log_prob)))


@pytest.mark.parametrize("level", LEVELS)
def test_weight_of_a_token_in_a_minibatch_that_mixes_num_steps(make_network, level):
    """Two decisions at K = 1 and three at K = 3, advantage 1: only `step` weighs a token by 1 / K."""
    network, policy = make_network(LENGTH, 2), RecordingPolicy()
    path = DenoisingPath.cat([network.sample(Sampler(), [k] * rows, range(rows)) for k, rows in ((3, 3), (1, 2))])
    zeros = torch.zeros(len(path))
    old = torch.full((len(path), 1, LENGTH), -1.0)
    batch = RolloutBatch({}, path, old, torch.ones(len(path)), zeros, zeros, zeros, torch.tensor(1.0))
    TrajectoryPPO(ratio_level=level)(policy, batch).loss.backward()
    assert set(policy.scored) == {1, 3}
    for num_steps, (log_prob, scored) in policy.scored.items():
        weight = {"token": 1 / LENGTH, "step": 1 / num_steps, "chunk": 1.0}[level] / len(path)
        torch.testing.assert_close(log_prob.grad, -weight * scored.float())
