"""Every implementation of the integer convolution gives the definition's bits."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops import QuantizedConv2d, backends, quantized_conv2d
from pycodec.ops.quantized_conv2d import (
    CUDA_KERNELS,
    INPUT_DTYPES,
    MAX_WEIGHT,
    OUTPUT_DTYPES,
    pack_int4,
    unpack_int4,
)

from ..emulation import build
from ..levels import LEVELS, simd_level

module = importlib.import_module("pycodec.ops.quantized_conv2d")  # its name is the function's

ALL_LEVELS = ("scalar", "avx2", "avx512vnni", "amx")
NUMPY_DTYPES = {
    torch.uint8: np.uint8,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
}


def naive(
    x,
    weight,
    bias,
    multiplier,
    shift,
    *,
    out_dtype,
    relu=False,
    stride=1,
    upscale=1,
    bits=0,
    zero_point=None,
    residual=None,
):
    """The formula, a Python integer at a time."""
    n, height, width, cin = x.shape
    if weight.dtype == torch.uint8:
        weight = unpack_int4(weight, cin)
    cout, kh, kw, _ = weight.shape
    x, weight = x.tolist(), weight.tolist()
    limits = torch.iinfo(out_dtype)
    lower, upper = limits.min, limits.max
    if bits:
        lower, upper = (-(1 << bits - 1), (1 << bits - 1) - 1) if lower else (0, (1 << bits) - 1)
    lower = max(0, lower) if relu else lower
    rows, columns = -(-height // stride), -(-width // stride)
    channels = cout // upscale**2
    shape = (n, rows * upscale, columns * upscale, channels)
    out = np.zeros(shape, NUMPY_DTYPES[out_dtype])
    for b, y, c, o in np.ndindex(n, rows, columns, cout):
        acc = int(bias[o])
        for i, j in np.ndindex(kh, kw):
            yy, xx = y * stride + i - kh // 2, c * stride + j - kw // 2
            for k in range(cin):
                inside = 0 <= yy < height and 0 <= xx < width
                outside = 0 if zero_point is None else int(zero_point[k])
                acc += (x[b][yy][xx][k] if inside else outside) * weight[o][i][j][k]
        acc = (acc + 2**31) % 2**32 - 2**31
        value = (acc * int(multiplier[o]) + 2 ** (shift - 1)) >> shift
        if residual is not None:
            value += int(residual[b, y, c, o])
        dy, dx = divmod(o // channels, upscale)
        place = (b, y * upscale + dy, c * upscale + dx, o % channels)
        out[place] = min(max(value, lower), upper)
    return torch.from_numpy(out)


def make_layer(
    rng,
    shape,
    *,
    kernel=(3, 3),
    cout=8,
    x_dtype=torch.uint8,
    extreme=False,
    big_bias=False,
    wide_weight=False,
):
    """Random (x, weight, bias, multiplier); extreme: only the ends of the ranges."""

    def draw(dtype, size):
        limits = np.iinfo(dtype)
        if extreme:
            return rng.choice(np.array([limits.min, limits.max], dtype), size)
        return rng.integers(limits.min, limits.max, size, dtype, endpoint=True)

    x = draw(NUMPY_DTYPES[x_dtype], shape)
    weight = draw(np.int8, (cout, *kernel, shape[-1]))
    if wide_weight:
        weight = np.minimum(draw(np.int16, weight.shape), MAX_WEIGHT)
    bias = draw(np.int32, cout) if big_bias else rng.integers(-5000, 5000, cout, np.int32)
    multiplier = (
        np.full(cout, 2**31 - 1, np.int32)
        if extreme
        else rng.integers(0, 2**31 - 1, cout, np.int32, endpoint=True)
    )
    return [torch.from_numpy(np.asarray(a)) for a in (x, weight, bias, multiplier)]


@st.composite
def cases(draw, max_side=9, max_channels=40, kernels=(1, 3, 5)):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    side = st.integers(1, max_side)
    size = draw(st.sampled_from(["1x1", "1xN", "Nx1", "HxW"]))
    height = 1 if size in ("1x1", "1xN") else draw(side)
    width = 1 if size in ("1x1", "Nx1") else draw(side)
    shape = (draw(st.integers(1, 2)), height, width, draw(st.integers(1, max_channels)))
    upscale = draw(st.sampled_from([1, 1, 2, 3]))
    stride = draw(st.sampled_from([1, 2]))
    cout = draw(st.integers(1, max_channels)) * upscale**2
    x_dtype = draw(st.sampled_from(INPUT_DTYPES))
    weight_bits = draw(st.sampled_from([4, 8, 8, 16]))
    tensors = make_layer(
        rng,
        shape,
        kernel=(draw(st.sampled_from(kernels)), draw(st.sampled_from(kernels))),
        cout=cout,
        x_dtype=x_dtype,
        extreme=draw(st.booleans()),
        big_bias=draw(st.booleans()),
        wide_weight=weight_bits == 16,
    )
    if weight_bits == 4:
        tensors[1] = pack_int4(tensors[1] >> 4)
    # Shifts around 31 + log2(accumulator / range) leave values in range; the others test the ends.
    shift = draw(st.one_of(st.integers(34, 48), st.integers(1, 62)))
    out_dtype = draw(st.sampled_from(OUTPUT_DTYPES))
    options = {
        "out_dtype": out_dtype,
        "relu": draw(st.booleans()),
        "stride": stride,
        "upscale": upscale,
    }
    if out_dtype in (torch.uint8, torch.int8):
        options["bits"] = draw(st.sampled_from([0, 4, 6, 8]))
    if draw(st.booleans()):
        limits = torch.iinfo(x_dtype)
        values = rng.integers(limits.min, limits.max, shape[-1], np.int16, endpoint=True)
        options["zero_point"] = torch.from_numpy(values)
    if upscale == 1 and draw(st.booleans()):
        size = (shape[0], -(-height // stride), -(-width // stride), cout)
        values = rng.integers(-(2**15), 2**15, size, np.int16)
        options["residual"] = torch.from_numpy(values)
    return (*tensors, shift), options


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(actual, expected)


@given(cases(max_side=4, max_channels=5, kernels=(1, 3)))
@settings(max_examples=60, deadline=None)
def test_reference_is_the_formula(case):
    arguments, options = case
    expected = naive(*arguments, **options)
    assert_same(quantized_conv2d(*arguments, **options, backend="reference"), expected)


@given(cases(max_channels=140), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_native_equals_reference(case, threads):
    arguments, options = case
    expected = quantized_conv2d(*arguments, **options, backend="reference")
    x, *parameters = arguments
    for level in LEVELS:
        with simd_level(level):
            fixed = {k: v for k, v in options.items() if k != "residual"}
            channels = {"in_channels": x.shape[3], "backend": "native"}
            conv = QuantizedConv2d(*parameters, **fixed, **channels)
        assert conv.packed.simd_level == level
        assert_same(conv(x, threads, options.get("residual")), expected)


@pytest.mark.parametrize("cout", [*range(1, 9), 16, 31, 33, 64, 65, 80, 96, 112, 128, 160])
def test_every_register_tile(cout):
    """All numbers of channel vectors, with numbers of positions that do not fill the last tile."""
    rng = np.random.default_rng(cout)
    for shape in ((1, 1, 1, 7), (1, 5, 5, 4), (2, 5, 7, 9)):
        x, *parameters = make_layer(rng, shape, cout=cout)
        options = {"shift": 40, "out_dtype": torch.int16}
        expected = quantized_conv2d(x, *parameters, **options, backend="reference")
        assert expected.unique().numel() > min(3, expected.numel() - 1)
        for level in LEVELS:
            with simd_level(level):
                assert_same(quantized_conv2d(x, *parameters, **options, backend="native"), expected)


@pytest.mark.parametrize("x_dtype", [torch.uint8, torch.int8])
def test_pair_sums_beyond_16_bits(x_dtype):
    """What vpmaddubsw would saturate: 2 * 255 * 127 does not fit in int16."""
    x = torch.full((1, 4, 4, 64), torch.iinfo(x_dtype).max, dtype=x_dtype)
    weight = torch.full((16, 3, 3, 64), 127, dtype=torch.int8)
    bias, multiplier = torch.zeros(16, dtype=torch.int32), torch.full((16,), 2, dtype=torch.int32)
    for level in LEVELS:
        with simd_level(level):
            out = quantized_conv2d(
                x, weight, bias, multiplier, 1, out_dtype=torch.int32, backend="native"
            )
        assert int(out[0, 1, 1, 0]) == 9 * 64 * 127 * torch.iinfo(x_dtype).max


def test_accumulators_wrap():
    x = torch.zeros(1, 1, 1, 1, dtype=torch.uint8) + 1
    weight = torch.ones(1, 1, 1, 1, dtype=torch.int8)
    bias = torch.tensor([2**31 - 1], dtype=torch.int32)
    multiplier = torch.tensor([2], dtype=torch.int32)
    for backend in ("reference", "native"):
        out = quantized_conv2d(
            x, weight, bias, multiplier, 1, out_dtype=torch.int32, backend=backend
        )
        assert int(out) == -(2**31)


@pytest.mark.parametrize("channels", [1, 2, 5, 8])
def test_int4_packing(channels):
    weight = torch.arange(-8, 8, dtype=torch.int8)[torch.randint(16, (3, 3, 1, channels))]
    packed = pack_int4(weight)
    assert packed.shape == (3, 3, 1, (channels + 1) // 2)
    assert torch.equal(unpack_int4(packed, channels), weight)
    if channels % 2:
        assert not (packed[..., -1] >> 4).any()
    with pytest.raises(InputError, match="-8 to 7"):
        pack_int4(weight - 8)


def test_empty_batch():
    x, *parameters = make_layer(np.random.default_rng(0), (0, 3, 3, 4))
    for backend in ("reference", "native"):
        out = quantized_conv2d(x, *parameters, 40, out_dtype=torch.int8, backend=backend)
        assert out.shape == (0, 3, 3, 8)


def test_layer_is_shared_by_threads():
    """Several callers at once, each with helpers from the one pool."""
    rng = np.random.default_rng(1)
    x, *parameters = make_layer(rng, (1, 24, 31, 33), cout=48)
    conv = QuantizedConv2d(*parameters, 40, out_dtype=torch.uint8)
    expected = conv(x, threads=1)
    wrong = []

    def work():
        wrong.extend(1 for _ in range(20) if not torch.equal(conv(x, threads=3), expected))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


FORK = """
import os, torch
from pycodec.ops import QuantizedConv2d
one = torch.ones(64, dtype=torch.int32)
weight = torch.ones(64, 3, 3, 8, dtype=torch.int8)
conv = QuantizedConv2d(weight, one, one, 1, out_dtype=torch.int32)
x = torch.ones(1, 40, 40, 8, dtype=torch.uint8)
expected = conv(x, threads=2)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(conv(x, threads=2), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_makes_its_own_threads():
    subprocess.run([sys.executable, "-I", "-c", FORK], check=True, timeout=60)


@pytest.mark.parametrize("x_dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("out_dtype", OUTPUT_DTYPES)
def test_opcheck(x_dtype, out_dtype):
    layer = make_layer(np.random.default_rng(2), (1, 4, 5, 6), x_dtype=x_dtype)
    torch.library.opcheck(torch.ops.pycodec.quantized_conv2d, (*layer, 40, out_dtype, True))


def test_registered_op_is_the_default():
    layer = make_layer(np.random.default_rng(3), (1, 6, 6, 12))
    assert_same(
        quantized_conv2d(*layer, 40, out_dtype=torch.int8),
        quantized_conv2d(*layer, 40, out_dtype=torch.int8, backend="reference"),
    )


@pytest.mark.interpreted("ops/triton_interpreter_check.py")
def test_triton_interpreter_equals_reference(interpreted):
    assert "cases are equal" in interpreted("ops/triton_interpreter_check.py")


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    source = Path(__file__).with_name("quantized_conv2d_emulation.cpp")
    return build(source, "cuda_quantized_conv2d.cpp", tmp_path_factory.mktemp("emulation"))


def is_wide(arguments):
    return torch.int16 in (arguments[0].dtype, arguments[1].dtype)


@contextlib.contextmanager
def cuda_on_the_host(emulation):
    """Within, the cuda backend runs its kernels on the host."""

    def launch(name, device, **arguments):
        getattr(emulation, name)(**arguments, stream=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch_cuda", launch)
        patch.setattr(module, "_DEVICE_TYPE", "cpu")
        patch.setattr(backends, "cuda_kernels", lambda: emulation)
        yield


@pytest.mark.parametrize("backwards", [False, True])
@given(case=cases(max_side=9, max_channels=140), kernel=st.sampled_from(CUDA_KERNELS))
@settings(max_examples=120, deadline=None)
def test_cuda_source_on_the_host_equals_reference(emulation, backwards, case, kernel):
    arguments, options = case
    assume(kernel != "mma128x96" or not is_wide(arguments))
    emulation.set_backwards(backwards)
    with cuda_on_the_host(emulation):
        actual = quantized_conv2d(*arguments, **options, backend="cuda", kernel=kernel)
    assert_same(actual, quantized_conv2d(*arguments, **options, backend="reference"))


# Of the tensor-core kernels: x, bits of weights, in and out channels, kernel, stride, upscale,
# zero point. Rows of a multiple of 16 bytes are copied, of 4 and of 1 loaded; there are fewer and
# more stages than shared memory holds, whole and partial tiles.
MMA_CASES = (
    (torch.uint8, 8, 96, 96, 3, 1, 1, False),
    (torch.uint8, 8, 64, 64, 3, 2, 1, True),
    (torch.int8, 8, 192, 96, 1, 1, 1, True),
    (torch.int8, 8, 16, 24, 5, 1, 2, False),
    (torch.uint8, 8, 20, 12, 3, 1, 2, True),
    (torch.int8, 8, 37, 9, 3, 2, 3, True),
    (torch.uint8, 8, 1, 1, 1, 2, 1, False),
    (torch.int8, 8, 16, 8, 11, 1, 1, True),
    (torch.uint8, 4, 160, 160, 3, 1, 1, False),
    (torch.int8, 4, 32, 40, 3, 2, 1, True),
    (torch.int8, 4, 9, 33, 3, 1, 1, True),
    (torch.uint8, 16, 48, 64, 3, 1, 1, False),
    (torch.int8, 16, 72, 20, 3, 2, 1, True),
    (torch.int16, 4, 40, 33, 3, 1, 1, True),
    (torch.int16, 8, 64, 48, 1, 1, 2, True),
    (torch.int16, 16, 72, 64, 3, 2, 1, True),
    (torch.int16, 16, 48, 36, 3, 1, 2, False),
    (torch.int16, 16, 7, 5, 3, 1, 1, True),
)


def mma_layer(case, shift, out_dtype):
    """The arguments and options of one of MMA_CASES."""
    x_dtype, weight_bits, cin, cout, kernel, stride, upscale, has_zero = case
    rng = np.random.default_rng(MMA_CASES.index(case))
    tensors = make_layer(
        rng,
        (2, 9, 11, cin),
        kernel=(kernel, kernel),
        cout=cout * upscale**2,
        x_dtype=x_dtype,
        wide_weight=weight_bits == 16,
    )
    if weight_bits == 4:
        tensors[1] = pack_int4(tensors[1] >> 4)
    options = {"out_dtype": out_dtype, "stride": stride, "upscale": upscale}
    if has_zero:
        limits = torch.iinfo(x_dtype)
        values = rng.integers(limits.min, limits.max, cin, np.int16, endpoint=True)
        options["zero_point"] = torch.from_numpy(values)
    if upscale == 1:
        size = (2, -(-9 // stride), -(-11 // stride), cout)
        options["residual"] = torch.from_numpy(rng.integers(-99, 99, size, np.int16))
    return (*tensors, shift), options


@pytest.mark.parametrize("kernel", CUDA_KERNELS)
@pytest.mark.parametrize("case", MMA_CASES)
def test_mma_layers_on_the_host(emulation, case, kernel):
    bits = 8 * (case[0].itemsize - 1) + case[1] + 6  # of a typical sum, nearly
    for backwards, (shift, out_dtype) in enumerate(
        ((31 + max(bits - 6, 2), torch.uint8), (31 + bits - 12, torch.int16), (32, torch.int32))
    ):
        arguments, options = mma_layer(case, shift, out_dtype)
        x, *parameters = arguments
        residual = options.get("residual")
        fixed = {k: v for k, v in options.items() if k != "residual"}
        emulation.set_backwards(backwards % 2 == 0)
        with cuda_on_the_host(emulation):
            channels = {"in_channels": x.shape[3], "backend": "cuda"}
            conv = QuantizedConv2d(*parameters, **fixed, **channels, kernel=kernel)
            if kernel == "mma128x96" and is_wide(arguments):
                with pytest.raises(RuntimeError, match="16 bits"):
                    conv(x, residual=residual)
                continue
            actual = conv(x, residual=residual)
        expected = quantized_conv2d(*arguments, **options, backend="reference")
        assert expected.unique().numel() > 8
        assert_same(actual, expected)


def run_on_gpu(backend, arguments, options):
    """``backend``: of Triton or CUDA, or a kernel of CUDA's."""
    *tensors, shift = (a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments)
    extras = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    chosen = {"backend": backend}
    if backend in CUDA_KERNELS:
        chosen = {"backend": "cuda", "kernel": backend}
    return quantized_conv2d(*tensors, shift, **extras, **chosen).cpu()


def test_choice_of_the_kernel(emulation):
    """Of an H100's processors: the largest tiles that keep them busy; small sizes, small tiles."""

    def choose(height, width, cin, cout, name="", **options):
        defaults = {"stride": 1, "x_bytes": 1, "weight_bits": 8, "has_mma": True, "window": 3}
        shape = {"height": height, "width": width, "in_channels": cin, "out_channels": cout}
        return emulation.choose_kernel(**shape, **(defaults | options), processors=132, name=name)

    assert choose(270, 480, 64, 64) == "mma128x64"
    assert choose(135, 240, 96, 96) == "mma128x96"
    assert choose(135, 240, 192, 96, weight_bits=4) == "mma128x96"
    assert choose(135, 240, 192, 96, weight_bits=16, x_bytes=2) == "mma128x64"
    assert choose(32, 48, 160, 160) == "mma64x32"
    assert choose(270, 480, 3, 64) == "dp4a"
    assert choose(270, 480, 64, 3) == "dp4a"
    assert choose(270, 480, 64, 64, has_mma=False) == "dp4a"
    assert choose(1 << 16, 1 << 16, 64, 64) == "dp4a"
    assert choose(270, 480, 64, 64, window=13) == "dp4a"
    assert choose(270, 480, 64, 64, "dp4a") == "dp4a"
    assert choose(270, 480, 3, 3, "mma") == "mma64x32"
    with pytest.raises(RuntimeError, match="no mma"):
        choose(270, 480, 64, 64, "mma", has_mma=False)
    with pytest.raises(ValueError, match="mma1x1"):
        choose(270, 480, 64, 64, "mma1x1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["cuda", *CUDA_KERNELS])
@pytest.mark.parametrize("case", MMA_CASES)
def test_gpu_layers(case, backend):
    for shift, out_dtype in ((50, torch.uint8), (42, torch.int16), (32, torch.int32)):
        arguments, options = mma_layer(case, shift, out_dtype)
        if backend != "mma128x96" or not is_wide(arguments):
            expected = quantized_conv2d(*arguments, **options, backend="reference")
            assert_same(run_on_gpu(backend, arguments, options), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["triton", "cuda", *CUDA_KERNELS])
@given(cases(max_side=40, max_channels=140))
@settings(max_examples=100, deadline=None)
def test_gpu_equals_reference(backend, case):
    arguments, options = case
    assume(backend != "mma128x96" or not is_wide(arguments))
    expected = quantized_conv2d(*arguments, **options, backend="reference")
    assert_same(run_on_gpu(backend, arguments, options), expected)


BAD_ARGUMENTS = {
    "x dtype": lambda a: a.update(x=a["x"].to(torch.int32)),
    "large weight": lambda a: a.update(weight=a["weight"].short() + MAX_WEIGHT),
    "stride": lambda a: a.update(stride=3),
    "upscale": lambda a: a.update(upscale=3),
    "bits": lambda a: a.update(bits=9),
    "bits of int16": lambda a: a.update(bits=6, out_dtype=torch.int16),
    "zero_point": lambda a: a.update(zero_point=torch.zeros(5, dtype=torch.int16)),
    "residual": lambda a: a.update(residual=torch.zeros(1, 4, 5, 8)),
    "residual of patches": lambda a: a.update(
        residual=torch.zeros(1, 8, 10, 2, dtype=torch.int16), upscale=2
    ),
    "x channels": lambda a: a.update(x=a["x"][..., 1:].contiguous()),
    "x layout": lambda a: a.update(x=a["x"].transpose(1, 2)),
    "x dimensions": lambda a: a.update(x=a["x"][0]),
    "weight dtype": lambda a: a.update(weight=a["weight"].to(torch.uint8)),
    "weight layout": lambda a: a.update(weight=a["weight"].permute(0, 2, 1, 3)),
    "even kernel": lambda a: a.update(weight=a["weight"][:, :2].contiguous()),
    "bias length": lambda a: a.update(bias=a["bias"][1:]),
    "bias dtype": lambda a: a.update(bias=a["bias"].long()),
    "multiplier length": lambda a: a.update(multiplier=a["multiplier"][1:]),
    "shift 0": lambda a: a.update(shift=0),
    "shift 63": lambda a: a.update(shift=63),
    "out_dtype": lambda a: a.update(out_dtype=torch.int64),
}


@pytest.mark.parametrize("backend", [None, "reference", "native"])
@pytest.mark.parametrize("fault", BAD_ARGUMENTS)
def test_bad_arguments(fault, backend):
    layer = make_layer(np.random.default_rng(4), (1, 4, 5, 6))
    arguments = dict(zip(("x", "weight", "bias", "multiplier"), layer, strict=True))
    arguments |= {"shift": 40, "out_dtype": torch.int8}
    BAD_ARGUMENTS[fault](arguments)
    with pytest.raises(InputError):
        quantized_conv2d(**arguments, backend=backend)


def test_unknown_kernel():
    layer = make_layer(np.random.default_rng(5), (1, 1, 1, 1))
    for backend in (None, "native"):
        with pytest.raises(InputError, match="option of the cuda backend"):
            quantized_conv2d(*layer, 40, out_dtype=torch.int8, backend=backend, kernel="mma")
        with pytest.raises(InputError, match="option of the cuda backend"):
            QuantizedConv2d(*layer[1:], 40, out_dtype=torch.int8, backend=backend, kernel="mma")
    with pytest.raises(InputError, match="dp4a, mma, mma128x96, mma128x64, mma64x32"):
        quantized_conv2d(*layer, 40, out_dtype=torch.int8, backend="cuda", kernel="wgmma")


def test_unknown_backend():
    layer = make_layer(np.random.default_rng(5), (1, 1, 1, 1))
    with pytest.raises(InputError, match="reference, native, cuda, triton"):
        quantized_conv2d(*layer, 40, out_dtype=torch.int8, backend="abacus")


def test_simd_levels():
    assert LEVELS[0] == "scalar"
    assert _cpu.simd_level() == LEVELS[-1]
    with pytest.raises(InputError, match="unknown"):
        _cpu.set_simd_level("mmx")
    for level in set(ALL_LEVELS) - set(LEVELS):
        with pytest.raises(InputError, match="cannot run"):
            _cpu.set_simd_level(level)
    assert _cpu.simd_level() == LEVELS[-1]


def test_native_module_checks_for_itself():
    """The module is also called without torch, so it cannot rely on the operation's checks."""
    weight = np.ones((2, 3, 3, 4), np.int8)
    per_channel = np.ones(2, np.int32)
    good = (weight, per_channel, per_channel, 8)
    for bad, message in (
        ((weight[0], per_channel, per_channel, 8), "weight"),
        ((weight[:, :2], per_channel, per_channel, 8), "odd"),
        ((weight[..., :0], per_channel, per_channel, 8), "channel"),
        ((weight, per_channel[1:], per_channel, 8), "bias"),
        ((weight, per_channel, per_channel, 63), "shift"),
        ((weight.astype(np.int32), per_channel, per_channel, 8), "int8 or int16"),
    ):
        with pytest.raises(InputError, match=message):
            _cpu.QuantizedConv2d(*bad, np.int8)
    with pytest.raises(InputError, match="out_dtype"):
        _cpu.QuantizedConv2d(*good, np.float32)
    conv = _cpu.QuantizedConv2d(*good, np.int8)
    x = np.ones((1, 5, 6, 4), np.uint8)
    for bad, message in (
        (x.astype(np.float32), "uint8, int8 or int16"),
        (x[0], "batch"),
        (x[..., :3].copy(), "batch"),
        (x[:, ::2], "contiguous"),
    ):
        with pytest.raises(InputError, match=message):
            conv.run(bad)
    with pytest.raises(InputError, match="threads"):
        conv.run(x, threads=0)
