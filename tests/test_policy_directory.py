"""Policy directories: they come back as they were, survive a crash, and never run what a stranger put into them."""

import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dvla_lightning import policy_directory
from dvla_lightning.actions.tokenizer import QuantileBins, UniformBins
from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.errors import UserError
from dvla_lightning.policy import DVLAPolicy
from tests.small_policy import ACTION_DIM, BINS, assert_same_behaviour, disturb, lora, make_policy


@pytest.fixture
def directory(tmp_path):
    make_policy().save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_round_trip(tmp_path):
    sampler = Sampler(temperature=1.3, confidence="entropy", selection_temperature=0.5, schedule="linear")
    options = {"sampler": sampler, "normalization": "quantile", "value_hidden_dims": [8, 4], "num_action_steps": 3}
    policy = make_policy(action_tokenizer=QuantileBins(BINS, ACTION_DIM), **options)
    policy.keep_reference()  # a training aid that is not part of the policy
    policy.save_pretrained(tmp_path / "policy", card="made by a test")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy"]
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "made by a test" in (tmp_path / "policy" / "README.md").read_text()

    loaded = DVLAPolicy.from_pretrained(tmp_path / "policy")
    assert loaded.sampler == sampler
    assert loaded.num_action_steps == 3
    assert loaded.is_fitted
    assert not loaded.training
    for name in ("action_normalizer", "proprioception_normalizer"):
        assert torch.equal(getattr(loaded, name).low, getattr(policy, name).low)
        assert torch.equal(getattr(loaded, name).high, getattr(policy, name).high)
    assert_same_behaviour(policy, loaded)
    assert DVLAPolicy.from_pretrained(tmp_path / "policy", num_action_steps=1).num_action_steps == 1


def test_the_card_shows_a_call_that_draws_anew(directory):
    card = (directory / "README.md").read_text()
    assert "policy.act(observation, num_steps=4)" in card and "torch.manual_seed(0)" in card


def test_fingerprint_names_the_weights(tiny_policy, tmp_path):
    before = policy_directory.policy_fingerprint(tiny_policy)
    tiny_policy.save_pretrained(tmp_path / "policy")
    assert policy_directory.policy_fingerprint(DVLAPolicy.from_pretrained(tmp_path / "policy")) == before
    tiny_policy.keep_reference()
    assert policy_directory.policy_fingerprint(tiny_policy) == before
    with torch.no_grad():
        tiny_policy.value_head[0].bias[0] += 1e-6
    assert policy_directory.policy_fingerprint(tiny_policy) != before


# -- saving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (0o002, 0o775, 0o664)]
)
def test_modes_follow_the_umask(tmp_path, umask, folder, file):
    policy = make_policy(lora=lora())
    before = os.umask(umask)
    try:
        policy.save_pretrained(tmp_path / "policy")
    finally:
        os.umask(before)
    for path in [tmp_path / "policy", *(tmp_path / "policy").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("function", ["before", "half-way"])
def test_interrupted_save_leaves_the_old_directory_as_it_was(directory, monkeypatch, function, error):
    before = contents(directory)
    other = make_policy(seed=7)

    def fail(state, path, metadata):
        if function == "half-way":
            path.write_bytes(b"half of the weights")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt, match=r"disk full|^$"):
        other.save_pretrained(directory)
    assert contents(directory) == before
    monkeypatch.undo()
    assert_same_behaviour(make_policy(), DVLAPolicy.from_pretrained(directory))
    other.save_pretrained(directory)  # the remains of the failed attempt do no harm
    assert_same_behaviour(other, DVLAPolicy.from_pretrained(directory))
    assert sorted(path.name for path in directory.parent.iterdir()) == ["policy"]


def test_a_failed_first_save_leaves_no_policy_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors.torch, "save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match=r"could not be saved to .*policy: disk full"):
        make_policy().save_pretrained(tmp_path / "deep" / "policy")
    assert list((tmp_path / "deep").iterdir()) == []


def killed_after(steps, action):
    """Runs `action` in a forked process that kills itself before the call number `steps` that changes the disk."""
    child = os.fork()
    if child == 0:
        left = [steps]

        def count(function):
            def counted(*args, **options):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return function(*args, **options)

            return counted

        for owner, names in ((Path, ("rename", "mkdir", "write_text", "chmod")), (os, ("fsync", "unlink", "rmdir"))):
            for name in names:
                setattr(owner, name, count(getattr(owner, name)))
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_killed_at_any_moment_a_save_leaves_the_old_policy_or_the_new(tmp_path):
    """SIGKILL before every call that changes the disk: one of the two is found, or a sentence says where the old is."""
    old, new = make_policy(), make_policy(seed=7, lora=lora())
    old.save_pretrained(tmp_path / "first")
    found = []
    for step in range(100):
        path = tmp_path / str(step) / "policy"
        shutil.copytree(tmp_path / "first", path)
        was_killed = killed_after(step, lambda path=path: new.save_pretrained(path))
        if path.exists():
            loaded = DVLAPolicy.from_pretrained(path)
            found.append("new" if (path / "adapter").exists() else "old")
            assert_same_behaviour(loaded, new if found[-1] == "new" else old)
        else:
            found.append("named")
            with pytest.raises(UserError, match=r"left the policy before it in .*policy\.old: rename that one"):
                DVLAPolicy.from_pretrained(path)
            assert_same_behaviour(old, DVLAPolicy.from_pretrained(f"{path}.old"))
        new.save_pretrained(path)
        assert [each.name for each in path.parent.iterdir()] == ["policy"]
        if not was_killed:
            break
    assert len(found) > 15 and list(dict.fromkeys(found)) == ["old", "named", "new"]


def test_what_lies_between_the_two_renames_is_named_and_recovered(directory, monkeypatch):
    rename = Path.rename

    def fail_for_the_new_one(self, target):
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(KeyboardInterrupt):
        make_policy(seed=7).save_pretrained(directory)
    monkeypatch.undo()
    with pytest.raises(
        UserError, match=r"interrupted save left the policy before it in .*policy\.old: rename that one"
    ):
        DVLAPolicy.from_pretrained(directory)
    broken = make_policy(seed=8)
    with torch.no_grad():
        broken.backbone.head.weight[0, 0] = float("nan")
    with pytest.raises(UserError):
        broken.save_pretrained(directory)
    assert_same_behaviour(make_policy(), DVLAPolicy.from_pretrained(f"{directory}.old"))
    make_policy(seed=7).save_pretrained(directory)
    assert_same_behaviour(make_policy(seed=7), DVLAPolicy.from_pretrained(directory))
    assert [path.name for path in directory.parent.iterdir()] == ["policy"]


def test_a_rename_that_the_disk_refuses_leaves_the_old_policy_in_place(directory, monkeypatch):
    before, rename = contents(directory), Path.rename

    def fail_for_the_new_one(self, target):
        if self.name.endswith(".partial"):
            raise OSError("read-only file system")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(UserError, match=r"could not be saved to .*: read-only file system"):
        make_policy(seed=7).save_pretrained(directory)
    assert contents(directory) == before
    assert [path.name for path in directory.parent.iterdir()] == ["policy"]


def test_a_full_disk_is_one_sentence_and_the_old_policy_stays(directory):
    """A limit on the size of files stands for the full disk."""
    code = (
        "import resource, sys; from tests.small_policy import make_policy; policy = make_policy(seed=7)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "policy.save_pretrained(sys.argv[1])"
    )
    before = contents(directory)
    done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True)
    assert "UserError: the policy could not be saved to" in done.stderr, done.stderr
    assert contents(directory) == before
    assert [path.name for path in directory.parent.iterdir()] == ["policy"]


@pytest.mark.parametrize("kind", ["a file", "a directory of something else", "below a file"])
def test_what_is_no_policy_is_not_replaced(tmp_path, kind):
    place = tmp_path / "run"
    if kind == "a directory of something else":
        place.mkdir()
        (place / "last.ckpt").write_text("weights")
    else:
        place.write_text("notes")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"could not be saved to .*run"):
        make_policy().save_pretrained(place / "policy" if kind == "below a file" else place)
    assert contents(tmp_path) == before


def test_an_empty_directory_and_a_link_are_filled(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for seed in (0, 7):
        make_policy(seed=seed).save_pretrained(tmp_path / "link")
        assert_same_behaviour(make_policy(seed=seed), DVLAPolicy.from_pretrained(tmp_path / "there"))
    assert (tmp_path / "link").is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["link", "there"]


# -- numbers that are not finite ---------------------------------------------------------------------------------------


def spoil(policy, part, number):
    with torch.no_grad():
        tensors = {
            "weight": policy.backbone.get_parameter("head.weight") if part == "weight" else None,
            "statistics": policy.action_normalizer.high,
            "value head": policy.value_head[0].weight,
            "adapter": next((p for n, p in policy.named_parameters() if "lora_B" in n), None),
        }
        tensors[part].view(-1)[1] = number


@pytest.mark.parametrize("number", [float("nan"), -float("inf")])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("weight", "backbone.head.weight"),
        ("statistics", "action_normalizer.high"),
        ("value head", "value_head.0.weight"),
        ("adapter", "base_model.model.*lora_B.weight"),
    ],
)
def test_a_policy_that_is_not_finite_is_not_saved_and_the_one_before_stays(directory, part, name, number):
    before = contents(directory)
    policy = make_policy(lora=lora() if part == "adapter" else None)
    spoil(policy, part, number)
    with pytest.raises(UserError, match=f"was not saved to .*policy: tensor '{name}' holds {number} in 1 of"):
        policy.save_pretrained(directory)
    assert contents(directory) == before
    assert [path.name for path in directory.parent.iterdir()] == ["policy"]


def test_a_policy_without_statistics_is_not_saved(tmp_path):
    policy = DVLAPolicy(
        backbone=make_policy().backbone, action_tokenizer=UniformBins(BINS), action_dim=ACTION_DIM, chunk_size=4
    )
    with pytest.raises(UserError, match=r"tensor 'action_normalizer\.low' holds nan"):
        policy.save_pretrained(tmp_path / "policy")


@pytest.mark.parametrize("file", ["model.safetensors", "adapter/adapter_model.safetensors"])
@pytest.mark.parametrize(("number", "dtype"), [(float("nan"), None), (float("inf"), None), (1e300, torch.float64)])
def test_a_file_that_is_not_finite_is_not_loaded(tmp_path, file, number, dtype):
    """1e300 is finite in the file and infinite in the float32 of the network."""
    make_policy(lora=lora()).save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / file
    state = safetensors.torch.load_file(path)
    name = next(name for name in state if "layers.1.qkv" in name and name.endswith("weight"))
    state[name] = state[name].to(dtype or state[name].dtype)
    state[name][0, 0] = number
    safetensors.torch.save_file(state, path)
    with pytest.raises(UserError, match=rf"{path} cannot be used: tensor '{name}' holds (nan|inf) in 1 of"):
        DVLAPolicy.from_pretrained(tmp_path / "policy")


class ForbiddingBackbone(MiniBackbone):
    """Never says token 3: its buffer holds an infinity that is meant."""

    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("allowed", torch.zeros(self.vocab_size).index_fill(0, torch.tensor([3]), -float("inf")))

    def denoise(self, context, noisy_BSL):
        logits, hidden = super().denoise(context, noisy_BSL)
        return logits + self.allowed, hidden


def forbidding_policy():
    plain = make_policy()
    policy = make_policy(backbone=ForbiddingBackbone(**plain.backbone.init_args))
    return policy


def test_an_infinite_buffer_of_a_users_network_is_kept_but_nan_is_not(tmp_path):
    policy = forbidding_policy()
    policy.save_pretrained(tmp_path / "policy")
    assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "policy"))
    policy.backbone.allowed[1] = float("nan")
    with pytest.raises(UserError, match=r"tensor 'backbone\.allowed' holds nan"):
        policy.save_pretrained(tmp_path / "policy")


# -- strangers' files --------------------------------------------------------------------------------------------------

OWN_NETWORK = """
from dvla_lightning.backbones import MiniBackbone
class OwnBackbone(MiniBackbone):
    pass
"""


def in_a_fresh_process(code, cwd):
    """Runs code with the working directory on sys.path, as notebooks have it, and of this package only."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def name_class(directory, class_path):
    config = json.loads((directory / "config.json").read_text())
    config["backbone"]["class_path"] = class_path
    (directory / "config.json").write_text(json.dumps(config))


EVIL = "open({marker!r}, 'w').write('it ran')\n"
REFUSED = """
from dvla_lightning.errors import UserError
from dvla_lightning.policy import DVLAPolicy
def refused(sentence, path, **options):
    try:
        DVLAPolicy.from_pretrained(path, **options)
    except UserError as error:
        assert sentence in str(error), error
    else:
        raise AssertionError("accepted")
"""


def test_nothing_beside_a_policy_or_in_the_working_directory_runs(directory, tmp_path):
    marker = tmp_path / "ran"
    evil = EVIL.format(marker=str(marker)) + OWN_NETWORK
    here = tmp_path / "here"
    here.mkdir()
    for folder in (directory, here):
        for name in ("evil.py", "conftest.py", "setup.py", "modeling.py", "policy.py"):
            (folder / name).write_text(evil)
        (folder / "package").mkdir()
        (folder / "package" / "__init__.py").write_text(evil)
    code = REFUSED
    for number, class_path in enumerate(
        ("evil.OwnBackbone", "package.OwnBackbone", "package.evil.nothing", "os.system", "modeling.OwnBackbone", "evil")
    ):
        copy = tmp_path / f"policy{number}"
        shutil.copytree(directory, copy)
        name_class(copy, class_path)
        code += f"refused({class_path + chr(39)!r} + ', which is no known Backbone', {str(copy)!r})\n"
    in_a_fresh_process(code, here)
    assert not marker.exists()


def test_a_users_own_network_is_imported_when_it_is_named(directory, tmp_path):
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    name_class(directory, "own_network.OwnBackbone")
    path = str(directory)
    code = (
        REFUSED
        + f"""
refused("if it is yours, name its module in trusted_modules: [own_network]", {path!r})
refused("which is no known Backbone", {path!r}, trusted_modules=["own", "json"])
policy = DVLAPolicy.from_pretrained({path!r}, trusted_modules=["own_network"])
assert type(policy.backbone).__name__ == "OwnBackbone"
DVLAPolicy.from_pretrained({path!r})  # the program has imported it by now
"""
    )
    in_a_fresh_process(code, tmp_path)
    name_class(directory, "no_network.OwnBackbone")
    with pytest.raises(UserError, match=r"'no_network\.OwnBackbone', whose module cannot be imported"):
        DVLAPolicy.from_pretrained(directory, trusted_modules=["no_network"])


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return exec, (EVIL.format(marker=self.marker),)


@pytest.mark.parametrize("beside", [True, False], ids=["beside safetensors", "alone"])
def test_a_pickle_is_never_loaded(tmp_path, beside, monkeypatch):
    marker = tmp_path / "ran"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    make_policy(lora=lora()).save_pretrained(tmp_path / "policy")
    for name in ("pytorch_model.bin", "adapter/adapter_model.bin", "adapter/adapter_model.pt", "adapter/eva_state.bin"):
        (tmp_path / "policy" / name).write_bytes(pickle.dumps(Bomb(marker)))
    if beside:
        DVLAPolicy.from_pretrained(tmp_path / "policy")
    else:
        (tmp_path / "policy/adapter/adapter_model.safetensors").unlink()
        with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle, which is never loaded"):
            DVLAPolicy.from_pretrained(tmp_path / "policy")
    assert not marker.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"megatron_config": {"hidden_size": 4}, "megatron_core": "evil_module"},
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil_module"}},
        {"corda_config": {"cache_file": "evil.pt", "covariance_file": "evil.pt"}, "init_lora_weights": "corda"},
        {"base_model_name_or_path": "evil_module", "task_type": "EVIL", "peft_version": "evil_module"},
        {"lora_ga_config": {"cache_file": "evil.pt"}, "init_lora_weights": "lora_ga"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_configuration_of_an_adapter_runs_nothing(tmp_path, options, monkeypatch):
    marker = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(EVIL.format(marker=str(marker)))
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Bomb(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    policy = make_policy(lora=lora())
    disturb(policy)
    policy.save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy/adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))
    try:
        assert_same_behaviour(policy, DVLAPolicy.from_pretrained(tmp_path / "policy"))
    except UserError as error:
        assert "is not supported" in str(error)
    assert not marker.exists() and "evil_module" not in sys.modules


def test_a_snapshot_downloads_only_what_is_read(directory, monkeypatch):
    import fnmatch

    import huggingface_hub

    asked = {}

    def download(name, allow_patterns, revision):
        asked.update({name: allow_patterns})
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    DVLAPolicy.from_pretrained("organisation/policy")
    wanted = ("config.json", "model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors")
    foreign = ("modeling.py", "pytorch_model.bin", "adapter/adapter_model.bin", "README.md")
    patterns = asked["organisation/policy"]
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for name in wanted)
    assert not any(fnmatch.fnmatch(name, pattern) for pattern in patterns for name in foreign)
