"""The command line: shipped YAML parses, bad input ends in one sentence and exit code 2."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dvla_lightning import cli
from dvla_lightning.tools.parser import useful_line
from dvla_lightning.verbs import TOOLS, TRAINER_VERBS

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml"))
SFT, RL = str(ROOT / "configs/sft.yaml"), str(ROOT / "configs/rl.yaml")


@pytest.fixture(autouse=True)
def _quiet(quiet_logging):
    """In every test here."""


def run(capfd, *args):
    """Exit code and what was printed."""
    code = 0
    try:
        cli.main([str(arg) for arg in args])
    except SystemExit as stop:
        code = stop.code
    printed = capfd.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def policy_dir(tiny_policy, tmp_path):
    tiny_policy.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def rl_args(policy_dir, tmp_path):
    return ["--config", RL, "--model.policy.pretrained", policy_dir, "--trainer.default_root_dir", tmp_path / "run"]


@pytest.mark.parametrize(("given", "then"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_of_torch_sleep_unless_the_user_says_otherwise(given, then, monkeypatch, capfd):
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    cli.main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == then


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "dvla_lightning", "--help"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0 and all(f"  {verb} " in done.stdout for verb in [*TRAINER_VERBS, *TOOLS])


def test_help_lists_every_command_without_importing_torch(capfd):
    code, out, _ = run(capfd, "--help")
    assert code == 0 and all(verb in out for verb in [*TRAINER_VERBS, *TOOLS])


@pytest.mark.parametrize("config", CONFIGS)
def test_shipped_configs_fit_the_code(config, capfd):
    content = yaml.safe_load((ROOT / config).read_text())
    verb = "fit" if "model" in content else "schedule" if "policy" in content else "collect"
    if "libero" in config:
        pytest.importorskip("mujoco")
    code, out, err = run(capfd, verb, "--config", ROOT / config, "--print_config")
    assert code == 0, err
    assert set(content) <= set(yaml.safe_load(out))


@pytest.mark.parametrize("verb", TRAINER_VERBS)
def test_help_shows_our_own_options_before_those_of_the_trainer(verb, capfd):
    code, out, _ = run(capfd, verb, "--help")
    assert code == 0
    options = [re.match(r"  (?:-c CONFIG, )?--([\w.]+)", line) for line in out.splitlines()]
    words = [option[1].split(".")[0] for option in options if option]
    order = [word for word in dict.fromkeys(words) if word in ("model", "data", "config", "ckpt_path", "trainer")]
    assert order == ["model", "data", "config", "ckpt_path", "trainer"]
    assert "trainer" not in words[: words.index("trainer")] and set(words[words.index("trainer") :]) == {"trainer"}
    assert {"seed_everything", "print_config"} <= set(words)
    assert out.splitlines()[0] == f"usage: dvla {verb} --config FILE [options]"


def named_parts(capfd):
    """(words, class) of every help that the help of fit names, from its first 20 lines."""
    _, out, _ = run(capfd, "fit", "--help")
    rows = [re.match(r"  dvla fit (--.+) NAME +(.*)", line) for line in out.splitlines()[:20]]
    return [(row[1], name) for row in rows if row for name in row[2].split(", ")]


def test_the_help_of_every_part_is_named_and_runs(capfd):
    named = named_parts(capfd)
    assert {("--model.objective.help", "TrajectoryPPO"), ("--data.help", "RolloutDataModule")} <= set(named)
    assert ("--data.help", "EvaluationDataModule") in named and ("--data.help", "DVLADataModule") not in named
    assert ("--data RolloutDataModule --data.collector.environment.help", "Tabletop") in named and len(named) > 10
    for option, name in named:
        code, out, err = run(capfd, "fit", *option.split(), name)
        assert code == 0 and f".{name}\n" in out, (option, name, err)
        assert f"{option.removesuffix('.help').rsplit('.', 1)[-1]}." in out  # options of the part, not of fit


def test_unknown_command(refusal):
    assert "unknown command 'frobnicate'" in refusal(["frobnicate"])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--trainer.max_epoch_s", "3"], "max_epoch_s"),
        (["--model.objective.clip_ratio_loww", "0.1"], "clip_ratio_loww"),
        (["--model.objective.clip_ratio_low", "small"], "small"),
        (["--model.objective.clip_ratio_low", "1.5"], "clip_ratio_low must be a number above 0 and below 1"),
        (["--data.tasks", "[fly]"], "unknown task 'fly'; choose from: reach"),
        (["--data.num_steps", "9"], "between 1 and 8"),
        (["--data.evaluation.num_episodes", "7"], "multiple of the 5 tasks"),
        (["--model.policy.pretrained", "no/such/policy/dir"], "does not exist"),
        (["--ckpt_path", "last"], "no run to resume"),
        (["--ckpt_path", "no/such/file.ckpt"], "does not exist"),
        (["--ckpt_path", RL], "no checkpoint of a run"),
        (["--ckpt_path", "{policy}"], "is a policy directory"),
        (["--model.policy.sampler.temperature", "-1"], "temperature must be > 0"),
        (["--data.gamma", "7"], "gamma must be a number at least 0 and at most 1"),
        (["--trainer.strategy", "dpp"], "invalid strategy name"),
        (["--trainer.default_root_dir", "null"], "default_root_dir"),
        (["--data.collector.environment", "Tablecloth"], "Tablecloth"),
    ],
)
def test_bad_arguments_end_in_one_sentence(args, expected, rl_args, policy_dir, refusal):
    args = [arg.replace("{policy}", str(policy_dir)) for arg in args]
    assert expected in refusal(["fit", *rl_args, *args])


REMASKS = ["--model.policy.sampler.remask_threshold", "0.2"]
STEP_MERGE = ["--model.objective.estimator", "StepMerge", "--model.objective.estimator.num_groups"]
SELECTION_TERM = ["--model.objective.selection_term", "plackett_luce"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--data.schedule", "no/such/schedule.yaml"], "schedule.yaml does not exist: measure it with `dvla schedule`"),
        (["--data.advantage", "grpo"], "set group_size to at least 2, got 1"),
        (["--data.advantage", "grppo"], "grppo"),
        (["--data.group_size", "3"], "(512) must be a multiple of group_size (3)"),
        (["--data.max_refills", "1"], "max_refills needs groups"),
        (["--data.reschedule.every", "0"], "every must be a number at least 1"),
        (["--data.reschedule", "{every: 1, num_steps: [9]}"], "between 1 and 8"),
        (["--data.evaluation.num_steps", "0"], "num_steps must be a number at least 1"),
        (["--model.objective.estimator", "StepMerge", *REMASKS], "cannot score a sampler with remasking"),
        (["--model.objective.estimator", "d3"], "known are: Coupled, FullMask, LastStep, RandomMask, StepMerge, Traj"),
        (["--model.objective.estimator", "trajectory"], "trajectory, did you mean Trajectory?"),
        (["--model.objective.estimator", "step_merge(2)"], "did you mean StepMerge, and its arguments as init_args?"),
        ([*STEP_MERGE, "0"], "StepMerge needs at least 1 group, got 0"),
        ([*STEP_MERGE, "1.5"], "num_groups: Expected a <class 'int'>. Got value: 1.5"),
        (["--model.objective.credit", "per_step", "--model.objective.ratio_level", "chunk"], "needs ratio_level token"),
        (["--model.objective.dual_clip", "1"], "dual_clip must be above 1"),
        (SELECTION_TERM, "needs a random selection"),
        ([*SELECTION_TERM, "--model.policy.sampler.selection_temperature", "1", *REMASKS], "no tractable form"),
        (["--model.policy.sampler.remask_threshold", "2"], "remask_threshold must be >= 0 and < 1"),
        (["--model.policy.sampler.selection_temperature", "-1"], "selection_temperature must be >= 0"),
    ],
)
def test_bad_options_of_rl_end_in_one_sentence(args, expected, rl_args, refusal):
    assert expected in refusal(["fit", *rl_args, *args])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("num_steps: {reach: 1", "is not YAML"),
        ("reach: 1", "is not a step schedule"),
        ("num_steps: {reach: -1}", "num_steps of task 'reach' must be a positive integer, got -1"),
        ("num_steps: {fly: 1}", "unknown task 'fly'; choose from: reach"),
        ("num_steps: {reach: 9}", "task 'reach': num_steps must be between 1 and 8"),
        ("num_steps: {reach: 1}", "has no entry for task 'carry'"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_bad_schedules_end_in_one_sentence(verb, content, expected, rl_args, tmp_path, refusal):
    (tmp_path / "s.yaml").write_text(content)
    sentence = refusal([verb, *rl_args, "--data.schedule", tmp_path / "s.yaml"])
    assert expected in sentence and "s.yaml" in sentence


def test_an_evaluation_of_nothing_is_refused(rl_args, refusal):
    assert "nothing to evaluate" in refusal(["validate", *rl_args, "--data.evaluation.num_episodes", 0])


OLD_NAMES = {
    "num_eval_episodes": (5, "num_episodes"),
    "eval_num_steps": (2, "num_steps"),
    "eval_seed": (1, "seed"),
    "eval_split": ("heldout", "split"),
    "num_recorded_episodes": (0, "num_recorded_episodes"),
    "save_videos": ("false", "save_videos"),
    "eval_shard": ("0/2", "shard"),
}


@pytest.mark.parametrize("old", OLD_NAMES)
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_an_option_that_has_another_name_now_is_told_it(verb, old, rl_args, refusal):
    value, new = OLD_NAMES[old]
    sentence = f"dvla: error: {old} is now data.evaluation.{new}"
    for words in ([f"--data.{old}={value}"], [f"--data.init_args.{old}", value], ["--data.init_args", {old: value}]):
        assert refusal([verb, *rl_args, *words]) == sentence
    if verb == "validate":  # the data module that it has by itself
        assert refusal([verb, f"--data.{old}", value]) == sentence


@pytest.mark.parametrize("shape", [lambda options: {"init_args": options}, lambda options: options])
def test_a_configuration_of_an_older_release_is_told_all_new_names(shape, rl_args, tmp_path, refusal):
    options = {old: value for old, (value, _) in OLD_NAMES.items()}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({"data": {"class_path": "RolloutDataModule", **shape(options)}}))
    names = sorted(f"{old} is now data.evaluation.{new}" for old, (_, new) in OLD_NAMES.items())
    found = refusal(["fit", "--config", tmp_path / "old.yaml", *rl_args[2:], "--ckpt_path", "last"])
    assert found == f"dvla: error: --config {tmp_path / 'old.yaml'}: {', '.join(names)}"


def test_the_same_word_of_another_part_is_not_one_that_has_a_new_name(rl_args, refusal):
    sentence = refusal(["fit", *rl_args, "--data.collector.eval_seed", 1])
    assert "collector: Option 'eval_seed' is not accepted" in sentence and "is now" not in sentence


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--data.evaluation.num_episods", 5], "evaluation.num_episodes"),
        (["--data.evaluation", "{num_episods: 5}"], "evaluation.num_episodes"),
        (["--data.episodes_per_iteratio", 5], "episodes_per_iteration"),
        (["--data.collector.num_env", 5], "num_envs"),
        (["--data.collector.environment.image_siz", 32], "image_size"),
    ],
)
def test_a_misspelt_option_of_a_part_is_told_the_near_one(words, meant, rl_args, refusal):
    assert refusal(["fit", *rl_args, *words]).endswith(f": did you mean {meant}?")


def test_a_value_that_begins_with_a_dash_is_joined_to_its_option(rl_args, refusal):
    assert "joined to its option by =" in refusal(["validate", *rl_args, "--data.evaluation.shard", "-1/2"])
    assert "give i/n with i from 0" in refusal(["validate", *rl_args, "--data.evaluation.shard=-1/2"])


@pytest.mark.parametrize(
    "words",
    [
        ["--data.init_args", '{"seed": 5}'],
        ["--data.init_args={seed: 0}"],
        ["--data", "{class_path: RolloutDataModule, init_args: {seed: 5}}"],
        ["--data", "FILE"],
    ],
)
def test_a_seed_of_the_data_is_refused_however_it_is_given(words, rl_args, tmp_path, refusal):
    (tmp_path / "data.yaml").write_text("class_path: RolloutDataModule\ninit_args: {seed: 5}\n")
    words = [word.replace("FILE", str(tmp_path / "data.yaml")) for word in words]
    assert refusal(["fit", *rl_args, *words]).endswith("data.seed is the seed of the run: set seed_everything")


NOTHING_TO_TRAIN_ON = "EvaluationDataModule has nothing to train on: give `dvla fit` --data DemonstrationDataModule"


def test_an_evaluation_needs_neither_an_objective_nor_training_options(policy_dir, tmp_path, capfd, refusal):
    (tmp_path / "e.yaml").write_text("data: {evaluation: {num_episodes: 5, num_steps: {reach: 1, push: 2}}}")
    words = ["--model.policy.pretrained", policy_dir, "--data.collector.environment", "Tabletop", "--config",
             tmp_path / "e.yaml", "--data.tasks", "[push]", "--trainer.default_root_dir", tmp_path / "run"]  # fmt: skip
    words += ["--data.collector.progress", "false"]
    code, out, err = run(capfd, "validate", *words)
    assert code == 0 and "held-out episodes, K = 2" in out and "(n = 5)" in out, err
    saved = yaml.safe_load((tmp_path / "run" / "validate.yaml").read_text())
    assert saved["data"]["class_path"].endswith(".EvaluationDataModule") and "gamma" not in saved["data"]["init_args"]
    assert saved["model"]["objective"]["class_path"].endswith(".SupervisedObjective")
    new = ["--trainer.default_root_dir", tmp_path / "new", "--data", "EvaluationDataModule"]
    assert NOTHING_TO_TRAIN_ON in refusal(["fit", *new, *words[:4], "--data.collector.progress", "false"])
    assert not (tmp_path / "new").exists()
    assert "give --data.collector.environment" in refusal(["validate", *words[:2]])


def test_a_sentence_about_what_is_no_text_can_be_printed(refusal, monkeypatch):
    """Half a character comes from a file name that is no UTF-8; a terminal may know ASCII alone."""
    assert r"unknown command 'a\udcff'" in refusal(["a\udcff"])
    bytes_out = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(bytes_out, encoding="ascii", errors="strict"))
    with pytest.raises(SystemExit):
        cli.main(["merge", "m\u00fcll\udcff", "--out", "x"])
    sys.stderr.flush()
    assert bytes_out.getvalue().startswith(rb"dvla: error: m\xfcll\udcff holds no evaluation.jsonl")


def test_missing_config_file(refusal):
    for verb in ("fit", "collect"):
        sentence = refusal([verb, "--config", "nowhere.yaml"])
        assert "nowhere.yaml" in sentence and "`dvla config cp` brings them here" in sentence


def test_corrupt_weights(policy_dir, rl_args, refusal):
    weights = policy_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is corrupt" in refusal(["validate", *rl_args])


def test_policy_with_other_action_dimensions(policy_dir, rl_args, refusal):
    config = json.loads((policy_dir / "config.json").read_text())
    config.update(action_dim=4, chunk_size=2, num_action_steps=2)
    (policy_dir / "config.json").write_text(json.dumps(config))
    assert "does not fit" in refusal(["validate", *rl_args])


def test_policy_for_another_robot(tiny_policy, tmp_path, refusal):
    from dvla_lightning.policy import DVLAPolicy

    other = DVLAPolicy(
        backbone=tiny_policy.backbone,
        action_tokenizer=tiny_policy.action_tokenizer,
        action_dim=4,
        chunk_size=2,
        normalization="identity",
    )
    other.save_pretrained(tmp_path / "other")
    args = ["--config", RL, "--model.policy.pretrained", tmp_path / "other", "--trainer.default_root_dir", tmp_path]
    sentence = refusal(["validate", *args])
    assert "4 dimensions" in sentence and "Tabletop have 2" in sentence


def test_empty_and_missing_data_sets(tmp_path, capfd, refusal):
    args = ["--config", SFT, "--trainer.default_root_dir", tmp_path / "run"]
    assert "no dataset.json" in refusal(["fit", *args, "--data.path", tmp_path / "nothing"])
    code, _, err = run(capfd, "collect", "--collector.environment", "Tabletop", "--out", tmp_path / "d",
                       "--num_episodes", 5, "--collector.progress", "false")  # fmt: skip
    assert code == 0, err
    (tmp_path / "d" / "episodes.jsonl").write_text("")
    assert "holds no successful episode" in refusal(["fit", *args, "--data.path", tmp_path / "d"])


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_when_every_episode_fails_the_first_error_is_named(verb, rl_args, tmp_path, refusal, monkeypatch):
    from dvla_lightning.envs.tabletop import TabletopEnv

    def diverge(self, actions):
        raise RuntimeError("contact solver diverged")

    monkeypatch.setattr(TabletopEnv, "step_chunk", diverge)
    sentence = refusal([verb, *rl_args, "--data.collector.max_retries", 0])
    assert "episode" in sentence and "ended in an error" in sentence


def test_missing_libero_assets(tmp_path, refusal, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path / "nowhere"))
    words = ["collect", "--collector.environment", "Libero", "--out", tmp_path / "d", "--num_episodes", 10]
    sentence = refusal(words)
    assert "LIBERO_ASSETS" in sentence and "nowhere" in sentence


def test_a_directory_with_a_run_is_not_overwritten(rl_args, tmp_path, refusal):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.ckpt").write_text("a run")
    assert "already holds a run" in refusal(["fit", *rl_args])
    shutil.rmtree(tmp_path / "run")


def test_useful_line_of_a_long_report():
    report = """Parser key "model.policy":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'NoneType'>]
  Errors:
    - Expected a <class 'NoneType'>
    - Expected a <class 'float'>. Got value: hot
  Given value type: <class 'str'>"""
    assert useful_line(report) == "model.policy: Expected a <class 'float'>. Got value: hot"
