"""Action tokenizers: hand-computed tokens, layout, round trips, torchrl as oracle, refusals."""

import numpy as np
import pytest
import torch

from dvla_lightning.actions.tokenizer import QuantileBins, UniformBins
from dvla_lightning.errors import UserError


@pytest.fixture
def samples():
    """(1024, 3): a bell, a skewed dimension and a binary gripper, all in [-1, 1]."""
    rng = np.random.default_rng(0)
    bell = rng.normal(scale=0.2, size=1024).clip(-1, 1)
    skewed = rng.uniform(size=1024) ** 4 * 2 - 1
    gripper = np.where(rng.uniform(size=1024) < 0.3, 1.0, -1.0)
    return np.stack([bell, skewed, gripper], axis=1)


@pytest.fixture
def quantile_bins(samples):
    return QuantileBins(16, action_dim=3).fit(samples)


def test_uniform_hand_computed():
    tokenizer = UniformBins(5)  # values -1, -.5, 0, .5, 1
    actions = torch.tensor([[-1.0, -0.8], [-0.7, 0.0], [0.3, 1.0]])
    assert tokenizer.encode(actions).tolist() == [0, 0, 1, 2, 3, 4]
    assert tokenizer.decode(torch.arange(5)[:, None], 1).flatten().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_uniform_rounds_half_to_even_as_mm_act_does():
    # (v + 1) / 2 * 4 = .5, 1.5, 2.5, 3.5
    assert UniformBins(5).encode(torch.tensor([[-0.75, -0.25, 0.25, 0.75]])).tolist() == [0, 2, 2, 4]
    # numpy, as in MM-ACT's data pipeline, away from the bin edges
    values = np.random.default_rng(0).uniform(-1, 1, size=(100, 7))
    expected = np.round((values + 1) / 2 * 2047).astype(np.int64)
    assert np.array_equal(UniformBins(2048).encode(torch.from_numpy(values)).numpy(), expected.ravel())


@pytest.mark.parametrize("num_bins", [2, 7, 256, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_round_trip_errs_by_half_a_bin_at_most(num_bins, dtype):
    tokenizer = UniformBins(num_bins)
    actions = torch.linspace(-1, 1, 4000, dtype=dtype).reshape(-1, 8)
    back = tokenizer.decode(tokenizer.encode(actions), 8)
    assert back.dtype == torch.float32
    assert (back - actions).abs().max() <= 1 / (num_bins - 1) + 1e-6
    assert torch.equal(tokenizer.decode(torch.tensor([0, num_bins - 1]), 1).flatten(), torch.tensor([-1.0, 1.0]))
    tokens = torch.arange(num_bins)
    assert torch.equal(tokenizer.encode(tokenizer.decode(tokens, 1)), tokens)


def test_uniform_differs_from_torchrl_only_in_where_the_values_sit():
    """torchrl's V bins are [i, i + 1) / V with centres; ours are the V values i / (V - 1), the ends included.

    Stretching torchrl's range by half a bin on each side makes its centres our values and its edges our edges.
    """
    vla = pytest.importorskip("torchrl.data.vla")
    num_bins = 256
    stretch = 1.0 + 1.0 / (num_bins - 1)
    oracle = vla.UniformActionTokenizer(num_bins, low=-stretch, high=stretch)
    ours = UniformBins(num_bins)
    actions = torch.rand(200, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    edge_distance = ((actions + 1) / 2 * (num_bins - 1) % 1 - 0.5).abs()
    actions[edge_distance < 1e-3] = 0.001  # on an edge the two may round differently
    assert torch.equal(ours.encode(actions), oracle.encode(actions).flatten())
    tokens = torch.arange(num_bins)
    torch.testing.assert_close(ours.decode(tokens, 1).flatten(), oracle.decode(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_layout_is_time_major_with_dimensions_inside(leading, quantile_bins):
    for tokenizer in (UniformBins(16), quantile_bins):
        actions = torch.rand(*leading, 5, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        tokens = tokenizer.encode(actions)
        assert tokens.shape == (*leading, 15)
        assert tokens.dtype == torch.int64
        back = tokenizer.decode(tokens, 3)
        assert back.shape == actions.shape
        one = tokenizer.encode(actions[..., 2:3, :])
        assert torch.equal(tokens[..., 6:9], one)
        assert torch.equal(back[..., 2:3, :], tokenizer.decode(one, 3))


def test_out_of_range_is_clipped_and_bfloat16_is_not_a_loss(quantile_bins):
    for tokenizer in (UniformBins(16), quantile_bins):
        far = torch.tensor([[-3.0, -float("inf"), -1.0], [3.0, float("inf"), 1.0]])
        assert torch.equal(tokenizer.encode(far), tokenizer.encode(far.clamp(-1, 1)))
    coarse = torch.tensor([[0.7109375]], dtype=torch.bfloat16)
    assert torch.equal(UniformBins(2048).encode(coarse), UniformBins(2048).encode(coarse.double()))


def test_quantile_hand_computed():
    tokenizer = QuantileBins(2, action_dim=1).fit([[-0.8], [-0.6], [0.2], [0.4]])
    assert tokenizer.edges.tolist() == [[pytest.approx(-0.2)]]
    assert tokenizer.centers.tolist() == [[pytest.approx(-0.7), pytest.approx(0.3)]]
    assert tokenizer.encode(torch.tensor([[-1.0], [-0.3], [0.0], [1.0]])).tolist() == [0, 0, 1, 1]


def test_quantile_bins_are_neither_heavy_nor_wide(samples, quantile_bins):
    """At most 4/3 of an equal share of the data, at most 4 even bins wide."""
    tokens = quantile_bins.encode(torch.from_numpy(samples)).reshape(-1, 3)
    for d in (0, 1):
        count = torch.bincount(tokens[:, d], minlength=16)
        assert count.sum() == 1024 and count.max() <= 1024 / 16 * 4 / 3 + 1
        low, high = samples[:, d].min(), samples[:, d].max()
        bounds = np.concatenate([[low], quantile_bins.edges[d].numpy(), [high]])
        assert (np.diff(bounds) <= (high - low) / 16 * 4 + 1e-6).all()


@pytest.mark.parametrize("num_bins", [32, 256])
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-4])
def test_quantile_rare_motion_is_not_averaged_with_the_noise_of_standing_still(num_bins, noise):
    still = np.random.default_rng(0).normal(0, noise, (10_000, 1))
    still[::200, 0] = np.resize([0.5, -0.5], 50)
    tokenizer = QuantileBins(num_bins, action_dim=1).fit(still)
    moved = torch.tensor([[0.5], [-0.5], [0.0]])
    back = tokenizer.decode(tokenizer.encode(moved), 1)
    assert (back - moved).abs().max() < 1e-6 + 10 * noise


def test_quantile_values_are_means_and_in_order(samples, quantile_bins):
    tokens = quantile_bins.encode(torch.from_numpy(samples)).reshape(-1, 3).numpy()
    for d in range(3):
        assert (np.diff(quantile_bins.centers[d].numpy()) >= 0).all()
        for token in np.unique(tokens[:, d]):
            mean = samples[tokens[:, d] == token, d].mean()
            assert quantile_bins.centers[d, token].item() == pytest.approx(mean, abs=1e-6)


def test_quantile_round_trip_stays_within_the_bin(samples, quantile_bins):
    actions = torch.from_numpy(samples).float()
    error = (quantile_bins.decode(quantile_bins.encode(actions), 3) - actions.reshape(-1, 3)).abs()
    edges = quantile_bins.edges
    bounds = torch.cat([torch.full((3, 1), -1.0), edges, torch.full((3, 1), 1.0)], dim=1)
    width = (bounds[:, 1:] - bounds[:, :-1])[torch.arange(3), quantile_bins.encode(actions).reshape(-1, 3)]
    assert (error <= width + 1e-6).all()
    uniform = (UniformBins(16).decode(UniformBins(16).encode(actions), 3) - actions).abs()
    assert error[:, 1].median() < uniform[:, 1].median() / 2  # finer where the data is, coarser in the tail


def test_quantile_gripper_is_exact_and_every_token_decodes_inside(samples, quantile_bins):
    ends = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    assert quantile_bins.decode(quantile_bins.encode(ends), 3)[:, 2].tolist() == [-1.0, 1.0]
    everything = quantile_bins.decode(torch.arange(16).repeat_interleave(3), 3)
    assert everything.isfinite().all()
    assert everything.abs().max() <= 1


def test_quantile_bins_with_less_data_than_bins():
    tokenizer = QuantileBins(64, action_dim=1).fit([[-0.5], [0.25]])
    actions = torch.tensor([[-0.5], [0.25]])
    assert torch.equal(tokenizer.decode(tokenizer.encode(actions), 1), actions)


def test_mask_is_one_further_id_and_never_decoded(quantile_bins):
    for tokenizer in (UniformBins(16), quantile_bins):
        assert (tokenizer.vocab_size, tokenizer.mask_id) == (16, 16)
        with pytest.raises(UserError, match="MASK: the chunk is not fully committed"):
            tokenizer.decode(torch.tensor([0, 16, 3]), 3)
        for bad in (-1, 17):
            with pytest.raises(UserError, match=f"cannot decode id {bad}; action tokens are 0 .. 15"):
                tokenizer.decode(torch.tensor([0, bad, 3]), 3)


def test_saved_arguments_and_state_rebuild_the_tokenizer(quantile_bins, samples):
    rebuilt = QuantileBins(**quantile_bins.init_args)
    rebuilt.load_state_dict(quantile_bins.state_dict())
    rebuilt.to(torch.bfloat16)
    actions = torch.from_numpy(samples)
    assert torch.equal(rebuilt.encode(actions), quantile_bins.encode(actions))
    assert UniformBins(**UniformBins(300).init_args).vocab_size == 300


def test_refusals(quantile_bins):
    with pytest.raises(UserError, match="num_bins must be a number at least 2"):
        UniformBins(1)
    with pytest.raises(UserError, match="action_dim must be a number at least 1"):
        QuantileBins(4, action_dim=0)
    with pytest.raises(UserError, match=r"NaN \(action dimensions \[1\]\)"):
        UniformBins().encode(torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(UserError, match=r"\(..., T, D\)"):
        UniformBins().encode(torch.zeros(3))
    with pytest.raises(UserError, match="no whole actions of 2 dimensions"):
        UniformBins().decode(torch.tensor([1, 2, 3]), 2)
    with pytest.raises(UserError, match="integer tokens"):
        UniformBins().decode(torch.zeros(2), 2)
    with pytest.raises(UserError, match="no edges yet"):
        QuantileBins(4, action_dim=2).encode(torch.zeros(1, 2))
    with pytest.raises(UserError, match="made for 3 dimensions, got 2"):
        quantile_bins.encode(torch.zeros(1, 2))
    with pytest.raises(UserError, match="made for 3 dimensions, got 2"):
        quantile_bins.decode(torch.zeros(4, dtype=torch.int64), 2)
    with pytest.raises(UserError, match="dimension 2 holds nan"):
        QuantileBins(4, action_dim=3).fit([[0, 0, float("nan")]])
    with pytest.raises(UserError, match="no data"):
        QuantileBins(4, action_dim=3).fit(np.zeros((0, 3)))
