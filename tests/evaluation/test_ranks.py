"""Shares of ranks; `test_step_measurement.py` has two of them."""

import pytest

from dvla_lightning.errors import UserError
from dvla_lightning.evaluation import ranks


def test_without_a_process_group_everything_is_ones_own():
    assert ranks.rank_share([3, 1, 2]) == [3, 1, 2]
    assert ranks.gather_objects({"a": 1}) == [{"a": 1}] == ranks.gather_or_raise({"a": 1})


def test_an_error_of_any_rank_is_raised_on_all(monkeypatch):
    def other_rank_failed(gathered, item):
        gathered[:] = [item, UserError("no GL on rank 1")]

    monkeypatch.setattr(ranks, "_is_distributed", lambda: True)
    monkeypatch.setattr(ranks.torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(ranks.torch.distributed, "all_gather_object", other_rank_failed)
    with pytest.raises(UserError, match="no GL on rank 1"):
        ranks.gather_or_raise("fine")


def test_shares_are_disjoint_and_whole(monkeypatch):
    monkeypatch.setattr(ranks, "_is_distributed", lambda: True)
    monkeypatch.setattr(ranks.torch.distributed, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(ranks.torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(ranks.rank_share(range(7)))
    assert [list(share) for share in shares] == [[0, 3, 6], [1, 4], [2, 5]]
