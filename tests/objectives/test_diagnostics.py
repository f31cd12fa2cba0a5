"""Entropy and gradient share of each view, against autograd on the network's own output."""

import pytest
import torch

from dvla_lightning.diffusion.estimators import Coupled, FullMask, LastStep, RandomMask, StepMerge, Trajectory
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.objectives import TrajectoryPPO
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from tests.small_policy import whole_batch


@pytest.fixture
def batch(tiny_policy):
    """Decisions with K = 1 and 4 of a policy at temperature 1.3; advantages of both signs."""
    tiny_policy.sampler = Sampler(temperature=1.3)
    specs = [EpisodeSpec(task, "train", n, seed=n, num_steps=[1, 4][n % 2]) for n, task in enumerate(Tabletop.tasks)]
    episodes = Collector(Tabletop(), num_envs=5, progress=False).run(tiny_policy, specs)

    def make(objective):
        made = whole_batch(tiny_policy, objective, episodes)
        made.advantages_B = torch.linspace(-1, 2, len(made))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in tiny_policy.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        tiny_policy.version += 1
        return made

    return make


def values(output, name, num_steps, views):
    return torch.stack([output.diagnostics[f"{name}/K{num_steps}_view{view}"] for view in range(views)])


@pytest.mark.parametrize(("estimator", "views"), [(Trajectory(), 4), (FullMask(), 1), (StepMerge(), 2)])
def test_gradient_shares_agree_with_autograd_on_the_logits(estimator, views, tiny_policy, batch, monkeypatch):
    objective = TrajectoryPPO(estimator=estimator, value_coef=0.0)
    batch = batch(objective)
    logits, denoise = [], tiny_policy.backbone.denoise

    def record(context, noisy):
        found, hidden = denoise(context, noisy)
        found.retain_grad()
        logits.append(found)
        return found, hidden

    monkeypatch.setattr(tiny_policy.backbone, "denoise", record)
    output = objective(tiny_policy, batch)
    output.loss.backward()
    assert [x.shape[1] for x in logits] == [1, views]  # K = 1, then K = 4
    for num_steps, logits_BSLV in zip((1, 4), logits, strict=True):
        pull_S = logits_BSLV.grad.norm(dim=-1).sum((0, 2))
        share_S = values(output, "gradient_share", num_steps, logits_BSLV.shape[1])
        torch.testing.assert_close(share_S, pull_S / pull_S.sum(), rtol=1e-4, atol=1e-6)
        assert float(share_S.sum()) == pytest.approx(1.0)


def test_entropies_are_those_of_the_scored_tokens(tiny_policy, batch):
    objective = TrajectoryPPO()
    batch = batch(objective)
    output = objective(tiny_policy, batch)
    part = batch.select((batch.path.num_steps_B == 4).nonzero()[:, 0])
    views = objective.estimator.views(part.path, tiny_policy.mask_id)
    logits, _ = tiny_policy.backbone.denoise(tiny_policy.backbone.encode(part.prompt), views.noisy_BSL)
    p = (logits / 1.3).softmax(-1)
    entropy_BSL = -(p * p.log()).sum(-1)
    expected = torch.stack([entropy_BSL[:, view][views.scored_BSL[:, view]].mean() for view in range(4)])
    torch.testing.assert_close(values(output, "entropy", 4, 4), expected.detach(), rtol=1e-5, atol=1e-6)
    assert not any(value.requires_grad for value in output.diagnostics.values())


def test_diagnostics_leave_the_gradient_alone(tiny_policy, batch):
    objective = TrajectoryPPO()
    batch = batch(objective)
    objective(tiny_policy, batch).loss.backward()
    found = [p.grad.clone() for p in tiny_policy.parameters() if p.grad is not None]
    tiny_policy.zero_grad()
    objective.estimator = type("Silent", (type(objective.estimator),), {"scores_once": False})()
    output = objective(tiny_policy, batch)
    output.loss.backward()
    assert not output.diagnostics
    assert all(map(torch.equal, found, [p.grad for p in tiny_policy.parameters() if p.grad is not None]))


@pytest.mark.parametrize("estimator", [RandomMask(2), Coupled()], ids=str)
def test_views_that_are_drawn_at_random_have_none(estimator, tiny_policy, batch):
    objective = TrajectoryPPO(estimator=estimator)
    assert not objective(tiny_policy, batch(objective)).diagnostics


def test_nothing_is_measured_without_gradients(tiny_policy, batch):
    objective = TrajectoryPPO()
    batch = batch(objective)
    with torch.no_grad():
        assert not objective(tiny_policy, batch).diagnostics


def test_a_view_that_scores_nothing_is_left_out(tiny_policy, batch):
    objective = TrajectoryPPO(estimator=LastStep())
    diagnostics = objective(tiny_policy, batch(objective)).diagnostics
    assert float(diagnostics["gradient_share/K4_view1"]) == float(diagnostics["gradient_share/K1_view0"]) == 1.0
    assert not {"gradient_share/K4_view0", "entropy/K4_view0"} & set(diagnostics)
