"""Normalisation: hand-computed bounds, round trips, constants, precision, refusals."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from dvla_lightning.actions.normalization import NormalizationGroup, Normalizer
from dvla_lightning.errors import UserError

MODES = ("min_max", "quantile", "identity")


@pytest.fixture
def samples():
    """(500, 3) float64 with very different ranges."""
    return np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 1e-3, 1e3] + [0.0, 5.0, -7.0]


def test_hand_computed_min_max():
    normalizer = Normalizer(2, "min_max").fit([[0.0, -1.0], [10.0, 3.0], [5.0, 0.0]])
    assert normalizer.low.tolist() == [0.0, -1.0]
    assert normalizer.high.tolist() == [10.0, 3.0]
    assert normalizer.normalize(torch.tensor([[0.0, -1.0], [10.0, 3.0], [7.5, 1.0], [20.0, 1.0]])).tolist() == [
        [-1.0, -1.0],
        [1.0, 1.0],
        [0.5, 0.0],
        [1.0, 0.0],  # clipped
    ]
    assert normalizer.denormalize(torch.tensor([0.5, 0.0])).tolist() == [7.5, 1.0]


def test_hand_computed_quantiles_interpolate_and_clip():
    # 0, 1, ..., 200: q01 lies at 2.0, q99 at 198.0; of 0 .. 10 they lie at 0.1 and 9.9
    long = Normalizer(1, "quantile").fit(np.arange(201.0)[:, None])
    assert (long.low.item(), long.high.item()) == (2.0, 198.0)
    short = Normalizer(1, "quantile").fit(torch.arange(11.0)[:, None])
    assert short.low.item() == pytest.approx(0.1)
    assert short.high.item() == pytest.approx(9.9)
    assert short.normalize(torch.tensor([[0.0], [10.0], [5.0]])).flatten().tolist() == pytest.approx(
        [-1, 1, 0], abs=1e-6
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(samples, mode, dtype):
    normalizer = Normalizer(3, mode).fit(samples)
    inside = torch.from_numpy(np.clip(samples, *np.quantile(samples, [0.02, 0.98], axis=0))).to(dtype)
    there = normalizer.normalize(inside)
    back = normalizer.denormalize(there)
    assert there.dtype == back.dtype == dtype
    assert mode == "identity" or there.abs().max() <= 1
    error = (back - inside).abs() / (inside.max(0).values - inside.min(0).values)
    assert error[:, [0, 2]].max() < (1e-6 if dtype == torch.float32 else 1e-14)
    assert error[:, 1].max() < (1e-3 if dtype == torch.float32 else 1e-12)  # a range of 1e-3 around 5 costs digits


@pytest.mark.parametrize("mode", ["min_max", "quantile"])
def test_ends_are_exact(samples, mode):
    normalizer = Normalizer(3, mode).fit(samples)
    ends = torch.tensor([[-1.0] * 3, [1.0] * 3])
    bounds = torch.stack([normalizer.low, normalizer.high])
    assert torch.equal(normalizer.denormalize(ends), bounds)
    assert torch.equal(normalizer.normalize(bounds), ends)


@pytest.mark.parametrize("mode", ["min_max", "quantile"])
def test_constant_dimension_maps_to_zero_and_back_to_the_constant(mode):
    normalizer = Normalizer(2, mode).fit([[0.1, 1.0], [0.1, 2.0]])
    there = normalizer.normalize(torch.tensor([[0.1, 1.5], [99.0, 1.5]]))
    assert there[:, 0].tolist() == [0.0, 0.0]
    back = normalizer.denormalize(torch.tensor([[0.0, 0.0], [0.7, 0.0]]))
    assert back[:, 0].tolist() == pytest.approx([0.1, 0.1])


def test_rare_motion_is_not_erased_by_equal_quantiles():
    gripper = np.zeros((1000, 1))
    gripper[500] = 1.0
    normalizer = Normalizer(1, "quantile").fit(gripper)
    assert normalizer.normalize(torch.tensor([[0.0], [1.0]])).flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-9, 1e-6, 1e-4])
@pytest.mark.parametrize("offset", [0.0, 0.3, -2.0])
def test_rare_motion_over_noise_is_not_erased_either(noise, offset):
    """10,000 rows of an idle joint that moves by half a unit in every 200th of them."""
    still = np.random.default_rng(0).normal(offset, noise, 10_000)
    still[::200] = offset + np.resize([0.5, -0.5], 50)
    normalizer = Normalizer(1, "quantile").fit(still[:, None])
    moved = torch.tensor([[offset + 0.5], [offset - 0.5], [offset]])
    back = normalizer.denormalize(normalizer.normalize(moved))
    assert (back - moved).abs().max() < 1e-6 + 1e-5 * noise
    assert not normalizer.outside(torch.from_numpy(still[:, None])).any()


def test_outliers_within_a_thousand_ranges_do_not_waste_the_range():
    rows = np.random.default_rng(0).uniform(-1, 1, 10_000)
    rows[::500] = 900.0
    normalizer = Normalizer(1, "quantile").fit(rows[:, None])
    assert normalizer.high.item() < 1.0
    assert normalizer.normalize(torch.tensor([[900.0]])).item() == 1.0
    outside = normalizer.outside(torch.from_numpy(rows[:, None])).float().mean().item()
    assert outside == pytest.approx(0.02, abs=1e-3)  # 1 % beyond either quantile


@pytest.mark.parametrize("mode", ["min_max", "quantile"])
@pytest.mark.parametrize("noise", [1e-45, 1e-30, 1e-12, 1e-8])
@pytest.mark.parametrize("offset", [0.0, 0.7, 1e6])
def test_noise_is_no_motion(mode, noise, offset):
    """A dimension that moves by less than a millionth is constant: what it does later is bounded, and noted."""
    rows = offset + np.random.default_rng(0).normal(0, noise, (1000, 1))
    normalizer = Normalizer(1, mode).fit(rows)
    later = torch.tensor([[offset], [offset + 0.001], [offset + 1e4], [-np.inf]], dtype=torch.float64)
    assert normalizer.normalize(later).flatten().tolist() == [0.0] * 4
    assert normalizer.denormalize(torch.zeros(1)).item() == pytest.approx(offset, rel=1e-6, abs=1e-6)
    assert normalizer.outside(later).flatten().tolist() == [False, offset < 1e6, True, True]
    assert not normalizer.outside(torch.from_numpy(rows)).any()


@pytest.mark.parametrize("mode", ["min_max", "quantile"])
@pytest.mark.parametrize("seed", range(20))
def test_every_number_agrees_with_exact_arithmetic(mode, seed):
    """Spans from 1e-5 to 1e5 around offsets up to 1e6, in range and far out of it, against fractions."""
    rng = np.random.default_rng(seed)
    span, offset = 10 ** rng.uniform(-5, 5), rng.choice([-1, 1]) * 10 ** rng.uniform(-3, 6)
    rows = (offset + span * rng.uniform(-1, 1, (500, 1))).astype(np.float32)
    normalizer = Normalizer(1, mode).fit(rows)
    low, high = Fraction(normalizer.low.item()), Fraction(normalizer.high.item())
    far = torch.tensor([[offset + 3 * span], [offset - 1e4 * span], [3e38], [-3e38]])
    x = torch.cat([torch.from_numpy(rows), far])
    there = normalizer.normalize(x)
    back = normalizer.denormalize(there).flatten().tolist()
    for value, scaled, returned in zip(x.flatten().tolist(), there.flatten().tolist(), back, strict=True):
        inside = min(max(Fraction(value), low), high)
        exact = 2 * (inside - low) / (high - low) - 1 if high > low else Fraction(0)
        assert abs(scaled) <= 1 and scaled == pytest.approx(float(exact), abs=1e-6)
        # what float32 resolves at this offset and at this span
        assert returned == pytest.approx(float(inside), abs=2e-7 * float(abs(inside) + high - low))


def test_numbers_that_float32_cannot_hold_are_refused():
    for rows in ([[0.0], [1e300]], [[-3e38], [3e38]]):
        with pytest.raises(UserError, match=r"dimension 0 goes from .* rescale it"):
            Normalizer(1, "min_max").fit(rows)


def test_bins_beyond_the_range_come_back_as_its_ends():
    normalizer = Normalizer(1, "min_max").fit([[2.0], [4.0]])
    assert normalizer.denormalize(torch.tensor([[-7.0], [1.0], [np.inf]])).flatten().tolist() == [2.0, 4.0, 4.0]


def test_identity_changes_nothing():
    x = torch.tensor([0.3, -7.0])
    assert torch.equal(Normalizer(2, "identity").normalize(x), x)
    assert torch.equal(Normalizer(2, "identity").denormalize(x), x)


def test_statistics_ride_in_the_state_dict_and_survive_a_cast(samples):
    fitted = Normalizer(3, "quantile").fit(samples)
    loaded = Normalizer(**fitted.init_args)
    loaded.load_state_dict(fitted.state_dict())
    policy = torch.nn.ModuleDict({"actions": loaded, "network": torch.nn.Linear(2, 2)}).to(torch.bfloat16)
    assert policy["network"].weight.dtype == torch.bfloat16
    assert torch.equal(loaded.low, fitted.low)
    assert torch.equal(loaded.high, fitted.high)
    assert loaded.normalize(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_refuses_bad_data(mode):
    normalizer = Normalizer(2, mode)
    with pytest.raises(UserError, match=r"\(N, 2\), got \(4, 3\)"):
        normalizer.fit(np.zeros((4, 3)))
    with pytest.raises(UserError, match="no data"):
        normalizer.fit(np.zeros((0, 2)))
    with pytest.raises(UserError, match="dimension 1 holds nan in row 2"):
        normalizer.fit([[0, 0], [1, 1], [2, float("nan")]])
    with pytest.raises(UserError, match="dimension 0 holds inf in row 0"):
        normalizer.fit([[float("inf"), 0]])
    with pytest.raises(UserError, match=r"2 dimensions, got a tensor of shape \(2, 3\)"):
        normalizer.normalize(torch.zeros(2, 3))
    with pytest.raises(UserError, match="2 dimensions"):
        normalizer.denormalize(torch.zeros(5))


def test_refuses_use_before_fit_and_unknown_modes():
    with pytest.raises(UserError, match="no statistics yet"):
        Normalizer(2, "min_max").normalize(torch.zeros(2))
    with pytest.raises(UserError, match="choose min_max, quantile, mean_std, identity"):
        Normalizer(2, "z_score")
    with pytest.raises(UserError, match="dim >= 0"):
        Normalizer(-1)


def test_nothing_to_normalise_needs_no_statistics():
    empty = Normalizer(0, "quantile").fit(np.zeros((3, 0)))
    assert empty.normalize(torch.zeros(5, 0)).shape == empty.denormalize(torch.zeros(5, 0)).shape == (5, 0)
    assert Normalizer(0).normalize(torch.zeros(2, 0)).shape == (2, 0)


# -- groups of dimensions ----------------------------------------------------------------------------------------------

GROUPS = [
    NormalizationGroup([0, 3], "min_max"),
    NormalizationGroup([1], "quantile"),
    NormalizationGroup([2], "mean_std", factor=2.0),
    NormalizationGroup([4], "identity"),
    NormalizationGroup([5], "identity", factor=5.0),
]


def test_every_group_is_normalised_by_its_own_rule():
    samples = np.random.default_rng(0).normal(size=(400, 6)) * [1, 10, 100, 1, 0.3, 3] + [0, 1, 2, 3, 0, 0]
    normalizer = Normalizer(6, GROUPS).fit(samples)
    q01, q99 = np.quantile(samples[:, 1], [0.01, 0.99])
    mean, std = samples[:, 2].mean(), samples[:, 2].std()
    low = [samples[:, 0].min(), q01, mean - 2 * std, samples[:, 3].min(), -1, -5]
    high = [samples[:, 0].max(), q99, mean + 2 * std, samples[:, 3].max(), 1, 5]
    x = torch.from_numpy(samples[:20])
    by_hand = 2 * (samples[:20] - low) / (np.array(high) - low) - 1
    by_hand[:, :4] = by_hand[:, :4].clip(-1, 1)
    by_hand[:, 4] = samples[:20, 4]
    torch.testing.assert_close(normalizer.normalize(x), torch.from_numpy(by_hand), rtol=1e-5, atol=1e-5)
    back = normalizer.denormalize(normalizer.normalize(x)).numpy()
    inside = (samples[:20] >= low) & (samples[:20] <= high)
    inside[:, 4:] = True  # what is not scaled by statistics is not clipped either
    np.testing.assert_allclose(back[inside], samples[:20][inside], rtol=1e-4, atol=1e-4)
    alone = Normalizer(1, [NormalizationGroup([0], "mean_std", 2.0)]).fit(samples[:, 2:3])
    assert torch.equal(alone.low[0], normalizer.low[2]) and torch.equal(alone.high[0], normalizer.high[2])


def test_a_gripper_that_is_not_scaled_comes_back_to_the_bit():
    groups = [NormalizationGroup([0], "quantile"), NormalizationGroup([1], "identity")]
    samples = np.random.default_rng(0).uniform(-3, 3, (50, 2))
    normalizer = Normalizer(2, groups).fit(samples)
    gripper = torch.tensor([[0.0, -1.0], [0.0, 1.0], [0.0, 0.1], [0.0, 1.7]])
    assert torch.equal(normalizer.normalize(gripper)[:, 1], gripper[:, 1])
    assert torch.equal(normalizer.denormalize(gripper)[:, 1], gripper[:, 1])
    assert normalizer.outside(gripper)[:, 1].tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ([NormalizationGroup([0], "quantile")], r"must name each of the dimensions 0 to 1 once: \[0\]"),
        ([NormalizationGroup([0, 1, 1], "quantile")], r"once: \[0, 1, 1\]"),
        ([NormalizationGroup([0, 2], "quantile")], r"once: \[0, 2\]"),
    ],
)
def test_groups_must_cover_every_dimension_once(groups, sentence):
    with pytest.raises(UserError, match=sentence):
        Normalizer(2, groups)


def test_a_group_of_nonsense_is_refused():
    with pytest.raises(UserError, match="unknown normalisation 'z_score': choose min_max"):
        NormalizationGroup([0], "z_score")
    with pytest.raises(UserError, match="factor must be a number above 0, got 0"):
        NormalizationGroup([0], "mean_std", factor=0)
    with pytest.raises(UserError, match="quantile has no factor, got 2"):
        NormalizationGroup([0], "quantile", factor=2)


def test_groups_survive_json():
    import json

    fitted = Normalizer(6, GROUPS)
    plain = json.loads(json.dumps(fitted.init_args))
    again = Normalizer(plain["dim"], [NormalizationGroup(**group) for group in plain["mode"]])
    assert again.init_args == fitted.init_args
