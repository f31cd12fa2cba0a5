"""Damaged and foreign policies, adapters and options: each ends in one sentence and exit code 2, and changes nothing.

A row: what is done to a policy directory (with an adapter), or which options are given, and the sentence.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dvla_lightning import cli
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.policy_adapters import add_adapter, merge_adapter

ROOT = Path(__file__).parents[1]
ADAPTER = "adapter/adapter_model.safetensors"
REMOVED = object()


def edit(file, *keys, value):
    """Sets one entry of a JSON file; REMOVED deletes it."""

    def damage(directory):
        content = json.loads((directory / file).read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        if value is REMOVED:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value
        (directory / file).write_text(json.dumps(content))

    return damage


def config(*keys, value):
    return edit("config.json", *keys, value=value)


def adapter(*keys, value):
    return edit("adapter/adapter_config.json", *keys, value=value)


def without(file):
    return lambda directory: (directory / file).unlink()


def write(file, content):
    def damage(directory):
        path = directory / file
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return damage


def tensors(file, change):
    def damage(directory):
        state = safetensors.torch.load_file(directory / file)
        safetensors.torch.save_file(change(state), directory / file)

    return damage


def replace(name, function):
    return lambda state: {**state, name: function(state[name]).contiguous()}


HEAD, DOWN = "backbone.head.weight", "base_model.model.head.lora_A.weight"
DAMAGE = {
    "no config": (without("config.json"), "is not a policy directory: it has no config.json"),
    "no weights": (without("model.safetensors"), "has no model.safetensors: copy the whole policy directory"),
    "config cut": (
        write("config.json", lambda b: b[: len(b) // 2]),
        "config.json is not valid JSON .*save the policy again",
    ),
    "config empty": (write("config.json", b""), "config.json is not valid JSON"),
    "config of bytes": (write("config.json", bytes(range(128, 256))), "config.json is not valid JSON"),
    "config a list": (write("config.json", b"[]"), r"config.json is not valid JSON \(not an object\)"),
    "config too deep": (write("config.json", b"[" * 100_000), "config.json is not valid JSON"),
    "config NaN": (
        write("config.json", lambda b: b.replace(b'"temperature": 1.0', b'"temperature": NaN')),
        "NaN is no number",
    ),
    "config infinite": (
        write("config.json", lambda b: b.replace(b'"temperature": 1.0', b'"temperature": 1e999')),
        "sampler.temperature must be float",
    ),
    "weights cut": (write("model.safetensors", lambda b: b[: len(b) // 2]), "model.safetensors is corrupt"),
    "weights empty": (write("model.safetensors", b""), "model.safetensors is corrupt"),
    "weights zeroed": (write("model.safetensors", lambda b: bytes(len(b))), "model.safetensors is corrupt"),
    "head of weights zeroed": (
        write("model.safetensors", lambda b: b[:8] + bytes(100) + b[108:]),
        "model.safetensors is corrupt",
    ),
    "weights partly zeroed": (
        write("model.safetensors", lambda b: b[:-5000] + bytes(100) + b[-4900:]),
        "its checksum differs",
    ),
    "a bit of the adapter flipped": (write(ADAPTER, lambda b: b[:-1] + bytes([b[-1] ^ 1])), "its checksum differs"),
    "weights a pickle": (
        lambda d: torch.save({"a": torch.zeros(1)}, d / "model.safetensors"),
        "model.safetensors is corrupt",
    ),
    "weights a directory": (
        lambda d: (d / "model.safetensors").unlink() or (d / "model.safetensors").mkdir(),
        "model.safetensors is corrupt",
    ),
    "weights of another shape": (
        tensors("model.safetensors", replace(HEAD, lambda x: x[:4])),
        r"model.safetensors does not fit .*: tensor .*head.weight' has the shape \[4, 16\] instead of \[8, 16\]",
    ),
    "weights as integers": (
        tensors("model.safetensors", replace(HEAD, lambda x: x.long())),
        "holds torch.int64 instead of torch.float32",
    ),
    "weights NaN": (
        tensors("model.safetensors", replace(HEAD, lambda x: x * float("nan"))),
        "cannot be used: tensor 'backbone.head.weight' holds nan in 128 of 128 places",
    ),
    "weights infinite": (
        tensors("model.safetensors", replace(HEAD, lambda x: x * 1e39)),
        "tensor 'backbone.head.weight' holds -?inf",
    ),
    "a tensor too many": (
        tensors("model.safetensors", lambda s: {**s, "extra": torch.zeros(1)}),
        "tensor 'extra' has no place there",
    ),
    "a tensor too few": (
        tensors("model.safetensors", lambda s: {n: x for n, x in s.items() if n != HEAD}),
        "tensor 'backbone.head.weight' is missing",
    ),
    "another version": (config("format_version", value=3), "has format_version 3, this release reads 1 and 2"),
    "version true": (config("format_version", value=True), "has format_version True"),
    "no version": (config("format_version", value=REMOVED), "has format_version None"),
    "unknown key": (config("surprise", value=1), "has the unknown key 'surprise'"),
    **{
        f"no {key}": (config(key, value=REMOVED), f"lacks the key '{key}'")
        for key in ("backbone", "sampler", "chunk_size")
    },
    **{
        f"{key} {value!r}": (
            config(key, value=value),
            f"config.json: {key} must be {wanted}.* got {re.escape(json.dumps(value))}",
        )
        for key, value, wanted in (
            ("action_dim", True, "int"),
            ("action_dim", "2", "int"),
            ("action_dim", 2.0, "int"),
            ("chunk_size", None, "int"),
            ("num_action_steps", [4], "int"),
            ("value_hidden_dims", 8, r"list\[int\]"),
            ("value_hidden_dims", ["8"], r"list\[int\]"),
            ("normalization", "none", "one of min_max, quantile, mean_std, identity"),
            ("normalization", 1, "one of"),
            ("sampler", None, "dict"),
            ("backbone", "MiniBackbone", "dict"),
            ("remarks", "seen", r"list\[str\]"),
            ("adapter", 1, "bool"),
        )
    },
    "negative sizes": (
        lambda d: (config("action_dim", value=-2)(d), config("chunk_size", value=-4)(d)),
        "action_dim must be at least 1, got -2",
    ),
    "action_dim of others": (
        config("action_dim", value=3),
        r"chunk_size \(4\) x action_dim \(3\) = 12 must equal the backbone's num_positions \(8\)",
    ),
    "no steps": (config("num_action_steps", value=0), r"num_action_steps must be in 1\.\.4, got 0"),
    "value head of nothing": (
        config("value_hidden_dims", value=[0]),
        r"value_hidden_dims\[0\] must be at least 1, got 0",
    ),
    "another value head": (config("value_hidden_dims", value=[64]), "tensor 'value_head.0.bias' has the shape"),
    "other statistics": (
        # as many action tokens, cut into other actions
        lambda d: [config(k, value=v)(d) for k, v in {"action_dim": 4, "chunk_size": 2, "num_action_steps": 2}.items()],
        "tensor 'action_normalizer.high' has the shape",
    ),
    "class a number": (config("backbone", "class_path", value=3), "backbone.class_path must be str, got 3"),
    "class without module": (
        config("backbone", "class_path", value="MiniBackbone"),
        "'MiniBackbone', which is no known Backbone",
    ),
    "class unknown": (
        config("backbone", "class_path", value="no.such.Module"),
        r"no known Backbone; if it is yours, name its module in trusted_modules: \[no.such\]",
    ),
    "class of torch": (
        config("backbone", "class_path", value="torch.nn.Linear"),
        "'torch.nn.Linear', which is no known Backbone",
    ),
    "class a tokenizer": (
        config("backbone", "class_path", value="dvla_lightning.actions.tokenizer.UniformBins"),
        "which is no known Backbone",
    ),
    "class missing": (config("backbone", "class_path", value=REMOVED), "backbone lacks the key 'class_path'"),
    "class with more": (config("backbone", "dict_kwargs", value={}), "backbone has the unknown key 'dict_kwargs'"),
    "abstract class": (
        config("action_tokenizer", "class_path", value="dvla_lightning.actions.tokenizer.ActionTokenizer"),
        "no known ActionTokenizer",
    ),
    "argument text": (config("backbone", "init_args", "dim", value="16"), r'backbone.dim must be int, got "16"'),
    "argument true": (
        config("backbone", "init_args", "num_layers", value=True),
        "backbone.num_layers must be int, got true",
    ),
    "argument negative": (
        config("backbone", "init_args", "dim", value=-16),
        "MiniBackbone: dim must be at least 1, got -16",
    ),
    "argument zero": (
        config("backbone", "init_args", "num_heads", value=0),
        "MiniBackbone: num_heads must be at least 1, got 0",
    ),
    "argument huge": (
        config("backbone", "init_args", "text_buckets", value=10**15),
        r"embedding.weight' has the shape \[1024, 16\] instead of \[1000000000000000, 16\]",
    ),
    "argument unknown": (config("backbone", "init_args", "depth", value=3), "does not fit MiniBackbone: .*'depth'"),
    "argument missing": (
        config("backbone", "init_args", "cameras", value=REMOVED),
        "does not fit MiniBackbone: .*'cameras'",
    ),
    "camera a number": (config("backbone", "init_args", "cameras", value=[1]), r"backbone.cameras must be list\[str\]"),
    "one bin": (
        config("action_tokenizer", "init_args", "num_bins", value=1),
        "UniformBins: num_bins must be .* at least 2",
    ),
    "sampler unknown": (config("sampler", "heat", value=1), "sampler does not fit Sampler: .*'heat'"),
    "sampler zero": (config("sampler", "temperature", value=0), "sampler temperature must be > 0, got 0"),
    "sampler text": (config("sampler", "temperature", value="1"), "sampler.temperature must be float"),
    "sampler greedy text": (config("sampler", "greedy", value="false"), r'sampler.greedy must be bool, got "false"'),
    "sampler greedy one": (config("sampler", "greedy", value=1), "sampler.greedy must be bool, got 1"),
    "sampler schedule": (config("sampler", "schedule", value="cos"), "sampler.schedule must be one of cosine, linear"),
    "no adapter": (
        lambda d: shutil.rmtree(d / "adapter"),
        "has no directory adapter/: copy the whole policy directory",
    ),
    "adapter a file": (lambda d: shutil.rmtree(d / "adapter") or (d / "adapter").touch(), "has no directory adapter/"),
    "foreign adapter": (config("adapter", value=False), "does not mention the directory adapter/"),
    "adapter without config": (without("adapter/adapter_config.json"), "adapter has no adapter_config.json"),
    "adapter without weights": (without(ADAPTER), "adapter has no adapter_model.safetensors"),
    "adapter config cut": (
        write("adapter/adapter_config.json", lambda b: b[:50]),
        "adapter_config.json cannot be used",
    ),
    "adapter weights cut": (write(ADAPTER, lambda b: b[:-50]), "adapter_model.safetensors is corrupt"),
    "adapter of another kind": (adapter("peft_type", value="IA3"), "not the configuration of a LoRA adapter"),
    "adapter of another rank": (adapter("r", value=4), r"lora_A.weight' has the shape \[2, .*\] instead of \[4, "),
    "adapter of no rank": (adapter("r", value=0), "r must be a whole number of at least 1, got 0"),
    "adapter pattern a number": (adapter("rank_pattern", value=[3]), r"rank_pattern must be a mapping, got \[3\]"),
    "adapter alpha text": (adapter("lora_alpha", value="8"), "lora_alpha must be a number above 0, got '8'"),
    "adapter of other modules": (
        adapter("target_modules", value=["q_proj"]),
        "adapter_config.json: Target modules .*q_proj.* not found",
    ),
    "adapter of fewer modules": (adapter("target_modules", value=["qkv"]), "has no place there"),
    "adapter targets a number": (adapter("target_modules", value=3), "adapter_config.json"),
    "adapter of a later peft": (adapter("new_option", value=3), "unknown option 'new_option'"),
    "adapter that imports": (adapter("megatron_config", value={"a": 1}), "option megatron_config is not supported"),
    "adapter NaN": (
        tensors(ADAPTER, replace(DOWN, lambda x: x * float("nan"))),
        f"{ADAPTER} cannot be used: tensor '{DOWN}' holds nan",
    ),
    "adapter renamed": (
        tensors(ADAPTER, lambda s: {f"x.{n}": x for n, x in s.items()}),
        "does not fit the backbone and adapter_config.json",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A policy with an adapter, made once; tests damage copies."""
    from peft import LoraConfig

    from tests.small_policy import make_tiny_policy

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("good") / "policy"
    make_tiny_policy(lora=LoraConfig(r=2, target_modules=["qkv", "head"])).save_pretrained(path)
    return path


@pytest.fixture
def directory(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "policy"))


def load(pretrained, place):
    """The quickest command that loads a policy."""
    words = ["schedule", "--collector.environment", "Tabletop", "--collector.num_envs", 1, "--num_steps", "[1, 2]"]
    return [*words, "--policy", pretrained, "--out", place / "schedule.yaml", "--episodes_per_task", 1]


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_policy_is_one_sentence(name, directory, tmp_path, refusal):
    damage, sentence = DAMAGE[name]
    damage(directory)
    assert re.search(sentence, refusal(load(directory, tmp_path), unchanged=tmp_path))


PLACES = {
    "nowhere": (
        "{place}/nowhere",
        "policy directory .*nowhere' does not exist: give a directory that holds config.json",
    ),
    "a file": ("{place}/policy/model.safetensors", "model.safetensors' is a file: give a policy directory"),
    "a checkpoint": ("{place}/last.ckpt", "last.ckpt' is a file: give a policy directory"),
    "an empty directory": ("{place}/empty", "empty is not a policy directory: it has no config.json"),
    "its run": ("{place}", "is not a policy directory: it has no config.json; did you mean .*policy"),
    "what a save left": (
        "{place}/best",
        r"an interrupted save left the policy before it in .*best.old: rename that one",
    ),
    "a repository": (
        "some-organisation/some-policy",
        "neither a policy directory nor a Hugging Face repository that can be",
    ),
    "a name too long": ("{place}/" + "x" * 300, "cannot be read: File name too long"),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_policy_directory_is_one_sentence(name, directory, tmp_path, refusal):
    (tmp_path / "empty").mkdir()
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    shutil.copytree(directory, tmp_path / "best.old")
    pretrained, sentence = PLACES[name]
    assert re.search(sentence, refusal(load(pretrained.format(place=tmp_path), tmp_path), unchanged=tmp_path))


OPTIONS = {
    "sampler.temperature -1": "sampler temperature must be > 0, got -1",
    "sampler.temperature .nan": "sampler temperature must be > 0, got nan",
    "sampler.temperature warm": "sampler: temperature",
    "sampler.confidence max": "sampler: confidence",
    "sampler.temprature 1": "sampler: Option 'temprature' is not accepted",
    "normalization quantile": "normalization comes from pretrained=",
    "value_hidden_dims [8]": "value_hidden_dims comes from pretrained=",
    "num_action_steps 5": r"num_action_steps must be in 1\.\.4, got 5",
    "lora.r 0": "lora: r must be a whole number of at least 1, got 0",
    "lora.r -2": "lora: r must be a whole number of at least 1, got -2",
    "lora.lora_alpha 0": "lora: lora_alpha must be a number above 0, got 0",
    "lora.lora_dropout 1.5": r"lora: lora_dropout must be in \[0, 1\), got 1.5",
    "lora.lora_dropout .nan": r"lora: lora_dropout must be in \[0, 1\), got nan",
    "lora.inference_mode true": "lora: inference_mode true would train nothing",
    "lora.target_modules [qkv,FAKE]": "lora.target_modules: 'FAKE' matches no module; there are: .*layers.*qkv",
    "lora.target_modules FAKE": "lora.target_modules: 'FAKE' matches no module",
    "lora.modules_to_save [FAKE]": "lora.modules_to_save: 'FAKE' matches no module",
    "lora.rank_pattern {FAKE: 2}": "lora.rank_pattern: 'FAKE' matches nothing that gets an adapter",
    "lora.alpha_pattern {FAKE: 2}": "lora.alpha_pattern: 'FAKE' matches nothing that gets an adapter",
    "lora.exclude_modules [FAKE]": "lora.exclude_modules: 'FAKE' matches no module",
    "lora.layers_to_transform [0]": "lora.layers_to_transform chooses among target_modules: give their names",
    **{
        f"lora.init_lora_weights {name}": f"lora: init_lora_weights '{name}' is not supported: choose true"
        for name in ("pisa", "eva", "pissa_niter_x", "pissa_niter_-1", "pissa_niter_", "xpissa_niter_4", "5")
    },
    "lora.init_lora_weights loftq": "lora: option loftq_config is not supported",
    "lora.init_lora_weights [pissa]": r"init_lora_weights: Expected bool or str, got \['pissa'\]",
    "lora.megatron_config {a: 1}": "lora: option megatron_config is not supported",
    "lora.rank 4": "lora: Option 'rank' is not accepted",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_the_policy_that_does_not_fit_is_one_sentence(option, directory, tmp_path, refusal):
    name, value = option.split(" ", 1)
    words = ["fit", "--config", ROOT / "configs/rl.yaml", "--model.policy.pretrained", directory]
    words += ["--trainer.default_root_dir", tmp_path / "run", f"--model.policy.{name}", value]
    assert re.search(OPTIONS[option], refusal(words, unchanged=tmp_path))


@pytest.mark.parametrize("place", ["words", "yaml"])
def test_an_initialisation_whose_name_holds_a_number_can_be_asked_for(place, directory, tmp_path, monkeypatch):
    """pissa moves a part of each weight into the adapter: another base, and the same sum."""
    made = []
    monkeypatch.setattr(
        "dvla_lightning.policy_directory.add_adapter", lambda *args: made.append(add_adapter(*args)) or made[0]
    )
    lora = {"init_lora_weights": "pissa_niter_4", "r": 2, "target_modules": ["head"]}
    (tmp_path / "lora.yaml").write_text(json.dumps({"model": {"policy": {"lora": lora}}}))
    words = [f"--model.policy.lora.{name}={json.dumps(value).strip(chr(34))}" for name, value in lora.items()]
    words = words if place == "words" else ["--config", tmp_path / "lora.yaml"]
    words = ["fit", "--config", ROOT / "configs/rl.yaml", "--model.policy.pretrained", directory, *words]
    words += ["--trainer.fast_dev_run", "true", "--trainer.default_root_dir", tmp_path, "--trainer.accelerator", "cpu"]
    cli.main([str(word) for word in [*words, "--data.evaluation.num_episodes", 0, "--model.optimizer.lr", 0]])
    before = DVLAPolicy.from_pretrained(directory).backbone  # with the adapter that was saved
    old = merge_adapter(before, directory).get_parameter("head.weight")
    new = made[0].get_parameter("base_model.model.head.base_layer.weight")
    head = made[0].get_submodule("base_model.model.head")
    assert made[0].peft_config["default"].init_lora_weights == "pissa_niter_4"
    assert not torch.allclose(old, new) and torch.allclose(old, new + head.get_delta_weight("default"), atol=1e-5)


def test_the_policy_that_the_rows_damage_is_good(directory):
    policy = DVLAPolicy.from_pretrained(directory)
    assert hasattr(policy.backbone, "peft_config") and policy.is_fitted
