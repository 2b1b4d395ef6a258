"""Float stacks and their integer forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pycodec.errors import UnsupportedError
from pycodec.quantization.int16 import (
    ACTIVATION_LIMIT,
    channel_scales,
    float_layers,
    integer_layer,
    integer_network,
    load_layer,
)


def subpixel(cin, cout):
    return nn.Sequential(nn.Conv2d(cin, 4 * cout, 3, padding=1), nn.PixelShuffle(2))


STACKS = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(), nn.Conv2d(8, 5, 1, bias=False)
    ),
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 8, 5, stride=2, padding=2, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(5, 4, 3, padding=1),
    ),
    "subpixel": lambda: nn.Sequential(
        subpixel(3, 6), nn.LeakyReLU(), nn.Conv2d(6, 7, 3, padding=1), nn.ReLU(), subpixel(7, 2)
    ),
}


def run_integers(layers, x, in_scale):
    """Float NCHW to int NHWC, through the integer layers, and back."""
    x = torch.round(x / in_scale.view(1, -1, 1, 1)).clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)
    x = x.to(torch.int16).permute(0, 2, 3, 1).contiguous()
    for tensors in layers:
        layer, shuffle = load_layer(tensors)
        x = layer(x, 1)
        if shuffle:
            n, h, w, c = x.shape
            x = x.view(n, h, w, 2, 2, c // 4).transpose(2, 3).reshape(n, 2 * h, 2 * w, c // 4)
    return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", STACKS)
@torch.no_grad()
def test_float_layers_compute_the_same(name):
    torch.manual_seed(1)
    stack = STACKS[name]().double()
    x = torch.randn(2, 3, 5, 6)
    y = x
    for layer in float_layers(stack):
        y = layer(y)
    torch.testing.assert_close(y.double(), stack(x.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STACKS)
@torch.no_grad()
def test_integers_are_close(name):
    torch.manual_seed(2)
    stack = STACKS[name]()
    x = torch.randn(2, 3, 5, 6)
    in_scale = channel_scales(x)
    layers, expected, scale = integer_network(float_layers(stack), x, in_scale)
    torch.testing.assert_close(expected, stack(x), rtol=1e-4, atol=1e-4)
    actual = run_integers(layers, x, in_scale) * scale.view(1, -1, 1, 1)
    error = (actual - expected).abs().amax((0, 2, 3)) / expected.abs().amax()
    assert float(error.max()) < 2e-3


def test_accumulators_cannot_overflow():
    """The worst input there is, for weights that fill the accumulator."""
    torch.manual_seed(3)
    conv = nn.Conv2d(40, 9, 5, padding=2)
    with torch.no_grad():
        conv.weight.mul_(torch.logspace(-3, 6, 9).view(-1, 1, 1, 1))
        conv.bias.mul_(1e4)
    (layer,) = float_layers(conv)
    tensors = integer_layer(layer, torch.full((40,), 0.01), torch.ones(9), 2**31 - 1)
    worst = tensors["weight"].long().abs().sum((1, 2, 3)) * ACTIVATION_LIMIT
    worst += tensors["bias"].long().abs()
    assert int(worst.max()) < 2**31
    assert int(worst.min()) > 2**30  # and nothing is given away


@pytest.mark.parametrize(
    "stack",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2)),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2)),
        nn.Sequential(nn.ConvTranspose2d(3, 4, 5, stride=2, padding=2)),
        nn.Sequential(nn.ConvTranspose2d(3, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU()),
        nn.Sequential(nn.Conv2d(3, 18, 1), nn.PixelShuffle(3)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ReLU()),
    ],
)
def test_what_has_no_integer_form(stack):
    with pytest.raises(UnsupportedError, match="no integer network"):
        float_layers(stack)


def test_numbers_without_integer_form():
    conv = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        conv.weight[0, 0] = float("nan")
    (layer,) = float_layers(conv)
    with pytest.raises(UnsupportedError):
        integer_layer(layer, torch.ones(3), torch.ones(4))
