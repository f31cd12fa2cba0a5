"""What lies beyond the range of the normalisation is counted: in demonstrations, and in rollouts."""

from types import SimpleNamespace

import numpy as np
import pytest

from dvla_lightning.actions.normalization import Normalization, Normalizer
from dvla_lightning.data.clipping import clipping_metrics, clipping_report
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import Episode, EpisodeSpec


def alone(values):
    """What one rank gathers."""
    return values[None]


@pytest.fixture
def policy(tiny_policy):
    """Its statistics are those of actions in [0, 1] and [-2, 2], and of proprioception in [0, 1]."""
    tiny_policy.normalization = Normalization()
    tiny_policy.action_normalizer = Normalizer(2, "min_max").fit([[0, -2], [1, 2]])
    tiny_policy.proprioception_normalizer = Normalizer(4, "min_max").fit([[0] * 4, [1] * 4])
    return tiny_policy


def test_demonstrations_by_hand(policy):
    actions = np.array([[0.5, 0], [1.5, 1], [-1, 3], [1, 2]], np.float32)  # two of four, and one of four, are outside
    inside = np.full((3, 4), 0.5, np.float32)
    report = clipping_report(policy, actions, inside)
    assert report.endswith("beyond it are 37.50% of actions (50.00% in dimension 0, 25.00% in dimension 1)")
    outside = inside.copy()
    outside[1, 3] = np.float32(1.01)
    assert clipping_report(policy, actions[:1], outside).endswith("8.33% of proprioception (33.33% in dimension 3)")
    assert clipping_report(policy, actions[[0, 3]], inside) is None  # the ends are inside


def test_rollouts_by_hand():
    def episode(rows, error=None):
        decisions = [SimpleNamespace(outside=[0.0, 0.25, 1.0][row]) for row in rows]
        return Episode(EpisodeSpec("reach", "train", 0, 0), decisions=decisions, error=error)

    found = clipping_metrics([episode([0, 1]), episode([1]), episode([2], error="died")], alone)
    assert found == {"rollout/proprioception_outside": pytest.approx(0.5 / 3)}
    assert clipping_metrics([], alone) == {"rollout/proprioception_outside": 0.0}


def test_decisions_know_what_was_outside(policy):
    """The hand of the tabletop starts in [-1, 1]^2: its coordinates are outside of [0, 1] where they are negative."""
    specs = [EpisodeSpec("reach", "train", n, seed=n, num_steps=1) for n in range(4)]
    env = Tabletop().make()
    first = [env.reset(**spec.reset_arguments())[0] for spec in specs]
    decisions = policy.decide(first, [1] * 4, [0] * 4)
    expected = [np.mean([not 0 <= value <= 1 for value in seen["proprioception"]]) for seen in first]
    assert decisions.outside_B.tolist() == pytest.approx(expected) and 0 < sum(expected) < 4
    episodes = Collector(Tabletop(), num_envs=4, progress=False).run(policy, specs)
    assert 0 < clipping_metrics(episodes, alone)["rollout/proprioception_outside"] < 1
