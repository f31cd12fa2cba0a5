"""Number formats: the value head and everything RL compares stay float32, whatever the network computes in."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dvla_lightning.data.rollouts import RolloutDataModule
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.module import DVLAModule
from dvla_lightning.objectives import TrajectoryPPO
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.precision import BFloat16Weights
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.value_head import ValueHead
from tests.short_fits import fit, rollout_minibatches


def observations():
    env = Tabletop().make()
    return [env.reset(seed=seed)[0] for seed in range(3)]


def by_hand(head, hidden_BD):
    """The head in float64."""
    x = hidden_BD.double()
    for layer in head:
        is_linear = isinstance(layer, torch.nn.Linear)
        bias = layer.bias.double() if is_linear and layer.bias is not None else 0.0
        x = x @ layer.weight.double().T + bias if is_linear else torch.nn.functional.gelu(x)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_have_seven_digits_under_autocast_and_from_half_precision_states(dtype):
    """In bfloat16 they would have two to three."""
    head, hidden_BD = ValueHead(16, [32]), torch.randn(64, 16).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        values_B1 = head(hidden_BD)
    assert values_B1.dtype == torch.float32
    torch.testing.assert_close(values_B1.double(), by_hand(head, hidden_BD), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("cast", [lambda p: p.to(torch.bfloat16), lambda p: p.half(), lambda p: p.double()])
def test_casting_a_policy_leaves_head_and_statistics_as_they_are(cast, tiny_policy):
    tiny_policy.action_normalizer.fit(torch.randn(100, 2) * 3.1)
    kept = {
        name: value.clone()
        for name, value in tiny_policy.state_dict().items()
        if name.startswith(("value_head", "action_normalizer", "proprioception_normalizer"))
    }
    cast(tiny_policy)
    found = tiny_policy.state_dict()
    assert len(kept) > 4 and found["backbone.head.weight"].dtype != torch.float32
    for name, value in kept.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], value), name


def test_a_policy_in_bfloat16_acts_and_learns_values(tiny_policy):
    reference = tiny_policy.decide(observations(), [4] * 3, [1, 2, 3]).values_B
    tiny_policy.to(torch.bfloat16)
    decisions = tiny_policy.decide(observations(), [4] * 3, [1, 2, 3])
    assert decisions.values_B.dtype == decisions.path.log_prob_BL.dtype == torch.float32
    torch.testing.assert_close(decisions.values_B, reference, rtol=0.1, atol=1e-3)
    objective = TrajectoryPPO(parity_tolerance=0.1)
    objective(tiny_policy, rollout_minibatches(tiny_policy, 1)[0]).loss.backward()
    assert tiny_policy.value_head[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_rollouts_and_updates_agree_in_bfloat16(precision, tiny_policy, tmp_path, monkeypatch):
    """A whole iteration; what it compares is float32, and rewards are not rounded on the way."""
    collected = []
    data = RolloutDataModule(
        Collector(Tabletop(), num_envs=20, progress=False), episodes_per_iteration=20, minibatch_size=40,
        evaluation=Evaluation(), ppo_epochs=1,
    )  # fmt: skip
    collect = data.collect
    monkeypatch.setattr(data, "collect", lambda iteration: collected.append(collect(iteration)) or collected[-1])
    module = DVLAModule(tiny_policy, TrajectoryPPO(parity_tolerance=0.1), torch.optim.AdamW)
    trainer = fit(module, [[]], tmp_path, data=data, precision=precision)
    assert float(trainer.callback_metrics["train/first_max_abs_log_ratio"]) < 0.05
    batch = collected[0]
    for name in ("old_log_prob_NSL", "advantages_N", "returns_N", "old_values_N"):
        assert getattr(batch, name).dtype == torch.float32, name
    weights = {value.dtype for value in tiny_policy.backbone.parameters()}
    assert weights == {torch.bfloat16 if precision == "bf16-true" else torch.float32}
    assert {value.dtype for value in tiny_policy.value_head.parameters()} == {torch.float32}


def test_a_policy_trained_in_bf16_true_is_saved_loaded_and_resumed_without_loss(tiny_policy, tmp_path):
    minibatches = rollout_minibatches(tiny_policy, 3)
    halved = copy.deepcopy(tiny_policy)
    make = lambda policy: DVLAModule(policy, TrajectoryPPO(parity_tolerance=0.1), torch.optim.AdamW)  # noqa: E731
    fit(make(tiny_policy), [minibatches] * 2, tmp_path, precision="bf16-true")
    saving = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(tmp_path, "last", every_n_epochs=1)]}
    fit(make(halved), [minibatches], tmp_path, precision="bf16-true", **saving)
    fit(make(halved), [minibatches] * 2, tmp_path, str(tmp_path / "last.ckpt"), precision="bf16-true")
    tiny_policy.save_pretrained(tmp_path / "policy")
    loaded = DVLAPolicy.from_pretrained(tmp_path / "policy").state_dict()
    resumed = halved.state_dict()
    for name, value in tiny_policy.state_dict().items():
        assert torch.equal(loaded[name].to(value.dtype), value), name
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("precision", ["16-true", "64-true"])
def test_other_precisions_are_refused_by_name(precision, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=f"trainer.precision {precision} is not supported.* bf16-true"):
        fit(DVLAModule(tiny_policy, TrajectoryPPO()), [[]], tmp_path, precision=precision)


def test_the_plugin_is_known_by_the_name_that_was_asked_for(tiny_policy, tmp_path):
    """Manifests record it."""
    minibatches = rollout_minibatches(tiny_policy, 1)
    trainer = fit(DVLAModule(tiny_policy, TrajectoryPPO(), torch.optim.AdamW), [minibatches], tmp_path,
                  precision="bf16-true")  # fmt: skip
    assert trainer.precision == "bf16-true" and isinstance(trainer.precision_plugin, BFloat16Weights)
