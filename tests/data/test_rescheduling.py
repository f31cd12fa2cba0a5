"""Measuring the step schedule while RL runs: when, through which collector, at what cost."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dvla_lightning.data.rescheduling import Rescheduling
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.step_schedule import StepSchedule
from dvla_lightning.rollout.collector import Collector


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_steps": [1, 9]}, "between 1 and 8"),
        ({"episodes_per_task": 0}, "episodes_per_task must be at least 1"),
        ({"margin": 0.0}, "margin must be"),
    ],
)
def test_a_measurement_that_cannot_be_made_is_refused_before_training(make_data, options, sentence, tiny_policy):
    with pytest.raises(UserError, match=sentence):
        make_data(None, reschedule=Rescheduling(every=1, **options)).prepare_steps(tiny_policy)
    with pytest.raises(UserError, match="every must be a number at least 1"):
        Rescheduling(every=0)


def test_the_state_of_a_run_holds_what_it_measured(make_data):
    data, fixed = make_data(None, reschedule=Rescheduling(every=2)), make_data(None)
    data.steps = dict.fromkeys(Tabletop.tasks, 1)
    state = data.state_dict()
    for each, expected in ((make_data(None, reschedule=Rescheduling(every=2)), 1), (fixed, 4)):
        each.load_state_dict(state)
        assert set(each.evaluation_steps.values()) == {expected}


@pytest.mark.parametrize(("is_given", "expected"), [(False, [0, 2, 4]), (True, [2, 4])])
def test_a_given_schedule_rules_until_the_first_turn(is_given, expected, make_data, tmp_path, monkeypatch):
    given, measured = dict.fromkeys(Tabletop.tasks, 1), dict.fromkeys(Tabletop.tasks, 2)
    StepSchedule(given).write(tmp_path / "s.yaml")
    reschedule = Rescheduling(every=2)
    monkeypatch.setattr(reschedule, "measure", lambda *args: (StepSchedule(measured), {"time/measure_seconds": 9.0}))
    data = make_data(None, reschedule=reschedule, schedule=str(tmp_path / "s.yaml") if is_given else None)
    seconds, steps = [], []
    for iteration in range(5):
        seconds.append(data._measure_if_due(None, iteration)["time/measure_seconds"])
        steps.append(set(data.steps.values()))
    assert [n for n, value in enumerate(seconds) if value] == expected
    assert steps == [{1} if is_given and n < 2 else {2} for n in range(5)]


def make_trainer(path, **options):
    options = {"is_global_zero": True, "fast_dev_run": False, "default_root_dir": path, **options}
    return SimpleNamespace(**options)


def test_a_measurement_runs_through_the_collector_that_is_open_anyway(tiny_policy, tmp_path):
    specs_before = []
    collector = Collector(Tabletop(), num_envs=5, progress=False)
    run = collector.run
    collector.run = lambda policy, specs, *args, **options: (
        specs_before.append(specs) or run(policy, specs, *args, **options)
    )
    where = (collector, ["reach"], 0)
    rescheduling = Rescheduling(every=1, num_steps=[2, 1], episodes_per_task=5)
    schedule, cost = rescheduling.measure(make_trainer(tmp_path), tiny_policy, *where, iteration=7)
    assert [len(specs) for specs in specs_before] == [5, 5] and set(schedule) == {"reach"}
    assert cost["rollout/num_measured_episodes"] == 10 and cost["time/measure_seconds"] > 0
    written = tmp_path / "schedules" / "iteration-0007.yaml"
    assert StepSchedule.read(written) == schedule and StepSchedule.read(written).evidence["episodes_per_task"] == 5
    assert written.read_text().splitlines()[1] == f"#   iteration 7 of the RL run in {tmp_path}"
    assert (tmp_path / "schedule.yaml").read_text() == written.read_text()
    rescheduling.measure(make_trainer(tmp_path), tiny_policy, *where, iteration=9)
    newest = (tmp_path / "schedules" / "iteration-0009.yaml").read_text()
    assert (tmp_path / "schedule.yaml").read_text() == newest != written.read_text()


def test_rank_0_alone_writes(tiny_policy, tmp_path):
    where = (Collector(Tabletop(), num_envs=2, progress=False), ["reach"], 0)
    rescheduling = Rescheduling(every=1, num_steps=[1], episodes_per_task=2)
    schedule, _ = rescheduling.measure(make_trainer(tmp_path, is_global_zero=False), tiny_policy, *where, 0)
    assert schedule == {"reach": 1} and not list(tmp_path.iterdir())


def test_sigterm_ends_a_measurement(make_data, tiny_policy, tmp_path):
    data = make_data(None, tasks=["reach"], reschedule=Rescheduling(every=1, num_steps=[1], episodes_per_task=2))
    data.collector = Collector(Tabletop(), num_envs=2, progress=False)
    data.trainer = make_trainer(tmp_path, received_sigterm=False)
    assert data._measure_if_due(tiny_policy, 0)["rollout/num_measured_episodes"] == 2
    data.trainer = make_trainer(tmp_path / "again", received_sigterm=True)
    with pytest.raises(SIGTERMException):
        data._measure_if_due(tiny_policy, 0)
    assert not (tmp_path / "again").exists()
