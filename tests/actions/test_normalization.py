"""Normalisation: hand-computed bounds, round trips, constants, precision, refusals."""

import numpy as np
import pytest
import torch

from dvla_lightning.actions.normalization import Normalizer
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
        [3.0, 0.0],
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
    with pytest.raises(UserError, match="choose min_max, quantile, identity"):
        Normalizer(2, "z_score")
    with pytest.raises(UserError, match="dim >= 1"):
        Normalizer(0)
