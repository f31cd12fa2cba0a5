"""A data module for RL whose episodes are made up."""

from types import SimpleNamespace

import pytest

from dvla_lightning.data.rollouts import RolloutDataModule
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.rollout.collector import CollectionTimes
from dvla_lightning.rollout.episode import Episode, Transition


class Dice:
    """A collector without simulator: `outcome` says how episode n of a call ends; None is an error."""

    num_workers = 0

    def __init__(self, outcome):
        self.environment, self.outcome, self.calls = Tabletop(), outcome, []

    def run(self, policy, specs, title, before_decision=None, bootstrap=True):
        self.calls.append(list(specs))
        self.times = CollectionTimes(policy=1.0)
        return [self.episode(spec, self.outcome(n)) for n, spec in enumerate(specs)]

    def episode(self, spec, reward):
        end = Transition(None, [], reward or 0.0, terminated=True)
        return Episode(spec, [Transition(None, []), end], [None], error="died" if reward is None else None)


@pytest.fixture
def make_data():
    """(outcome of episode n of a call, number of ranks, own rank, options) -> RolloutDataModule."""

    def make(outcome, ranks=1, rank=0, **options):
        options = {"episodes_per_iteration": 8, "group_size": 4, "advantage": "grpo", **options}
        options.setdefault("evaluation", Evaluation())
        data = RolloutDataModule(Dice(outcome), **options)
        state = SimpleNamespace(fn="fit")
        data.trainer = SimpleNamespace(
            world_size=ranks, global_rank=rank, fast_dev_run=False, received_sigterm=False, state=state
        )
        return data

    return make
