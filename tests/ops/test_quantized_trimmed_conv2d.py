"""Every implementation of the integer trimmed convolution gives the definition's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec.context.orders import ORDERS, mask
from pycodec.errors import InputError
from pycodec.ops import quantized_conv2d, quantized_trimmed_conv2d

from ..levels import LEVELS, simd_level


def naive(x, weight, group_mask, bias, multiplier, negative, shift, residual, rm, lower, upper):
    """The formula, a Python integer at a time."""
    n, height, width, cin = x.shape
    cout, kh, kw, _ = weight.shape
    groups = len(group_mask)
    x, weight, seen = x.tolist(), weight.tolist(), group_mask.tolist()
    out = np.zeros((n, height, width, cout), np.uint8 if upper > 127 else np.int8)
    for b, y, c, o in np.ndindex(out.shape):
        acc = int(bias[o])
        for i, j, k in np.ndindex(kh, kw, cin):
            yy, xx = y + i - kh // 2, c + j - kw // 2
            inside = 0 <= yy < height and 0 <= xx < width
            if inside and seen[o * groups // cout][k * groups // cin][i][j]:
                acc += x[b][yy][xx][k] * weight[o][i][j][k]
        acc = (acc + 2**31) % 2**32 - 2**31
        total = acc * int((multiplier if acc >= 0 else negative)[o])
        if residual is not None:
            total += int(residual[b, y, c, o]) * int(rm[o])
        out[b, y, c, o] = min(max((total + 2 ** (shift - 1)) >> shift, lower), upper)
    return torch.from_numpy(out)


def make_layer(rng, shape, cout, kernel, groups, *, order=None, extreme=False, residual=False):
    """Random arguments, and those of the residual; the mask of an order, or random; extreme: the
    ends of all ranges."""

    def draw(dtype, *size):
        limits = np.iinfo(dtype)
        ends = np.array([limits.min, limits.max], dtype)
        values = rng.integers(limits.min, limits.max, size, dtype, endpoint=True)
        return torch.from_numpy(rng.choice(ends, size) if extreme else values)

    if order is None:
        group_mask = torch.from_numpy(rng.random((groups, groups, *kernel)) < 0.6)
    else:
        group_mask = mask(order, "B", groups, groups, kernel)
    bias = rng.integers(-5000, 5000, cout).astype(np.int32)
    return (
        draw(np.int8, *shape),
        draw(np.int8, cout, *kernel, shape[-1]),
        group_mask,
        draw(np.int32, cout) if extreme else torch.from_numpy(bias),
        draw(np.int32, cout),
        draw(np.int32, cout),
    ), {
        "residual": draw(np.int8, *shape[:3], cout) if residual else None,
        "residual_multiplier": draw(np.int32, cout) if residual else None,
    }


@st.composite
def cases(draw, max_side=9, max_width=9, kernels=(1, 3, 5)):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = draw(st.integers(1, 5))
    side, width = st.integers(1, max_side), st.integers(1, max_width)
    arguments, residual = make_layer(
        rng,
        (draw(st.integers(1, 2)), draw(side), draw(side), groups * draw(width)),
        groups * draw(width),
        (draw(st.sampled_from(kernels)), draw(st.sampled_from(kernels))),
        groups,
        order=draw(st.sampled_from([None, *ORDERS])),
        extreme=draw(st.booleans()),
        residual=draw(st.booleans()),
    )
    lower, upper = draw(st.sampled_from([(-127, 127), (-128, 127), (0, 255), (3, 200), (-9, 5)]))
    # Shifts around 31 + log2(accumulator / range) leave values in range; the others test the ends.
    shift = draw(st.one_of(st.integers(34, 46), st.integers(1, 62)))
    return (*arguments, shift), {
        **residual,
        "lower": lower,
        "upper": upper,
    }


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(actual, expected)


@given(cases(max_side=3, max_width=3, kernels=(1, 3)))
@settings(max_examples=60, deadline=None)
def test_reference_is_the_formula(case):
    arguments, options = case
    expected = naive(*arguments, *options.values())
    assert_same(quantized_trimmed_conv2d(*arguments, **options, backend="reference"), expected)


@given(cases(max_width=40))
@settings(max_examples=150, deadline=None)
def test_native_equals_reference(case):
    arguments, options = case
    expected = quantized_trimmed_conv2d(*arguments, **options, backend="reference")
    for level in LEVELS:
        with simd_level(level):
            assert_same(quantized_trimmed_conv2d(*arguments, **options), expected)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 16, 17, 24, 31, 32, 33, 64, 80])
@pytest.mark.parametrize("residual", [False, True])
def test_every_register_tile(width, residual):
    """All numbers of channel vectors, with rows that do not fill the last tile."""
    rng = np.random.default_rng(width)
    for row in (1, 4, 5, 11, 12, 13, 29):
        arguments, r = make_layer(rng, (1, 3, row, 12), 2 * width, (3, 3), 2, residual=residual)
        options = {"shift": 40, **r}
        expected = quantized_trimmed_conv2d(*arguments, **options, backend="reference")
        assert expected.unique().numel() > 2
        for level in LEVELS:
            with simd_level(level):
                assert_same(quantized_trimmed_conv2d(*arguments, **options), expected)


def test_without_a_mask_it_is_quantized_conv2d():
    rng = np.random.default_rng(0)
    (x, weight, _, bias, multiplier, _), _ = make_layer(rng, (2, 6, 7, 10), 12, (3, 5), 1)
    everything = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    out = quantized_trimmed_conv2d(
        x, weight, everything, bias, multiplier, multiplier, 42, lower=-128
    )
    assert_same(out, quantized_conv2d(x, weight, bias, multiplier, 42, out_dtype=torch.int8))
    assert out.unique().numel() > 50


def test_accumulators_wrap():
    one = torch.ones(1, dtype=torch.int32)
    x = torch.ones(1, 1, 1, 1, dtype=torch.int8)
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    for backend in ("reference", "native"):
        out = quantized_trimmed_conv2d(x, x, seen, one * (2**31 - 1), one, one, 30, backend=backend)
        assert int(out) == -2


@pytest.mark.parametrize("shape", [(0, 3, 3, 4), (1, 0, 3, 4), (1, 3, 0, 4)])
def test_empty(shape):
    arguments, _ = make_layer(np.random.default_rng(0), shape, 6, (3, 3), 2)
    for backend in ("reference", "native"):
        assert quantized_trimmed_conv2d(*arguments, 40, backend=backend).shape == (*shape[:3], 6)


@pytest.mark.parametrize("upper", [127, 255])
@pytest.mark.parametrize("residual", [False, True])
def test_opcheck(upper, residual):
    rng = np.random.default_rng(1)
    arguments, r = make_layer(rng, (1, 4, 5, 6), 4, (3, 3), 2, residual=residual)
    torch.library.opcheck(
        torch.ops.pycodec.quantized_trimmed_conv2d, (*arguments, 40, *r.values(), 0, upper)
    )


def test_arguments_that_do_not_fit():
    rng = np.random.default_rng(2)
    arguments, r = make_layer(rng, (1, 4, 5, 6), 4, (3, 3), 2, residual=True)
    x, weight, group_mask, bias, multiplier, negative = arguments
    wrong = [
        ({"x": x[..., :5].contiguous()}, "x must be"),
        ({"x": x.transpose(1, 2)}, "non-contiguous"),
        ({"x": x.float()}, "x must be"),
        ({"weight": weight[:, :2].contiguous()}, "odd"),
        ({"weight": weight[:3].contiguous()}, "groups"),
        ({"mask": group_mask[:1].contiguous()}, "mask"),
        ({"mask": group_mask.to(torch.uint8)}, "mask"),
        ({"bias": bias[:3]}, "bias"),
        ({"multiplier": multiplier.long()}, "multiplier"),
        ({"negative_multiplier": negative[:, None]}, "negative_multiplier"),
        ({"shift": 0}, "shift"),
        ({"shift": 63}, "shift"),
        ({**r, "residual": r["residual"][:, :3].contiguous()}, "residual"),
        ({**r, "residual_multiplier": bias[:3]}, "residual_multiplier"),
        ({**r, "residual_multiplier": bias.long()}, "residual_multiplier"),
        ({**r, "residual_multiplier": None}, "belong together"),
        ({"residual_multiplier": bias}, "belong together"),
        ({"lower": 5, "upper": 4}, "range"),
        ({"lower": -1, "upper": 200}, "range"),
        ({"upper": 256}, "range"),
        ({"bias": bias.to("meta")}, "cpu"),
        ({"backend": "sse"}, "backend"),
    ]
    names = ("x", "weight", "mask", "bias", "multiplier", "negative_multiplier")
    for changes, message in wrong:
        changed = {**dict(zip(names, arguments, strict=True)), "shift": 40, **changes}
        with pytest.raises(InputError, match=message):
            quantized_trimmed_conv2d(**changed)
