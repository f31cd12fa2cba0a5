import math
from pathlib import Path

import pytest
import torch

from benchmarks.gradient_noise import Measured, gradient_noise, measure
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError


def test_three_gradients_by_hand():
    found = measure(torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]]))
    products = [1 * 3 - 2 * 1, 1 * 0 + 2 * 1, 3 * 0 - 1 * 1]  # 0 with 1, 0 with 2, 1 with 2
    assert found.signal == pytest.approx(sum(products) / 3)
    assert found.noise == pytest.approx((5 + 10 + 1) / 3 - sum(products) / 3)
    without = torch.tensor(products[::-1]).double()  # one left out: the product of the other two
    assert found.standard_error == pytest.approx(math.sqrt(2 / 3 * float((without - without.mean()).square().sum())))


def test_cosine_by_hand():
    found = Measured(signal=1.0, standard_error=0.5, noise=6.5)
    assert found.cosine(4) == pytest.approx(math.sqrt(4 / (4 + 6.5)))
    assert found.cosine(4, errors=2) == pytest.approx(math.sqrt(8 / (8 + 6.5)))
    assert found.cosine(4, errors=-3) == Measured(-1.0, 0.0, 2.0).cosine(10) == 0


def test_signal_and_noise_are_found_again():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(50, generator=generator, dtype=torch.float64)
    draws_MPN = true + 3 * torch.randn(2000, 8, 50, generator=generator, dtype=torch.float64)
    found = [measure(draws_PN) for draws_PN in draws_MPN]
    signals = torch.tensor([m.signal for m in found])
    assert float(signals.mean()) == pytest.approx(float(true @ true), rel=0.03)
    error = sum(m.standard_error for m in found) / 2000
    assert float(signals.std()) < error < 1.3 * float(signals.std())
    assert sum(m.noise for m in found) / 2000 == pytest.approx(9 * 50, rel=0.01)
    sums = draws_MPN.sum(1)
    cosines = (sums @ true) / (sums.norm(dim=1) * true.norm())
    assert Measured(float(true @ true), 0.0, 9 * 50).cosine(8) == pytest.approx(float(cosines.mean()), abs=0.02)


def test_it_runs_on_episodes(capsys):
    policy = str(Path(__file__).parents[2] / "checkpoints" / "tabletop-sft")
    found = gradient_noise(policy, Tabletop(), "detour", num_episodes=32, num_parts=4, num_workers=0)
    assert list(found) == ["gae_lambda 0.0", "gae_lambda 0.5", "gae_lambda 0.95", "Monte Carlo, gamma 0.99"]
    assert all(m.signal + m.noise > 0 for m in found.values())
    assert "of 32 episodes succeeded" in capsys.readouterr().out
    with pytest.raises(UserError, match="multiple of num_parts"):
        gradient_noise(policy, Tabletop(), num_episodes=9, num_parts=4)
