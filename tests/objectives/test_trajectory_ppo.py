"""The RL objective: ratio 1 at first, the loss by hand, every knob changes something, buckets equal the whole."""

import pytest
import torch

from dvla_lightning.diffusion.estimators import FullMask, Trajectory
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.objectives import TrajectoryPPO
from dvla_lightning.rl.advantages import gae
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from tests.small_policy import whole_batch


@pytest.fixture
def episodes(tiny_policy):
    specs = [EpisodeSpec(Tabletop.tasks[n % 5], "train", n, seed=n, num_steps=[1, 4, 2][n % 3]) for n in range(9)]
    return Collector(Tabletop(), num_envs=9, progress=False).run(tiny_policy, specs)


def make_batch(policy, episodes, objective, gamma=0.9, gae_lambda=0.8):
    batch = whole_batch(policy, objective, episodes, gamma, gae_lambda)
    generator = torch.Generator().manual_seed(0)
    batch.advantages_B = torch.randn(len(batch), generator=generator)
    batch.returns_B = torch.randn(len(batch), generator=generator)
    return batch


def perturb(policy, scale=0.05):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    policy.version += 1


@pytest.mark.parametrize("estimator", [Trajectory(), FullMask()], ids=str)
@pytest.mark.parametrize("ratio_level", ["token", "chunk"])
def test_ratio_is_one_before_any_update(estimator, ratio_level, tiny_policy, episodes):
    objective = TrajectoryPPO(estimator=estimator, ratio_level=ratio_level)
    output = objective(tiny_policy, make_batch(tiny_policy, episodes, objective))
    assert float(output.metrics["first_max_abs_log_ratio"]) < 1e-5
    assert float(output.metrics["approx_kl"]) < 1e-9
    assert float(output.metrics["clip_fraction"]) == 0


def test_another_temperature_in_the_update_fails_the_run(tiny_policy, episodes):
    objective = TrajectoryPPO()
    batch = make_batch(tiny_policy, episodes, objective)
    tiny_policy.sampler.temperature = 1.3
    with pytest.raises(UserError, match="scores its own rollouts differently"):
        objective(tiny_policy, batch)


def test_full_mask_needs_its_own_old_log_probs(tiny_policy, episodes):
    """With K > 1 the sampler's record is of other states; taking it would make the first ratio wrong."""
    batch = make_batch(tiny_policy, episodes, TrajectoryPPO())
    with pytest.raises(UserError, match="scores its own rollouts differently"):
        TrajectoryPPO(estimator=FullMask())(tiny_policy, batch)


def test_a_mixed_batch_has_the_gradient_of_its_buckets(tiny_policy, episodes):
    objective = TrajectoryPPO(entropy_coef=0.01)
    batch = make_batch(tiny_policy, episodes, objective)
    perturb(tiny_policy)

    def gradient(parts):
        tiny_policy.zero_grad()
        for part, share in parts:
            (objective(tiny_policy, part).loss * share).backward()
        return [p.grad.clone() for p in tiny_policy.parameters() if p.grad is not None]

    rows = [(batch.path.num_steps_B == k).nonzero()[:, 0] for k in (1, 2, 4)]
    parts = [(batch.select(r), len(r) / len(batch)) for r in rows]
    for whole, sum_of_parts in zip(gradient([(batch, 1.0)]), gradient(parts), strict=True):
        torch.testing.assert_close(whole, sum_of_parts, rtol=1e-4, atol=1e-6)


BASE = {"value_coef": 0.5, "kl_coef": 0.1}


@pytest.mark.parametrize(
    "change",
    [
        {"estimator": FullMask()},
        {"ratio_level": "chunk"},
        {"clip_ratio_low": 0.01},
        {"clip_ratio_high": 0.01},
        {"value_coef": 1.0},
        {"value_clip": 1e-3},
        {"huber_delta": 0.1},
        {"entropy_coef": 0.1},
        {"kl_coef": 0.2},
        {"kl_kind": "k1"},
    ],
)
def test_every_knob_changes_the_loss(change, tiny_policy, episodes):
    losses = []
    tiny_policy.keep_reference()
    batches = [make_batch(tiny_policy, episodes, TrajectoryPPO(**{**BASE, **knobs})) for knobs in ({}, change)]
    perturb(tiny_policy)
    for batch, knobs in zip(batches, ({}, change), strict=True):
        losses.append(float(TrajectoryPPO(**{**BASE, **knobs})(tiny_policy, batch).loss.detach()))
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_value_gradient_and_warm_up_decide_who_learns(tiny_policy, episodes):
    def trunk_gradient(objective, iteration=0):
        objective.begin_iteration(iteration)
        tiny_policy.zero_grad()
        batch = make_batch(tiny_policy, episodes, objective)
        objective(tiny_policy, batch).loss.backward()
        return tiny_policy.backbone.layers[0].qkv.weight.grad.abs().max().item()

    assert trunk_gradient(TrajectoryPPO(value_warmup_iterations=1)) == 0
    assert trunk_gradient(TrajectoryPPO(value_warmup_iterations=1), iteration=1) > 0
    assert trunk_gradient(TrajectoryPPO(value_warmup_iterations=1, value_gradient=True)) == 0
    assert trunk_gradient(TrajectoryPPO(value_gradient=True)) != trunk_gradient(TrajectoryPPO())
    assert tiny_policy.value_head[0].weight.grad.abs().max() > 0


def test_loss_by_hand_at_ratio_one(tiny_policy, episodes):
    """At ratio 1 the surrogate is minus the mean advantage and nothing is clipped."""
    objective = TrajectoryPPO(value_coef=0.0)
    batch = make_batch(tiny_policy, episodes, objective)
    loss = objective(tiny_policy, batch).loss
    assert float(loss.detach()) == pytest.approx(-float(batch.advantages_B.mean()), abs=1e-5)


def test_target_kl_reports_what_decides_the_stop(tiny_policy, episodes):
    objective = TrajectoryPPO(target_kl=0.02)
    batch = make_batch(tiny_policy, episodes, objective)
    perturb(tiny_policy)
    output = objective(tiny_policy, batch)
    assert output.stop_limit == 0.02 and float(output.stop) == float(output.metrics["approx_kl"]) > 0


@pytest.mark.parametrize("bootstrap", [True, False])
def test_assembled_advantages_equal_gae_per_episode(bootstrap, tiny_policy, episodes):
    gamma, gae_lambda = 0.9, 0.8
    batch = whole_batch(tiny_policy, TrajectoryPPO(), episodes, gamma, gae_lambda, bootstrap_truncated=bootstrap)
    start = 0
    for episode in episodes:
        count = episode.num_decisions
        values = batch.old_values_B[start : start + count]
        last = torch.zeros(1)
        if bootstrap and not episode.transitions[-1].terminated:
            last = tiny_policy.estimate_values([episode.transitions[-1].observation])
        terminated = torch.tensor([t.terminated for t in episode.transitions[1:]])
        done = torch.tensor([t.done for t in episode.transitions[1:]])
        rewards = torch.tensor([t.reward for t in episode.transitions[1:]])
        expected, returns = gae(rewards, values, torch.cat([values[1:], last]), terminated, done, gamma, gae_lambda)
        torch.testing.assert_close(batch.advantages_B[start : start + count], expected)
        torch.testing.assert_close(batch.returns_B[start : start + count], returns)
        start += count
    assert start == len(batch) and any(not e.transitions[-1].terminated for e in episodes)


def test_assembled_rows_are_the_decisions_in_order(tiny_policy, episodes):
    batch = whole_batch(tiny_policy, TrajectoryPPO(), episodes)
    tokens = torch.cat([decision.path.tokens_BL for episode in episodes for decision in episode.decisions])
    assert torch.equal(batch.path.tokens_BL, tokens)


@pytest.mark.parametrize("arguments", [{"clip_ratio_low": 0}, {"clip_ratio_high": -1}])
def test_senseless_clip_ratios_are_refused(arguments):
    with pytest.raises(UserError, match="clip_ratio"):
        TrajectoryPPO(**arguments)
