"""Episodes are run exactly once, reproducibly, whatever happens to the simulators."""

import numpy as np
import pytest

from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from tests.faulty_environment import FAULTY_STATE, FaultyTabletop
from tests.foreign_environment import ForeignFaultyTabletop


def make_specs(count=8, num_steps=2):
    tasks = Tabletop.tasks
    return [EpisodeSpec(tasks[n % len(tasks)], "train", n, seed=100 + n, num_steps=num_steps) for n in range(count)]


def summary(episodes):
    return [
        (e.spec, e.success, e.num_env_steps, np.concatenate([t.actions for t in e.transitions]).tolist())
        for e in episodes
    ]


def run(environment, policy, specs, **options):
    collector = Collector(environment, progress=False, **options)
    try:
        return collector.run(policy, specs)
    finally:
        collector.close()


def test_results_do_not_depend_on_the_number_of_simulators(tiny_policy):
    specs = make_specs()
    one = run(Tabletop(), tiny_policy, specs, num_envs=1)
    many = run(Tabletop(), tiny_policy, specs, num_envs=5)
    processes = run(Tabletop(), tiny_policy, specs, num_workers=2)
    assert summary(one) == summary(many) == summary(processes)
    assert [episode.spec for episode in one] == specs


def test_specs_may_mix_k(tiny_policy):
    specs = [EpisodeSpec("reach", "train", n, seed=n, num_steps=k) for n, k in enumerate([1, 4, 2, 8, 1, 4])]
    together = run(Tabletop(), tiny_policy, specs, num_envs=6)
    alone = [run(Tabletop(), tiny_policy, [spec], num_envs=1)[0] for spec in specs]
    assert summary(together) == summary(alone)
    assert [e.decisions[0].path.num_steps_B.item() for e in together] == [1, 4, 2, 8, 1, 4]


@pytest.mark.parametrize("recipe", [FaultyTabletop, ForeignFaultyTabletop])
@pytest.mark.parametrize("fault", ["kill", "hang", "raise"])
def test_a_failed_worker_is_replaced_and_its_episode_run_again(fault, recipe, tiny_policy, tmp_path):
    specs = make_specs()
    expected = summary(run(Tabletop(), tiny_policy, specs, num_envs=1))
    environment = recipe(fault, times=1, marker=str(tmp_path / "faults"))
    episodes = run(environment, tiny_policy, specs, num_workers=2, step_timeout=2.0)
    assert summary(episodes) == expected
    assert [e.retries for e in episodes] == [int(e.spec.initial_state == FAULTY_STATE) for e in episodes]


def test_an_episode_that_keeps_failing_is_an_error_and_not_a_failure(tiny_policy, tmp_path):
    environment = FaultyTabletop("kill", times=99, marker=str(tmp_path / "faults"))
    episodes = run(environment, tiny_policy, make_specs(), num_workers=2, max_retries=1)
    broken = episodes[FAULTY_STATE]
    assert "exit code -9" in broken.error and "last words" in broken.error and not broken.success
    assert [e.error is None for e in episodes] == [n != FAULTY_STATE for n in range(8)]
    assert (tmp_path / "faults").read_text() == "xx"


def test_an_exception_in_this_process_is_handled_alike(tiny_policy, tmp_path):
    environment = FaultyTabletop("raise", times=99, marker=str(tmp_path / "faults"))
    episodes = run(environment, tiny_policy, make_specs(), num_envs=3, max_retries=0)
    assert "contact solver diverged" in episodes[FAULTY_STATE].error


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unusable_simulator_ends_the_run_with_its_sentence(num_workers, tiny_policy, tmp_path):
    environment = FaultyTabletop("unusable", times=99, marker=str(tmp_path / "faults"))
    with pytest.raises(UserError, match="the meshes are missing: download them"):
        run(environment, tiny_policy, make_specs(), num_workers=num_workers)


def test_too_many_denoising_steps_are_refused_before_anything_runs(tiny_policy):
    with pytest.raises(UserError, match="between 1 and 8"):
        run(Tabletop(), tiny_policy, make_specs(num_steps=9), num_envs=1)


def test_the_expert_keeps_its_observations():
    collector = Collector(Tabletop(), num_envs=2, progress=False)
    seen = []
    spec = EpisodeSpec("reach", "train", 0, seed=0)
    (episode,) = collector.demonstrate([spec], 3, lambda e: seen.append([t.observation for t in e.transitions]))
    assert episode.success and all(len(t.actions) <= 3 for t in episode.transitions)
    assert all(observation is not None for observation in seen[0])
    assert all(transition.observation is None for transition in episode.transitions)


def test_decisions_can_be_left_out(tiny_policy):
    specs = [EpisodeSpec("reach", "train", state, seed=state, num_steps=2) for state in range(3)]
    kept = Collector(Tabletop(), num_envs=2, progress=False).run(tiny_policy, specs)
    light = Collector(Tabletop(), num_envs=2, progress=False).run(tiny_policy, specs, keep_decisions=False)
    assert all(ref is not None for episode in kept for ref in episode.decisions)
    assert {ref for episode in light for ref in episode.decisions} == {None}
    assert [episode.num_decisions for episode in kept] == [episode.num_decisions for episode in light]
