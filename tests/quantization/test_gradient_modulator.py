"""The modulator's values are those of rounding, its gradients those of the formula."""

from __future__ import annotations

import math

import pytest
import torch

from pycodec.errors import InputError
from pycodec.quantization.fake_quant import round_ste
from pycodec.quantization.gradient_modulator import modulation, round_modulated, soft_round

BETAS = (0.3, 1.0, 2.0, 6.0)


@pytest.mark.parametrize("beta", BETAS)
def test_values_are_rounded_and_gradients_follow_the_staircase(beta):
    x = torch.linspace(-3.2, 3.3, 997, dtype=torch.float64, requires_grad=True)
    y = round_modulated(x, beta)
    assert torch.equal(y, torch.round(x))
    upstream = torch.linspace(-1, 2, len(x), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    # The derivative of the staircase, by differences and by the formula in plain Python.
    step = 1e-6
    slope = (soft_round(x + step, beta) - soft_round(x - step, beta)) / (2 * step)
    assert torch.allclose(gradient, upstream * slope.detach(), atol=1e-6)
    for value, factor in zip(x.tolist()[::83], (gradient / upstream).tolist()[::83], strict=True):
        f = value - math.floor(value)
        formula = beta * (1 - math.tanh(beta * (f - 0.5)) ** 2) / (2 * math.tanh(beta / 2))
        assert factor == pytest.approx(formula, rel=1e-9)


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_grow_with_the_distance_from_the_level(beta):
    distance = torch.linspace(0, 0.5, 50, dtype=torch.float64)
    factors = modulation(7 + distance, beta)
    assert (factors.diff() > 0).all()
    assert torch.allclose(factors, modulation(7 - distance, beta))  # on either side
    mean = modulation((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000, beta).mean()
    assert float(mean) == pytest.approx(1, abs=1e-6)


def test_the_staircase_is_continuous_and_ends_in_rounding():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0], dtype=torch.float64)
    for beta in BETAS:
        assert torch.allclose(soft_round(x - 1e-9, beta), soft_round(x + 1e-9, beta), atol=1e-7)
        assert torch.allclose(soft_round(x, beta), x)
    x = torch.tensor([-1.6, -0.4, 0.3, 0.7, 2.2], dtype=torch.float64)
    assert torch.allclose(soft_round(x, 200.0), torch.round(x))


def test_a_small_beta_is_the_straight_through_estimator():
    x = torch.linspace(-2, 2, 101, requires_grad=True)
    (gradient,) = torch.autograd.grad(round_modulated(x, 1e-3).sum(), x)
    (straight,) = torch.autograd.grad(round_ste(x).sum(), x)
    assert torch.allclose(gradient, straight, atol=1e-4)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_beta_is_positive(beta):
    with pytest.raises(InputError, match="beta"):
        round_modulated(torch.zeros(1), beta)
