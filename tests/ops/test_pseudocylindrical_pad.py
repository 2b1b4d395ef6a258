"""Padded tiles hold what lies around them on the sphere, and so do their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops import pseudocylindrical_mask, pseudocylindrical_pad
from pycodec.ops.pseudocylindrical_tiles import from_numpy, to_numpy
from pycodec.projection.widths import TileWidths

from ..levels import LEVELS, simd_level
from .sphere_cases import GEOMETRIES, draw_tiles, geometries, naive_pad

BACKENDS = ("reference", "native")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SEEDS = st.integers(0, 2**32 - 1)

# Interpolation in float32 of integers up to 128, and its rounding.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 0.07, torch.bfloat16: 0.55}


def pad_rows_first(x, geometry, **options):
    """Pads x and brings channels to the front whichever layout it has."""
    widths, _, _, pad = geometry
    out = pseudocylindrical_pad(x, widths, pad, **options)
    assert out.is_contiguous()
    assert out.dtype == x.dtype
    return out.permute(0, 3, 1, 2) if options.get("channels_last") else out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_is_the_sphere(geometry, channels_last, backend):
    for dtype in (torch.float64, torch.float32, torch.int8, torch.uint8):
        exact = dtype if not dtype.is_floating_point else torch.float64
        x = draw_tiles(0, geometry, 2, 3, dtype, channels_last)
        expected = naive_pad(draw_tiles(0, geometry, 2, 3, exact), geometry)
        actual = pad_rows_first(x, geometry, channels_last=channels_last, backend=backend)
        torch.testing.assert_close(actual.to(exact), expected, rtol=0, atol=TOLERANCE.get(dtype, 0))


@given(
    SEEDS,
    geometries(),
    st.integers(0, 2),
    st.integers(0, 5),
    st.sampled_from([*FLOATS, torch.int8, torch.uint8]),
    st.booleans(),
    st.sampled_from([None, *BACKENDS]),
)
@settings(max_examples=100)
def test_is_the_sphere_whatever_the_shape(
    seed, geometry, pictures, channels, dtype, channels_last, backend
):
    x = draw_tiles(seed, geometry, pictures, channels, dtype, channels_last)
    exact = dtype if not dtype.is_floating_point else torch.float64
    expected = naive_pad(draw_tiles(seed, geometry, pictures, channels, exact), geometry)
    actual = pad_rows_first(x, geometry, channels_last=channels_last, backend=backend)
    torch.testing.assert_close(actual.to(exact), expected, rtol=0, atol=TOLERANCE.get(dtype, 0))


@given(
    SEEDS,
    geometries(largest=400),
    st.sampled_from(FLOATS),
    st.booleans(),
    st.sampled_from(LEVELS),
)
@settings(max_examples=150)
def test_native_is_the_reference(seed, geometry, dtype, channels_last, level):
    x = draw_tiles(seed, geometry, 2, 3, dtype, channels_last)
    options = {"channels_last": channels_last}
    expected = pad_rows_first(x, geometry, backend="reference", **options)
    with simd_level(level):
        actual = pad_rows_first(x, geometry, backend="native", **options)
    rtol = {torch.float64: 1e-14, torch.float32: 3e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
    torch.testing.assert_close(actual, expected, rtol=rtol[dtype], atol=rtol[dtype] * 128)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("source", [1, 15, 17, 31, 32, 33, 47, 48, 64, 65, 100])
def test_native_rows_of_all_lengths(source, level):
    """From much narrower to much wider tiles: vectors whole and partial, near and past the end."""
    for target in (1, 7, 8, 15, 16, 17, 33, 50, 63, 64, 100, 128):
        for width in {max(source, target), 130}:
            geometry = (source, target, source), width, 1, (1, 2)
            x = draw_tiles(target, geometry, 1, 2, torch.float32)
            with simd_level(level):
                actual = pad_rows_first(x, geometry, backend="native")
            expected = pad_rows_first(x, geometry, backend="reference")
            torch.testing.assert_close(actual, expected, rtol=3e-7, atol=4e-5)


VECTOR_LEVELS = [level for level in LEVELS if level != "scalar"]


@given(
    SEEDS, geometries(largest=400), st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
)
@settings(max_examples=60)
def test_vector_levels_give_the_same_bits(seed, geometry, dtype):
    """Each fuses the same product and sum, in every column: where rows go around too."""
    x = draw_tiles(seed, geometry, 1, 2, torch.float32).div(7).to(dtype)
    results = []
    for level in VECTOR_LEVELS:
        with simd_level(level):
            results.append(pad_rows_first(x, geometry, backend="native"))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pad", [1, 2, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int8])
def test_native_copies_rows_of_all_lengths(dtype, pad, level):
    """Equal widths: blocks of 64 bytes of which one, two or more pieces of the row are made."""
    for width in (1, 2, 7, 15, 16, 17, 31, 32, 64, 65, 130):
        for stored in (width, width + 37):
            geometry = (width,) * 2, stored, 2, (1, pad)
            x = draw_tiles(width, geometry, 1, 3, dtype)
            expected = pad_rows_first(x, geometry, backend="reference")
            with simd_level(level):
                actual = pad_rows_first(x, geometry, backend="native")
            # Half a turn of an odd width lies between pixels.
            atol = 4e-5 if width % 2 and dtype.is_floating_point else 0
            torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_native_large_outputs(dtype, channels_last, level):
    """Written past the cache, from threads that share lines."""
    geometry = TileWidths.optimized().pixels(320), 320, 6, (1, 3)
    x = draw_tiles(1, geometry, 1, 43, dtype, channels_last)
    x = x.repeat(4 // x.element_size(), 1, 1, 1)
    options = {"channels_last": channels_last}
    expected = pad_rows_first(x, geometry, backend="reference", **options)
    assert expected.nbytes > 8 << 20
    with simd_level(level):
        for threads in (1, 2, 3):
            array = _cpu.pseudocylindrical_pad(
                to_numpy(x), str(dtype)[6:], geometry[0], geometry[3], channels_last, threads
            )
            actual = from_numpy(array, dtype)
            actual = actual.permute(0, 3, 1, 2) if channels_last else actual
            torch.testing.assert_close(actual, expected, rtol=3e-7, atol=4e-5)


def test_equal_widths_are_copied():
    """Bit for bit, infinities and all, in the rows that lie half a turn away too."""
    geometry = (12,) * 3, 12, 2, (2, 3)
    x = draw_tiles(2, geometry, dtype=torch.float32)
    x[0, 0, 0, 0], x[2, 0, 1, 5], x[1, 0, 0, 3] = torch.inf, -torch.inf, torch.nan
    picture = x[:, 0].reshape(6, 12)
    turned = picture.roll(6, 1)
    whole = torch.cat([turned[:2].flip(0), picture, turned[-2:].flip(0)])
    whole = torch.cat([whole[:, -3:], whole, whole[:, :3]], 1)
    for backend in BACKENDS:
        actual = pad_rows_first(x, geometry, backend=backend)
        for t in range(3):
            wanted = whole[2 * t : 2 * t + 6]
            assert torch.equal(actual[t, 0].isnan(), wanted.isnan())
            assert torch.equal(actual[t, 0].nan_to_num(7), wanted.nan_to_num(7))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("geometry", [*GEOMETRIES[:4], ((2, 5), 6, 1, (3, 7))])
def test_gradcheck(geometry, channels_last, backend):
    x = draw_tiles(3, geometry, 1, 2, channels_last=channels_last).nan_to_num(5).requires_grad_()

    def run(x):
        return pad_rows_first(x, geometry, channels_last=channels_last, backend=backend)

    assert torch.autograd.gradcheck(run, x, fast_mode=len(geometry[0]) > 2)
    assert torch.autograd.gradgradcheck(run, x, fast_mode=True)


@given(SEEDS, geometries(), st.booleans(), st.sampled_from(BACKENDS), st.sampled_from(FLOATS))
@settings(max_examples=80)
def test_gradient_is_the_transposed_map(seed, geometry, channels_last, backend, dtype):
    """<y, pad x> = <adjoint y, x>, and beyond the tiles y is not read and the gradient zero."""
    x = draw_tiles(seed, geometry, 2, 3, dtype, channels_last).requires_grad_()
    out = pad_rows_first(x, geometry, channels_last=channels_last, backend=backend)
    y = torch.from_numpy(np.random.default_rng(seed).integers(-9, 9, out.shape)).to(dtype)
    columns = torch.arange(out.shape[3])
    inside = columns < torch.tensor(geometry[0])[:, None] + 2 * geometry[3][1]
    y[~inside.repeat(2, 1)[:, None, None].expand(y.shape)] = torch.nan
    (gradient,) = torch.autograd.grad(out, x, y)
    assert gradient.shape == x.shape
    assert gradient.dtype == dtype
    assert not pseudocylindrical_mask(
        gradient - pseudocylindrical_mask(gradient, geometry[0], channels_last=channels_last),
        [geometry[1]] * len(geometry[0]),
        channels_last=channels_last,
    ).any()
    forward = (y.nan_to_num(0).double() * out.double()).sum()
    backward = (gradient.double() * x.nan_to_num(0).double()).sum()
    scale = (y.nan_to_num(0).double() * out.double()).abs().sum() + 1
    error = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 0.1}
    assert abs(forward - backward) <= error[dtype] * scale


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_threads_give_the_same_bits(dtype, level):
    geometry = (20, 33, 40, 37), 40, 5, (3, 2)
    torch.manual_seed(0)
    x = torch.randn(8, 6, 5, 40).to(dtype)
    y = torch.randn(8, 6, 11, 44).to(dtype)
    name = str(dtype)[6:]
    with simd_level(level):
        for run, tensor in (
            (_cpu.pseudocylindrical_pad, x),
            (_cpu.pseudocylindrical_pad_adjoint, y),
        ):
            for channels_last in (False, True):
                t = tensor.permute(0, 2, 3, 1).contiguous() if channels_last else tensor
                one, *others = (
                    run(to_numpy(t), name, geometry[0], geometry[3], channels_last, threads)
                    for threads in (1, 2, 5)
                )
                assert all(np.array_equal(one, other) for other in others)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_native_rounds_halves_as_torch_does(dtype, level):
    """Half a turn of an odd number of columns is the mean of two: of neighbouring words, a tie."""
    words = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    for first in range(0, 1 << 16, 1 << 14):
        x = words[first : first + (1 << 14) - 1].view(1, 1, 1, -1)
        with simd_level(level):
            actual = pseudocylindrical_pad(x, [x.shape[3]], (1, 0), backend="native")
        expected = pseudocylindrical_pad(x, [x.shape[3]], (1, 0), backend="reference")
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_convolution_is_that_of_the_sphere():
    """On tiles of equal width: cutting the picture into tiles makes no difference."""
    torch.manual_seed(1)
    picture, weight = torch.randn(2, 3, 24, 20).double(), torch.randn(4, 3, 5, 5).double()
    tiles = picture.unflatten(2, (4, 6)).transpose(1, 2).flatten(0, 1)
    for stride in (1, 2):
        whole = F.conv2d(pseudocylindrical_pad(picture, [20], 2), weight, stride=stride)
        cut = F.conv2d(pseudocylindrical_pad(tiles, [20] * 4, 2), weight, stride=stride)
        assert cut.shape[2:] == (6 // stride, 20 // stride)
        cut = cut.unflatten(0, (2, 4)).transpose(1, 2).flatten(2, 3)
        torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize(("kernel", "pad"), [(3, 1), (5, 2), (4, 1), (6, 2), (2, 0)])
def test_stride_2_halves_every_tile(kernel, pad):
    """Longitude itself, a function that convolution keeps, comes out at the right pixels."""
    full, half = (8, 16, 12), (4, 8, 6)
    x = torch.zeros(3, 2, 4, 16, dtype=torch.float64)
    for tile, w in enumerate(full):
        angle = 2 * torch.pi * (torch.arange(w).double() + 0.5) / w
        x[tile, 0, :, :w], x[tile, 1, :, :w] = angle.cos(), angle.sin()
    taps = torch.zeros(2, 2, kernel, kernel, dtype=torch.float64)
    centre = (kernel - 1) // 2
    # The middle of an even kernel lies between two pixels, as do the centres of wider pixels.
    middle = [centre] if kernel % 2 else [centre, centre + 1]
    for i in (0, 1):
        taps[i, i, centre, middle] = 1 / len(middle)
    out = F.conv2d(pseudocylindrical_pad(x, full, pad), taps, stride=2)
    assert out.shape == (3, 2, 2, 8)
    for tile, w in enumerate(half):
        offset = 0.5 if kernel % 2 == 0 else 0.25
        angle = 2 * torch.pi * (torch.arange(w).double() + offset) / w
        shrunk = 1 if kernel % 2 else np.cos(np.pi / full[tile])
        torch.testing.assert_close(out[tile, 0, :, :w], (shrunk * angle.cos()).expand(2, w))
        torch.testing.assert_close(out[tile, 1, :, :w], (shrunk * angle.sin()).expand(2, w))


def test_strided_input_and_pad_of_one_number():
    geometry = (5, 11), 12, 3, (2, 2)
    x = draw_tiles(4, geometry, 1, 4).nan_to_num(0)
    expected = pseudocylindrical_pad(x, geometry[0], 2)
    strided = x.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    for backend in BACKENDS:
        actual = pseudocylindrical_pad(strided, geometry[0], (2, 2), backend=backend)
        torch.testing.assert_close(actual, expected)


def test_no_padding_is_the_mask():
    geometry = (5, 11), 12, 3, (0, 0)
    x = draw_tiles(5, geometry, 2, 4)
    for backend in BACKENDS:
        actual = pad_rows_first(x, geometry, backend=backend)
        assert torch.equal(actual, pseudocylindrical_mask(x, geometry[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int8])
def test_opcheck(dtype):
    geometry = (5, 11), 12, 3, (2, 1)
    x = draw_tiles(6, geometry, 1, 2, dtype)
    if dtype.is_floating_point:
        x = x.nan_to_num(0).requires_grad_()
        y = torch.randn(2, 2, 7, 14, dtype=dtype, requires_grad=True)
        torch.library.opcheck(
            torch.ops.pycodec.pseudocylindrical_pad_adjoint, (y, [5, 11], [2, 1], False, None)
        )
    torch.library.opcheck(
        torch.ops.pycodec.pseudocylindrical_pad, (x, [5, 11], [2, 1], False, None)
    )


def test_compiles():
    def network(x):
        return F.conv2d(pseudocylindrical_pad(x, (5, 11), 1), torch.ones(2, 2, 3, 3)).square()

    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 2, 3, 12, requires_grad=True)
    torch.testing.assert_close(compiled(x), network(x))
    (actual,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(network(x).sum(), x)
    torch.testing.assert_close(actual, expected)


BAD_ARGUMENTS = {
    "x dtype": {"x": torch.zeros(2, 1, 3, 12, dtype=torch.int32)},
    "x dimensions": {"x": torch.zeros(2, 3, 12)},
    "empty tiles": {"x": torch.zeros(2, 1, 0, 12)},
    "batch": {"x": torch.zeros(3, 1, 3, 12)},
    "no tiles": {"widths": []},
    "too wide": {"widths": [5, 13]},
    "no columns": {"widths": [0, 12]},
    "huge picture": {"x": torch.zeros(2, 1, 1, (1 << 15) + 1)},
    "negative pad": {"pad": -1},
    "huge pad": {"pad": (0, 5000)},
    "pad of three": {"pad": (1, 1, 1)},
}


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("fault", BAD_ARGUMENTS)
def test_bad_arguments(fault, backend):
    arguments = {"x": torch.zeros(2, 1, 3, 12), "widths": [5, 12], "pad": 1}
    pseudocylindrical_pad(**arguments, backend=backend)
    with pytest.raises(InputError, match="pseudocylindrical_pad: "):
        pseudocylindrical_pad(**{**arguments, **BAD_ARGUMENTS[fault]}, backend=backend)


def test_bad_arguments_of_the_adjoint():
    run = torch.ops.pycodec.pseudocylindrical_pad_adjoint
    y = torch.zeros(2, 1, 5, 14)
    assert run(y, [5, 12], [1, 1], False, None).shape == (2, 1, 3, 12)
    for changed in ({"y": y.to(torch.int8)}, {"pad": [3, 1]}, {"widths": [5, 13]}):
        arguments = {"y": y, "widths": [5, 12], "pad": [1, 1], **changed}
        with pytest.raises(InputError, match="pseudocylindrical_pad"):
            run(*arguments.values(), False, None)


def test_backends():
    with pytest.raises(InputError, match="reference, native, cuda, triton"):
        pseudocylindrical_pad(torch.zeros(1, 1, 1, 1), [1], 1, backend="abacus")


def test_native_module_checks_for_itself():
    """It is an extension module, so nothing that Python passes may crash it."""
    good = {
        "x": np.ones((2, 1, 3, 12), np.float32),
        "dtype": "float32",
        "widths": [5, 12],
        "pad": (1, 1),
        "channels_last": False,
    }
    _cpu.pseudocylindrical_pad(**good)
    for changed in (
        {"x": good["x"][0]},
        {"x": good["x"][..., ::2]},
        {"x": np.ones((3, 1, 3, 12), np.float32)},
        {"x": np.ones((2, 1, 0, 12), np.float32)},
        {"x": np.ones((2, 1, 1, 40000), np.float32)},
        {"dtype": "float64"},
        {"dtype": "complex64"},
        {"widths": []},
        {"widths": [5, 13]},
        {"widths": [0, 12]},
        {"pad": (-1, 1)},
        {"pad": (1, 1 << 40)},
        {"threads": 0},
    ):
        with pytest.raises(InputError):
            _cpu.pseudocylindrical_pad(**{**good, **changed})
    y = {**good, "y": np.ones((2, 1, 5, 14), np.float32)}
    del y["x"]
    _cpu.pseudocylindrical_pad_adjoint(**y)
    for changed in (
        {"y": np.ones((2, 1, 2, 14), np.float32)},
        {"y": np.ones((2, 1, 5, 14), np.int8), "dtype": "int8"},
        {"widths": [5, 13]},
    ):
        with pytest.raises(InputError):
            _cpu.pseudocylindrical_pad_adjoint(**{**y, **changed})
