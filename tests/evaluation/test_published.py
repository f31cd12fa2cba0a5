"""A policy directory carries its evaluation, and `dvla validate` with the policy alone repeats it to the episode."""

import json
import shutil

import pytest

from dvla_lightning import cli
from dvla_lightning.envs.libero import Libero
from dvla_lightning.envs.robotwin import RoboTwin
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.evaluation.published import FOLDER, RECIPE, make_recipe, read_recipe, write_recipe
from tests.robotwin_checkout import make_checkout

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--data.collector.progress=false"]
TASKS = ["reach", "detour"]


@pytest.fixture
def directory(tiny_policy, tmp_path):
    tiny_policy.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def validate(directory, out, *words):
    words = ["validate", f"--model.policy.pretrained={directory}", f"--trainer.default_root_dir={out}", *words]
    cli.main([str(word) for word in [*words, *QUIET]])


def published(directory, out, *words):
    """An author's evaluation: two tasks, K per task, its own seed."""
    given = ["--data.collector.environment=Tabletop", f"--data.tasks={json.dumps(TASKS)}"]
    given += ["--data.evaluation.num_episodes=6", "--data.evaluation.seed=5", "--data.evaluation.publish=true"]
    given += ["--data.evaluation.num_steps", json.dumps({"reach": 1, "detour": 3})]
    validate(directory, out, *given, *words)


def episodes(out):
    """Every line of the manifest but what differs from run to run."""
    lines = [json.loads(line) for line in (out / "evaluation.jsonl").read_text().splitlines()]
    return sorted((x["task"], x["initial_state"], x["seed"], x["success"], x["num_env_steps"]) for x in lines[1:])


def test_the_policy_alone_repeats_the_evaluation(directory, tmp_path, capsys):
    published(directory, tmp_path / "author")
    assert f"published in {directory / FOLDER}" in capsys.readouterr().out
    shutil.move(directory, tmp_path / "elsewhere")
    validate(tmp_path / "elsewhere", tmp_path / "reader")
    printed = capsys.readouterr().out
    assert episodes(tmp_path / "reader") == episodes(tmp_path / "author") == episodes(tmp_path / "elsewhere" / FOLDER)
    assert len(episodes(tmp_path / "reader")) == 6
    total = next(line for line in printed.splitlines() if line.startswith("all tasks"))
    line = next(line for line in printed.splitlines() if line.startswith("published with the policy"))
    assert "other settings" not in line and line.partition(":")[2].strip() in " ".join(total.split()[2:]) + ")"


def test_what_is_given_overrules_the_recipe(directory, tmp_path, capsys):
    published(directory, tmp_path / "author")
    validate(directory, tmp_path / "more", "--data.evaluation.num_episodes=10", "--data.evaluation.num_steps=2")
    assert len(episodes(tmp_path / "more")) == 10
    assert "published with the policy, under other settings: " in capsys.readouterr().out
    (tmp_path / "own.yaml").write_text("data: {collector: {environment: Tabletop}, tasks: push}\n")
    validate(directory, tmp_path / "own", "--config", tmp_path / "own.yaml", "--data.evaluation.num_episodes=3")
    assert {task for task, *_ in episodes(tmp_path / "own")} == {"push"}


@pytest.mark.parametrize(
    "words",
    [
        ["--model.policy={{pretrained: {}}}"],
        ["--model.policy", "section.yaml"],
        ["--model", "model.yaml"],
        ["--config=whole.yaml"],
        ["-cwhole.yaml"],
        ["-c", "other.yaml", "-c", "whole.yaml"],
        ["-c", "other.yaml", "--model.policy.pretrained", "{}"],
    ],
    ids=" ".join,
)
def test_a_policy_is_named_wherever_it_may_be(words, directory, tmp_path, monkeypatch):
    recipe = make_recipe(Tabletop(), TASKS, Evaluation(num_episodes=2), dict.fromkeys(TASKS, 1))
    write_recipe(directory, recipe)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "section.yaml").write_text(f"pretrained: {directory}\n")
    (tmp_path / "model.yaml").write_text(f"policy: {{pretrained: {directory}}}\n")
    (tmp_path / "whole.yaml").write_text(f"model: {{policy: {{pretrained: {directory}}}}}\n")
    (tmp_path / "other.yaml").write_text("model: {policy: {pretrained: elsewhere}}\n")
    cli.main(["validate", *(word.format(directory) for word in words), "--trainer.default_root_dir=out", *QUIET])
    assert {task for task, *_ in episodes(tmp_path / "out")} == set(TASKS)


def test_a_recipe_that_cannot_be_read_is_not_needed_where_an_environment_is_named(directory, tmp_path, refusal):
    (directory / FOLDER).mkdir()
    (directory / FOLDER / RECIPE).write_text("{")
    assert "recipe.json cannot be read" in refusal(["validate", f"--model.policy.pretrained={directory}"])
    words = ["--data.collector.environment=Tabletop", "--data.tasks=push", "--data.evaluation.num_episodes=2"]
    validate(directory, tmp_path / "run", *words)
    assert {task for task, *_ in episodes(tmp_path / "run")} == {"push"}


def test_help_asks_no_policy(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "--model.policy.pretrained", "nowhere", "--help"])
    assert end.value.code in (None, 0) and "usage" in capsys.readouterr().out


def test_what_is_no_policy_is_told_before_its_evaluation_is_missed(tmp_path, directory, refusal):
    assert "give --model.policy.pretrained, or a --config" in refusal(["validate"])
    words = ["validate", "--model.policy.pretrained", tmp_path]
    assert f"has no config.json; did you mean {directory}?" in refusal(words)


def test_training_leaves_the_recipe_with_the_policy(directory, tmp_path):
    words = ["fit", "--config", "configs/rl.yaml", f"--model.policy.pretrained={directory}", *QUIET]
    words += ["--data.episodes_per_iteration=10", "--data.minibatch_size=50", "--trainer.max_epochs=1"]
    words += ["--data.evaluation.num_episodes=5", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    cli.main(words)
    validate(tmp_path / "run" / "policy", tmp_path / "reader")
    assert len(episodes(tmp_path / "reader")) == 5
    assert "dvla validate --model.policy.pretrained" in (tmp_path / "run/policy/README.md").read_text()


def test_a_policy_without_a_recipe_is_one_sentence(directory, tmp_path, refusal):
    words = ["validate", "--model.policy.pretrained", directory, "--trainer.default_root_dir", tmp_path / "run"]
    assert "does not say where it is evaluated: give --data.collector.environment" in refusal(words, unchanged=tmp_path)


UNPUBLISHED = {
    "selection": (["--data.evaluation.split=selection"], "publish is for all held-out episodes"),
    "a shard": (["--data.evaluation.shard=0/2"], "publish is for all held-out episodes"),
    "another sampler": (["--model.policy.sampler.temperature=0.5"], "sampler is not the one the policy was saved with"),
    "new adapters": (["--model.policy.lora.r=2"], "give model.policy.pretrained alone"),
    "fewer steps": (["--model.policy.num_action_steps=2"], "num_action_steps is not the one"),
}


@pytest.mark.parametrize("name", UNPUBLISHED)
def test_only_the_policy_as_it_is_and_the_whole_evaluation_are_published(name, directory, tmp_path, refusal):
    words, sentence = UNPUBLISHED[name]
    assert sentence in refusal(lambda: published(directory, tmp_path / "run", *words))
    assert not (directory / FOLDER).exists()
    assert not (tmp_path / "run" / "evaluation.jsonl").exists()  # it is told before the episodes run


def test_a_damaged_record_spoils_no_evaluation(directory, tmp_path, capsys):
    published(directory, tmp_path / "author")
    (directory / FOLDER / "evaluation.jsonl").write_text("{\n")
    validate(directory, tmp_path / "reader")
    assert (
        f"no success to compare with: {directory / FOLDER / 'evaluation.jsonl'} is damaged" in capsys.readouterr().out
    )


# -- recipes -----------------------------------------------------------------------------------------------------------

ENVIRONMENTS = {
    "Tabletop": lambda: Tabletop(image_size=48),
    "Libero": lambda: Libero(suite="libero_goal", image_size=128, assets_dir="/somewhere", gl_backend="osmesa"),
    "Libero, protocol": lambda: Libero(suite="libero_spatial", protocol="openvla_oft"),
    "RoboTwin": lambda: RoboTwin(image_size=64, max_steps={"place_empty_cup": 64}, cache_dir="/somewhere"),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_comes_back_from_plain_types(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOTWIN_ROOT", str(make_checkout(tmp_path / "robotwin")))
    environment = ENVIRONMENTS[name]()
    tasks, evaluation = environment.tasks[:2], Evaluation(num_episodes="all", seed=7)
    recipe = make_recipe(environment, tasks, evaluation, dict.fromkeys(tasks, 2))
    write_recipe(tmp_path, json.loads(json.dumps(recipe)))
    found = read_recipe(tmp_path)
    described = found["collector"]["environment"]
    again = type(environment)(**described["init_args"])
    assert again.identity() == environment.identity()
    assert "/somewhere" not in (tmp_path / FOLDER / RECIPE).read_text()
    assert found["tasks"] == list(tasks) and found["evaluation"]["num_episodes"] == "all"


def changed(**keys):
    return lambda recipe: recipe.update(keys)


def environment(class_path="dvla_lightning.envs.libero.recipe.Libero", **init_args):
    return changed(environment={"class_path": class_path, "init_args": init_args})


STRANGERS = {
    "a program": (environment(interpreter="/tmp/evil"), "environment.interpreter names something on one machine"),
    "a folder": (environment(assets_dir="/tmp/evil"), "environment.assets_dir names something on one machine"),
    "a checkout": (
        environment("dvla_lightning.envs.robotwin.recipe.RoboTwin", root="/tmp/evil"),
        "environment.root names something on one machine",
    ),
    "a class of its own": (environment("evil_module.Evil"), "names 'evil_module.Evil', which is no known Environment"),
    "no environment": (environment("subprocess.run", args="true"), "which is no known Environment"),
    "a wrong argument": (environment(image_size="large"), "image_size must be"),
    "an unknown argument": (environment(colour="red"), "does not fit Libero"),
    "another key": (changed(command="true"), "has the unknown key 'command'"),
    "no tasks": (lambda recipe: recipe.pop("tasks"), "lacks the key 'tasks'"),
    "another version": (changed(format_version=9), "has format_version 9, this release reads 1"),
    "steps that are none": (changed(num_steps={"reach": "many"}), "num_steps must be"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_recipe_runs_nothing(name, directory, tmp_path, refusal):
    damage, sentence = STRANGERS[name]
    recipe = make_recipe(Tabletop(), TASKS, Evaluation(num_episodes=4), dict.fromkeys(TASKS, 1))
    damage(recipe)
    write_recipe(directory, recipe)
    with pytest.raises(UserError, match=sentence):
        read_recipe(directory)
    words = ["validate", "--model.policy.pretrained", directory, "--trainer.default_root_dir", tmp_path / "run"]
    assert sentence in refusal(words, unchanged=tmp_path)


def test_a_damaged_recipe_is_one_sentence(directory):
    (directory / FOLDER).mkdir()
    (directory / FOLDER / RECIPE).write_text("{")
    with pytest.raises(UserError, match=r"recipe.json cannot be read \(.*give --data.collector.environment"):
        read_recipe(directory)
