"""A collection with a number that is not finite is not learned from, whichever of its parts holds it."""

import pytest
import torch

from dvla_lightning.data.assembly import assemble, check_finite
from dvla_lightning.data.rollouts import RolloutDataModule
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.module import DVLAModule
from dvla_lightning.objectives import TrajectoryPPO
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from tests.short_fits import fit


@pytest.fixture
def episodes(tiny_policy):
    specs = [EpisodeSpec("reach", "train", n, seed=n, num_steps=2) for n in range(3)]
    return Collector(Tabletop(), num_envs=3, progress=False).run(tiny_policy, specs)


def test_a_reward_that_float32_cannot_hold_is_found(episodes):
    """1e39 is a finite float and an infinite float32."""
    check_finite(assemble(episodes, 0.9, 0.8))
    episodes[0].transitions[1].reward = 1e39
    with pytest.raises(UserError, match="nothing can be learned from this collection: returns_N is inf in row 0"):
        check_finite(assemble(episodes, 0.9, 0.8))


@pytest.mark.parametrize("field", ["old_values_N", "old_log_prob_NSL", "returns_N", "advantages_N"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_field_and_the_row_are_named(field, value, episodes):
    batch = assemble(episodes, 0.9, 0.8)
    getattr(batch, field)[2] = value
    with pytest.raises(UserError, match=f"{field} is {value} in row 2"):
        check_finite(batch)


def test_a_run_ends_before_it_learns_from_such_a_collection(tiny_policy, tmp_path, monkeypatch):
    def assemble_badly(*args, **options):
        batch = assemble(*args, **options)
        batch.advantages_N[0] = torch.inf
        return batch

    monkeypatch.setattr("dvla_lightning.data.rollouts.assemble", assemble_badly)
    collector = Collector(Tabletop(), num_envs=5, progress=False)
    data = RolloutDataModule(collector, episodes_per_iteration=5, minibatch_size=10, evaluation=Evaluation())
    with pytest.raises(UserError, match="advantages_N is inf in row 0"):
        fit(DVLAModule(tiny_policy, TrajectoryPPO()), [[]], tmp_path, data=data)
