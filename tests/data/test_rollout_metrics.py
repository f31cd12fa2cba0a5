"""Metrics of a collection by hand."""

import pytest
import torch

from dvla_lightning.data.rollout_metrics import episode_metrics, mean_commit_order, normalize_advantages, time_metrics
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.objectives.rollout_batch import Rollouts
from dvla_lightning.rollout.collector import CollectionTimes
from dvla_lightning.rollout.episode import Episode, EpisodeSpec, Transition


def alone(values):
    """What one rank gathers."""
    return values[None]


def path(order_BL, num_steps_B):
    order_BL, zeros_BL = torch.tensor(order_BL), torch.zeros(len(order_BL), len(order_BL[0]))
    steps_B = torch.tensor(num_steps_B)
    return DenoisingPath(zeros_BL.long(), zeros_BL.long(), order_BL, zeros_BL, steps_B, steps_B)


def finished(task, success, decisions, error=None):
    transitions = [Transition(None, [])] + [Transition(None, [None] * 4, reward=0.5) for _ in range(decisions)]
    transitions[-1].is_success = success
    return Episode(EpisodeSpec(task, "train", 0, 0, 1), transitions, error=error)


def test_success_by_task_and_by_num_steps():
    episodes = [finished("reach", True, 2), finished("reach", False, 4), finished("push", True, 3)]
    episodes += [finished("carry", False, 1), finished("carry", False, 9, error="died")]
    steps = {"reach": 1, "push": 4, "carry": 1, "detour": 2}
    found = episode_metrics(episodes, steps, 2.0, alone)
    assert found["rollout/success_rate"] == 0.5 and found["rollout/num_episodes"] == 4
    assert found["rollout/success_rate/reach"] == 0.5 and found["rollout/success_rate/push"] == 1
    assert found["rollout/success_rate/K1"] == pytest.approx(1 / 3) and found["rollout/success_rate/K4"] == 1
    assert not {"rollout/success_rate/K2", "rollout/success_rate/detour"} & set(found)  # no episode, no rate
    assert found["rollout/network_evaluations_per_decision"] == pytest.approx((1 * (2 + 4 + 1) + 4 * 3) / 10)
    assert found["rollout/num_errors"] == 1 and found["time/env_steps_per_second"] == 40 / 2


def test_mean_commit_order():
    found = mean_commit_order(path([[0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 2, 0]], [1, 2, 2, 1]))
    assert {steps: order.tolist() for steps, order in found.items()} == {1: [0.25, 0.75, 0.5], 2: [0.5, 0.75, 0.25]}


def test_times_of_several_collections_add_up():
    times = [CollectionTimes(1.0, 4.0, 6.0), CollectionTimes(0.5, 2.0, 0.0)]
    assert list(time_metrics(times, 2).values()) == [1.5, 3.0, 3.0]
    assert list(time_metrics(times, 0).values()) == [1.5, 6.0, 6.0]


def test_group_advantages_are_measured_but_not_normalised_again():
    def batch():
        values = torch.tensor([1.0, 3.0])
        return Rollouts([{}] * 2, path([[0], [0]], [1, 1]), values[:, None, None], values, values, values, values)

    left, changed = batch(), batch()
    assert normalize_advantages(left, alone, in_place=False) == normalize_advantages(changed, alone)
    assert left.advantages_N.tolist() == [1.0, 3.0]
    assert changed.advantages_N.tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)
