"""Whole runs and their directories: what is saved starts another, loggers do not matter, auto goes on."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml

from dvla_lightning.cli import main
from dvla_lightning.policy import DVLAPolicy

RL = str(Path(__file__).parents[2] / "configs" / "rl.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing may appear in the working directory."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert not list((tmp_path / "cwd").iterdir())


@pytest.fixture
def fit(tiny_policy, tmp_path):
    tiny_policy.save_pretrained(tmp_path / "start")

    def run(directory, *more, config=RL, epochs=1, verb="fit"):
        words = [verb, "--config", config, "--data.evaluation.num_episodes", 0, "--data.collector.progress", "false"]
        words += ["--data.episodes_per_iteration", 5, "--trainer.enable_progress_bar", "false"]
        words += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", directory]
        words += ["--model.policy.pretrained", tmp_path / "start", "--trainer.max_epochs", epochs]
        words += ["--model.lr_scheduler.init_args.num_epochs", 70]
        main([str(word) for word in [*words, *more]])

    return run


def content(directory):
    """Every file below it, by its hash."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def epoch(directory):
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]


CSV = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir"]


@pytest.mark.parametrize("logger", ["default", "csv", "none", "two"])
def test_a_saved_configuration_starts_a_run_elsewhere_and_leaves_its_own_alone(logger, fit, tmp_path, refusal):
    logs = {"default": [], "csv": [*CSV, tmp_path / "logs"], "none": ["--trainer.logger", "false"]}
    pair = "lightning.pytorch.loggers."
    both = [{"class_path": f"{pair}{name}", "init_args": {"save_dir": str(tmp_path / "logs")}}
            for name in ("CSVLogger", "TensorBoardLogger")]  # fmt: skip
    logs["two"] = ["--trainer.logger", json.dumps(both)]
    a, b = tmp_path / "a", tmp_path / "b"
    fit(a, *logs[logger])
    saved = (a / "config.yaml").read_text()
    flags = yaml.safe_load(saved)["trainer"]
    assert "ckpt_path" not in yaml.safe_load(saved) and flags["callbacks"] is None
    assert str(a) not in saved.replace(f"default_root_dir: {a}", "")
    before = content(a)
    fit(b, config=str(a / "config.yaml"))
    assert content(a) == before and epoch(b) == 0
    assert "already holds a run: continue it with --ckpt_path last" in refusal(fit, a, *logs[logger])
    assert content(a) == before
    fit(a, "--ckpt_path", "last", *logs[logger], epochs=2)
    assert epoch(a) == 1


def test_a_command_that_is_refused_leaves_the_configuration_of_the_run(fit, tmp_path, refusal):
    run = tmp_path / "run"
    fit(run)
    before = content(run)
    lora = ["--model.policy.lora.r", 2, "--model.policy.lora.target_modules", "all-linear"]
    assert "does not fit this policy" in refusal(fit, run, "--ckpt_path", "last", *lora, epochs=2)
    after = content(run)
    assert {name: after[name] for name in before} == before


def test_one_command_starts_a_run_and_goes_on_with_it(fit, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")  # as in the script of sbatch
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    fit(whole, epochs=2)
    for epochs in (1, 2, 2):  # the last one finds nothing left to do
        fit(halved, "--ckpt_path", "auto", epochs=epochs)
    assert epoch(halved) == 1
    expected, resumed = (DVLAPolicy.from_pretrained(run / "policy").state_dict() for run in (whole, halved))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    validate = ["--data.evaluation.num_episodes", 5]
    main(["validate", "--config", str(whole / "config.yaml"), "--ckpt_path", "last", *map(str, validate)])
    assert (whole / "validate.yaml").exists()


def test_a_checkpoint_of_another_run_does_not_overwrite_this_one(fit, tmp_path, refusal):
    a, b, c = (tmp_path / name for name in "abc")
    fit(a)
    fit(b)
    before = content(b)
    other = a / "checkpoints" / "last.ckpt"
    assert "is of another one" in refusal(fit, b, "--ckpt_path", other, epochs=2)
    assert content(b) == before
    fit(c, "--ckpt_path", other, epochs=2)  # into a new directory it may
    assert epoch(c) == 1 and epoch(a) == 0


@pytest.mark.parametrize("flags", [["--trainer.enable_checkpointing", "false"], ["--trainer.barebones", "true"]])
def test_a_run_without_checkpoints_says_that_it_cannot_be_resumed(flags, fit, tmp_path, capfd, refusal):
    run = tmp_path / "run"
    fit(run, *flags)
    assert "cannot be resumed" in capfd.readouterr().err
    assert (run / "policy").exists() and not (run / "checkpoints").exists()
    assert "without a last checkpoint" in refusal(fit, run, "--ckpt_path", "auto", *flags)


def test_paths_that_mean_the_same_are_the_same_run(fit, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fit("~/run")
    fit("$HOME/run", "--ckpt_path", "auto", epochs=2)
    fit(f"file://{tmp_path}/run", "--ckpt_path", "~/run/checkpoints/last.ckpt", epochs=3)
    assert epoch(tmp_path / "run") == 2


@pytest.mark.parametrize("given", ["true", "null", "7"])
def test_the_seed_in_the_saved_configuration_is_the_one_that_was_used(given, fit, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    fit(a, "--seed_everything", given)
    saved = yaml.safe_load((a / "config.yaml").read_text())["seed_everything"]
    assert type(saved) is int and (given != "7" or saved == 7)
    fit(b, config=str(a / "config.yaml"))
    first, again = (DVLAPolicy.from_pretrained(run / "policy").state_dict() for run in (a, b))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_configuration_with_the_seed_of_the_data_in_it_is_refused_unless_it_is_the_runs(fit, tmp_path, refusal):
    a, b, c = (tmp_path / name for name in "abc")
    fit(a, "--seed_everything", 3)
    saved = yaml.safe_load((a / "config.yaml").read_text())
    assert saved["seed_everything"] == 3 and "seed" not in saved["data"]["init_args"]
    copied, other = tmp_path / "copied.yaml", tmp_path / "other.yaml"
    saved["data"]["init_args"]["seed"] = 3  # a copy of the run's own
    copied.write_text(yaml.dump(saved))
    fit(b, config=copied)
    first, again = (DVLAPolicy.from_pretrained(run / "policy").state_dict() for run in (a, b))
    assert all(torch.equal(first[name], again[name]) for name in first)
    saved["data"]["init_args"]["seed"] = 4
    other.write_text(yaml.dump(saved))
    assert "data.seed is the seed of the run: set seed_everything" in refusal(fit, c, config=other)
    assert not c.exists()
