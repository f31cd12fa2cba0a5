"""Fixed-seed losses of both objectives: a change without mathematical meaning must leave them as they are.

After a change that is meant to alter them: `DVLA_WRITE_GOLDEN=1 pytest tests/test_golden_losses.py`, and say why in the
commit.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dvla_lightning.diffusion.estimators import Coupled, FullMask, LastStep, RandomMask, StepMerge
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.objectives import DemonstrationBatch, SupervisedObjective, TrajectoryPPO
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from tests.small_policy import lora, make_tiny_policy, whole_batch

GOLDEN = Path(__file__).parent / "golden"


def train(policy, objective, batch, steps=4):
    """Losses of a few plain SGD steps on one batch."""
    objective.prepare(policy)
    losses = []
    for _ in range(steps):
        torch.manual_seed(0)
        loss = objective(policy, batch).loss
        policy.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
        policy.version += 1
        losses.append(float(loss.detach()))
    return losses


def compare(name, losses):
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("DVLA_WRITE_GOLDEN"):
        file.write_text("".join(f"{step} {loss:.9e}\n" for step, loss in enumerate(losses)))
    expected = [float(line.split()[1]) for line in file.read_text().splitlines()]
    # Bit-identical on one machine; other CPUs add up in another order.
    assert losses == pytest.approx(expected, rel=2e-5)


def test_supervised(tiny_policy):
    rng = np.random.default_rng(0)
    env = Tabletop().make()
    observations = [env.reset(seed=n, options={"task": task})[0] for n, task in enumerate(Tabletop.tasks)]
    actions = torch.from_numpy(rng.uniform(-1, 1, (len(observations), 4, 2)).astype(np.float32))
    is_pad = torch.zeros(len(observations), 4, dtype=torch.bool)
    is_pad[0, 2:] = True
    batch = DemonstrationBatch(tiny_policy.make_prompt(observations), actions, is_pad)
    compare("supervised", train(tiny_policy, SupervisedObjective(num_views=3), batch))


def rollouts(policy, objective, **options):
    """Decisions of ten short episodes at K = 1 to 4, two that begin alike for each task."""
    specs = [
        EpisodeSpec(task, "train", n, seed=10 * n + twin, num_steps=1 + n % 4)
        for n, task in enumerate(Tabletop.tasks)
        for twin in range(2)
    ]
    episodes = Collector(Tabletop(), num_envs=5, progress=False).run(policy, specs)
    for n, episode in enumerate(episodes):  # an untrained policy succeeds nowhere
        episode.transitions[-1].reward = n % 3
    return whole_batch(policy, objective, episodes, **options)


def test_trajectory_ppo(tiny_policy):
    specs = [EpisodeSpec(task, "train", n, seed=n, num_steps=1 + n % 4) for n, task in enumerate(Tabletop.tasks)]
    episodes = Collector(Tabletop(), num_envs=5, progress=False).run(tiny_policy, specs)
    objective = TrajectoryPPO(entropy_coef=0.01)
    batch = whole_batch(tiny_policy, objective, episodes)
    batch.advantages_B = torch.linspace(-1, 1, len(batch))
    compare("trajectory_ppo", train(tiny_policy, objective, batch))


# name -> options of the objective, of the policy's sampler, of the advantages
VARIANTS = {
    "last_step": ({"estimator": LastStep()}, {}, {}),
    "full_mask": ({"estimator": FullMask()}, {}, {}),
    "random_mask": ({"estimator": RandomMask()}, {}, {}),
    "coupled": ({"estimator": Coupled()}, {}, {}),
    "step_merge": ({"estimator": StepMerge()}, {}, {}),
    "kl_k2": ({"kl_coef": 0.1, "kl_kind": "k2"}, {}, {}),
    "kl_k3": ({"kl_coef": 0.1, "kl_kind": "k3"}, {}, {}),
    "plackett_luce": ({"selection_term": "plackett_luce"}, {"selection_temperature": 0.5}, {}),
    "remasking": ({}, {"remask_threshold": 0.2}, {}),
    "step_ratio": ({"ratio_level": "step", "dual_clip": 3.0}, {}, {}),
    "chunk_ratio_per_step": ({"credit": "per_step", "value_gradient": True}, {"temperature": 0.7}, {}),
    "grpo": ({}, {}, {"advantage": "grpo"}),
    "reinforce": ({}, {}, {"advantage": "reinforce++"}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(tiny_policy, name):
    options, sampler, advantage = VARIANTS[name]
    tiny_policy.sampler = dataclasses.replace(tiny_policy.sampler, **sampler)
    objective = TrajectoryPPO(**options)
    batch = rollouts(tiny_policy, objective, **advantage)
    if objective.needs_reference:
        tiny_policy.keep_reference()
    batch.advantages_B = batch.advantages_B + torch.linspace(-1, 1, len(batch))
    compare(name, train(tiny_policy, objective, batch))


def test_lora():
    torch.manual_seed(0)
    policy = make_tiny_policy(lora=lora(init_lora_weights=False))
    objective = TrajectoryPPO(kl_coef=0.05)
    batch = rollouts(policy, objective)
    policy.keep_reference()
    compare("lora", train(policy, objective, batch))
