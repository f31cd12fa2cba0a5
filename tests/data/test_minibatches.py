"""Minibatches of an iteration: every decision once per pass, and ranks of different sizes in step."""

import pytest
import torch

from dvla_lightning.data.minibatches import minibatches
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.errors import UserError
from dvla_lightning.objectives.rollout_batch import Rollouts


def stack(rows):
    return {"number": torch.tensor([row["number"] for row in rows])}


def drawn(sizes, rank, minibatch_size):
    """Those of a rank, whose decisions have their numbers as returns and in their prompts."""
    n = sizes[rank]
    zeros_NL, values_N = torch.zeros(n, 2), torch.arange(n).float()
    order_NL, steps_N = torch.tensor([[0, 1]]).expand(n, 2), torch.ones(n, dtype=torch.long)
    path = DenoisingPath(zeros_NL.long(), zeros_NL.long(), order_NL, zeros_NL, steps_N, steps_N)
    rows = [{"number": number} for number in range(n)]
    rollouts = Rollouts(rows, path, zeros_NL[:, None], values_N, values_N, values_N, steps_N)
    return list(minibatches(rollouts, stack, sizes, rank, minibatch_size, ppo_epochs=2, seed=0, iteration=3))


def test_a_pass_holds_every_decision_once_in_another_order():
    found = drawn([10], 0, 4)
    assert [len(part) for part in found] == [4, 3, 3] * 2
    assert all(torch.equal(part.prompt["number"], part.returns_B.long()) for part in found)
    passes = [torch.cat([part.returns_B for part in found[start : start + 3]]).tolist() for start in (0, 3)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(10)) and passes[0] != passes[1]


def test_ranks_yield_equally_many_and_the_larger_one_weighs_more():
    small, large = (drawn([6, 10], rank, 4) for rank in (0, 1))
    assert len(small) == len(large) == 2 * 3
    assert {float(part.weight) for part in small} == {0.75} and {float(part.weight) for part in large} == {1.25}


def test_a_rank_with_fewer_decisions_than_minibatches_is_told_on_all_of_them():
    for rank in (0, 1):
        with pytest.raises(UserError, match="a rank collected 2 decisions and cannot fill 3 minibatches"):
            drawn([2, 10], rank, 4)
