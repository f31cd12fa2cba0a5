"""A policy small enough for hundreds of tests, its observations, and what "behaves the same" means."""

import numpy as np
import torch

from dvla_lightning.actions.tokenizer import UniformBins
from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.data.assembly import assemble
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.policy_adapters import add_adapter

CHUNK, ACTION_DIM, BINS, PROPRIOCEPTION = 4, 2, 16, 3
LENGTH = CHUNK * ACTION_DIM
LOW, HIGH = np.array([-3.0, 10.0]), np.array([-1.0, 14.0])


def make_policy(seed=0, bins=BINS, lora=None, **options):
    torch.manual_seed(seed)
    backbone = MiniBackbone(
        LENGTH, BINS, ["front"], 32, PROPRIOCEPTION, dim=16, num_layers=2, num_heads=2, channels=8, text_buckets=64
    )
    with torch.no_grad():
        backbone.head.weight.mul_(6)  # a distribution far from uniform, as after training
    options = {"action_tokenizer": UniformBins(bins), "action_dim": ACTION_DIM, "chunk_size": CHUNK, **options}
    policy = DVLAPolicy(**{"backbone": backbone, **options})
    if lora is not None:
        policy.backbone = add_adapter(policy.backbone, lora)
    actions = np.random.default_rng(0).uniform(LOW, HIGH, (500, ACTION_DIM))
    policy.fit_statistics(np.concatenate([actions, [LOW, HIGH]]), np.random.default_rng(1).normal(size=(500, 3)) * 5)
    return policy


def make_observations(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "images": {"front": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)},
            "proprioception": rng.normal(size=PROPRIOCEPTION).astype(np.float32),
            "instruction": f"push block {i}",
        }
        for i in range(count)
    ]


def lora(**options):
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "target_modules": "all-linear", **options})


def disturb(policy, seed=3):
    """Moves everything in the backbone that can be trained, as training would; LoRA starts as the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (p for p in policy.backbone.parameters() if p.requires_grad):
            value.add_(torch.randn(value.shape, generator=generator) * 0.3)


def assert_same_behaviour(one, other, exact=True):
    """Same chunks, values and log-probabilities for the same seeds."""
    observations, close = make_observations(3), {"rtol": 0, "atol": 0 if exact else 1e-4}
    a, b = (policy.decide(observations, [1, 2, 4], [5, 6, 7]) for policy in (one, other))
    assert torch.equal(a.path.tokens_BL, b.path.tokens_BL)
    for want, got in ((a.actions, b.actions), (a.values_B, b.values_B), (a.path.log_prob_BL, b.path.log_prob_BL)):
        torch.testing.assert_close(got, want, **close)


def make_tiny_policy(lora=None, **options):
    """An untrained policy for Tabletop; its actions are random but valid."""
    backbone = MiniBackbone(8, 8, ["top"], 32, 4, dim=16, num_layers=1, num_heads=2, channels=8)
    parts = {"backbone": backbone, "action_tokenizer": UniformBins(8), "action_dim": 2, "chunk_size": 4}
    policy = DVLAPolicy(**parts, normalization="identity", value_hidden_dims=[8], **options)
    policy.is_fitted = True
    if lora is not None:
        policy.backbone = add_adapter(policy.backbone, lora)
    return policy


def whole_batch(policy, objective, episodes, gamma=0.9, gae_lambda=0.8, **options):
    """All decisions of some episodes as one minibatch, with advantages as they are before normalisation."""
    rollouts = assemble(episodes, gamma, gae_lambda, **options)
    objective.prepare_batch(policy, rollouts)
    return rollouts.batch(torch.arange(len(rollouts)), policy.collate)
