"""An adapter knows its base; policies are built without weights and filled, so that a large base is held once."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors
import torch

from dvla_lightning import policy_directory
from dvla_lightning.actions.normalization import Normalization, NormalizationGroup
from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.errors import UserError
from dvla_lightning.policy import DVLAPolicy
from tests.small_policy import assert_same_behaviour, disturb, lora, make_policy
from tests.two_processes import run_as_two_ranks

ROOT = Path(__file__).parents[1]


@pytest.fixture
def base(tmp_path):
    make_policy().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(base, **options):
    """As RL leaves it: an adapter on a frozen base, and other value head weights."""
    policy = DVLAPolicy.from_pretrained(base, lora=lora(**options))
    disturb(policy)
    with torch.no_grad():
        policy.value_head[0].weight.add_(0.1)
    return policy


def saved_names(directory):
    with safetensors.safe_open(directory / "model.safetensors", "pt") as file:
        return set(file.keys())


def config(directory):
    return json.loads((directory / "config.json").read_text())


def test_an_adapter_is_saved_with_a_reference_to_its_base(base, tmp_path):
    policy = adapted(base)
    policy.save_pretrained(tmp_path / "runs" / "adapter", copy_base=False)
    directory = tmp_path / "runs" / "adapter"
    assert not any(name.startswith("backbone.") for name in saved_names(directory))
    assert {name for name in policy.state_dict() if not name.startswith("backbone.")} == saved_names(directory)
    reference = config(directory)["base"]
    assert (reference["pretrained"], reference["revision"], reference["is_copied"]) == ("../../base", None, False)
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(directory))
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")  # both move together
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "elsewhere", tmp_path / "new" / "runs")
    shutil.move(base, tmp_path / "new" / "base")
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "new" / "runs" / "adapter"))


def test_a_base_that_moved_or_changed_is_one_sentence(base, tmp_path):
    policy = adapted(base)
    policy.save_pretrained(tmp_path / "adapter", copy_base=False)
    shutil.move(base, tmp_path / "moved")
    with pytest.raises(UserError, match=r"needs its base: .*base' does not exist.*--model.policy.base"):
        DVLAPolicy.from_pretrained(tmp_path / "adapter")
    found = DVLAPolicy.from_pretrained(tmp_path / "adapter", base=str(tmp_path / "moved"))
    assert_same_behaviour(policy, found)
    found.save_pretrained(tmp_path / "again", copy_base=False)  # names the place where it was found
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "again"))
    make_policy(seed=5).save_pretrained(base)
    with pytest.raises(UserError, match=r"was trained on other weights than those of .*base: give the policy"):
        DVLAPolicy.from_pretrained(tmp_path / "adapter")
    (base / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"needs its base: .*is corrupt"):
        DVLAPolicy.from_pretrained(tmp_path / "adapter")


def test_small_bases_are_copied_along_and_large_ones_are_not(base, tmp_path, monkeypatch):
    policy = adapted(base)
    policy.save_pretrained(tmp_path / "small")
    assert "backbone.head.weight" in saved_names(tmp_path / "small") and config(tmp_path / "small")["base"]["is_copied"]
    size = sum(x.numel() * x.element_size() for x in make_policy().backbone.state_dict().values())
    monkeypatch.setattr(policy_directory, "SMALL_BASE", size - 1)
    policy.save_pretrained(tmp_path / "large")
    assert "backbone.head.weight" not in saved_names(tmp_path / "large")
    shutil.rmtree(base)
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "small"))


@pytest.mark.parametrize("change", ["biases", "pissa", "merged", "new"])
def test_whole_weights_are_saved_where_they_are_not_those_of_the_base(change, base, tmp_path):
    options = {"biases": {"bias": "all"}, "pissa": {"init_lora_weights": "pissa"}}.get(change, {})
    policy = make_policy(lora=lora()) if change == "new" else adapted(base, **options)
    if change == "merged":
        policy.save_pretrained(tmp_path / "first", copy_base=False)
        policy = DVLAPolicy.from_pretrained(tmp_path / "first", lora=lora())
    policy.save_pretrained(tmp_path / "policy", copy_base=False)
    assert "base" not in config(tmp_path / "policy")
    shutil.rmtree(base)
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "policy"), exact=change != "pissa")


def test_saving_over_the_base_loses_nothing(base):
    policy = adapted(base)
    policy.save_pretrained(base, copy_base=False)
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(base))


def test_saving_around_the_base_loses_nothing(base, tmp_path):
    make_policy().save_pretrained(tmp_path / "outer")
    shutil.move(base, tmp_path / "outer" / "base")
    policy = adapted(tmp_path / "outer" / "base")
    policy.save_pretrained(tmp_path / "outer", copy_base=False)  # replaces the directory, and what is in it
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "outer"))


@pytest.mark.parametrize("name", ["adapter", "evaluation"])
def test_a_part_of_a_policy_directory_is_no_place_for_a_policy(name, base):
    with pytest.raises(UserError, match=f"{name}/ is a part of the policy directory .*base: choose another place"):
        make_policy().save_pretrained(base / name)
    assert not (base / name).exists()


def test_a_base_that_would_not_be_read_is_refused(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapter")
    for directory in (base, tmp_path / "adapter"):
        with pytest.raises(UserError, match="holds all of its weights: leave out base"):
            DVLAPolicy.from_pretrained(directory, base=str(base))


def test_training_goes_on_on_the_same_base(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "first", copy_base=False)
    policy = DVLAPolicy.from_pretrained(tmp_path / "first")
    disturb(policy, seed=9)
    policy.save_pretrained(tmp_path / "deep" / "second", copy_base=False)
    assert config(tmp_path / "deep" / "second")["base"]["pretrained"] == "../../base"
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "deep" / "second"))
    assert policy_directory.policy_fingerprint(policy) == policy_directory.policy_fingerprint(
        DVLAPolicy.from_pretrained(tmp_path / "deep" / "second")
    )


def test_a_repository_is_named_with_its_revision(base, tmp_path, monkeypatch):
    import huggingface_hub

    snapshot, asked = tmp_path / "cache" / "snapshots" / "0a1b2c", []
    shutil.copytree(base, snapshot)

    def download(name, allow_patterns, revision):
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    policy = DVLAPolicy.from_pretrained("organisation/policy", lora=lora())
    policy.save_pretrained(tmp_path / "adapter", copy_base=False)
    reference = config(tmp_path / "adapter")["base"]
    assert (reference["pretrained"], reference["revision"]) == ("organisation/policy", "0a1b2c")
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "adapter"))
    assert asked == [("organisation/policy", None), ("organisation/policy", "0a1b2c")]


# -- format versions ---------------------------------------------------------------------------------------------------


def as_version_1(directory):
    """config.json as the first release wrote it."""
    content = config(directory)
    del content["base"]
    (directory / "config.json").write_text(json.dumps({**content, "format_version": 1}))


def test_version_1_is_read(base, tmp_path):
    policy = adapted(base)
    policy.save_pretrained(tmp_path / "old")
    as_version_1(tmp_path / "old")
    loaded = DVLAPolicy.from_pretrained(tmp_path / "old")
    assert_same_behaviour(policy, loaded)
    assert loaded.base is None
    assert config(ROOT / "checkpoints" / "tabletop-sft")["format_version"] == 1
    DVLAPolicy.from_pretrained(ROOT / "checkpoints" / "tabletop-sft")


def test_groups_of_normalisation_are_stored_with_the_policy(tmp_path):
    groups = [NormalizationGroup([0], "mean_std", 2.0), NormalizationGroup([1], "identity")]
    policy = make_policy(normalization=Normalization(actions=groups, proprioception="quantile"))
    policy.save_pretrained(tmp_path / "policy")
    loaded = DVLAPolicy.from_pretrained(tmp_path / "policy")
    assert loaded.normalization == policy.normalization
    assert_same_behaviour(policy, loaded)


# -- building without weights ------------------------------------------------------------------------------------------


class Rotating(MiniBackbone):
    """Has a table that no file holds."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("table", torch.linspace(-1, 1, self.vocab_size), persistent=False)

    def denoise(self, context, noisy_BSL):
        logits, hidden = super().denoise(context, noisy_BSL)
        return logits + self.table, hidden


class Empty(Rotating):
    def materialize(self, device):
        pass


class Loose(MiniBackbone):
    """Keeps a tensor that is neither parameter nor buffer."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.table = torch.linspace(-1, 1, self.vocab_size)

    def denoise(self, context, noisy_BSL):
        logits, hidden = super().denoise(context, noisy_BSL)
        return logits + self.table, hidden


class Unmeta(MiniBackbone):
    """Looks at its numbers while it is built, as no network on the meta device can."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        assert float(self.head.weight.abs().max()) > 0


def with_backbone(kind):
    policy = make_policy()
    backbone = kind(**policy.backbone.init_args)
    backbone.load_state_dict(policy.backbone.state_dict())
    policy.backbone = backbone
    return policy


@pytest.mark.parametrize("kind", [MiniBackbone, Rotating, Loose, Unmeta], ids=lambda kind: kind.__name__)
def test_whatever_a_backbone_keeps_comes_back(kind, tmp_path):
    policy = with_backbone(kind)
    policy.save_pretrained(tmp_path / "policy")
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "policy"))


def test_empty_weights_are_an_error(tmp_path):
    with_backbone(Empty).save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match=r"nothing gives 'backbone.table' its values.*materialize\(\)"):
        DVLAPolicy.from_pretrained(tmp_path / "policy")


def test_loading_draws_no_random_numbers(base):
    before = torch.get_rng_state()
    DVLAPolicy.from_pretrained(base)
    assert torch.equal(before, torch.get_rng_state())


def test_what_was_read_does_not_hang_on_the_file(base):
    policy = DVLAPolicy.from_pretrained(base)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    data = bytearray((base / "model.safetensors").read_bytes())
    with (base / "model.safetensors").open("r+b") as file:
        file.write(bytes(len(data)))
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


SHARDED = """
from dvla_lightning.policy import DVLAPolicy
join()
policy = DVLAPolicy.from_pretrained({directory!r} + "/base")
fully_shard(policy.backbone)
assert hasattr(policy.backbone.head.weight, "full_tensor")
policy.save_pretrained({directory!r} + "/gathered")
"""


def test_sharded_weights_are_gathered_before_they_are_saved(base, tmp_path):
    run_as_two_ranks(SHARDED.format(directory=str(tmp_path)), tmp_path)
    assert_same_behaviour(make_policy(), DVLAPolicy.from_pretrained(tmp_path / "gathered"))
