"""`data.evaluation`: what it refuses, K per task, and who runs which episode."""

import itertools

import pytest

from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.plan import Evaluation

TASKS = ["push", "reach"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_episodes": -1}, "data.evaluation: num_episodes must be a number at least 0, got -1"),
        ({"num_steps": 0}, "data.evaluation: num_steps must be a number at least 1, got 0"),
        ({"num_steps": {"push": 0}}, "data.evaluation: num_steps of task 'push' must be a number at least 1, got 0"),
        ({"num_steps": {"push": True}}, "num_steps of task 'push' must be a number at least 1, got True"),
        ({"seed": float("nan")}, "data.evaluation: seed must be a number"),
        ({"num_recorded_episodes": -1}, "num_recorded_episodes must be a number at least 0"),
        ({"save_videos": True}, "save_videos saves the recorded episodes: set num_recorded_episodes, too"),
        *(
            ({"shard": shard}, f"shard {shard!r}: give i/n")
            for shard in ("2/2", "-1/2", " 0/2", "0 / 2", "0/2 ", "", "1")
        ),
    ],
)
def test_values_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(UserError) as found:
        Evaluation(**options)
    assert sentence in str(found.value)


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (None, {"push": 3, "reach": 4}),
        (2, {"push": 2, "reach": 2}),
        ({"reach": 1, "push": 8, "detour": 5}, {"push": 8, "reach": 1}),
    ],
)
def test_steps_are_those_of_training_unless_told_otherwise(num_steps, expected):
    evaluation = Evaluation(num_steps=num_steps)
    evaluation.check_tasks(Tabletop(), TASKS)
    assert evaluation.steps(TASKS, {"reach": 4, "push": 3}) == expected


def test_a_mapping_names_tasks_and_lacks_none():
    with pytest.raises(
        UserError, match=r"data\.evaluation: num_steps names the unknown task 'fly'; choose from: reach,"
    ):
        Evaluation(num_steps={"push": 1, "reach": 1, "fly": 1}).check_tasks(Tabletop(), TASKS)
    with pytest.raises(UserError, match=r"data\.evaluation: num_steps has no K for task 'push'"):
        Evaluation(num_steps={"reach": 1}).check_tasks(Tabletop(), TASKS)


def test_recorded_episodes_are_spread_over_the_grid():
    steps = dict.fromkeys(TASKS, 1)
    specs = Evaluation(num_episodes=8, num_recorded_episodes=4).specs(Tabletop(), "heldout", TASKS, steps)
    assert [(spec.task, spec.initial_state) for spec in specs] == list(itertools.product(TASKS, range(4)))
    assert [n for n, spec in enumerate(specs) if spec.pictures] == [0, 2, 4, 6]


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_every_episode_is_run_by_one_rank_of_one_shard(num_shards):
    parts = []
    for shard, rank in itertools.product(range(num_shards), range(2)):
        evaluation = Evaluation(num_episodes=10, shard=f"{shard}/{num_shards}")
        specs = evaluation.specs(Tabletop(), "heldout", TASKS, dict.fromkeys(TASKS, 1))
        parts += evaluation.share(specs, rank, num_ranks=2)
        assert evaluation.is_partial == (num_shards > 1)
    assert len(parts) == len(specs) and sorted(parts, key=specs.index) == specs
