"""DVLAPolicy: deciding, scoring, and the reference that a KL compares with."""

import dataclasses

import numpy as np
import pytest
import torch

from dvla_lightning.actions.tokenizer import QuantileBins, UniformBins
from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.diffusion.estimators import FullMask, Trajectory
from dvla_lightning.diffusion.sampler import Sampler, SamplerOverrides
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.step_schedule import StepSchedule
from dvla_lightning.module import DVLAModule
from dvla_lightning.objectives import TrajectoryPPO
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.policy_adapters import add_adapter
from dvla_lightning.policy_recipe import PolicyRecipe
from tests.small_policy import (
    ACTION_DIM,
    BINS,
    CHUNK,
    HIGH,
    LENGTH,
    LOW,
    PROPRIOCEPTION,
    disturb,
    lora,
    make_observations,
    make_policy,
)


@pytest.fixture
def policy():
    return make_policy()


# -- deciding ----------------------------------------------------------------------------------------------------------


def test_act_returns_a_chunk_in_the_robots_units(policy):
    decision = policy.act(make_observations(1)[0], num_steps=4, seed=1)
    actions = decision.actions[0]
    assert actions.shape == (CHUNK, ACTION_DIM)
    assert actions.dtype == torch.float32
    assert (actions >= torch.tensor(LOW) - 1e-5).all()
    assert (actions <= torch.tensor(HIGH) + 1e-5).all()
    # the bins include both ends of the range, so the tokens say exactly what the actions are
    share = decision.path.tokens_BL.reshape(CHUNK, ACTION_DIM) / (BINS - 1)
    torch.testing.assert_close(
        actions.double(), torch.tensor(LOW) + share * torch.tensor(HIGH - LOW), atol=1e-5, rtol=0
    )
    assert decision.values_B.shape == (1,)
    assert not decision.values_B.requires_grad
    assert torch.equal(policy.encode_actions(decision.actions), decision.path.tokens_BL)


def test_a_step_schedule_says_how_many_steps_a_task_takes(policy):
    observation, schedule = make_observations(1)[0], StepSchedule({"reach": 1, "detour": 4})
    for task, steps in schedule.items():
        found = policy.act(observation, schedule, seed=3, task=task)
        assert found.path.num_steps_B.tolist() == [steps]
        assert torch.equal(found.actions, policy.act(observation, steps, seed=3).actions)
    assert torch.equal(policy.act(observation, dict(schedule), 3, "detour").actions, found.actions)
    with pytest.raises(UserError, match=r"needs the name of the task, as in act\(\.\.\., task='reach'\)"):
        policy.act(observation, schedule)
    with pytest.raises(UserError, match="has no task 'fly'; it has: reach, detour"):
        policy.act(observation, schedule, task="fly")
    with pytest.raises(UserError, match="between 1 and 8"):
        policy.act(observation, {"reach": 9}, task="reach")


def test_only_num_action_steps_are_executed():
    policy = make_policy(num_action_steps=3)
    decision = policy.act(make_observations(1)[0], num_steps=2)
    assert decision.actions.shape == (1, 3, ACTION_DIM)
    assert torch.equal(decision.actions, policy.decode(decision.path.tokens_BL)[:, :3])
    for wrong in (0, 5):
        with pytest.raises(UserError, match=rf"num_action_steps must be in 1\.\.4, got {wrong}"):
            make_policy(num_action_steps=wrong)


def test_a_decision_is_independent_of_its_batch(policy):
    observations, steps, seeds = make_observations(5), [1, 4, LENGTH, 2, 4], [3, 1, 4, 1, 5]
    together = policy.decide(observations, steps, seeds)
    for row in range(5):
        alone = policy.decide(observations[row : row + 1], steps[row : row + 1], seeds[row : row + 1])
        assert torch.equal(alone.path.tokens_BL[0], together.path.tokens_BL[row])
        assert torch.equal(alone.path.commit_step_BL[0], together.path.commit_step_BL[row])
        assert torch.equal(alone.actions[0], together.actions[row])
        torch.testing.assert_close(alone.path.log_prob_BL[0], together.path.log_prob_BL[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.values_B[0], together.values_B[row], rtol=0, atol=1e-5)
    again = policy.decide(observations, steps, [seed + 1 for seed in seeds])
    assert not torch.equal(again.path.tokens_BL, together.path.tokens_BL)


def test_proprioception_is_normalised(policy):
    prompt = policy.make_prompt(make_observations(2))
    raw = torch.tensor(np.stack([o["proprioception"] for o in make_observations(2)]))
    assert torch.equal(prompt["proprioception"], policy.proprioception_normalizer.normalize(raw))
    assert not torch.allclose(prompt["proprioception"], raw)


def test_quantile_bins_are_fitted_with_the_statistics():
    policy = make_policy(action_tokenizer=QuantileBins(BINS, ACTION_DIM))
    actions = policy.act(make_observations(1)[0], num_steps=2).actions
    assert (actions >= torch.tensor(LOW) - 1e-5).all()
    assert (actions <= torch.tensor(HIGH) + 1e-5).all()


def play(policy, decisions=12, **options):
    """The tokens of one control loop; the observation stays the same, so only the draws differ."""
    return [policy.act(make_observations(1)[0], num_steps=4, **options).path.tokens_BL for _ in range(decisions)]


def test_acting_in_a_loop_draws_anew_at_every_decision_and_again_after_manual_seed(policy):
    loops = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        loops.append(play(policy))
    assert len({tuple(tokens.flatten().tolist()) for tokens in loops[0]}) == 12, "no two decisions are alike"
    assert all(torch.equal(a, b) for a, b in zip(loops[0], loops[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(loops[0], loops[2], strict=True))
    assert not torch.equal(*play(policy, 2)), "nor without any seed"


def test_draws_of_a_loop_follow_the_policys_probabilities(policy):
    """One position, counted over 400 decisions, against the network's own distribution (chi square, 15 degrees)."""
    observation = make_observations(1)[0]
    context = policy.backbone.encode(policy.make_prompt([observation]))
    masked = torch.full((1, 1, LENGTH), policy.mask_id)
    expected = policy.backbone.denoise(context, masked)[0][0, 0, 3].softmax(-1).detach().double() * 400
    tokens = torch.cat([policy.act(observation, num_steps=1).path.tokens_BL for _ in range(400)])[:, 3]
    counts = torch.bincount(tokens, minlength=BINS).double()
    large = expected > 5
    parts = [counts[large], counts[~large].sum()[None]], [expected[large], expected[~large].sum()[None]]
    found, wanted = (torch.cat(part) for part in parts)
    assert ((found - wanted) ** 2 / wanted.clamp_min(1)).sum() < 37.7  # 99.9 % quantile of chi square with 15 degrees


def test_a_seed_names_the_draws(policy):
    first, again, other = (policy.act(make_observations(1)[0], 4, seed=seed).path.tokens_BL for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    state = torch.get_rng_state()
    policy.act(make_observations(1)[0], 4, seed=3)
    assert torch.equal(state, torch.get_rng_state()), "the global generator stays where it was"
    for wrong in (-1, 2**63):
        with pytest.raises(UserError, match=f"seed must be in .* got {wrong}"):
            policy.act(make_observations(1)[0], 4, seed=wrong)


@pytest.mark.parametrize("num_steps", [0, LENGTH + 1])
def test_impossible_step_counts(policy, num_steps):
    with pytest.raises(UserError, match=f"num_steps must be between 1 and 8 .* got {num_steps}"):
        policy.act(make_observations(1)[0], num_steps)


def test_a_policy_without_statistics_does_not_act():
    backbone = MiniBackbone(LENGTH, BINS, ["front"], 32, PROPRIOCEPTION, dim=16, num_layers=1, num_heads=2, channels=8)
    policy = DVLAPolicy(backbone=backbone, action_tokenizer=UniformBins(BINS), action_dim=2, chunk_size=4)
    assert not policy.is_fitted
    with pytest.raises(UserError, match="no statistics"):
        policy.act(make_observations(1)[0], 1)


# -- numbers that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_observation_that_is_not_finite_is_refused(policy, number):
    observation = make_observations(1)[0]
    observation["proprioception"][1] = number
    with pytest.raises(UserError, match="the observation holds numbers that are not finite: proprioception"):
        policy.act(observation, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": {"front": np.zeros((32, 32, 3), np.float32)}},
            "images of uint8 in 0..255, camera 'front' gives float32",
        ),
        ({"images": {"front": np.zeros((32, 32, 3), np.uint16)}}, "gives uint16"),
        ({"images": {"front": np.zeros((32, 16, 3), np.uint8)}}, r"gives shape \(32, 16, 3\)"),
        ({"images": {"top": np.zeros((32, 32, 3), np.uint8)}}, "reads camera 'front'"),
        ({"proprioception": np.zeros(4, np.float32)}, "reads 3 proprioception numbers, the environment gives 4"),
        ({"proprioception": np.zeros((3, 1), np.float32)}, r"gives shape \(3, 1\)"),
        ({"instruction": b"push"}, "reads an instruction as text, got bytes"),
        ({"instruction": ["push"]}, "reads an instruction as text, got list"),
    ],
    ids=str,
)
def test_an_observation_that_does_not_fit_is_refused(policy, changes, message):
    with pytest.raises(UserError, match=message):
        policy.act({**make_observations(1)[0], **changes}, 4)
    for part in changes:
        with pytest.raises(UserError, match=f"reads {part}, which the observation does not have"):
            policy.act({name: x for name, x in make_observations(1)[0].items() if name != part}, 4)


@pytest.mark.parametrize("greedy", [False, True])
def test_a_network_that_is_not_finite_does_not_act(greedy):
    """Tokens, and actions with them, come out finite even where every probability is NaN."""
    policy = make_policy(sampler=Sampler(greedy=greedy))
    with torch.no_grad():
        policy.backbone.head.bias[3] = float("nan")
    with pytest.raises(UserError, match="the policy's log-probabilities are not finite"):
        policy.act(make_observations(1)[0], 4)


def test_values_and_actions_that_are_not_finite_are_refused(policy):
    with torch.no_grad():
        policy.value_head[0].bias[0] = float("nan")
    for decide in (lambda o: policy.act(o, 4), lambda o: policy.estimate_values([o])):
        with pytest.raises(UserError, match="the policy's values are not finite"):
            decide(make_observations(1)[0])
    policy = make_policy()
    policy.action_normalizer.high[0] = float("inf")
    with pytest.raises(UserError, match="the policy's actions are not finite"):
        policy.act(make_observations(1)[0], 4)


def test_a_forbidden_token_is_never_drawn(policy):
    with torch.no_grad():
        policy.backbone.head.bias[7] = -float("inf")
    assert not any((tokens == 7).any() for tokens in play(policy, 50))


# -- scoring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.parametrize("num_steps", [1, 2, 4, LENGTH])
def test_scoring_the_path_gives_its_recorded_log_prob(num_steps, temperature):
    """The ratio is 1 before any update, and the check sees a wrong temperature."""
    policy = make_policy(sampler=Sampler(temperature=temperature))
    decisions = policy.decide(make_observations(6), [num_steps] * 6, range(6))
    views = Trajectory().views(decisions.path, policy.mask_id)
    scores = policy.score(policy.collate(decisions.rows), views, temperature)
    log_prob = (scores.log_prob_BSL * views.scored_BSL).sum(1)
    torch.testing.assert_close(log_prob, decisions.path.log_prob_BL, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.value_B, decisions.values_B, rtol=0, atol=1e-5)

    wrong = policy.score(policy.collate(decisions.rows), views, temperature + 0.1).log_prob_BSL
    assert ((wrong * views.scored_BSL).sum(1) - decisions.path.log_prob_BL).abs().max() > 1e-3


def test_a_wrong_state_is_seen_by_the_same_check(policy):
    decisions = policy.decide(make_observations(6), [4] * 6, range(6))
    log_prob = policy.score(
        policy.collate(decisions.rows), FullMask().views(decisions.path, policy.mask_id)
    ).log_prob_BSL[:, 0]
    assert (log_prob - decisions.path.log_prob_BL).abs().max() > 1e-3


def test_entropy_is_that_of_the_predicted_distribution(policy):
    decisions = policy.decide(make_observations(3), [2] * 3, range(3))
    views = Trajectory().views(decisions.path, policy.mask_id)
    scores = policy.score(policy.collate(decisions.rows), views, 1.3)
    logits, _ = policy.backbone.denoise(policy.backbone.encode(policy.collate(decisions.rows)), views.noisy_BSL)
    want = torch.distributions.Categorical(logits=logits / 1.3).entropy()
    torch.testing.assert_close(scores.entropy_BSL, want, rtol=0, atol=1e-5)
    assert scores.entropy_BSL.shape == scores.log_prob_BSL.shape == (3, 2, LENGTH)


def test_value_gradient_reaches_the_backbone_only_when_asked(policy):
    decisions = policy.decide(make_observations(3), [2] * 3, range(3))
    views = Trajectory().views(decisions.path, policy.mask_id)
    for asked in (False, True):
        policy.zero_grad()
        policy.score(policy.collate(decisions.rows), views, value_gradient=asked).value_B.sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.value_head.parameters())
        touched = [p for p in policy.backbone.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        assert bool(touched) == asked
    policy.zero_grad()
    policy.score(policy.collate(decisions.rows), views).log_prob_BSL.sum().backward()
    assert all(p.grad is None for p in policy.value_head.parameters())


# -- reference ---------------------------------------------------------------------------------------------------------


def adapted_directory(path, **options):
    """A policy directory whose adapter has been trained."""
    policy = make_policy(lora=lora(**options))
    disturb(policy)
    policy.save_pretrained(path)
    return path


REFERENCES = {
    "all weights": lambda path: make_policy(),
    "new adapter": lambda path: make_policy(lora=lora()),
    "random adapter": lambda path: make_policy(lora=lora(init_lora_weights=False)),
    "pissa": lambda path: make_policy(lora=lora(init_lora_weights="pissa")),
    "olora": lambda path: make_policy(lora=lora(init_lora_weights="olora")),
    "dora": lambda path: make_policy(lora=lora(use_dora=True)),
    "whole modules": lambda path: make_policy(lora=lora(target_modules=["qkv"], modules_to_save=["head"], bias="all")),
    "trained adapter": lambda path: DVLAPolicy.from_pretrained(adapted_directory(path)),
    "merged adapter": lambda path: DVLAPolicy.from_pretrained(adapted_directory(path), lora=lora()),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_reference_is_the_policy_before_training(kind, tmp_path):
    policy = REFERENCES[kind](tmp_path / "policy")
    decisions = policy.decide(make_observations(3), [4] * 3, range(3))
    views = Trajectory().views(decisions.path, policy.mask_id)
    before = policy.score(policy.collate(decisions.rows), views, 1.3).log_prob_BSL.detach()
    names = set(policy.state_dict())
    policy.keep_reference()
    assert torch.equal(policy.reference_log_prob(policy.collate(decisions.rows), views, 1.3), before), (
        "the KL is 0, to the bit"
    )
    disturb(policy)
    reference = policy.reference_log_prob(policy.collate(decisions.rows), views, 1.3)
    assert not reference.requires_grad
    assert torch.equal(reference, before)
    moved = policy.score(policy.collate(decisions.rows), views, 1.3).log_prob_BSL
    assert (moved - before).abs().max() > 1e-2, "asking for the reference leaves the policy as it was"
    assert set(policy.state_dict()) == names, "it is no part of the policy"


def test_only_what_is_trained_is_copied_for_the_reference():
    policy = make_policy(lora=lora(target_modules=["qkv"]))
    policy.keep_reference()
    assert set(policy.reference) == {n for n, p in policy.backbone.named_parameters("backbone") if p.requires_grad}
    assert all("lora_" in name for name in policy.reference) and len(policy.reference) == 4


def test_asking_for_the_reference_leaves_the_gradient_as_it_is():
    policy = make_policy()
    policy.keep_reference()
    disturb(policy)
    decisions = policy.decide(make_observations(2), [2] * 2, range(2))
    views = Trajectory().views(decisions.path, policy.mask_id)
    gradients = []
    for asked in (False, True):
        policy.zero_grad()
        loss = policy.score(policy.collate(decisions.rows), views).log_prob_BSL.sum()
        if asked:
            policy.reference_log_prob(policy.collate(decisions.rows), views, 1.0)
        loss.backward()
        gradients.append(policy.backbone.head.weight.grad.clone())
    assert gradients[0].abs().max() > 0 and torch.equal(*gradients)


@pytest.mark.parametrize("init", [False, "pissa_niter_2"])
def test_a_checkpoint_brings_the_reference_and_the_base_weights_along(init):
    """A resumed run draws its initial adapters anew: with another seed they are others."""
    first = make_policy(lora=lora(init_lora_weights=init))
    first.keep_reference()
    kept = dict(first.reference)
    disturb(first)
    checkpoint = {"state_dict": DVLAModule(first, TrajectoryPPO(kl_coef=0.1)).state_dict()}
    DVLAModule(first, TrajectoryPPO(kl_coef=0.1)).on_save_checkpoint(checkpoint)

    torch.manual_seed(99)
    resumed = make_policy()
    torch.manual_seed(99)
    resumed = DVLAPolicy(resumed.backbone, UniformBins(BINS), ACTION_DIM, CHUNK)
    resumed.backbone = add_adapter(resumed.backbone, lora(init_lora_weights=init))
    module = DVLAModule(resumed, TrajectoryPPO(kl_coef=0.1))
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    assert resumed.reference.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in resumed.reference.items())
    decisions = first.decide(make_observations(3), [4] * 3, range(3))
    views = Trajectory().views(decisions.path, first.mask_id)
    want, got = (p.score(first.collate(decisions.rows), views).log_prob_BSL for p in (first, resumed))
    assert torch.equal(want, got)
    want, got = (p.reference_log_prob(first.collate(decisions.rows), views, 1.0) for p in (first, resumed))
    assert torch.equal(want, got)


def test_a_policy_without_reference_says_so(policy):
    decisions = policy.decide(make_observations(1), [1], [0])
    with pytest.raises(UserError, match="call keep_reference"):
        policy.reference_log_prob(
            policy.collate(decisions.rows), Trajectory().views(decisions.path, policy.mask_id), 1.0
        )


# -- what is given beside a saved policy -------------------------------------------------------------------------------


def test_sampler_fields_that_are_given_replace_the_saved_ones_and_the_others_stay(tmp_path):
    saved = Sampler(1.3, "drawn_prob", 0.5, "linear", False, 0.1, 0.9)
    make_policy(sampler=saved).save_pretrained(tmp_path / "policy")
    others = Sampler(0.7, "entropy", 0.25, "cosine", True, 0.2, 0.8)
    for field in dataclasses.fields(Sampler):
        new = getattr(others, field.name)
        loaded = DVLAPolicy.from_pretrained(tmp_path / "policy", sampler=SamplerOverrides(**{field.name: new}))
        assert dataclasses.asdict(loaded.sampler) == {**dataclasses.asdict(saved), field.name: new}
    assert DVLAPolicy.from_pretrained(tmp_path / "policy", sampler=SamplerOverrides()).sampler == saved
    assert DVLAPolicy.from_pretrained(tmp_path / "policy", sampler=Sampler()).sampler == Sampler()
    assert {f.name for f in dataclasses.fields(SamplerOverrides)} == {f.name for f in dataclasses.fields(Sampler)}
    backbone = make_policy().backbone
    new = PolicyRecipe(
        None, None, lambda *_: backbone, UniformBins(BINS), ACTION_DIM, CHUNK, sampler=SamplerOverrides(temperature=0.7)
    )
    assert new.build().sampler == Sampler(temperature=0.7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("selection_temperature", float("nan")),
        ("greedy", "false"),
        ("confidence", "maximum"),
        ("schedule", "cos"),
        ("remask_drop", float("nan")),
    ],
)
def test_a_sampler_of_nonsense_is_refused(policy, tmp_path, field, value):
    with pytest.raises(ValueError, match=f"sampler.*{field}"):
        Sampler(**{field: value})
    policy.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match=f"policy: sampler.*{field}"):
        DVLAPolicy.from_pretrained(tmp_path / "policy", sampler=SamplerOverrides(**{field: value}))


@pytest.mark.parametrize(
    "given",
    [
        {"normalization": "quantile"},
        {"value_hidden_dims": [8]},
        {"action_dim": 2},
        {"action_tokenizer": UniformBins(BINS)},
    ],
    ids=str,
)
def test_what_is_part_of_a_saved_policy_cannot_be_given_beside_it(tmp_path, policy, given):
    policy.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match=f"{next(iter(given))} comes from pretrained"):
        PolicyRecipe(str(tmp_path / "policy"), **given).build()


def test_parts_that_do_not_fit_together():
    with pytest.raises(UserError, match=r"chunk_size \(5\) x action_dim \(2\) = 10 must equal"):
        make_policy(chunk_size=5)
    with pytest.raises(UserError, match="the action tokenizer has 17 tokens, the backbone's vocab_size is 16"):
        make_policy(bins=17)
    with pytest.raises(UserError, match="action_dim must be at least 1, got -2"):
        make_policy(action_dim=-2, chunk_size=-4)
    with pytest.raises(UserError, match=r"value_hidden_dims\[1\] must be at least 1, got 0"):
        make_policy(value_hidden_dims=[4, 0])
    with pytest.raises(UserError, match="missing: backbone, action_tokenizer, action_dim"):
        PolicyRecipe(chunk_size=3).build()
