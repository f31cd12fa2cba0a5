"""The mean of an estimator's score: 0, or the gradient moves with the baseline."""

import pytest
import torch

from dvla_lightning.diffusion.estimators import Coupled, FullMask, LastStep, RandomMask, StepMerge, Trajectory
from dvla_lightning.diffusion.sampler import Sampler
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
    score_views,
    to_batch,
)

DRAWN_PROB = Sampler(confidence="drawn_prob")


def all_paths(network, sampler, num_steps):
    """(paths, probabilities)."""
    if sampler.confidence == "drawn_prob":
        return maskgit_paths(network, num_steps)
    paths = enumerate_paths(network, sampler, num_steps)
    return to_batch(paths, num_steps), path_probabilities(paths).detach()


def mean_score(network, sampler, estimator, num_steps):
    path, probability = all_paths(network, sampler, num_steps)
    return gradient(
        network, (probability * score_views(network, sampler, estimator.views(path, network.mask_id))).sum()
    )


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *GUMBEL], ids=describe)
@pytest.mark.parametrize("estimator", [Trajectory(), LastStep()], ids=str)
def test_mean_score_is_zero_for_real_draws_in_real_states(make_network, estimator, sampler, num_steps):
    mean = mean_score(make_network(3, 2, seed=1), sampler, estimator, num_steps)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", [FullMask(), StepMerge(), RandomMask(1), Coupled()], ids=str)
def test_mean_score_of_a_surrogate_is_not_zero(make_network, estimator):
    """Exact for given masks: all paths get the same seed, hence the same masks; then the mean over 20 seeds."""
    network, sampler = make_network(3, 2, seed=1), Sampler()
    path, probability = all_paths(network, sampler, 3)
    mean = torch.zeros_like(network.table)
    for seed in range(20):
        path.seed_B = torch.full_like(path.seed_B, seed)
        views = estimator.views(path, network.mask_id)
        mean += gradient(network, (probability * score_views(network, sampler, views)).sum()) / 20
    assert mean.norm() > 0.05


@pytest.mark.parametrize("estimator", [Trajectory(), LastStep()], ids=str)
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_mean_score_under_drawn_prob(make_network, estimator, num_steps):
    mean = mean_score(make_network(3, 2, seed=1), DRAWN_PROB, estimator, num_steps)
    if num_steps == 1:
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)
    elif estimator == Trajectory():
        assert mean.norm() > 0.05
    else:  # the last step throws nothing away
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_mean_score_under_drawn_prob_sharpens_the_first_step(make_network, seed):
    """A step along it lowers the entropy of the tokens in the first state, whatever the reward."""
    network = make_network(3, 3, seed=seed)
    mean = mean_score(network, DRAWN_PROB, Trajectory(), 3)
    log_probs = network.logits(torch.full((3,), network.mask_id)).log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum()
    assert (gradient(network, entropy) * mean).sum() < -1e-2


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=lambda s: s.confidence)
def test_last_step_is_the_part_of_the_gradient_that_belongs_to_the_last_states(make_network, sampler):
    """Every state has parameters of its own: those of last states get their exact gradient, the others none."""
    network = make_network(3, 2, seed=1)
    path, probability = all_paths(network, sampler, 3)
    views = LastStep().views(path, network.mask_id)
    part = gradient(network, (probability * reward(path.tokens_BL) * score_views(network, sampler, views)).sum())
    exact = gradient(network, exact_objective(network, sampler, 3))
    is_last = torch.zeros(len(exact), dtype=torch.bool)
    is_last[(views.noisy_BSL[:, 1] * network.place_values).sum(-1)] = True
    torch.testing.assert_close(part[is_last], exact[is_last], rtol=0, atol=1e-12)
    assert part[is_last].norm() > 1e-2 and exact[~is_last].norm() > 1e-2
    assert not part[~is_last].any()
