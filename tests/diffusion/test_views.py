"""Masked views of demonstrations: the SFT corruption hides what it says."""

import pytest
import torch

from dvla_lightning.diffusion.schedule import mask_ratio
from dvla_lightning.diffusion.views import corrupted_views

LENGTH, VOCAB = 8, 4


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_corruption_hides_as_many_positions_as_the_schedule_says(check_frequencies, schedule):
    """The number hidden is max(1, round(L ratio(t))), t uniform: its distribution by a fine grid over t."""
    tokens = torch.randint(VOCAB, (100, LENGTH))
    generator = torch.Generator().manual_seed(0)
    views = corrupted_views(tokens, torch.ones_like(tokens, dtype=torch.bool), VOCAB, 200, schedule, generator)
    hidden = views.noisy_BSL == VOCAB
    assert torch.equal(hidden, views.scored_BSL)
    assert torch.equal(torch.where(hidden, 0, views.noisy_BSL), torch.where(hidden, 0, tokens[:, None]))
    count = hidden.sum(-1)
    assert count.min() >= 1
    grid = (torch.arange(200_000) + 0.5) / 200_000
    wanted = (LENGTH * mask_ratio(grid, schedule)).round().clamp_min(1).long()
    check_frequencies(count.flatten().bincount(minlength=LENGTH + 1), wanted.bincount(minlength=LENGTH + 1))
    # which ones is uniform: every position is hidden equally often
    check_frequencies(hidden.sum((0, 1)), torch.ones(LENGTH))


def test_positions_beyond_the_end_are_hidden_and_never_scored():
    tokens = torch.randint(VOCAB, (64, LENGTH))
    valid = torch.arange(LENGTH) < torch.arange(64)[:, None] % (LENGTH + 1)
    views = corrupted_views(tokens, valid, VOCAB, 50)
    hidden = views.noisy_BSL == VOCAB
    invalid = ~valid[:, None].expand_as(hidden)
    assert hidden[invalid].all()
    assert not views.scored_BSL[invalid].any()
    assert torch.equal(views.scored_BSL, hidden & ~invalid)
    assert hidden.any(-1).all()
    assert views.scored_BSL[valid.any(-1)].any(-1).all(), "a view that scores nothing teaches nothing"
    assert (hidden[LENGTH] != hidden[LENGTH, :1]).any(), "views of one chunk are masked independently"


@pytest.mark.parametrize("num_valid", [1, 3, 6])
def test_the_hidden_share_is_that_of_the_valid_positions(check_frequencies, num_valid):
    """A chunk whose last positions lie beyond the end is masked like a chunk that has only the others."""
    tokens = torch.randint(VOCAB, (100, LENGTH))
    valid = torch.zeros_like(tokens, dtype=torch.bool)
    places = torch.randperm(LENGTH)[:num_valid]
    valid[:, places] = True
    generator = torch.Generator().manual_seed(0)
    count = corrupted_views(tokens, valid, VOCAB, 200, generator=generator).scored_BSL.sum(-1)
    grid = (torch.arange(200_000) + 0.5) / 200_000
    wanted = (num_valid * torch.cos(grid * torch.pi / 2)).round().clamp_min(1).long()
    check_frequencies(count.flatten().bincount(minlength=LENGTH + 1), wanted.bincount(minlength=LENGTH + 1))


def test_corruption_is_reproducible():
    tokens = torch.randint(VOCAB, (4, LENGTH))
    valid = torch.ones_like(tokens, dtype=torch.bool)
    one, two, other = (
        corrupted_views(tokens, valid, VOCAB, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.noisy_BSL, two.noisy_BSL)
    assert not torch.equal(one.noisy_BSL, other.noisy_BSL)
