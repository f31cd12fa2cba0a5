"""Estimators: which states they rebuild, the identities between them, and what they refuse."""

import pytest
import torch

from dvla_lightning.diffusion.estimators import (
    Coupled,
    FullMask,
    LastStep,
    RandomMask,
    StepMerge,
    Trajectory,
)
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.diffusion.sampler import Sampler

LENGTH, VOCAB = 8, 4
REMASKING = Sampler(remask_threshold=0.3, remask_drop=0.2)


@pytest.fixture
def network(make_network):
    return make_network(LENGTH, VOCAB)


def sample_with_states(network, sampler, num_steps, rows):
    """The path, and every state the network was shown."""
    states = []

    def denoise(noisy_NL, rows_N):
        states.append(noisy_NL.clone())
        return network.logits(noisy_NL)

    path = sampler.sample(denoise, LENGTH, network.mask_id, [num_steps] * rows, range(rows))
    return path, torch.stack(states, dim=1)


@pytest.mark.parametrize(
    "sampler", [Sampler(), Sampler(confidence="drawn_prob", selection_temperature=1.0), REMASKING], ids=str
)
@pytest.mark.parametrize("num_steps", [1, 2, 4, LENGTH])
def test_trajectory_views_are_the_states_really_passed(network, sampler, num_steps):
    path, states = sample_with_states(network, sampler, num_steps, rows=10)
    views = Trajectory().views(path, network.mask_id)
    assert torch.equal(views.noisy_BSL, states)
    after = torch.cat([states[:, 1:], path.tokens_BL[:, None]], dim=1)
    committed = (states == network.mask_id) & (after != network.mask_id)
    assert torch.equal(views.scored_BSL, committed), "a view scores what its step commits"
    clean = views.tokens_BSL.expand_as(after)
    assert torch.equal(clean[committed], after[committed]), "with the token it commits"
    if not sampler.remasks:
        assert (views.scored_BSL.sum(1) == 1).all(), "every position is scored exactly once"


def test_remasking_masks_committed_tokens_again_and_still_ends(network):
    path, states = sample_with_states(network, REMASKING, num_steps=4, rows=200)
    again = (states[:, :-1] != network.mask_id) & (states[:, 1:] == network.mask_id)
    assert 0 < again.float().mean() < 0.5
    assert (path.tokens_BL < VOCAB).all() and (path.commit_step_BL >= 0).all()
    # as many stay masked after each step as without remasking
    plain, plain_states = sample_with_states(network, Sampler(), num_steps=4, rows=200)
    assert torch.equal((states == network.mask_id).sum(-1), (plain_states == network.mask_id).sum(-1))
    assert plain.states_BKL is None
    # a token is masked again because the network no longer believes in it, in the state in which it is asked
    row, step, place = again.nonzero()[0].tolist()
    probs = network.logits(states[row, step]).softmax(-1)[place]
    first = Trajectory().views(path, network.mask_id)
    committed_in = int(first.scored_BSL[row, :step, place].nonzero().max())
    before = network.logits(states[row, committed_in]).softmax(-1)[place]
    token = int(states[row, step, place])
    assert probs[token] < 0.3 or before[token] - probs[token] > 0.2


def test_paths_with_states_are_stacked_and_selected(network):
    paths = [network.sample(REMASKING, [steps] * 3, range(3)) for steps in (2, 4)]
    joined = DenoisingPath.cat(paths)
    assert joined.states_BKL.shape == (6, 4, LENGTH)
    for paths_row, rows in ((paths[0], torch.tensor([0, 1, 2])), (paths[1], torch.tensor([3, 4, 5]))):
        ours = Trajectory().views(joined.select(rows), network.mask_id)
        alone = Trajectory().views(paths_row, network.mask_id)
        assert torch.equal(ours.noisy_BSL, alone.noisy_BSL) and torch.equal(ours.scored_BSL, alone.scored_BSL)


ALL = [Trajectory(), LastStep(), FullMask(), RandomMask(3, 0.2, 0.7), Coupled(2), StepMerge()]


@pytest.mark.parametrize("estimator", ALL, ids=str)
@pytest.mark.parametrize("num_steps", [1, 4])
def test_view_0_is_all_masked_and_views_score_only_what_they_hide(network, estimator, num_steps):
    path = network.sample(Sampler(), [num_steps] * 50, range(50))
    views = estimator.views(path, network.mask_id)
    assert (views.noisy_BSL[:, 0] == network.mask_id).all()
    hidden = views.noisy_BSL == network.mask_id
    assert not (views.scored_BSL & ~hidden).any()
    shown = torch.where(hidden, path.tokens_BL[:, None], views.noisy_BSL)
    assert torch.equal(shown, path.tokens_BL[:, None].expand_as(shown))
    assert torch.equal(views.tokens_BSL, path.tokens_BL[:, None])


def same_scores(one, other):
    """Equal views, whatever all-masked views without a score they have."""

    def scoring(views):
        rows = views.scored_BSL.any(-1).any(0)
        return views.noisy_BSL[:, rows], views.scored_BSL[:, rows]

    return all(torch.equal(a, b) for a, b in zip(scoring(one), scoring(other), strict=True))


@pytest.mark.parametrize("estimator", [LastStep(), FullMask(), StepMerge(1), StepMerge(3)], ids=str)
def test_at_one_step_estimators_of_real_states_agree_with_trajectory(network, estimator):
    path = network.sample(Sampler(), [1] * 20, range(20))
    views = estimator.views(path, network.mask_id)
    assert same_scores(views, Trajectory().views(path, network.mask_id))
    assert views.scored_BSL.all()


@pytest.mark.parametrize("num_steps", [2, 3, 4])
def test_step_merge_lies_between_full_mask_and_trajectory(network, num_steps):
    path = network.sample(Sampler(), [num_steps] * 20, range(20))
    trajectory, full = Trajectory().views(path, network.mask_id), FullMask().views(path, network.mask_id)
    assert same_scores(StepMerge(num_steps).views(path, network.mask_id), trajectory)
    assert same_scores(StepMerge(num_steps + 1).views(path, network.mask_id), trajectory)
    assert same_scores(StepMerge(1).views(path, network.mask_id), full)
    merged = StepMerge(2).views(path, network.mask_id)
    assert merged.noisy_BSL.shape[1] == 2 and (merged.scored_BSL.sum(1) == 1).all()
    if num_steps == 4:  # steps 0, 1 in the state of step 0; steps 2, 3 in that of step 2
        assert torch.equal(merged.noisy_BSL, trajectory.noisy_BSL[:, [0, 2]])
        assert torch.equal(merged.scored_BSL, (trajectory.scored_BSL[:, ::2] | trajectory.scored_BSL[:, 1::2]))


def test_last_step_scores_the_last_commits_in_their_true_state(network):
    path = network.sample(Sampler(), [4] * 20, range(20))
    last, trajectory = (kind().views(path, network.mask_id) for kind in (LastStep, Trajectory))
    assert torch.equal(last.noisy_BSL, trajectory.noisy_BSL[:, [0, 3]])
    assert torch.equal(last.scored_BSL[:, 1], trajectory.scored_BSL[:, 3])
    assert not last.scored_BSL[:, 0].any()


def test_coupled_pairs_score_every_token_once(network):
    path = network.sample(Sampler(), [4] * 200, range(200))
    views = Coupled(3).views(path, network.mask_id)
    first, second = views.scored_BSL[:, 1:4], views.scored_BSL[:, 4:]
    assert torch.equal(first, ~second)
    # t is uniform: so is the number of hidden positions
    counts = first.sum(-1).flatten().bincount(minlength=LENGTH + 1)
    assert (counts / counts.sum() - 1 / (LENGTH + 1)).abs().max() < 0.05


def test_random_masks_hide_the_share_they_should(network):
    path = network.sample(Sampler(), [2] * 2000, range(2000))
    hidden = RandomMask(4, 0.6, 0.6).views(path, network.mask_id).scored_BSL[:, 1:]
    assert hidden.any(-1).all()
    share = hidden.float().mean((0, 1))
    assert (share - 0.6).abs().max() < 0.02, "every position alike, with probability t"
    assert RandomMask(4, 0.0, 0.0).views(path, network.mask_id).scored_BSL.sum(-1).unique().tolist() == [0, 1]


@pytest.mark.parametrize("estimator", [RandomMask(2), Coupled(1)], ids=str)
def test_random_masks_follow_the_seed_of_the_row_and_not_its_tokens(network, estimator):
    path = network.sample(Sampler(), [4] * 64, range(64))
    views = estimator.views(path, network.mask_id)
    assert torch.equal(views.scored_BSL, estimator.views(path, network.mask_id).scored_BSL)
    rows = torch.tensor([5, 3])
    assert torch.equal(views.scored_BSL[rows], estimator.views(path.select(rows), network.mask_id).scored_BSL)
    # independent of the draws of the tokens, which came from the same seed: no position's token tells its mask
    many = network.sample(Sampler(), [1] * 4000, range(4000))
    hidden = estimator.views(many, network.mask_id).scored_BSL[:, 1].float()
    for token in range(VOCAB):
        chosen = (many.tokens_BL[:, 0] == token).float()
        correlation = torch.corrcoef(torch.stack([chosen, hidden[:, 0]]))[0, 1]
        assert correlation.abs() < 0.06


def test_only_full_mask_accepts_a_mix_of_steps(network):
    path = network.sample(Sampler(), [4, 2, 4], range(3))
    assert FullMask().views(path, network.mask_id).scored_BSL.all()
    for estimator in (Trajectory(), LastStep(), StepMerge()):
        with pytest.raises(ValueError, match="bucket the batch by num_steps"):
            estimator.views(path, network.mask_id)


def test_step_merge_refuses_remasking():
    with pytest.raises(ValueError, match="StepMerge cannot score a sampler with remasking"):
        StepMerge(2).check_sampler(REMASKING)
    for estimator in ALL[:-1]:
        estimator.check_sampler(REMASKING)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Coupled, (0,), "at least 1 pair"),
        (StepMerge, (0,), "at least 1 group"),
        (RandomMask, (0,), "num_masks >= 1"),
        (RandomMask, (2, 0.9, 0.1), "low <= high"),
        (RandomMask, (2, -0.1), "low <= high"),
        (RandomMask, (2, 0.1, float("nan")), "low <= high"),
    ],
)
def test_senseless_arguments_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(*arguments)
