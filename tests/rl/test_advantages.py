"""GAE against hand-computed numbers and torchrl's implementation."""

import pytest
import torch

from dvla_lightning.rl.advantages import gae, normalize


def random_row(lengths, truncated, seed=0):
    """A flat row of episodes; `truncated[i]` says how episode i ends."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    rewards, values, next_values = torch.randn(3, total, generator=generator)
    terminated = torch.zeros(total, dtype=torch.bool)
    done = torch.zeros(total, dtype=torch.bool)
    end = -1
    for length, cut in zip(lengths, truncated, strict=True):
        end += length
        done[end] = True
        terminated[end] = not cut
    return rewards, values, next_values, terminated, done


def row(rewards, values, next_values, terminated, done):
    floats = (torch.tensor(x, dtype=torch.float64) for x in (rewards, values, next_values))
    return (*floats, torch.tensor(terminated, dtype=torch.bool), torch.tensor(done, dtype=torch.bool))


def test_hand_computed_termination():
    # delta = [0 + .5*3 - 2, 1 + .5*0 - 3] = [-.5, -2]; A_1 = -2; A_0 = -.5 + .5*.8*-2 = -1.3
    advantages, returns = gae(*row([0, 1], [2, 3], [3, 100], [0, 1], [0, 1]), gamma=0.5, gae_lambda=0.8)
    assert advantages.tolist() == pytest.approx([-1.3, -2.0])
    assert returns.tolist() == pytest.approx([0.7, 1.0])


def test_hand_computed_truncation_bootstraps_from_the_last_observation():
    # as above, but delta_1 = 1 + .5*100 - 3 = 48; A_0 = -.5 + .4*48
    advantages, _ = gae(*row([0, 1], [2, 3], [3, 100], [0, 0], [0, 1]), gamma=0.5, gae_lambda=0.8)
    assert advantages.tolist() == pytest.approx([18.7, 48.0])


def test_lambda_one_gives_the_discounted_return():
    _, returns = gae(*row([1, 2, 4], [9, 8, 7], [8, 7, 0], [0, 0, 1], [0, 0, 1]), gamma=0.5, gae_lambda=1.0)
    assert returns.tolist() == pytest.approx([1 + 1 + 1, 2 + 2, 4])


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_agrees_with_torchrl(gamma, gae_lambda):
    functional = pytest.importorskip("torchrl.objectives.value.functional")
    inputs = random_row([5, 1, 7, 3], [False, True, True, False])
    # torchrl wants (*batch, time, features)
    rewards, values, next_values, terminated, done = (x[None, :, None] for x in inputs)
    expected_advantages, expected_returns = functional.generalized_advantage_estimate(
        gamma, gae_lambda, values, next_values, rewards, done, terminated
    )
    advantages, returns = gae(*inputs, gamma=gamma, gae_lambda=gae_lambda)
    torch.testing.assert_close(advantages, expected_advantages[0, :, 0])
    torch.testing.assert_close(returns, expected_returns[0, :, 0])


def test_concatenated_episodes_equal_separate_ones():
    lengths = [4, 1, 6]
    inputs = random_row(lengths, [True, False, True])
    together, _ = gae(*inputs, gamma=0.97, gae_lambda=0.9)
    parts = zip(*(x.split(lengths) for x in inputs), strict=True)
    separate = torch.cat([gae(*part, gamma=0.97, gae_lambda=0.9)[0] for part in parts])
    assert torch.equal(together, separate)


def test_next_value_after_termination_is_ignored_even_when_nan():
    inputs = row([0, 1], [2, 3], [3, float("nan")], [0, 1], [0, 1])
    assert gae(*inputs, gamma=0.9, gae_lambda=0.9)[0].isfinite().all()


def test_keeps_dtype_and_accepts_an_empty_row():
    for dtype in (torch.float32, torch.float64):
        values = torch.zeros(0, dtype=dtype)
        flags = torch.zeros(0, dtype=torch.bool)
        advantages, returns = gae(values, values, values, flags, flags, gamma=0.9, gae_lambda=0.9)
        assert advantages.dtype == returns.dtype == dtype
        assert advantages.shape == (0,)


def test_refuses_wrong_shapes_and_terminated_without_done():
    inputs = random_row([3], [False])
    with pytest.raises(ValueError, match=r"one shape \(T,\)"):
        gae(*(x[:, None] for x in inputs), gamma=1.0, gae_lambda=1.0)
    with pytest.raises(ValueError, match=r"one shape \(T,\)"):
        gae(inputs[0][:2], *inputs[1:], gamma=1.0, gae_lambda=1.0)
    with pytest.raises(ValueError, match="terminated but not done"):
        gae(*inputs[:4], torch.zeros(3, dtype=torch.bool), gamma=1.0, gae_lambda=1.0)


def test_normalize():
    advantages = torch.tensor([1.0, 2.0, 6.0])
    normalized = normalize(advantages, advantages.mean(), advantages.std(correction=0))
    assert normalized.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert normalized.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    assert normalize(torch.tensor([3.0]), 1.0, 2.0, eps=0.0).item() == 1.0


def test_normalize_leaves_equal_advantages_near_zero():
    advantages = torch.full((7,), 0.1)
    assert normalize(advantages, 0.1 + 1e-8, 0.0).abs().max() < 0.01
