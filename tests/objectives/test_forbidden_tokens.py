"""A backbone may forbid tokens: nothing that is sampled, scored or learned becomes NaN."""

from itertools import product

import pytest
import torch

from dvla_lightning.diffusion.estimators import Coupled, FullMask, LastStep, RandomMask, StepMerge, Trajectory
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.objectives import DemonstrationBatch, SupervisedObjective, TrajectoryPPO
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from tests.small_policy import whole_batch

ESTIMATORS = [Trajectory(), LastStep(), FullMask(), RandomMask(), Coupled(), StepMerge()]


@pytest.fixture
def picky_policy(tiny_policy, monkeypatch):
    """One whose network forbids two thirds of the tokens, and others where nothing is committed than later."""
    denoise = tiny_policy.backbone.denoise

    def forbid(context, noisy_BSL):
        logits, hidden = denoise(context, noisy_BSL)
        tokens = torch.arange(logits.shape[-1])
        started_BS1 = (noisy_BSL != tiny_policy.mask_id).any(-1)[..., None, None]
        return logits.masked_fill(torch.where(started_BS1, tokens % 3 != 0, tokens % 3 != 1), -torch.inf), hidden

    monkeypatch.setattr(tiny_policy.backbone, "denoise", forbid)
    return tiny_policy


def rollouts(policy, objective):
    specs = [EpisodeSpec(Tabletop.tasks[n], "train", n, seed=n, num_steps=[1, 2, 4][n % 3]) for n in range(4)]
    episodes = Collector(Tabletop(), num_envs=4, progress=False).run(policy, specs)
    return whole_batch(policy, objective, episodes)


def check(policy, output):
    assert output.loss.isfinite()
    numbers = {**output.metrics, **output.diagnostics}
    assert not [name for name, value in numbers.items() if not value.isfinite().all()]
    policy.zero_grad()
    output.loss.backward()
    bad = [name for name, p in policy.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not bad


@pytest.mark.parametrize(
    ("confidence", "temperature"), list(product(["max_prob", "drawn_prob", "entropy", "random"], [1, 0]))
)
def test_sampling(picky_policy, confidence, temperature):
    picky_policy.sampler = Sampler(confidence=confidence, selection_temperature=float(temperature))
    batch = rollouts(picky_policy, TrajectoryPPO())
    first = batch.path.commit_step_BL == 0
    assert (batch.path.tokens_BL[first] % 3 == 1).all()
    assert (batch.path.tokens_BL[~first] % 3 == 0).all()
    assert batch.old_log_prob_BSL.isfinite().all()


@pytest.mark.parametrize(("level", "kl_kind"), list(product(["token", "step", "chunk"], ["k1", "k2", "k3"])))
def test_the_papers_estimator(picky_policy, level, kl_kind):
    objective = TrajectoryPPO(ratio_level=level, entropy_coef=0.01, kl_coef=0.1, kl_kind=kl_kind, value_gradient=True)
    picky_policy.keep_reference()
    check(picky_policy, objective(picky_policy, rollouts(picky_policy, objective)))


def test_the_selection_term(picky_policy):
    picky_policy.sampler = Sampler(confidence="entropy", selection_temperature=0.5)
    objective = TrajectoryPPO(selection_term="plackett_luce")
    check(picky_policy, objective(picky_policy, rollouts(picky_policy, objective)))


@pytest.mark.parametrize(("estimator", "entropy_coef"), list(product(ESTIMATORS, [0.0, 0.01])))
def test_tokens_that_are_forbidden_in_every_state(tiny_policy, monkeypatch, estimator, entropy_coef):
    """The surrogates score tokens in other states than those in which they were drawn: there they must be possible."""
    denoise = tiny_policy.backbone.denoise
    forbidden = torch.arange(tiny_policy.action_tokenizer.vocab_size) % 3 == 1
    monkeypatch.setattr(
        tiny_policy.backbone,
        "denoise",
        lambda *x: (lambda logits, hidden: (logits.masked_fill(forbidden, -torch.inf), hidden))(*denoise(*x)),
    )
    objective = TrajectoryPPO(estimator=estimator, entropy_coef=entropy_coef, kl_coef=0.1)
    tiny_policy.keep_reference()
    check(tiny_policy, objective(tiny_policy, rollouts(tiny_policy, objective)))


def test_sft_of_tokens_that_are_possible_where_they_are_scored(tiny_policy, monkeypatch):
    """Of a demonstration that has ended, what lies beyond is not scored and may be impossible."""
    denoise = tiny_policy.backbone.denoise
    actions = torch.full((3, tiny_policy.chunk_size, tiny_policy.action_dim), -1.0)
    actions[:, -1] = 1.0
    is_pad = torch.zeros(3, tiny_policy.chunk_size, dtype=torch.bool)
    is_pad[:, -1] = True
    last = tiny_policy.encode_actions(actions)[0, -1]

    def forbid(*x):
        logits, hidden = denoise(*x)
        logits = logits.clone()
        logits[..., int(last)] = -torch.inf
        return logits, hidden

    monkeypatch.setattr(tiny_policy.backbone, "denoise", forbid)
    prompt = rollouts(tiny_policy, TrajectoryPPO()).prompt
    batch = DemonstrationBatch({name: value[:3] for name, value in prompt.items()}, actions, is_pad)
    check(tiny_policy, SupervisedObjective()(tiny_policy, batch))


def test_entropy_costs_no_graph_where_it_is_not_trained(tiny_policy):
    batch = rollouts(tiny_policy, TrajectoryPPO()).select(torch.arange(1))
    scores = TrajectoryPPO()._score(tiny_policy, batch.prompt, batch.path)
    for coef in (0.0, 0.1):
        entropy = TrajectoryPPO(entropy_coef=coef)._entropy(scores.scores, scores.views.scored_BSL)
        assert entropy.requires_grad == (coef > 0)
