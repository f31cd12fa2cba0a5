"""Checkpoints that cannot be used: each ends in its one sentence and exit code 2, and nothing is written."""

import copy
import math
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from dvla_lightning.checkpointing.storage import read_checkpoint
from dvla_lightning.cli import main
from dvla_lightning.errors import UserError
from tests.checkpointing.tiny_runs import FOR_TRAINING, arguments, damage, load, rl_options, save_tiny_policy

LORA = {"model.policy.lora.r": 2, "model.policy.lora.lora_alpha": 4, "model.policy.lora.target_modules": "all-linear"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a policy, and checkpoints of a run that trains all of it and of one that trains an adapter."""
    home = tmp_path_factory.mktemp("home")
    save_tiny_policy(home / "policy")
    for name, more in (("full", {}), ("lora", LORA)):
        options = {**rl_options(home / "policy"), **more, "trainer.max_epochs": 1}
        main(arguments("fit", "rl.yaml", {**options, "trainer.default_root_dir": home / name}))
        shutil.move(home / name / "checkpoints" / "last.ckpt", home / f"{name}.ckpt")
        shutil.rmtree(home / name)
    return home


@pytest.fixture
def expect(home, tmp_path, refusal):
    """Expects a sentence from a verb that is given a checkpoint, and an empty run directory afterwards."""

    def check(verb, path, sentence, options=None):
        run = tmp_path / "run"
        given = {
            **rl_options(home / "policy"),
            "data.evaluation.num_episodes": 1,
            "trainer.max_epochs": 2,
            **(options or {}),
        }
        given |= {"trainer.default_root_dir": run, "ckpt_path": path, "trainer.logger": "false"}
        if verb != "fit":
            given = {name: value for name, value in given.items() if name not in FOR_TRAINING}
        assert sentence in refusal(arguments(verb, "rl.yaml", given))
        left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.suffix != ".yaml"}
        assert left <= {".lock"}, left  # who held the directory; it means nothing once the process has ended

    return check


def truncated(path, home):
    path.write_bytes((home / "full.ckpt").read_bytes()[:-1000])


def damaged(path, home):
    shutil.copy(home / "full.ckpt", path)
    damage(path)


def other_archive(path, home):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def compressed_archive(path, home):
    """Ten megabytes of zeros in ten kilobytes: what is small may not become large."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("last/data.pkl", bytes(10_000_000))


def no_pickle(path, home):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("last/data.pkl", "hello")


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def code(path, home):
    torch.save({**load(home / "full.ckpt"), "extra": Attack(path.with_name("ran"))}, path)


FILES = {
    "missing": (lambda path, home: None, "does not exist"),
    "a directory": (lambda path, home: path.mkdir(), "is a directory"),
    "a policy directory": (lambda path, home: shutil.copytree(home / "policy", path), "is a policy directory"),
    "empty": (lambda path, home: path.touch(), "damaged or no checkpoint of a run"),
    "text": (lambda path, home: path.write_text("hello"), "damaged or no checkpoint of a run"),
    "weights of a policy": (
        lambda path, home: shutil.copy(home / "policy" / "model.safetensors", path),
        "damaged or no checkpoint of a run",
    ),
    "truncated": (truncated, "damaged or no checkpoint of a run"),
    "zeroed bytes": (damaged, "is damaged"),
    "another archive": (other_archive, "no checkpoint of a run, but another archive"),
    "a compressed archive": (compressed_archive, "no checkpoint of a run, but a compressed archive"),
    "no pickle": (no_pickle, "damaged or no checkpoint of a run"),
    "code": (code, "may be code, and was not read"),
    "a tensor": (lambda path, home: torch.save(torch.zeros(3), path), "holds a Tensor where a dict should be"),
    "a list": (lambda path, home: torch.save([1, 2], path), "holds a list where a dict should be"),
    "nothing in it": (lambda path, home: torch.save({}, path), "lacks the key 'epoch'"),
    "a state_dict alone": (
        lambda path, home: torch.save(load(home / "full.ckpt")["state_dict"], path),
        "lacks the key 'epoch'",
    ),
}


@pytest.mark.parametrize(
    ("name", "verb"),
    [*((name, "fit") for name in FILES), *((name, "validate") for name in list(FILES)[::3])],
)
def test_a_file_that_is_no_checkpoint(name, verb, home, tmp_path, expect):
    make, sentence = FILES[name]
    path = tmp_path / "bad.ckpt"
    make(path, home)
    expect(verb, path, sentence)
    assert not (tmp_path / "ran").exists()


def delete(key):
    return lambda c: c.pop(key)


def put(*keys_and_value):
    """Sets a value deep inside a checkpoint."""
    *keys, value = keys_and_value

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def spoil(value):
    def change(content):
        content["state_dict"]["policy.backbone.head.weight"][3, 2] = value

    return change


def reference(content, value):
    """Of all of the backbone, with another value at the head."""
    weights = content["state_dict"].items()
    names = {name.removeprefix("policy."): x for name, x in weights if name.startswith("policy.backbone.")}
    return {**names, "backbone.head.weight": value}


def spoil_buffer(content):
    content["state_dict"]["policy.action_normalizer.low"] = torch.tensor([0.0, math.nan])


KEYS = [
    *("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops"),
    *("callbacks", "optimizer_states", "lr_schedulers", "dvla"),
]
FORM = {
    **{f"without {key}": (delete(key), f"lacks the key '{key}'") for key in KEYS},
    **{f"{key} is a tuple": (put(key, (1,)), "holds a tuple") for key in KEYS},
}


@pytest.mark.parametrize("name", FORM)
def test_a_checkpoint_that_lightning_could_not_read(name, home, tmp_path):
    """The two commands read through this door alone."""
    change, sentence = FORM[name]
    content = copy.deepcopy(load(home / "full.ckpt"))
    change(content)
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"bad.ckpt is no checkpoint of a run: it") as caught:
        read_checkpoint(tmp_path / "bad.ckpt")
    assert sentence in str(caught.value)


FIT_LOOP = ("loops", "fit_loop")
BOTH = {
    "without weights": (delete("state_dict"), "lacks the key 'state_dict'"),
    "of a newer Lightning": (put("pytorch-lightning_version", "9.1.0"), "was written with Lightning 9.1.0"),
    "of no version": (put("pytorch-lightning_version", "new"), "no version of Lightning"),
    "no tensor among the weights": (put("state_dict", "policy.backbone.head.weight", [1.0]), "is a list and no tensor"),
    "a number as name": (put("state_dict", 3, torch.zeros(1)), "3 of its state_dict"),
    "NaN in a weight": (spoil(math.nan), "policy.backbone.head.weight holds numbers that are not finite"),
    "infinity in a weight": (spoil(math.inf), "policy.backbone.head.weight holds numbers that are not finite"),
    "NaN in a statistic": (spoil_buffer, "policy.action_normalizer.low holds numbers that are not finite"),
    "without a weight": (lambda c: c["state_dict"].pop("policy.backbone.head.weight"), "is in only one of them"),
    "with a weight more": (put("state_dict", "policy.extra", torch.zeros(1)), "'policy.extra' is in only one of them"),
    "a weight of another shape": (put("state_dict", "policy.backbone.head.bias", torch.zeros(9)), "has another shape"),
    "without a loop": (lambda c: [c["loops"].pop(name) for name in list(c["loops"])], "its loops lack fit_loop"),
    "of other action tokens": (put("dvla", "actions", "tokenizer", "Other"), "with other action tokens"),
    "of another LoRA scaling": (put("dvla", "lora_scaling", [4.0]), "with other lora_alpha / r ([4.0], not [])"),
    "on other frozen weights": (put("dvla", "frozen_weights", "0" * 64), "on other frozen weights"),
    "a weight called a buffer": (
        lambda c: (spoil(math.inf)(c), c["dvla"]["buffers"].append("policy.backbone.head.weight")),
        "calls policy.backbone.head.weight a buffer, and it is a weight here",
    ),
    "remarks that are text": (put("policy_remarks", "trained"), "its policy_remarks are no list of printable texts"),
    "remarks of numbers": (put("policy_remarks", [1]), "its policy_remarks are no list of printable texts"),
    "a remark that moves the cursor": (put("policy_remarks", ["\x1b[2J"]), "no list of printable texts"),
    "a reference that is a list": (put("policy_reference", [1]), "its policy_reference does not have the names"),
    "a reference of other names": (
        put("policy_reference", {"head": torch.zeros(1)}),
        "policy_reference does not have the",
    ),
    "a reference of another shape": (
        lambda c: c.update(policy_reference=reference(c, torch.zeros(2))),
        "is of another shape or not finite at",
    ),
    "a reference of words": (lambda c: c.update(policy_reference=reference(c, "a")), "of another shape or not finite"),
    "a reference that is infinite": (
        lambda c: c.update(policy_reference=reference(c, torch.full((8, 16), math.inf))),
        "not finite at backbone.head.weight",
    ),
    "skipped updates in words": (put("skipped_updates", "two"), "its skipped_updates must be a whole number"),
    "skipped updates below 0": (put("skipped_updates", -1), "skipped_updates must be a whole number of at least 0"),
    "skipped updates of yes": (put("skipped_updates", True), "of at least 0, got True"),
    "record without a key": (lambda c: c["dvla"].pop("actions"), "lacks the key 'actions'"),
}
FIT_ONLY = {
    "of SFT": (put("dvla", "objective", "SupervisedObjective"), "by SupervisedObjective, not TrajectoryPPO"),
    "of another optimizer": (put("dvla", "optimizers", ["torch.optim.sgd.SGD"]), "another model.optimizer"),
    "of another scheduler": (put("dvla", "lr_schedulers", []), "another model.lr_scheduler (none, not"),
    "of weights alone": (lambda c: [c.pop(key) for key in KEYS[5:]], "holds weights alone"),
    "from inside an epoch": (put("dvla", "is_epoch_end", False), "was written inside epoch 0"),
    "without the progress": (lambda c: c["loops"]["fit_loop"].pop("epoch_progress"), "lacks the key 'epoch_progress'"),
    "progress in words": (put(*FIT_LOOP, "epoch_progress", "current", "ready", "one"), "holds a str at 'ready'"),
    "of no optimizer": (put("optimizer_states", [{}]), "those of no optimizer"),
    "of two optimizers": (lambda c: c["optimizer_states"].append(c["optimizer_states"][0]), "optimizer_states are 2"),
    "of one group less": (lambda c: c["optimizer_states"][0]["param_groups"].pop(), "other groups of parameters"),
    "no lr in its optimizer": (lambda c: c["optimizer_states"][0]["param_groups"][0].pop("lr"), "lacks the key 'lr'"),
    "lr in words": (lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr="high"), "holds a str at 'lr'"),
    "moments of another shape": (
        lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(2, 9)), "exp_avg of another shape",
    ),
    "moments of one parameter missing": (
        lambda c: c["optimizer_states"][0]["state"][1].pop("exp_avg"), "not have the same",
    ),
    "moments of a parameter too many": (
        lambda c: c["optimizer_states"][0]["state"].update({999: {}}), "parameter 999, which does not exist",
    ),
    "NaN in a moment": (
        lambda c: c["optimizer_states"][0]["state"][0]["exp_avg"].fill_(math.nan), "exp_avg of parameter 0 holds",
    ),
    "a scheduler without its count": (lambda c: c["lr_schedulers"][0].pop("last_epoch"), "another model.lr_scheduler"),
    "a learning rate that is NaN": (
        lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=math.nan), "lr of group 0 holds",
    ),
    "betas of one number": (
        lambda c: c["optimizer_states"][0]["param_groups"][0].update(betas=(0.9,)), "holds 1 numbers where 2 should be",
    ),
    "a step in words": (lambda c: c["optimizer_states"][0]["state"][0].update(step="a"), "those of no optimizer"),
    "a negative counter": (lambda c: c.update(global_step=-1), "its counters are negative"),
    "buffers that are no names": (lambda c: c["dvla"].update(buffers=5), "buffers of its record is no list of names"),
    "whole numbers for weights": (
        lambda c: c["state_dict"].update({"policy.backbone.head.weight": torch.ones_like(
            c["state_dict"]["policy.backbone.head.weight"], dtype=torch.int64)}), "holds another kind of numbers",
    ),
    "a sparse weight": (
        lambda c: c["state_dict"].update({"policy.backbone.head.weight":
            c["state_dict"]["policy.backbone.head.weight"].to_sparse()}), "a tensor without plain values",
    ),
    "a callback's state in words": (put("callbacks", "SavePolicy", "best", "high"), "holds a str at 'best'"),
    "a callback's state of another form": (put("callbacks", "SavePolicy", {}), "lacks the key 'best'"),
}  # fmt: skip


# Both verbs read through one door; what lies behind it, and a part of what does not, is tried with both.
VALIDATED = [
    name
    for name in BOTH
    if name.startswith(("of ", "on ", "record", "NaN", "with a", "without weights", "a weight called"))
]


@pytest.mark.parametrize(
    ("name", "verb"), [*((name, "fit") for name in (*BOTH, *FIT_ONLY)), *((name, "validate") for name in VALIDATED)]
)
def test_a_checkpoint_that_is_not_as_this_run_would_write_it(name, verb, home, tmp_path, expect):
    change, sentence = {**BOTH, **FIT_ONLY}[name]
    content = copy.deepcopy(load(home / "full.ckpt"))
    change(content)
    torch.save(content, tmp_path / "bad.ckpt")
    expect(verb, tmp_path / "bad.ckpt", sentence)


SGD = {"model.optimizer": "SGD", "model.optimizer.lr": 0.1}
CHANGED_RUNS = {
    "another optimizer": ("full", SGD, "another model.optimizer (torch.optim.adamw.AdamW, not torch.optim.sgd.SGD)"),
    "another scheduler": (
        "full", {"model.lr_scheduler": "StepLR", "model.lr_scheduler.step_size": 3}, "another model.lr_scheduler",
    ),
    "an adapter": ("full", LORA, "is in only one of them"),
    "no adapter": ("lora", {}, "is in only one of them"),
    "another rank": ("lora", {**LORA, "model.policy.lora.r": 3}, "has another shape"),
    "another alpha": ("lora", {**LORA, "model.policy.lora.lora_alpha": 8}, "other lora_alpha / r ([2.0], not [4.0])"),
    "fewer epochs": ("full", {"trainer.max_epochs": 0}, "max_epochs"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED_RUNS)
def test_a_run_that_is_not_that_of_the_checkpoint(name, home, expect):
    file, options, sentence = CHANGED_RUNS[name]
    expect("fit", home / f"{file}.ckpt", sentence, options)


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_an_adapter_on_other_base_weights(verb, home, tmp_path, expect):
    """The base is not in the checkpoint, and LoRA's file would fit any."""
    save_tiny_policy(tmp_path / "other", seed=1)
    options = {**LORA, "model.policy.pretrained": tmp_path / "other"}
    expect(verb, home / "lora.ckpt", "on other frozen weights than those of model.policy.pretrained", options)


def test_a_new_backbone_of_another_size(home, tmp_path, expect):
    save_tiny_policy(tmp_path / "other", dim=32)
    expect("fit", home / "full.ckpt", "has another shape", {"model.policy.pretrained": tmp_path / "other"})


@pytest.mark.parametrize("file", ["full", "lora"])
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_the_checkpoints_that_were_changed_above_are_good(verb, file, home, tmp_path, capfd):
    options = {**rl_options(home / "policy"), **(LORA if file == "lora" else {}), "trainer.max_epochs": 2}
    options |= {
        "data.evaluation.num_episodes": 1,
        "ckpt_path": home / f"{file}.ckpt",
        "trainer.default_root_dir": tmp_path,
    }
    if verb == "validate":
        options = {name: value for name, value in options.items() if name not in FOR_TRAINING}
    main(arguments(verb, "rl.yaml", options))
    assert "dvla: error" not in capfd.readouterr().err
