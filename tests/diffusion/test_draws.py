"""Uniform numbers from seeds: a published sequence, all bits of a seed, and no two uses of one stream."""

import pytest
import torch

from dvla_lightning.diffusion.draws import Purpose, row_uniforms, seeded_uniforms, split_mix


def test_the_generator_is_split_mix_64():
    """The first five numbers from 1234567, as published on rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64."""
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    found = split_mix(torch.tensor([1234567]), 5)[0].tolist()
    assert [number % 2**64 for number in found] == published


@pytest.mark.parametrize("other", [7 + 2**32, 7 + 2**62, 7 - 2**63, -7, 8])
def test_every_bit_of_a_seed_counts(other):
    first, second = seeded_uniforms([7, other], Purpose.TOKENS, 64)
    assert not set(first.tolist()) & set(second.tolist())


def test_masks_and_tokens_of_any_two_decisions_share_no_number():
    """Among them the pairs of seeds whose streams were once one: those that differ by the old tag of the masks."""
    seeds = [0, 1, 2**40, 0x9E3779B9, 0x9E3779B9 ^ 1, 2**40 ^ 0x9E3779B9]
    numbers = [x for purpose in Purpose for x in seeded_uniforms(seeds, purpose, 100).flatten().tolist()]
    assert len(set(numbers)) == len(numbers) == 2 * 6 * 100


def test_fewer_steps_have_the_same_numbers():
    assert torch.equal(row_uniforms([3, 4], 2, 5), row_uniforms([4, 3], 4, 5).flip(0)[:, :2])


def test_the_numbers_are_uniform_along_a_stream_and_across_seeds():
    """Kolmogorov-Smirnov against the uniform distribution; 1.95 / sqrt(n) is exceeded with probability 0.001."""
    n = 20_000
    along, across = seeded_uniforms([5], Purpose.TOKENS, n)[0], seeded_uniforms(range(n), Purpose.MASKS, 1)[:, 0]
    for numbers in (along, across):
        ordered, steps = numbers.sort().values, torch.arange(n, dtype=torch.float64) / n
        assert ordered[0] >= 0 and ordered[-1] < 1
        assert torch.maximum(ordered - steps, steps + 1 / n - ordered).max() < 1.95 / n**0.5
    pairs = torch.stack([along, across])
    assert torch.corrcoef(pairs)[0, 1].abs() < 4 / n**0.5
