"""Commit counts against the table measured in MM-ACT's running sampler, and linear ones by hand."""

import math

import pytest
import torch

from dvla_lightning.diffusion.schedule import commit_counts, mask_ratio

# The float32 cosine of MM-ACT's `action_generate`, recorded for N positions and K steps.
MEASURED = {
    (56, 1): "56",
    (56, 2): "17 39",
    (56, 3): "8 21 27",
    (56, 4): "5 12 18 21",
    (56, 6): "2 6 9 12 13 14",
    (56, 12): "1 1 3 3 4 5 5 7 6 7 7 7",
    (112, 1): "112",
    (112, 2): "33 79",
    (112, 3): "16 41 55",
    (112, 4): "9 24 37 42",
    (112, 6): "4 12 17 24 27 28",
    (112, 12): "1 3 5 7 8 9 11 13 13 14 14 14",
    (128, 1): "128",
    (128, 2): "38 90",
    (128, 3): "18 47 63",
    (128, 4): "10 28 42 48",
    (128, 6): "5 13 20 27 30 33",
    (128, 12): "2 3 5 8 9 11 13 14 15 15 17 16",
    (256, 1): "256",
    (256, 2): "75 181",
    (256, 3): "35 94 127",
    (256, 4): "20 55 84 97",
    (256, 6): "9 26 40 54 61 66",
    (256, 12): "3 6 11 15 18 22 26 28 30 31 33 33",
}


@pytest.mark.parametrize(("size", "counts"), MEASURED.items(), ids=str)
def test_cosine_counts_are_those_of_mm_act(size, counts):
    assert commit_counts(*size) == tuple(map(int, counts.split()))


@pytest.mark.parametrize(
    ("length", "num_steps", "counts"),
    [
        (4, 2, (2, 2)),
        (10, 3, (4, 3, 3)),  # masked after a step: floor(6.67), floor(3.33)
        (7, 4, (2, 2, 2, 1)),  # floor(5.25), floor(3.5), floor(1.75)
        (5, 4, (2, 1, 1, 1)),  # floor(3.75), floor(2.5), floor(1.25)
        (56, 4, (14, 14, 14, 14)),
    ],
)
def test_linear_counts_by_hand(length, num_steps, counts):
    assert commit_counts(length, num_steps, "linear") == counts


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_every_step_commits_and_all_is_committed(schedule):
    for length in range(1, 41):
        for num_steps in range(1, length + 1):
            counts = commit_counts(length, num_steps, schedule)
            assert len(counts) == num_steps
            assert sum(counts) == length
            assert min(counts) >= 1
        assert counts == (1,) * length, "K = L commits one position per step"


@pytest.mark.parametrize("num_steps", [-1, 0, 8])
def test_impossible_step_counts_raise(num_steps):
    with pytest.raises(ValueError, match="between 1 and the 7"):
        commit_counts(7, num_steps)


def test_mask_ratio():
    time = torch.tensor([0, 1 / 3, 0.5, 1], dtype=torch.float64)
    cosine = torch.tensor([1, math.sqrt(3) / 2, math.sqrt(0.5), 0], dtype=torch.float64)
    torch.testing.assert_close(mask_ratio(time, "cosine"), cosine, rtol=0, atol=1e-15)
    torch.testing.assert_close(mask_ratio(time, "linear"), 1 - time, rtol=0, atol=0)
    assert mask_ratio(time.float(), "cosine").dtype == torch.float32
    with pytest.raises(ValueError, match="choose cosine or linear"):
        mask_ratio(time, "sine")
