"""Wilson intervals and success counts."""

from itertools import chain

import pytest
import torch

from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.records import EpisodeRecord
from dvla_lightning.evaluation.specs import Shard, evaluation_seed, evaluation_specs, training_specs
from dvla_lightning.evaluation.success import (
    SuccessCount,
    TaskSuccess,
    network_evaluations,
    steps_text,
    success_by_steps,
    success_table,
    wilson_interval,
)
from dvla_lightning.rollout.episode import Episode, EpisodeSpec, Transition


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Published examples: Newcombe 1998, Statistics in Medicine 17, p. 861, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_agrees_with_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_at_the_ends():
    assert wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_interval_at_other_confidences():
    """90 % is a 5 % test at each end: by hand, z = 1.6449 and 7 of 10."""
    z, rate = 1.6448536269514722, 0.7
    centre, half = rate + z * z / 20, z * (rate * (1 - rate) / 10 + z * z / 400) ** 0.5
    expected = ((centre - half) / (1 + z * z / 10), (centre + half) / (1 + z * z / 10))
    assert wilson_interval(7, 10, 0.9) == pytest.approx(expected)
    near, usual = wilson_interval(7, 10, 0.95 + 1e-12), wilson_interval(7, 10)
    assert near == pytest.approx(usual) and near != expected


def test_network_evaluations_by_hand():
    counts, steps = {"reach": SuccessCount(1, 2, 0, 6), "push": SuccessCount(3, 4, 1, 10)}, {"reach": 1, "push": 4}
    assert network_evaluations(counts, steps) == (46 / 16, 46 / 6)
    assert network_evaluations({"reach": SuccessCount(0, 0)}, steps) == (0, 0)
    lines = success_table(counts, "title", steps).splitlines()
    assert lines[1].endswith("network evaluations per decision, episode")
    assert [line.split()[-2:] for line in lines[2:]] == [["1.00", "3.0"], ["4.00", "10.0"], ["2.88", "7.7"]]


def test_a_headline_names_the_tasks_of_every_num_steps():
    assert steps_text({"reach": 4, "push": 4}) == "K = 4"
    assert steps_text({"detour": 2, "reach": 1, "push": 1}) == "K = 1 (reach, push), 2 (detour)"


def finished(task, success, error=None):
    transitions = [Transition(None, torch.zeros(0, 2).numpy()), Transition(None, torch.zeros(4, 2).numpy())]
    transitions[-1].is_success = success
    return EpisodeRecord.of(Episode(EpisodeSpec(task, "heldout", 0, 0, 1), transitions, error=error))


def test_errors_are_counted_apart():
    metric = TaskSuccess(["reach", "push"])
    metric.update([finished("reach", True), finished("reach", False), finished("push", True, error="died")])
    metric.update([finished("reach", True)])
    assert metric.by_task() == {"reach": SuccessCount(2, 3, 0, 3), "push": SuccessCount(0, 0, 1, 0)}
    table = success_table(metric.by_task(), "title")
    assert "66.7 % [20.8, 93.9] (n = 3)" in table and "1 errors" in table


def test_an_evaluation_is_the_same_grid_at_every_call():
    specs = evaluation_specs(Tabletop(), "heldout", ["reach", "push"], 6, 4, seed=0)
    assert specs == evaluation_specs(Tabletop(), "heldout", ["reach", "push"], 6, 4, seed=0)
    assert [(s.task, s.initial_state) for s in specs] == [(t, n) for t in ("reach", "push") for n in range(3)]
    assert {s.split for s in specs} == {"heldout"} and len({s.seed for s in specs}) == 6


def test_an_episode_depends_on_nothing_but_itself():
    """Not on the number of episodes, nor on which tasks run, nor on their order; but on everything that it is."""
    few = evaluation_specs(Tabletop(), "heldout", ["push"], 3, 4, seed=5)
    many = evaluation_specs(Tabletop(), "heldout", ["reach", "push", "carry"], 300, 4, seed=5)
    assert few == [spec for spec in many if spec.task == "push"][:3]
    other_seed = evaluation_specs(Tabletop(), "heldout", ["push"], 100, 4, seed=6)
    other_split = evaluation_specs(Tabletop(), "selection", ["push"], 100, 4, seed=5)
    seeds = [spec.seed for specs in (many, other_seed, other_split) for spec in specs]
    assert len(set(seeds)) == 500 and all(0 <= seed < 2**53 for seed in seeds)


def test_a_recorded_evaluation_can_go_on():
    """Golden: the seeds in the manifests of this release; by hand, as in test_rollouts.py."""
    assert evaluation_seed("heldout", 0, "reach", 0) == 4216753764275587
    assert evaluation_seed("heldout", 0, "reach", 1) == 2700315777283955


def test_an_evaluation_refuses_an_uneven_grid_and_a_huge_one():
    with pytest.raises(UserError, match="multiple of the 2 tasks"):
        evaluation_specs(Tabletop(), "heldout", ["reach", "push"], 5, 4, seed=0)
    with pytest.raises(UserError, match="can be 1000000 at most"):
        evaluation_specs(Tabletop(), "heldout", ["reach", "push"], 10**15, 4, seed=0)


class Few(Tabletop):
    def num_heldout_states(self, task):
        return 50

    def num_selection_states(self, task):
        return 7 if task == "reach" else 0


@pytest.mark.parametrize(
    ("split", "task", "asked", "sentence"),
    [
        (
            "heldout",
            "reach",
            51,
            "50 held-out initial states, 51 were asked for: set data.evaluation.num_episodes to at most 50",
        ),
        (
            "selection",
            "reach",
            8,
            "7 selection initial states, 8 were asked for: set data.evaluation.num_episodes to at most 7",
        ),
        ("selection", "push", 1, "0 selection initial states, 1 were asked for: choose tasks that have some"),
    ],
)
def test_an_evaluation_refuses_more_states_than_there_are(split, task, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        evaluation_specs(Few(), split, [task], asked, 4, seed=0)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_disjoint_complete_and_even_and_keep_their_episodes_when_the_grid_grows(count):
    tasks = ["reach", "push", "carry"]
    small, large = (evaluation_specs(Tabletop(), "heldout", tasks, n, 4, seed=0) for n in (15, 33))
    for specs in (small, large):
        parts = [Shard(index, count).of(specs) for index in range(count)]
        assert sorted(chain.from_iterable(parts), key=specs.index) == specs
        assert max(map(len, parts)) - min(map(len, parts)) <= len(tasks)
    for index in range(count):
        assert set(Shard(index, count).of(small)) <= set(Shard(index, count).of(large))


def test_shards_of_few_episodes_of_many_tasks_are_even():
    specs = evaluation_specs(Tabletop(), "heldout", Tabletop.tasks, 5, 4, seed=0)
    assert [len(Shard(index, 2).of(specs)) for index in range(2)] == [3, 2]


def test_training_specs_are_balanced_fresh_and_reproducible():
    tasks = Tabletop.tasks
    first, second = training_specs(tasks, 12, 4, 0, 0), training_specs(tasks, 12, 4, 0, 1)
    assert first == training_specs(tasks, 12, 4, 0, 0)
    assert not {s.initial_state for s in first} & {s.initial_state for s in second}
    assert {sum(s.task == task for s in first) for task in tasks} == {2, 3}
    assert {s.split for s in first} == {"train"}


def test_tasks_of_one_num_steps_are_counted_together():
    counts = {"a": SuccessCount(1, 4, 1, 9), "b": SuccessCount(2, 2), "c": SuccessCount(3, 5, 0, 1)}
    found = success_by_steps(counts, {"a": 4, "b": 1, "c": 4})
    assert found == {4: SuccessCount(4, 9, 1, 10), 1: SuccessCount(2, 2)}
