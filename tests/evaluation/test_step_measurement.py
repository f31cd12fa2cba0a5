"""Measuring a schedule: the rule, which episodes run, and what happens to errors."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.envs.tabletop.env import TabletopEnv
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.specs import Use, training_specs
from dvla_lightning.evaluation.step_measurement import (
    Outcome,
    _run,
    choose_num_steps,
    compare,
    measure_schedule,
)
from dvla_lightning.evaluation.success import wilson_interval
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import Episode, Transition


def outcomes(rate, n=200):
    return [Outcome(index < rate * n, 5) for index in range(n)]


def choose(runs, margin=0.05, confidence=0.95):
    return choose_num_steps(compare("reach", runs, margin, confidence))


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({1: 0.2, 2: 0.5, 4: 0.9}, 4),  # every step helps
        ({1: 0.9, 2: 0.9, 4: 0.9}, 1),  # none does
        ({4: 0.9, 2: 0.895, 1: 0.5}, 2),  # the order of the keys does not matter
        ({1: 0.5, 2: 0.9, 4: 0.7}, 2),  # more is not better
        ({1: 0.87, 4: 0.9}, 4),  # 3 points lower, but 200 episodes cannot exclude a loss of 5
        ({2: 0.0, 4: 0.0}, 2),  # hopeless either way
        ({4: 1.0}, 4),
    ],
)
def test_smallest_num_steps_that_is_no_worse(rates, expected):
    assert choose({steps: outcomes(rate) for steps, rate in rates.items()}) == expected


def test_margin_and_confidence_matter():
    found = {1: outcomes(0.87), 4: outcomes(0.9)}
    assert choose(found, margin=0.1) == 1
    assert choose(found, confidence=0.6) == 1


def test_equal_success_of_too_few_episodes_takes_the_smaller():
    """Three episodes can prove nothing, but the best of equals is the smaller K."""
    assert choose({4: outcomes(1.0, n=3), 2: outcomes(1.0, n=3)}) == 2


class Scripted:
    """A collector that knows its outcomes: detour needs 4 steps, every fifth episode at K = 2 ends in an error."""

    def __init__(self, broken=()):
        self.environment, self.specs, self.broken = Tabletop(), [], broken
        self.observation = TabletopEnv().reset(seed=0)[0]

    def run(self, policy, specs, title, before_decision, keep_decisions):
        assert not keep_decisions
        if before_decision:
            before_decision()
        self.specs += specs
        return [self.episode(number, spec) for number, spec in enumerate(specs)]

    def episode(self, number, spec):
        if spec.task in self.broken or (spec.num_steps == 2 and number % 5 == 0):
            return Episode(spec, error="Traceback\nRuntimeError: contact solver diverged")
        chunk = torch.zeros(4, 2).numpy()
        transitions = [Transition(None, chunk[:0]), Transition(None, chunk), Transition(self.observation, chunk)]
        transitions[-1].is_success = spec.task == "reach" or spec.num_steps == 4
        return Episode(spec, transitions)


def test_every_num_steps_runs_the_same_training_episodes(tiny_policy):
    collector = Scripted()
    measure_schedule(tiny_policy, collector, ["reach", "detour"], [4, 1], 10)
    by_steps = {
        k: [(s.task, s.split, s.initial_state, s.seed) for s in collector.specs if s.num_steps == k] for k in (1, 4)
    }
    assert by_steps[1] == by_steps[4] and len(set(by_steps[1])) == 20
    assert {spec.split for spec in collector.specs} == {"train"}
    assert not {s[2] for s in by_steps[1] if s[0] == "reach"} & {s[2] for s in by_steps[1] if s[0] == "detour"}
    drawn = {use: {s.initial_state for s in training_specs(["reach"], 1000, 4, 0, 0, use=use)} for use in get_args(Use)}
    assert sum(map(len, drawn.values())) == len(set().union(*drawn.values())) == 3000
    assert {s[2] for s in by_steps[1] if s[0] == "reach"} <= drawn["schedule"]


def test_a_task_gets_the_same_episodes_whatever_else_is_measured(tiny_policy):
    alone, together = Scripted(), Scripted()
    measure_schedule(tiny_policy, alone, ["detour"], [1], 10)
    measure_schedule(tiny_policy, together, ["reach", "detour"], [1], 10)
    assert alone.specs == [spec for spec in together.specs if spec.task == "detour"]
    measure_schedule(tiny_policy, other := Scripted(), ["detour"], [1], 10, seed=1)
    assert not {s.initial_state for s in alone.specs} & {s.initial_state for s in other.specs}


def test_errors_are_dropped_at_every_num_steps_and_counted(tiny_policy):
    schedule = measure_schedule(tiny_policy, Scripted(), ["reach", "detour"], [1, 2, 4], 50)
    assert schedule == {"reach": 1, "detour": 4}
    rows = schedule.evidence["tasks"]["detour"]
    assert [row["n"] for row in rows] == [40] * 3 and [row["errors"] for row in rows] == [0, 10, 0]
    assert rows[2]["wilson_95"] == pytest.approx(wilson_interval(40, 40), abs=1e-4)
    assert [row["difference_to_best"] for row in rows] == [-1, -1, 0]
    assert [row["noninferior"] for row in rows] == [False, False, True]
    assert [row["network_evaluations_per_episode"] for row in rows] == [2, 4, 8]
    assert all(row["milliseconds"] > 0 for row in rows)


def test_a_task_whose_episodes_all_fail_is_named(tiny_policy):
    with pytest.raises(UserError, match=r"no episode of task 'push' ran .* contact solver diverged"):
        measure_schedule(tiny_policy, Scripted(broken=("push",)), ["push"], [1, 2], 10)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"margin": 0.0}, "margin must be"),
        ({"margin": 1.0}, "margin must be"),
        ({"confidence": 0.5}, "confidence must be"),
        ({"confidence": 1.0}, "confidence must be"),
        ({"num_steps": []}, "list of different numbers"),
        ({"num_steps": [1, 1]}, "list of different numbers"),
        ({"num_steps": [0, 1]}, "between 1 and 8"),
        ({"num_steps": [1, 9]}, "between 1 and 8"),
        ({"episodes_per_task": 0}, "episodes_per_task must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_episode(arguments, expected, tiny_policy):
    collector = Scripted()
    with pytest.raises(UserError, match=expected):
        arguments = {"num_steps": [1], "episodes_per_task": 5, **arguments}
        measure_schedule(tiny_policy, collector, ["reach", "detour"], **arguments)
    assert not collector.specs


def test_a_policy_for_another_robot_is_refused(tiny_policy):
    policy = copy.copy(tiny_policy)
    policy.action_dim = 4
    with pytest.raises(UserError, match="4 dimensions, those of Tabletop have 2"):
        measure_schedule(policy, Scripted(), ["reach"], [1], 10)


def test_nothing_but_the_schedule_follows_from_measuring(tiny_policy):
    """RL calls it between iterations: weights and the global random state must be as before."""
    state, weights = torch.get_rng_state(), copy.deepcopy(tiny_policy.state_dict())
    measure_schedule(tiny_policy, Collector(Tabletop(), num_envs=4, progress=False), ["reach"], [1, 2], 4)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[name], value) for name, value in tiny_policy.state_dict().items())


def test_what_it_is_given_to_call_may_end_a_measurement(tiny_policy):
    def stop():
        raise KeyboardInterrupt

    collector = Scripted()
    with pytest.raises(KeyboardInterrupt):
        measure_schedule(tiny_policy, collector, ["reach"], [1], 5, before_decision=stop)
    assert not collector.specs


def test_few_observations_and_no_decisions_are_kept(tiny_policy, monkeypatch):
    """On a real robot an episode's prompts are tens of megabytes on the GPU, and a measurement has thousands."""
    seen, timed = [], []

    def and_look(task, runs, *args):
        seen.append(runs)
        return compare(task, runs, *args)

    def and_count(policy, observations, num_steps):
        timed.append(len(observations))
        return dict.fromkeys(num_steps, 1.0)

    monkeypatch.setattr("dvla_lightning.evaluation.step_measurement.compare", and_look)
    monkeypatch.setattr("dvla_lightning.evaluation.step_measurement.decision_milliseconds", and_count)
    measure_schedule(tiny_policy, Scripted(), ["detour"], [4, 2], 40)
    kept = {steps: sum(outcome.observation is not None for outcome in run) for steps, run in seen[0].items()}
    assert kept == {2: 20, 4: 0} and timed == [20]
    assert seen[0][2][0] == Outcome(False, 0, "RuntimeError: contact solver diverged")


def measure_on_a_rank(rank, folder, broken):
    """What one of two processes does; it leaves what came out in a file."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    collector = Scripted()
    if rank == 1 and broken == "simulator":
        collector.run = lambda *args, **options: raise_(UserError("no GL on rank 1"))
    elif broken:
        collector.broken = ("reach",)
    policy = SimpleNamespace(action_dim=2, check_num_steps=lambda steps: None)
    try:
        rows = {}
        for steps, run in _run(policy, collector, "reach", [2, 4], 7, 0, None).items():
            rows[steps] = [len(run), sum(outcome.error is not None for outcome in run), len(collector.specs)]
        compare("reach", _run(policy, collector, "reach", [2, 4], 7, 0, None), 0.05, 0.95)
        found = repr(rows)
    except UserError as error:
        found = str(error)
    (Path(folder) / f"rank{rank}").write_text(found)
    torch.distributed.barrier()  # a rank that leaves while the other still talks to it takes it down
    torch.distributed.destroy_process_group()


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        # 7 episodes at either K, of which one rank runs 4 and the other 3; the first of each ends in an error at K = 2
        (None, ["{2: [7, 2, 8], 4: [7, 0, 8]}", "{2: [7, 2, 6], 4: [7, 0, 6]}"]),
        ("simulator", ["no GL on rank 1"] * 2),
        ("episodes", ["no episode of task 'reach' ran at every K without an error, the first one was: "
                      "RuntimeError: contact solver diverged"] * 2),
    ],
)  # fmt: skip
def test_two_ranks_share_the_episodes_and_raise_together(broken, expected, tmp_path):
    torch.multiprocessing.spawn(measure_on_a_rank, (str(tmp_path), broken), nprocs=2)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == expected
