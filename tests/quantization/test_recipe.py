"""Grids fit what was seen, and weights are rounded for the inputs that they get."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pycodec.errors import CodecError, InputError
from pycodec.quantization.calibration import (
    METHODS,
    LayerInputs,
    best_weight_scale,
    calibrate,
    error_factor,
    named_layers,
    narrow_grid,
    observe,
    plan_layer,
    round_weights,
    wide_grid,
)
from pycodec.quantization.plan import ActivationGrid

from ..networks import quantized_network


def inputs_of(values: torch.Tensor) -> LayerInputs:
    moment = values @ values.T / values.shape[1]
    return LayerInputs(values, values.amin(1), values.amax(1), moment)


def error(grid: ActivationGrid, values: torch.Tensor, low: int, high: int) -> torch.Tensor:
    zero = grid.zero_point[:, None]
    q = ((values / grid.scale[:, None]).round() + zero).clamp(low, high)
    return ((q - zero) * grid.scale[:, None] - values).square().mean(1)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("after_relu", [False, True])
def test_grids_by_method(bits, after_relu):
    torch.manual_seed(bits)
    values = torch.randn(5, 20_000) * torch.tensor([[0.01], [0.2], [1], [3], [40]]) + 0.3
    values = values.relu() if after_relu else values
    low, high = (0, 2**bits - 1) if after_relu else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    errors = {}
    for method in METHODS:
        grid = narrow_grid(inputs_of(values), bits, after_relu, method)
        assert grid.bits == bits
        if after_relu:
            assert not grid.zero_point.any()
        assert (grid.zero_point >= low).all() and (grid.zero_point <= high).all()
        errors[method] = error(grid, values, low, high)
        reach = (high - grid.zero_point) * grid.scale - values.amax(1)
        if method == "min-max":  # nothing seen is cut off by more than half a step
            assert (reach >= -0.51 * grid.scale).all()
        elif method == "percentile":
            assert (reach < 0.51 * grid.scale).all()
    assert (errors["mse"] <= errors["min-max"] * 1.0001).all()
    if bits == 4:  # few levels: cutting the tails pays
        assert (errors["mse"] < 0.9 * errors["min-max"]).any()


def test_an_unknown_method_is_an_error():
    with pytest.raises(InputError, match="calibrate by min-max, percentile, mse"):
        narrow_grid(inputs_of(torch.randn(2, 100)), 8, False, "entropy")


def test_wide_grids_have_one_scale_and_room():
    values = torch.randn(3, 1000) * torch.tensor([[0.1], [1], [10]])
    grid = wide_grid(inputs_of(values))
    assert grid.bits == 16 and len(grid.scale.unique()) == 1
    assert float(values.abs().max() / grid.scale[0]) < 32767 / 1.4


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_rounded_for_their_inputs(bits):
    """The error of the sums is far below that of rounding to the nearest, if inputs correlate."""
    torch.manual_seed(0)
    basis = torch.randn(40, 4)
    x = basis @ torch.randn(4, 3000) + 0.05 * torch.randn(40, 3000)
    weight = torch.randn(8, 40, 1, 1)
    scale = best_weight_scale(weight, bits)
    top = 2 ** (bits - 1) - 1
    rounded = round_weights(weight, scale, bits, error_factor(x @ x.T / x.shape[1]))
    assert torch.equal(rounded, rounded.round()) and rounded.abs().max() <= top

    def loss(integers: torch.Tensor) -> float:
        wrong = (integers * scale.view(-1, 1, 1, 1) - weight).flatten(1)
        return float((wrong @ x).square().mean())

    nearest = (weight / scale.view(-1, 1, 1, 1)).round().clamp(-top, top)
    assert loss(rounded) < 0.2 * loss(nearest)


def test_independent_inputs_leave_rounding_to_the_nearest():
    torch.manual_seed(1)
    weight = torch.randn(6, 300, 1, 1)
    scale = best_weight_scale(weight, 8)
    rounded = round_weights(weight, scale, 8, error_factor(torch.eye(300)))
    assert torch.equal(rounded, (weight / scale.view(-1, 1, 1, 1)).round().clamp(-127, 127))


def test_values_that_are_not_finite_are_an_error():
    with pytest.raises(CodecError, match="not finite"):
        error_factor(torch.full((3, 3), float("nan")))
    with pytest.raises(InputError, match="needs pictures"):
        observe(quantized_network(1), [])


def test_the_best_scale_is_the_best():
    torch.manual_seed(2)
    weight = torch.randn(4, 2000)
    for bits in (4, 6):
        top = 2 ** (bits - 1) - 1

        def loss(scale: torch.Tensor, top: int = top) -> torch.Tensor:
            scale = scale[:, None]
            wrong = (weight / scale).round().clamp(-top, top) * scale - weight
            return wrong.square().sum(1)

        best = best_weight_scale(weight, bits)
        peak = weight.abs().amax(1) / top
        assert (loss(best) <= loss(peak)).all()
        if bits == 4:  # few levels: cutting the tails pays
            assert (loss(best) < 0.8 * loss(peak)).all()
        for factor in (0.7, 0.85, 1.2, 1.4):
            assert (loss(best) <= loss(best * factor) * 1.05).all()


def test_every_layer_of_the_photo_network_gets_its_grid():
    network = quantized_network(4)
    torch.manual_seed(0)
    pictures = [torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 128)]
    observed = observe(network, pictures, (10.0, 90.0))
    assert list(observed) == list(named_layers(network))
    plans = calibrate(network, observed, {name: (4, 8) for name in observed})
    for name, layer in named_layers(network).items():
        transform, path = name.split(".", 1)
        plan = plans[transform][path]
        assert list(plan) == [4, 8]
        grid = plan[8].input
        assert len(grid.scale) == layer.in_channels == len(observed[name].low)
        wide = path.split(".")[-1] in ("down8", "down16", "head", "tail") or path.startswith("up")
        assert grid.bits == (16 if wide and transform != "hyper_analysis" else 8)
        assert plan[4].rounded.shape == layer.weight.shape and plan[4].rounded.abs().max() <= 7
    inner = plans["synthesis"]["blocks8.1.expand"][8].input
    assert not inner.zero_point.any()
    assert plans["synthesis"]["blocks8.1.reduce"][8].input.zero_point.any()


def test_a_layer_with_many_weights_is_rounded_to_the_nearest():
    layer = nn.Conv2d(300, 2, 3)
    values = torch.randn(300, 10)
    inputs = LayerInputs(values, values.amin(1), values.amax(1), torch.eye(2700))
    plan = plan_layer(layer, wide_grid(inputs), inputs, (8,))[8]
    assert plan.rounded is None and plan.weight_scale.shape == (2,)
