"""`dvla schedule` from the command line to the file, and back."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from dvla_lightning import cli
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.evaluation.step_schedule import StepSchedule, sampler_mismatch
from dvla_lightning.policy_directory import policy_fingerprint as fingerprint

CONFIG = str(Path(__file__).parents[2] / "configs/schedule.yaml")


@pytest.fixture
def command(tiny_policy, tmp_path):
    """A small measurement; the out file is the last word."""
    tiny_policy.save_pretrained(tmp_path / "policy")
    words = ["schedule", "--config", CONFIG, "--policy", str(tmp_path / "policy"), "--episodes_per_task", "2"]
    words += ["--num_steps", "[4, 1]", "--collector.num_envs", "8", "--collector.progress", "false"]
    return [*words, "--out", str(tmp_path / "new" / "s.yaml")]


def without_times(evidence):
    return {
        **evidence,
        "tasks": {t: [{**row, "milliseconds": None} for row in rows] for t, rows in evidence["tasks"].items()},
    }


def test_measures_prints_and_writes(command, tiny_policy, capsys):
    cli.main(command)
    printed = capsys.readouterr().out
    schedule = StepSchedule.read(command[-1])
    assert list(schedule) == ["reach", "carry", "push", "collect", "detour"]
    assert set(schedule.values()) <= {1, 4}
    assert schedule.evidence["policy"] == fingerprint(tiny_policy)
    assert schedule.evidence["environment"]["class"] == "Tabletop"
    assert sampler_mismatch(schedule, tiny_policy.sampler) is None
    assert [row["num_steps"] for row in schedule.evidence["tasks"]["push"]] == [1, 4]
    marked = re.findall(r"^(\w+) +\* (\d)", printed, re.MULTILINE)
    assert printed.count("(n = 2)") == 10 and {task: int(steps) for task, steps in marked} == schedule
    assert re.search(r"mean network evaluations per decision \d\.\d\d against 4\.00 at K = 4 \(\d+ %\)", printed)


def test_the_same_command_measures_the_same(command):
    cli.main(command)
    first = StepSchedule.read(command[-1])
    cli.main(command)
    again = StepSchedule.read(command[-1])
    assert again == first and without_times(again.evidence) == without_times(first.evidence)


def test_the_head_of_the_file_repeats_the_measurement(command, tmp_path):
    cli.main([*command, "--tasks", "[reach, push]", "--sampler.temperature", "0.5"])
    first = StepSchedule.read(command[-1])
    assert list(first) == ["reach", "push"] and first.evidence["sampler"]["temperature"] == 0.5
    assert "temperature 0.5" in sampler_mismatch(first, Sampler())
    line = Path(command[-1]).read_text().splitlines()[1].removeprefix("#")
    words = shlex.split(line)
    assert words[:2] == ["dvla", "schedule"] and words[words.index("--collector.num_envs") + 1] == "8"
    Path(command[-1]).unlink()
    cli.main(words[1:])
    again = StepSchedule.read(command[-1])
    assert again == first and without_times(again.evidence) == without_times(first.evidence)


def test_one_num_steps_is_enough(command, capsys):
    cli.main([*command, "--num_steps", "[2]", "--tasks", "reach"])
    assert StepSchedule.read(command[-1]) == {"reach": 2}
    assert "2.00 against 2.00 at K = 2 (100 %)" in capsys.readouterr().out


def test_shipped_config_fits_the_code(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["schedule", "--config", CONFIG, "--print_config"])
    assert stop.value.code == 0
    assert set(yaml.safe_load(Path(CONFIG).read_text())) <= set(yaml.safe_load(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--margin", "1"], "margin must be"),
        (["--confidence", "0.5"], "confidence must be"),
        (["--confidence", "high"], "high"),
        (["--num_steps", "[]"], "list of different numbers"),
        (["--num_steps", "[2, 2]"], "list of different numbers"),
        (["--num_steps", "[0]"], "between 1 and 8"),
        (["--num_steps", "[1, 9]"], "between 1 and 8"),
        (["--episodes_per_task", "0"], "episodes_per_task must be at least 1, got 0"),
        (["--tasks", "[fly]"], "unknown task 'fly'"),
        (["--policy", "no/such/directory"], "does not exist"),
        (["--sampler.confidence", "high"], "sampler"),
        (["--sampler.temperature", "-1"], "sampler temperature must be > 0, got -1"),
        (["--sampler.remask_threshold", "2"], "remask_threshold must be >= 0 and < 1"),
        (["--collector.num_envs", "0"], "collector: num_envs must be a number at least 1"),
        (["--collector.environment", "Tablecloth"], "Tablecloth"),
        (["--out", "/dev/null/s.yaml"], "/dev/null/s.yaml cannot be written"),
        (["--out", "/"], "is a directory"),
        (["--out", ""], "is no path"),
    ],
)
def test_bad_arguments_end_in_one_sentence(args, expected, command, refusal):
    assert expected in refusal([*command, *args])
