"""LoRA options: each survives saving and merging, and none is silently ignored."""

import json
import shutil

import pytest
import torch
from peft import PeftModel

from dvla_lightning.errors import UserError
from dvla_lightning.policy import DVLAPolicy
from tests.small_policy import assert_same_behaviour, disturb, lora, make_observations, make_policy

OPTIONS = {
    "default": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "dora": {"use_dora": True},
    "dora on pissa": {"use_dora": True, "init_lora_weights": "pissa"},
    "rslora": {"use_rslora": True},
    "patterns": {
        "target_modules": ["qkv", "head"],
        "rank_pattern": {"qkv": 2},
        "alpha_pattern": {r"layers\.1\.qkv": 3},
    },
    "pissa patterns": {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"head": 2}},
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only", "target_modules": ["qkv"]},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["head"]},
    "nested modules_to_save": {"target_modules": ["qkv"], "modules_to_save": ["layers.1.mlp", "action_embedding"]},
    "one layer": {"target_modules": ["qkv"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"exclude_modules": ["head"]},
    "embedding and convolution": {"target_modules": ["action_embedding", "blocks.0.conv", "qkv"]},
    "tokens": {"target_modules": ["qkv"], "trainable_token_indices": {"action_embedding": [1, 16]}},
    "parameters": {"target_modules": None, "target_parameters": ["layers.0.qkv.weight", "head.weight"]},
    "regular expression": {"target_modules": r"layers\.\d+\.(qkv|mlp\.0)"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_adapted_policy_comes_back_as_it_was(tmp_path, options):
    policy = make_policy(lora=lora(**options))
    trainable = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    disturb(policy)
    policy.save_pretrained(tmp_path / "policy")
    loaded = DVLAPolicy.from_pretrained(tmp_path / "policy")
    assert_same_behaviour(policy, loaded)
    found = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert found == trainable, "training can go on where it stopped"
    loaded.save_pretrained(tmp_path / "policy")  # over itself
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "policy"))
    assert json.loads((tmp_path / "policy/adapter/adapter_config.json").read_text())["init_lora_weights"] is True


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_new_adapter_starts_from_the_merged_old_one(tmp_path, options):
    policy = make_policy(lora=lora(**options))
    disturb(policy)
    policy.save_pretrained(tmp_path / "policy")
    continued = DVLAPolicy.from_pretrained(tmp_path / "policy", lora=lora())
    assert_same_behaviour(policy, continued, exact=False)
    disturb(continued, seed=9)
    continued.save_pretrained(tmp_path / "next")
    assert_same_behaviour(continued, DVLAPolicy.from_pretrained(tmp_path / "next"))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_pefts_own_loader_finds_the_same_policy(tmp_path, options):
    """The files are peft's format: its loader on the saved base weights is an oracle for ours."""
    policy = make_policy(lora=lora(**options))
    disturb(policy)
    policy.save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "adapter").rename(tmp_path / "adapter")
    config = tmp_path / "policy" / "config.json"
    config.write_text(config.read_text().replace('"adapter": true', '"adapter": false'))
    base = DVLAPolicy.from_pretrained(tmp_path / "policy")
    base.backbone = PeftModel.from_pretrained(base.backbone, str(tmp_path / "adapter"))
    assert_same_behaviour(policy, base)


@pytest.mark.parametrize("init", [True, "pissa", "olora", "pissa_niter_4"])
def test_an_adapter_changes_nothing_before_it_is_trained(init):
    assert_same_behaviour(make_policy(), make_policy(lora=lora(init_lora_weights=init)), exact=init is True)


def test_without_target_modules_every_linear_layer_gets_an_adapter():
    adapted = make_policy(lora=lora(target_modules=None))
    linear = [n for n, module in make_policy().backbone.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len([n for n, _ in adapted.named_parameters() if "lora_A" in n]) == len(linear) > 10
    only = make_policy(lora=lora(target_modules=None, target_parameters=["head.weight"]))
    assert len([n for n, _ in only.named_parameters() if "lora_A" in n]) == 1


def test_lora_trains_adapters_and_value_head_only():
    plain, adapted = make_policy(), make_policy(lora=lora())
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name for name in trainable if "lora_" not in name} == {
        f"value_head.{n}" for n, _ in plain.value_head.named_parameters()
    }
    adapted.zero_grad()
    prompt = adapted.make_prompt(make_observations(2))
    masked = torch.full((2, 1, adapted.num_positions), adapted.mask_id)
    adapted.backbone.denoise(adapted.backbone.encode(prompt), masked)[0].sum().backward()
    assert {name for name, p in adapted.named_parameters() if p.grad is not None} <= trainable


@pytest.mark.parametrize("target_modules", ["all-linear", ["qkv"], None])
def test_the_users_lora_configuration_is_not_changed(target_modules):
    """One configuration object may serve several policies."""
    config = lora(target_modules=target_modules)
    before = config.to_dict()
    make_policy(lora=config)
    assert config.to_dict() == before


def test_base_weights_of_an_adapted_policy_are_those_before_the_adapter(tmp_path):
    policy = make_policy(lora=lora())
    disturb(policy)
    policy.save_pretrained(tmp_path / "policy")
    shutil.rmtree(tmp_path / "policy" / "adapter")
    config = tmp_path / "policy" / "config.json"
    config.write_text(config.read_text().replace('"adapter": true', '"adapter": false'))
    assert_same_behaviour(make_policy(), DVLAPolicy.from_pretrained(tmp_path / "policy"))


REFUSED = {
    "a name among others": (
        {"target_modules": ["qkv", "FAKE"]},
        r"lora.target_modules: 'FAKE' matches no module; .*qkv",
    ),
    "half a name": ({"target_modules": ["qkv", "ttention_out"]}, "'ttention_out' matches no module"),
    "no name": ({"target_modules": ["FAKE"]}, "'FAKE' matches no module; there are: .*head"),
    "an expression": ({"target_modules": "FAKE.*"}, r"'FAKE\.\*' matches no module"),
    "no expression": ({"target_modules": "(qkv"}, r"'\(qkv' is no regular expression"),
    "excluded": (
        {"target_modules": ["qkv", "head"], "exclude_modules": ["head"]},
        "'head' is left no module by the other",
    ),
    "saved whole": ({"target_modules": ["qkv", "head"], "modules_to_save": ["head"]}, "'head' is left no module"),
    "in no layer": (
        {"target_modules": ["qkv", "film"], "layers_to_transform": [0], "layers_pattern": "layers"},
        "'film' is left no module",
    ),
    "exclude_modules": ({"exclude_modules": ["FAKE"]}, "exclude_modules: 'FAKE' matches no module"),
    "modules_to_save": ({"modules_to_save": ["head", "FAKE"]}, "modules_to_save: 'FAKE' matches no module"),
    "rank_pattern": (
        {"rank_pattern": {"qkv": 2, "FAKE": 3}},
        "rank_pattern: 'FAKE' matches nothing that gets an adapter",
    ),
    "rank of another": (
        {"target_modules": ["qkv"], "rank_pattern": {"head": 3}},
        "rank_pattern: 'head' matches nothing",
    ),
    "alpha_pattern": ({"alpha_pattern": {"FAKE": 3}}, "alpha_pattern: 'FAKE' matches nothing"),
    "pattern": ({"rank_pattern": {"(": 3}}, r"rank_pattern: '\(' is no regular expression"),
    "layers_pattern": (
        {"target_modules": ["qkv"], "layers_to_transform": [0], "layers_pattern": ["layers", "blocksz"]},
        "layers_pattern: 'blocksz' matches no layers",
    ),
    "layer": (
        {"target_modules": ["qkv"], "layers_to_transform": [0, 7], "layers_pattern": "layers"},
        "no target module lies in a layer 7",
    ),
    "layers of all": (
        {"target_modules": None, "layers_to_transform": [0]},
        "layers_to_transform chooses among target_modules",
    ),
    "parameters": (
        {"target_parameters": ["head.weight", "head.w"]},
        "target_parameters: 'head.w' matches no parameter",
    ),
    "tokens": ({"trainable_token_indices": {"FAKE": [1]}}, "trainable_token_indices: 'FAKE' matches no module"),
    "rows": ({"trainable_token_indices": {"action_embedding": [99]}, "target_modules": ["qkv"]}, "lora: .*99|out of"),
    "tokens of nothing": ({"trainable_token_indices": [1]}, "give a mapping from the name of an embedding"),
    "kind of module": ({"target_modules": ["final_norm"]}, "lora: Target module LayerNorm.* is not supported"),
    "root parameter": ({"target_parameters": ["action_position"]}, "lora: .*top-level module is not supported"),
    "inference_mode": ({"inference_mode": True}, "inference_mode true would train nothing"),
    "r": ({"r": 0}, "r must be a whole number of at least 1, got 0"),
    "r negative": ({"r": -4}, "got -4"),
    "rank of a pattern": ({"rank_pattern": {"qkv": 0}}, "rank_pattern 'qkv' must be a whole number"),
    "alpha": ({"lora_alpha": 0}, "lora_alpha must be a number above 0, got 0"),
    "alpha of a pattern": ({"alpha_pattern": {"qkv": -1}}, "alpha_pattern 'qkv' must be a number above 0"),
    "dropout": ({"lora_dropout": 1.0}, r"lora_dropout must be in \[0, 1\), got 1.0"),
    "dropout nan": ({"lora_dropout": float("nan")}, "lora_dropout must be in .* got nan"),
    "bias": ({"bias": "some"}, "bias must be none, all or lora_only"),
    "init": ({"init_lora_weights": "pisa"}, "init_lora_weights 'pisa' is not supported: choose true"),
    "init from data": (
        {"init_lora_weights": "eva"},
        "init_lora_weights 'eva' is not supported|eva_config is not supported",
    ),
    "megatron": ({"megatron_config": {"a": 1}}, "option megatron_config is not supported"),
    "replication": ({"layer_replication": [[0, 1]]}, "option layer_replication is not supported"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_an_option_that_would_do_nothing_or_harm_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_policy(lora=lora(**{"r": 4, **options}))


def test_a_policy_with_two_adapters_cannot_be_saved_as_one(tmp_path):
    policy = make_policy(lora=lora())
    policy.backbone.add_adapter("second", lora(target_modules=["qkv"]))
    with pytest.raises(UserError, match="a policy holds one adapter, this backbone has default, second"):
        policy.save_pretrained(tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []
