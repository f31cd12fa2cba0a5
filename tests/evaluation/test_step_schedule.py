"""Step schedules: a mapping, a file, and a mistake in either is told in one sentence."""

import dataclasses

import pytest
import yaml

from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.step_schedule import StepSchedule, sampler_mismatch


def test_is_an_immutable_mapping():
    schedule = StepSchedule({"reach": 1, "detour": 4})
    assert schedule["detour"] == 4 and dict(schedule) == {"reach": 1, "detour": 4} == schedule
    assert len(schedule) == 2 and "push" not in schedule and schedule.get("push") is None
    with pytest.raises(TypeError):
        schedule["reach"] = 2


def test_is_read_as_it_was_written(tmp_path):
    rows = [{"num_steps": 1, "rate": 0.5, "wilson_95": [0.1, 0.9], "noninferior": True}]
    evidence = {"sampler": dataclasses.asdict(Sampler()), "margin": 0.05, "tasks": {"reach": rows, "on": rows}}
    path = tmp_path / "new" / "s.yaml"
    StepSchedule({"reach": 1, "on": 2}, evidence).write(path, "dvla schedule --out s.yaml")
    again = StepSchedule.read(path)
    assert again == {"reach": 1, "on": 2} and again.evidence == evidence and again.source == str(path)
    text = path.read_text()
    assert "#   dvla schedule --out s.yaml" in text and "&id" not in text
    assert {"num_steps: {reach: 1, 'on': 2}", "      wilson_95: [0.1, 0.9]"} <= set(text.splitlines())
    assert [file.name for file in path.parent.iterdir()] == ["s.yaml"]


def test_a_schedule_written_by_hand_needs_no_evidence(tmp_path):
    (tmp_path / "s.yaml").write_text("num_steps: {reach: 1}\n")
    schedule = StepSchedule.read(tmp_path / "s.yaml")
    assert schedule.evidence == {} and sampler_mismatch(schedule, Sampler(temperature=0.5)) is None
    schedule.write(tmp_path / "again.yaml")
    assert yaml.safe_load((tmp_path / "again.yaml").read_text()) == {"num_steps": {"reach": 1}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist: measure it with `dvla schedule`"),
        (b"num_steps: {reach: 1", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"", "is not a step schedule"),
        (b"[1, 2]", "is not a step schedule"),
        (b"reach: 1", "is not a step schedule"),
        (b"num_steps: 4", "must say K for every task"),
        (b"num_steps: {}", "must say K for every task"),
        (b"num_steps: {reach: 0}", "task 'reach' must be a positive integer, got 0"),
        (b"num_steps: {reach: 1.0}", "must be a positive integer, got 1.0"),
        (b"num_steps: {reach: true}", "must be a positive integer, got True"),
        (b"num_steps: {reach: many}", "must be a positive integer, got 'many'"),
        (b"num_steps: {3: 1}", "3 is not the name of a task"),
        (b"num_steps: {reach: 1}\nevidence: none", "evidence must be what"),
        (b"num_steps: {reach: 1}\nsampler: {}", "unknown key 'sampler'"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(content, expected, tmp_path):
    path = tmp_path / "s.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        StepSchedule.read(path)
    sentence = str(refusal.value)
    assert expected in sentence and "s.yaml" in sentence and "\n" not in sentence


def test_a_directory_is_neither_read_nor_overwritten(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        StepSchedule.read(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        StepSchedule({"reach": 1}).write(tmp_path)


def test_restricted_to_some_tasks():
    schedule = StepSchedule({"reach": 1, "detour": 4}, {"seed": 0}, "s.yaml")
    part = schedule.restricted(["detour"])
    assert part == {"detour": 4} and part.evidence == {"seed": 0} and part.source == "s.yaml"
    with pytest.raises(UserError, match=r"s\.yaml has no entry for task 'push': measure it with `dvla schedule`"):
        schedule.restricted(["reach", "push"])


def test_check_names_the_task(tiny_policy):
    StepSchedule({"reach": 8}).check(Tabletop.tasks, tiny_policy)
    with pytest.raises(UserError, match=r"s\.yaml: unknown task 'fly'; choose from: reach"):
        StepSchedule({"reach": 1, "fly": 1}, source="s.yaml").check(Tabletop.tasks, tiny_policy)
    with pytest.raises(UserError, match=r"s\.yaml, task 'push': num_steps must be between 1 and 8 .* got 9"):
        StepSchedule({"reach": 1, "push": 9}, source="s.yaml").check(Tabletop.tasks, tiny_policy)


def test_sampler_mismatch_names_what_differs():
    schedule = StepSchedule({"reach": 1}, {"sampler": dataclasses.asdict(Sampler())}, "s.yaml")
    assert sampler_mismatch(schedule, Sampler()) is None
    sentence = sampler_mismatch(schedule, Sampler(confidence="random"))
    assert sentence == (
        "s.yaml was measured with sampler confidence 'max_prob', the policy's has 'random': "
        "measure it again with `dvla schedule`"
    )


def test_a_sampler_option_younger_than_the_schedule_counts_as_its_default():
    schedule = StepSchedule({"reach": 1}, {"sampler": {"confidence": "max_prob"}})
    assert sampler_mismatch(schedule, Sampler()) is None
    assert "temperature 1.0" in sampler_mismatch(schedule, Sampler(temperature=0.5))
