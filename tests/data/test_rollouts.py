"""Which episodes an RL iteration runs: specs, ranks, schedules."""

import hashlib
from itertools import chain
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest

from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.evaluation.specs import training_specs
from dvla_lightning.evaluation.step_schedule import StepSchedule

# -- specs -------------------------------------------------------------------------------------------------------------


def test_specs_are_as_they_were():
    """Golden: a run that an older release began resumes with the same episodes. By hand, with hashlib and numpy."""

    def sequence(text):
        digest = hashlib.sha256(text.encode()).digest()
        return np.random.SeedSequence([int.from_bytes(digest[n : n + 4], "little") for n in range(0, 32, 4)])

    specs = training_specs(["reach", "push"], 3, 4, seed=0, iteration=1)
    states = sequence('["training initial states", "rollouts", 0, 1, 0]').generate_state(3) // 2
    seeds = sequence('["training episodes", "rollouts", 0, 1, 0]').generate_state(3, np.uint64) // 2**11
    assert [spec.initial_state for spec in specs] == states.tolist() == [1937312124, 1582339196, 209551800]
    assert [spec.seed for spec in specs] == seeds.tolist() == [8161728710273448, 5803222442190931, 1114548377547011]
    assert [spec.task for spec in specs] == ["push", "reach", "push"]
    assert specs == training_specs(["reach", "push"], 3, {"reach": 4, "push": 4}, 0, 1, group_size=1, refill=0)


def test_fewer_episodes_are_the_first_ones_of_more():
    assert training_specs(["reach", "push"], 40, 4, 0, 3)[:7] == training_specs(["reach", "push"], 7, 4, 0, 3)


def test_a_group_begins_alike_and_differs_in_its_seeds():
    specs = training_specs(Tabletop.tasks, 24, 2, seed=0, iteration=3, group_size=4)
    groups = [specs[start : start + 4] for start in range(0, 24, 4)]
    assert all(len({(spec.task, spec.initial_state) for spec in group}) == 1 for group in groups)
    assert len({group[0].initial_state for group in groups}) == 6 and len({spec.seed for spec in specs}) == 24
    assert [group[0].task for group in groups[:2]] == [Tabletop.tasks[3], Tabletop.tasks[4]]
    again = training_specs(Tabletop.tasks, 24, 2, seed=0, iteration=3, group_size=4, refill=1)
    assert not {spec.initial_state for spec in specs} & {spec.initial_state for spec in again}


def test_every_task_runs_at_its_own_num_steps():
    steps = dict(zip(Tabletop.tasks, [1, 2, 4, 8, 1], strict=True))
    assert {spec.task: spec.num_steps for spec in training_specs(Tabletop.tasks, 10, steps, 0, 0)} == steps


def test_ranks_take_whole_groups_and_together_all_of_them(make_data):
    parts = [make_data(None, ranks=3, rank=rank)._rank_specs(20, 0, 0) for rank in range(3)]
    assert [len(part) for part in parts] == [8, 8, 4]
    for part in parts:
        groups = [part[start : start + 4] for start in range(0, len(part), 4)]
        assert all(len({(spec.task, spec.initial_state) for spec in group}) == 1 for group in groups)
    whole = make_data(None)._rank_specs(20, 0, 0)
    assert sorted(chain.from_iterable(parts), key=whole.index) == whole


def test_too_few_groups_for_the_ranks_are_refused(make_data):
    with pytest.raises(UserError, match="8 episodes_per_iteration cannot be shared by 3 ranks in groups of 4"):
        make_data(lambda n: 0.0, ranks=3)._collect_episodes(None, 0)


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_an_evaluation_at_no_steps_is_refused(make_data):
    with pytest.raises(UserError, match="got 0"):
        make_data(None, evaluation=Evaluation(num_steps=0))


def test_a_schedule_rules_training_and_evaluation_unless_told_otherwise(make_data, tiny_policy, tmp_path):
    steps = dict(zip(Tabletop.tasks, [1, 2, 4, 8, 1], strict=True))
    StepSchedule(steps).write(tmp_path / "s.yaml")
    options = {"tasks": ["push", "reach"], "schedule": str(tmp_path / "s.yaml"), "num_steps": 3}
    data, other = make_data(None, **options), make_data(None, **options, evaluation=Evaluation(num_steps=2))
    for each in (data, other):
        each.prepare_steps(tiny_policy)
        assert dict(each.steps) == {"push": steps["push"], "reach": steps["reach"]}
    assert data.evaluation_steps == dict(data.steps) and other.evaluation_steps == {"push": 2, "reach": 2}


def test_a_schedule_of_another_sampler_is_used_with_a_warning(make_data, tiny_policy, tmp_path):
    StepSchedule(dict.fromkeys(Tabletop.tasks, 1), {"sampler": {"temperature": 0.5}}).write(tmp_path / "s.yaml")
    data = make_data(None, schedule=str(tmp_path / "s.yaml"))
    with pytest.warns(UserWarning, match="measured with sampler temperature 0.5"):
        data.prepare_steps(tiny_policy)
    with catch_warnings():
        simplefilter("error")
        data.prepare_steps(tiny_policy)  # once is enough


def test_an_evaluation_follows_a_schedule_that_changed_since_its_dataloader_was_made(make_data):
    """Lightning makes the dataloader once in fit; RL may measure its schedule anew between two evaluations."""
    data = make_data(None, tasks=["reach"], evaluation=Evaluation(num_episodes=4))
    loader = data.val_dataloader()
    assert [[spec.num_steps for spec in batch.specs] for batch in loader] == [[4] * 4]
    data.steps = {"reach": 1}
    assert [[spec.num_steps for spec in batch.specs] for batch in loader] == [[1] * 4]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_held_out_episode_is_run_by_one_rank(make_data, rank):
    data = make_data(None, ranks=3, rank=rank, tasks=["reach"], evaluation=Evaluation(num_episodes=2))
    (batch,) = data.val_dataloader()
    assert [spec.initial_state for spec in batch.specs] == [[0], [1], []][rank]
