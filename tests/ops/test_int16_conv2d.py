"""Every implementation of the int16 convolution gives the definition's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pycodec.errors import InputError
from pycodec.ops import Int16Conv2d

from ..levels import LEVELS, simd_level


def make_layer(rng, cout, kernel, cin, limit, *, shift=38, extreme=False):
    def draw(bits, size):
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        values = rng.choice([low, high], size) if extreme else rng.integers(low, high + 1, size)
        return torch.from_numpy(np.asarray(values).astype({16: np.int16, 32: np.int32}[bits]))

    return (
        draw(16, (cout, *kernel, cin)),
        draw(32, cout),
        draw(32, cout),
        draw(32, cout),
        shift,
        limit,
    )


def naive(x, weight, bias, multiplier, negative_multiplier, shift, limit):
    """The formula, a Python integer at a time."""
    cout, kh, kw, cin = weight.shape
    out = np.zeros((*x.shape[:3], cout), np.int64)
    for n, h, w, o in np.ndindex(out.shape):
        acc = int(bias[o])
        for i, j in np.ndindex(kh, kw):
            row, column = h + i - kh // 2, w + j - kw // 2
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                acc += sum(int(x[n, row, column, c]) * int(weight[o, i, j, c]) for c in range(cin))
        acc = (acc + 2**31) % 2**32 - 2**31
        m = int((negative_multiplier if acc < 0 else multiplier)[o])
        out[n, h, w, o] = min(max((acc * m + (1 << (shift - 1))) >> shift, -limit), limit)
    return out


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("limit", [16383, 2**31 - 1])
def test_reference_is_the_formula(rng, extreme, limit):
    arguments = make_layer(rng, 3, (3, 1), 5, limit, extreme=extreme)
    x = torch.from_numpy(rng.integers(-(2**15), 2**15, (2, 3, 4, 5), np.int16))
    out = Int16Conv2d(*arguments, backend="reference")(x)
    assert out.dtype == (torch.int16 if limit < 2**15 else torch.int32)
    np.testing.assert_array_equal(out.numpy(), naive(x, *arguments))


# Outputs below, at and above a vector (16) and a chunk of them (48); odd numbers of inputs.
SHAPES = [(1, (1, 1), 1), (16, (3, 3), 2), (17, (1, 5), 3), (48, (5, 5), 4), (100, (3, 3), 7)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(("cout", "kernel", "cin"), SHAPES)
def test_native_is_the_reference(rng, level, extreme, cout, kernel, cin):
    for limit, size in [(1000, (1, 1, 1)), (2**31 - 1, (2, 7, 9)), (16383, (1, 1, 60))]:
        arguments = make_layer(rng, cout, kernel, cin, limit, extreme=extreme)
        x = torch.from_numpy(rng.integers(-(2**15), 2**15, (*size, cin), np.int16))
        expected = Int16Conv2d(*arguments, backend="reference")(x)
        layer = Int16Conv2d(*arguments)
        for threads in (1, 3):
            with simd_level(level):
                assert torch.equal(layer(x, threads), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_taps_that_are_zero(rng, level):
    """What is left out of the packed weights changes nothing, whichever chunk lacks it."""
    weight, *rest = make_layer(rng, 120, (3, 5), 6, 16383)
    weight[:48, 0] = 0
    weight[48:96, :, 2:] = 0
    weight[96:] = 0
    x = torch.from_numpy(rng.integers(-(2**15), 2**15, (1, 6, 6, 6), np.int16))
    with simd_level(level):
        out = Int16Conv2d(weight, *rest)(x, 2)
    assert torch.equal(out, Int16Conv2d(weight, *rest, backend="reference")(x))


def test_empty_pictures(rng):
    arguments = make_layer(rng, 4, (3, 3), 2, 100)
    for size in [(0, 3, 3), (1, 0, 3), (1, 3, 0)]:
        assert Int16Conv2d(*arguments)(torch.zeros(*size, 2, dtype=torch.int16)).shape == (*size, 4)


def test_wrong_arguments(rng):
    weight, bias, m, n, shift, limit = make_layer(rng, 4, (3, 3), 2, 100)
    for wrong in [
        (weight.int(), bias, m, n, shift, limit),
        (weight[:, :2], bias, m, n, shift, limit),
        (weight[:, :, :, :0], bias, m, n, shift, limit),
        (weight, bias[:3], m, n, shift, limit),
        (weight, bias, m.long(), n, shift, limit),
        (weight, bias, m, n[:0], shift, limit),
        (weight, bias, m, n, 0, limit),
        (weight, bias, m, n, 63, limit),
        (weight, bias, m, n, shift, -1),
        (weight, bias, m, n, shift, 2**31),
    ]:
        with pytest.raises(InputError):
            Int16Conv2d(*wrong)
    with pytest.raises(InputError, match="backends"):
        Int16Conv2d(weight, bias, m, n, shift, limit, backend="cuda")
    layer = Int16Conv2d(weight, bias, m, n, shift, limit)
    for x in [torch.zeros(1, 3, 3, 2), torch.zeros(1, 3, 3, 3, dtype=torch.int16)]:
        with pytest.raises(InputError, match="x must be"):
            layer(x)
