"""Quantization and back: every backend, at every SIMD level, gives the formula's values."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec.errors import InputError
from pycodec.ops import backends, dequantize, quantize
from pycodec.ops.quantize import DTYPES

from ..emulation import build
from ..levels import LEVELS, simd_level

module = sys.modules["pycodec.ops.quantize"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.sampled_from([1, 2, 3, 5, 8, 17, 31, 64, 70]))
    shape = (draw(st.integers(0, 3)), draw(st.integers(1, 40)), channels)
    dtype = draw(st.sampled_from(DTYPES))
    limits = torch.iinfo(dtype)
    scale = np.exp(rng.uniform(-12, 12, channels)).astype(np.float32)
    zero = rng.integers(-(2**15), 2**15, channels) >> draw(st.integers(0, 15))
    # Most values within the grid, many of them in the middle between two levels.
    steps = rng.normal(0, (limits.max - limits.min) / 3, shape).round() + rng.choice(
        [0.0, 0.5, 0.25], shape
    )
    x = (steps * scale).astype(np.float32)
    special = rng.random(shape) < 0.1
    x[special] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, 1e-45], special.sum())
    options = {"out_dtype": dtype}
    if draw(st.booleans()):
        lower, upper = sorted(draw(st.tuples(*[st.integers(limits.min, limits.max)] * 2)))
        options |= {"lower": lower, "upper": upper}
    return [torch.from_numpy(a) for a in (x, scale, zero.astype(np.int32))], options


def formula(x, scale, zero, out_dtype, lower=None, upper=None) -> torch.Tensor:
    """In double, but for the quotient that the contract has in float32."""
    limits = torch.iinfo(out_dtype)
    lower = limits.min if lower is None else lower
    upper = limits.max if upper is None else upper
    steps = (x * (np.float32(1) / scale).to(torch.float32)).double()
    result = (steps.round() + zero.double()).clamp(lower, upper)
    return torch.where(steps.isnan(), lower, result).to(out_dtype)


@given(cases())
@settings(max_examples=150, deadline=None)
def test_native_and_reference_equal_the_formula(case):
    (x, scale, zero), options = case
    expected = formula(x, scale, zero, **options)
    reference = quantize(x, scale, zero, **options, backend="reference")
    assert reference.dtype == expected.dtype and torch.equal(reference, expected)
    back = (expected.double() - zero.double()).float() * scale
    assert torch.equal(dequantize(expected, scale, zero, backend="reference"), back)
    for level in LEVELS:
        with simd_level(level):
            assert torch.equal(quantize(x, scale, zero, **options), expected)
            assert torch.equal(dequantize(expected, scale, zero), back)


def test_what_is_on_the_grid_comes_back():
    scale = torch.tensor([0.5, 3.0, 0.1])
    zero = torch.tensor([0, -100, 127], dtype=torch.int32)
    q = torch.arange(-128, 128).to(torch.int8)[:, None].expand(-1, 3).contiguous()
    assert torch.equal(quantize(dequantize(q, scale, zero), scale, zero, out_dtype=torch.int8), q)
    halves = torch.tensor([[0.25], [0.75], [1.25], [-0.25], [-0.75]])
    result = quantize(halves, scale[:1], zero[:1], out_dtype=torch.int16)
    assert result.flatten().tolist() == [0, 2, 2, 0, -2]


def test_many_pixels_on_several_threads():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(0, 40, (2, 131, 217, 24)).astype(np.float32))
    scale, zero = torch.linspace(0.1, 2, 24), torch.arange(-12, 12, dtype=torch.int32)
    expected = quantize(x, scale, zero, out_dtype=torch.int8, backend="reference")
    assert expected.unique().numel() == 256
    assert torch.equal(quantize(x, scale, zero, out_dtype=torch.int8), expected)
    back = dequantize(expected, scale, zero, backend="reference")
    assert torch.equal(dequantize(expected, scale, zero), back)


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    source = Path(__file__).with_name("quantize_emulation.cpp")
    return build(source, "cuda_quantize.cpp", tmp_path_factory.mktemp("emulation"))


@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_cuda_source_on_the_host_equals_reference(emulation, case):
    (x, scale, zero), options = case

    def launch(name, device, **arguments):
        getattr(emulation, name)(**arguments, stream=0)

    expected = quantize(x, scale, zero, **options, backend="reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch_cuda", launch)
        patch.setattr(module, "_DEVICE_TYPE", "cpu")
        patch.setattr(backends, "cuda_kernels", lambda: emulation)
        actual = quantize(x, scale, zero, **options, backend="cuda")
        back = dequantize(actual, scale, zero, backend="cuda")
    assert torch.equal(actual, expected)
    assert torch.equal(back, dequantize(expected, scale, zero, backend="reference"))


@pytest.mark.interpreted("ops/quantize_triton_check.py")
def test_triton_interpreter_equals_reference(interpreted):
    assert "cases are equal" in interpreted("ops/quantize_triton_check.py")


@needs_gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_equals_reference(backend, dtype):
    rng = np.random.default_rng(1)
    limits = torch.iinfo(dtype)
    steps = rng.normal(0, (limits.max - limits.min) / 3, (3, 37, 41, 70)).round()
    scale = np.exp(rng.uniform(-12, 12, 70)).astype(np.float32)
    x = ((steps + rng.choice([0.0, 0.5], steps.shape)) * scale).astype(np.float32)
    x[0, 0, :3] = [[np.nan], [np.inf], [-np.inf]]
    zero = rng.integers(-100, 100, 70).astype(np.int32)
    x, scale, zero = (torch.from_numpy(a).cuda() for a in (x, scale, zero))
    expected = quantize(x, scale, zero, out_dtype=dtype, backend="reference")
    actual = quantize(x, scale, zero, out_dtype=dtype, backend=backend)
    assert torch.equal(actual, expected)
    back = dequantize(actual, scale, zero, backend=backend)
    assert torch.equal(back, dequantize(expected, scale, zero, backend="reference"))


BAD_ARGUMENTS = {
    "x dtype": {"x": torch.zeros(2, 3, dtype=torch.float64)},
    "x layout": {"x": torch.zeros(3, 2).T},
    "no channels": {"x": torch.zeros(())},
    "scale": {"scale": torch.ones(2)},
    "scale dtype": {"scale": torch.ones(3, dtype=torch.float64)},
    "zero_point": {"zero_point": torch.zeros(3, dtype=torch.int64)},
    "out_dtype": {"out_dtype": torch.int32},
    "range": {"lower": 3, "upper": 2},
    "range of the type": {"upper": 128},
    "backend": {"backend": "none"},
}


@pytest.mark.parametrize("fault", BAD_ARGUMENTS)
def test_bad_arguments(fault):
    arguments = {
        "x": torch.zeros(2, 3),
        "scale": torch.ones(3),
        "zero_point": torch.zeros(3, dtype=torch.int32),
        "out_dtype": torch.int8,
    }
    quantize(**arguments)
    with pytest.raises(InputError):
        quantize(**(arguments | BAD_ARGUMENTS[fault]))


def test_bad_integers():
    with pytest.raises(InputError, match="q must be"):
        dequantize(torch.zeros(2, 3), torch.ones(3), torch.zeros(3, dtype=torch.int32))
    wide = torch.full((3,), 1 << 15, dtype=torch.int32)
    with pytest.raises(InputError, match="16 bits"):
        quantize(torch.zeros(2, 3), torch.ones(3), wide, out_dtype=torch.int8)
