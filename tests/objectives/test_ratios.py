"""Every estimator at every level: ratio 1 at first, buckets equal the whole, and what cannot be scored is refused."""

import pytest
import torch

from dvla_lightning.data.assembly import assemble
from dvla_lightning.diffusion.estimators import Coupled, FullMask, LastStep, RandomMask, StepMerge, Trajectory
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.objectives import TrajectoryPPO
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from tests.small_policy import whole_batch

ESTIMATORS = [Trajectory(), LastStep(), FullMask(), RandomMask(2), Coupled(), StepMerge()]
RANDOM_ORDER = Sampler(selection_temperature=1.0)
# An untrained policy gives every token about 1/8: half of its commits are doubted at this threshold.
REMASKING = Sampler(remask_threshold=0.125)
PLACKETT_LUCE = {"selection_term": "plackett_luce"}


def collect(policy, sampler=None):
    """Episodes with K = 1, 4 and 2."""
    policy.sampler = sampler or Sampler()
    specs = [EpisodeSpec(Tabletop.tasks[n % 5], "train", n, seed=n, num_steps=[1, 4, 2][n % 3]) for n in range(6)]
    return Collector(Tabletop(), num_envs=6, progress=False).run(policy, specs)


def make_batch(policy, episodes, objective, **options):
    batch = whole_batch(policy, objective, episodes, **options)
    batch.advantages_B = torch.randn(len(batch), generator=torch.Generator().manual_seed(0))
    return batch


def perturb(policy):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    policy.version += 1


@torch.no_grad()
def old_log_prob(policy, objective, part):
    """Of rows with one K, scored by themselves."""
    return objective._old_log_prob(policy, part.prompt, part.path)


def gradient(policy, objective, parts):
    """Of several batches with their shares of the loss."""
    policy.zero_grad()
    for part, share in parts:
        (objective(policy, part).loss * share).backward()
    return [p.grad.clone() for p in policy.parameters() if p.grad is not None]


CASES = [(name, level, None, {}) for name in ESTIMATORS for level in ("token", "step", "chunk")]
CASES += [
    (name, level, REMASKING, {})
    for name in (Trajectory(), FullMask(), RandomMask(2), LastStep())
    for level in ("token", "step", "chunk")
]
CASES += [(Trajectory(), level, RANDOM_ORDER, PLACKETT_LUCE) for level in ("token", "step", "chunk")]
CASES += [(Trajectory(), "chunk", Sampler(confidence="random"), PLACKETT_LUCE)]


@pytest.mark.parametrize(("estimator", "ratio_level", "sampler", "knobs"), CASES)
def test_ratio_is_one_before_any_update(estimator, ratio_level, sampler, knobs, tiny_policy):
    objective = TrajectoryPPO(estimator=estimator, ratio_level=ratio_level, **knobs)
    episodes = collect(tiny_policy, sampler)
    objective.prepare(tiny_policy)
    batch = make_batch(tiny_policy, episodes, objective)
    output = objective(tiny_policy, batch)
    assert float(output.metrics["first_max_abs_log_ratio"]) < 1e-5
    assert float(output.metrics["approx_kl"]) < 1e-9
    assert float(output.metrics["clip_fraction"]) == 0
    if sampler is REMASKING:  # the case is worth something only if a token was taken back
        scored = Trajectory().views(batch.path.select(batch.path.num_steps_B == 4), tiny_policy.mask_id)
        assert scored.scored_BSL.sum(1).max() > 1


def test_the_parity_check_sees_a_wrong_order_term(tiny_policy):
    objective = TrajectoryPPO(**PLACKETT_LUCE)
    batch = make_batch(tiny_policy, collect(tiny_policy, RANDOM_ORDER), objective)
    tiny_policy.sampler = Sampler(selection_temperature=0.7)
    with pytest.raises(UserError, match="scores its own rollouts differently"):
        objective(tiny_policy, batch)


@pytest.mark.parametrize(
    ("change", "sampler"),
    [
        *[({"estimator": name}, None) for name in ESTIMATORS[1:]],
        ({"estimator": RandomMask(2, 0.5)}, None),
        ({"estimator": StepMerge(1)}, None),
        ({"ratio_level": "step"}, None),
        ({"ratio_level": "chunk"}, None),
        ({"credit": "per_step"}, None),
        ({"dual_clip": 1.01}, None),
        (PLACKETT_LUCE, RANDOM_ORDER),
    ],
)
def test_every_knob_changes_the_loss(change, sampler, tiny_policy):
    losses = []
    episodes = collect(tiny_policy, sampler)
    objectives = [TrajectoryPPO(value_coef=0.0, **knobs) for knobs in ({}, change)]
    batches = [make_batch(tiny_policy, episodes, objective) for objective in objectives]
    perturb(tiny_policy)
    for batch, objective in zip(batches, objectives, strict=True):
        losses.append(float(objective(tiny_policy, batch).loss.detach()))
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    ("estimator", "knobs", "sampler"),
    [
        (LastStep(), {}, None),
        (StepMerge(), {}, None),
        (RandomMask(2), {}, None),  # of which K = 1, 2 and 4 have as many views
        (RandomMask(2), {"ratio_level": "chunk"}, REMASKING),
        (Trajectory(), {"ratio_level": "step"}, REMASKING),
        (Trajectory(), {"ratio_level": "chunk", **PLACKETT_LUCE}, RANDOM_ORDER),
    ],
)
def test_a_mixed_batch_has_the_gradient_of_its_buckets(estimator, knobs, sampler, tiny_policy):
    """The buckets are scored alone, old log-probabilities included: S of the joint record does not matter."""
    objective = TrajectoryPPO(estimator=estimator, entropy_coef=0.01, **knobs)
    episodes = collect(tiny_policy, sampler)
    batch = make_batch(tiny_policy, episodes, objective)
    parts = []
    for steps in (1, 2, 4):
        rows = (batch.path.num_steps_B == steps).nonzero()[:, 0]
        part = batch.select(rows)
        part.old_log_prob_BSL = old_log_prob(tiny_policy, objective, part)
        parts.append((part, len(rows) / len(batch)))
    perturb(tiny_policy)
    whole, joined = gradient(tiny_policy, objective, [(batch, 1.0)]), gradient(tiny_policy, objective, parts)
    assert max(float(g.abs().max()) for g in whole) > 1e-4
    for one, other in zip(whole, joined, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_random_masks_are_scored_before_and_after_the_update_on_the_same_views(tiny_policy):
    """Chosen by the seed of each decision: another batch, or scoring in parts, makes no difference."""
    objective = TrajectoryPPO(estimator=RandomMask(3))
    episodes = collect(tiny_policy)
    batch = make_batch(tiny_policy, episodes, objective)
    assert batch.old_log_prob_BSL.shape[1] == 1 + 3
    in_parts = assemble(episodes, 0.9, 0.8)
    objective.prepare_batch(tiny_policy, in_parts, rows_at_once=2)
    torch.testing.assert_close(in_parts.old_log_prob_NSL, batch.old_log_prob_BSL, rtol=0, atol=1e-5)
    rows = (batch.path.num_steps_B == 2).nonzero()[:, 0].flip(0)
    part = batch.select(rows)
    views = objective.estimator.views(part.path, tiny_policy.mask_id)
    scores = tiny_policy.score(part.prompt, views)
    expected = scores.log_prob_BSL * views.scored_BSL
    torch.testing.assert_close(part.old_log_prob_BSL, expected, rtol=0, atol=1e-5)
    assert (part.old_log_prob_BSL == 0).equal(~views.scored_BSL)


def test_remasked_tokens_are_scored_at_every_commit(tiny_policy):
    """So the sampler's record, which has one number per position, does not do."""
    episodes = collect(tiny_policy, REMASKING)
    batch = make_batch(tiny_policy, episodes, TrajectoryPPO())
    assert batch.old_log_prob_BSL.shape[1] == 4
    rows = (batch.path.num_steps_B == 4).nonzero()[:, 0]
    part = batch.select(rows)
    last = part.old_log_prob_BSL.gather(1, part.path.commit_step_BL[:, None])[:, 0]
    torch.testing.assert_close(last, part.path.log_prob_BL, rtol=0, atol=1e-5)
    assert (part.old_log_prob_BSL != 0).sum(1).max() > 1


def test_the_chunk_ratio_with_selection_term_is_tokens_plus_order(tiny_policy):
    """Against the order's log-probability from a plain loop: position by position among those that are left."""
    objective = TrajectoryPPO(ratio_level="chunk", **PLACKETT_LUCE)
    batch = make_batch(tiny_policy, collect(tiny_policy, RANDOM_ORDER), objective)
    rows = (batch.path.num_steps_B == 4).nonzero()[:, 0]
    batch = batch.select(rows)
    before = joint_log_prob(tiny_policy, batch)
    perturb(tiny_policy)
    tokens, order = (new - old for new, old in zip(joint_log_prob(tiny_policy, batch), before, strict=True))
    assert order.abs().max() > 1e-3
    ratio = (tokens + order).exp()
    surrogate = torch.minimum(ratio * batch.advantages_B, ratio.clamp(0.8, 1.28) * batch.advantages_B)
    found = objective(tiny_policy, batch).metrics["policy_loss"]
    torch.testing.assert_close(found, -surrogate.mean(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def joint_log_prob(policy, batch):
    """(B,) of the tokens and (B,) of the order of commits, for the sampler with selection_temperature 1."""
    path, num_steps = batch.path, int(batch.path.num_steps_B[0])
    tokens, order = torch.zeros(len(batch)), torch.zeros(len(batch))
    context = policy.backbone.encode(batch.prompt)
    for step in range(num_steps):
        noisy = torch.where(path.commit_step_BL >= step, policy.mask_id, path.tokens_BL)
        log_probs = policy.backbone.denoise(context, noisy[:, None])[0][:, 0].log_softmax(-1)
        for row in range(len(batch)):
            committed = (path.commit_step_BL[row] == step).nonzero()[:, 0].tolist()
            committed.sort(key=lambda position, row=row: int(path.commit_order_BL[row, position]))
            left = (path.commit_step_BL[row] >= step).nonzero()[:, 0].tolist()
            tokens[row] += sum(log_probs[row, position, path.tokens_BL[row, position]] for position in committed)
            if step == num_steps - 1:
                continue  # no choice
            score = log_probs[row].amax(-1) / (1 - (step + 1) / num_steps)
            for position in committed:
                order[row] += score[position] - score[left].logsumexp(0)
                left.remove(position)
    return tokens, order


def test_one_step_leaves_no_order_to_choose(tiny_policy):
    """K = 1: with the selection term the loss and its gradient are those without."""
    found = []
    episodes = collect(tiny_policy, RANDOM_ORDER)
    for term in ("none", "plackett_luce"):
        objective = TrajectoryPPO(selection_term=term, value_coef=0.0)
        batch = make_batch(tiny_policy, episodes, objective)
        batch = batch.select((batch.path.num_steps_B == 1).nonzero()[:, 0])
        found.append(gradient(tiny_policy, objective, [(batch, 1.0)]))
    assert max(float(g.abs().max()) for g in found[0]) > 1e-4
    assert all(map(torch.equal, *found))


def test_the_selection_term_trains_the_confidence(tiny_policy):
    """With the drawn tokens held fixed: its gradient is there without any token log-ratio."""
    batches = {}
    episodes = collect(tiny_policy, RANDOM_ORDER)
    for term in ("none", "plackett_luce"):
        objective = TrajectoryPPO(selection_term=term, value_coef=0.0, ratio_level="chunk")
        batches[term] = gradient(tiny_policy, objective, [(make_batch(tiny_policy, episodes, objective), 1.0)])
    pairs = zip(batches["none"], batches["plackett_luce"], strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) > 1e-3


@pytest.mark.parametrize("estimator", ESTIMATORS[1:], ids=str)
def test_old_log_probs_of_surrogates_are_those_of_a_plain_loop(estimator, tiny_policy):
    """Each decision and view by itself, without packing, buckets or `score`."""
    objective = TrajectoryPPO(estimator=estimator)
    batch = make_batch(tiny_policy, collect(tiny_policy, Sampler(temperature=1.3)), objective)
    for row in range(0, len(batch), 5):
        one = batch.select(torch.tensor([row]))
        views = objective.estimator.views(one.path, tiny_policy.mask_id)
        expected = torch.zeros(views.scored_BSL.shape[1:])
        for view, scored_L in enumerate(views.scored_BSL[0]):
            with torch.no_grad():
                context = tiny_policy.backbone.encode(one.prompt)
                logits = tiny_policy.backbone.denoise(context, views.noisy_BSL[:, [view]])[0][0, 0]
            picked = (logits / 1.3).log_softmax(-1).gather(-1, one.path.tokens_BL[0][:, None])[:, 0]
            expected[view] = picked * scored_L
        if objective.estimator.scores_once:
            expected = expected.sum(0, keepdim=True)
        torch.testing.assert_close(one.old_log_prob_BSL[0, : len(expected)], expected, rtol=0, atol=1e-5)


def test_per_step_credit_by_hand(tiny_policy):
    """K = 2 commits 3 and 5 of 8 positions with the cosine schedule: each step gives half of the mean."""
    objective = TrajectoryPPO(credit="per_step", value_coef=0.0, clip_ratio_low=0.99, clip_ratio_high=99.0)
    batch = make_batch(tiny_policy, collect(tiny_policy), objective)
    batch = batch.select((batch.path.num_steps_B == 2).nonzero()[:2, 0])
    assert [(batch.path.commit_step_BL == step).sum(1).tolist() for step in (0, 1)] == [[3, 3], [5, 5]]
    batch.advantages_B = torch.tensor([2.0, -1.0])
    views = objective.estimator.views(batch.path, tiny_policy.mask_id)
    perturb(tiny_policy)
    ratios = (tiny_policy.score(batch.prompt, views).log_prob_BSL - batch.old_log_prob_BSL).exp()
    by_step = [[ratios[row, step][views.scored_BSL[row, step]].mean() for step in (0, 1)] for row in (0, 1)]
    expected = -(2.0 * (by_step[0][0] + by_step[0][1]) - 1.0 * (by_step[1][0] + by_step[1][1])) / 4
    loss = objective(tiny_policy, batch).metrics["policy_loss"]
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"credit": "per_step", "ratio_level": "chunk"}, "needs ratio_level token, got chunk"),
        ({"credit": "per_step", "ratio_level": "step"}, "every denoising step already counts once"),
        ({"selection_term": "plackett_luce", "estimator": FullMask()}, "use estimator Trajectory, not FullMask"),
        ({"dual_clip": 1.0}, "dual_clip must be above 1"),
    ],
)
def test_senseless_arguments_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        TrajectoryPPO(**arguments)


@pytest.mark.parametrize(
    ("arguments", "sampler", "sentence"),
    [
        ({"estimator": StepMerge()}, REMASKING, "StepMerge cannot score a sampler with remasking"),
        (PLACKETT_LUCE, Sampler(), "needs a random selection: set the sampler's selection_temperature above 0"),
        (PLACKETT_LUCE, Sampler(confidence="drawn_prob", selection_temperature=1.0), "no tractable form.*drawn_prob"),
        (PLACKETT_LUCE, Sampler(selection_temperature=1.0, remask_drop=0.5), "no tractable form for remasking"),
    ],
)
def test_samplers_that_cannot_be_scored_are_refused_before_training(arguments, sampler, sentence, tiny_policy):
    tiny_policy.sampler = sampler
    with pytest.raises(UserError, match=sentence):
        TrajectoryPPO(**arguments).check_policy(tiny_policy)


def test_rl_refuses_a_greedy_sampler(tiny_policy):
    tiny_policy.sampler = Sampler(greedy=True)
    with pytest.raises(UserError, match="greedy sampler draws nothing"):
        TrajectoryPPO().check_policy(tiny_policy)
    TrajectoryPPO().prepare(tiny_policy)  # an evaluation may be greedy
