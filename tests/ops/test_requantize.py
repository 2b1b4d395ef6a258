"""Requantization: the native kernels, at every SIMD level, are the definition's integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec.errors import InputError
from pycodec.ops.requantize import OUTPUT_DTYPES, requantize

from ..levels import LEVELS, simd_level


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([np.int16, np.int32]))
    ends = (-(2**15), 2**15) if dtype == np.int16 else (-(2**24), 2**24 + 1)
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 9)), channels)
    shift = draw(st.integers(1, 44))
    x = rng.integers(*ends, shape, dtype)
    each = (shape[0], channels) if len(shape) > 1 and draw(st.booleans()) else (channels,)
    multiplier = rng.integers(0, 2**30, each, np.int32)
    offset = rng.integers(-(2**61), 2**61, each) >> draw(st.integers(0, 50))
    out_dtype = draw(st.sampled_from(OUTPUT_DTYPES))
    options = {"out_dtype": out_dtype}
    if draw(st.booleans()):
        limits = torch.iinfo(out_dtype)
        lower, upper = sorted(draw(st.tuples(*[st.integers(limits.min, limits.max)] * 2)))
        options |= {"lower": lower, "upper": upper}
    return [torch.from_numpy(a) for a in (x, multiplier, offset)], shift, options


@given(cases())
@settings(max_examples=100, deadline=None)
def test_native_equals_the_formula(case):
    tensors, shift, options = case
    x, multiplier, offset = (t.numpy().astype(object) for t in tensors)
    limits = torch.iinfo(options["out_dtype"])
    lower, upper = options.get("lower", limits.min), options.get("upper", limits.max)
    if multiplier.ndim == 2:  # of each image
        between = [len(x), *[1] * (x.ndim - 2), x.shape[-1]]
        multiplier, offset = multiplier.reshape(between), offset.reshape(between)
    formula = np.clip((x * multiplier + offset) >> shift, lower, upper).astype(np.int64)
    expected = torch.from_numpy(formula).to(options["out_dtype"])
    reference = requantize(*tensors, shift, **options, backend="reference")
    assert reference.dtype == expected.dtype and torch.equal(reference, expected)
    for level in LEVELS:
        with simd_level(level):
            actual = requantize(*tensors, shift, **options)
        assert actual.dtype == expected.dtype and torch.equal(actual, expected)


def test_many_pixels_on_several_threads():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(-(2**15), 2**15, (50, 41, 24), np.int16))
    multiplier = torch.from_numpy(rng.integers(0, 2**30, 24, np.int32))
    offset = torch.full((24,), 1 << 36)
    expected = requantize(x, multiplier, offset, 37, out_dtype=torch.int8, backend="reference")
    assert expected.unique().numel() > 100
    assert torch.equal(requantize(x, multiplier, offset, 37, out_dtype=torch.int8), expected)


BAD_ARGUMENTS = {
    "x dtype": {"x": torch.zeros(2, 3, dtype=torch.int8)},
    "x layout": {"x": torch.zeros(3, 2, dtype=torch.int16).T},
    "multiplier": {"multiplier": torch.zeros(2, dtype=torch.int32)},
    "images": {
        "multiplier": torch.zeros(3, 3, dtype=torch.int32),
        "offset": torch.zeros(3, 3, dtype=torch.int64),
    },
    "one of both": {"multiplier": torch.zeros(2, 3, dtype=torch.int32)},
    "offset": {"offset": torch.zeros(3, dtype=torch.int32)},
    "shift": {"shift": 63},
    "out_dtype": {"out_dtype": torch.int32},
    "range": {"lower": 3, "upper": 2},
    "backend": {"backend": "triton"},
}


@pytest.mark.parametrize("fault", BAD_ARGUMENTS)
def test_bad_arguments(fault):
    arguments = {
        "x": torch.zeros(2, 3, dtype=torch.int16),
        "multiplier": torch.ones(3, dtype=torch.int32),
        "offset": torch.zeros(3, dtype=torch.int64),
        "shift": 4,
        "out_dtype": torch.int8,
    }
    requantize(**arguments)
    with pytest.raises(InputError):
        requantize(**(arguments | BAD_ARGUMENTS[fault]))
