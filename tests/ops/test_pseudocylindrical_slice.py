"""Slicing and unslicing are the formula, pixel by pixel, and so are their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops import pseudocylindrical_slice, pseudocylindrical_unslice
from pycodec.ops.pseudocylindrical_slice import cubic_resampling
from pycodec.projection.widths import TileWidths

from ..levels import LEVELS, simd_level
from .sphere_cases import draw_tiles, geometries, naive_resample

BACKENDS = ("reference", "native")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SEEDS = st.integers(0, 2**32 - 1)
# Of sums of integers up to 128, whose weights' magnitudes add up to at most 1.3.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4, torch.float16: 0.08, torch.bfloat16: 0.7}


def draw_picture(seed, geometry, pictures, channels, dtype=torch.float64):
    widths, width, height, _ = geometry
    shape = pictures, channels, len(widths) * height, width
    return torch.from_numpy(np.random.default_rng(seed).integers(-128, 128, shape)).to(dtype)


@given(
    SEEDS,
    geometries(),
    st.integers(0, 2),
    st.integers(0, 5),
    st.sampled_from(FLOATS),
    st.sampled_from([None, *BACKENDS]),
    st.sampled_from(LEVELS),
)
@settings(max_examples=80)
def test_are_the_formula(seed, geometry, pictures, channels, dtype, backend, level):
    widths, width, height, _ = geometry
    with simd_level(level):
        x = draw_picture(seed, geometry, pictures, channels)
        tiles = pseudocylindrical_slice(x.to(dtype), widths, backend=backend)
        assert tiles.shape == (pictures * len(widths), channels, height, width)
        y = draw_tiles(seed, geometry, pictures, channels)
        picture = pseudocylindrical_unslice(y.to(dtype), widths, backend=backend)
        assert picture.shape == x.shape
    for actual, argument, to_tiles in ((tiles, x, True), (picture, y, False)):
        assert actual.dtype == dtype
        assert actual.is_contiguous()
        expected = naive_resample(argument, widths, to_tiles)
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@given(SEEDS, geometries(), st.sampled_from(BACKENDS), st.sampled_from(FLOATS))
@settings(max_examples=60)
def test_gradients_are_the_transposed_maps(seed, geometry, backend, dtype):
    widths = geometry[0]
    x = draw_picture(seed, geometry, 2, 3, dtype).requires_grad_()
    y = draw_tiles(seed + 1, geometry, 2, 3, dtype).requires_grad_()
    error = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 0.1}
    for run, argument, other in (
        (pseudocylindrical_slice, x, y),
        (pseudocylindrical_unslice, y, x),
    ):
        out = run(argument, widths, backend=backend)
        cotangent = other.detach()
        (gradient,) = torch.autograd.grad(out, argument, cotangent)
        assert gradient.dtype == dtype
        product = out.double() * cotangent.double().nan_to_num(0)
        backward = (gradient.double() * argument.double().nan_to_num(0)).sum()
        assert abs(product.sum() - backward) <= error[dtype] * (product.abs().sum() + 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("widths", [(4, 7), (1, 7), (7, 7), (3,)])
def test_gradcheck(widths, backend):
    x = torch.randn(1, 2, 2 * len(widths), 7, dtype=torch.float64, requires_grad=True)
    y = torch.randn(len(widths), 2, 2, 7, dtype=torch.float64, requires_grad=True)
    for run, argument in ((pseudocylindrical_slice, x), (pseudocylindrical_unslice, y)):

        def call(argument, run=run):
            return run(argument, widths, backend=backend)

        assert torch.autograd.gradcheck(call, argument)
        assert torch.autograd.gradgradcheck(call, argument, fast_mode=True)


@given(st.integers(1, 90), st.integers(1, 90))
def test_transposed_map(source, target):
    def matrix(m):
        dense = np.zeros((m.target, m.source))
        for w in range(m.target):
            for k, weight in enumerate(m.weights[:, w]):
                dense[w, (m.first[w] + k) % m.source] += weight
        return dense

    m = cubic_resampling(source, target)
    np.testing.assert_allclose(matrix(m).sum(1), 1)
    np.testing.assert_allclose(matrix(m.transposed()), matrix(m).T, atol=1e-15)
    assert len(m.transposed().weights) <= 4 * max(1, target / source) + 2


@given(st.integers(1, 300), st.integers(1, 300))
def test_exact_weights(source, target):
    exact, real = (cubic_resampling(source, target, exact=e) for e in (True, False))
    assert np.array_equal(exact.first, real.first)
    units = exact.weights * 4096
    assert np.array_equal(units, units.round()) and np.array_equal(units.sum(0), [4096] * target)
    # Each is rounded down; what is missing goes to the largest.
    assert np.abs(exact.weights - real.weights).max() <= len(units) / 4096


@given(SEEDS, geometries(largest=130), st.sampled_from(LEVELS))
@settings(max_examples=40)
def test_exact_sums_are_those_of_float64(seed, geometry, level):
    """No sum is rounded, whatever the order."""
    widths, width, height, _ = geometry
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(0, 8 * 255 + 1, (len(widths), 2, height, width)) / 8)
    expected = torch.zeros(1, 2, len(widths), height, width, dtype=torch.float64)
    for tile, w in enumerate(widths):
        m = cubic_resampling(w, width, exact=True)
        for k, weights in enumerate(m.weights):
            columns = (m.first + k) % w
            expected[0, :, tile] += x[tile][..., columns] * torch.from_numpy(weights)
    for backend in BACKENDS:
        with simd_level(level):
            made = pseudocylindrical_unslice(x.float(), widths, exact=True, backend=backend)
        assert torch.equal(made.double(), expected.flatten(2, 3))
    near = pseudocylindrical_unslice(x, widths)
    assert (near - expected.flatten(2, 3)).abs().max() < 0.6


def test_exact_sums_need_float32():
    with pytest.raises(InputError, match="not exact"):
        pseudocylindrical_unslice(torch.zeros(1, 1, 2, 4, dtype=torch.float64), [3], exact=True)
    with pytest.raises(InputError, match="more than 32768 columns"):
        cubic_resampling(40000, 40001, exact=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_widths_are_copied(backend):
    x = torch.randn(2, 3, 8, 9)
    x[0, 0, 0, 0], x[1, 2, 7, 8] = torch.inf, torch.nan
    tiles = pseudocylindrical_slice(x, [9] * 4, backend=backend)
    wanted = x.unflatten(2, (4, 2)).transpose(1, 2).flatten(0, 1)
    assert torch.equal(tiles.nan_to_num(3), wanted.nan_to_num(3))
    back = pseudocylindrical_unslice(tiles, [9] * 4, backend=backend)
    assert torch.equal(back.nan_to_num(3), x.nan_to_num(3))


@pytest.mark.parametrize("name", ["optimized", "sinusoidal"])
def test_smooth_pictures_come_back(name):
    """What the sphere itself does not vary faster than, near the poles too."""
    height, width = 128, 256
    latitude = (0.5 - (torch.arange(height) + 0.5) / height) * torch.pi
    longitude = (torch.arange(width) + 0.5) / width * 2 * torch.pi
    east = latitude.cos()[:, None] * longitude.cos()
    north = latitude.sin()[:, None].expand(height, width)
    x = torch.stack([east, north, (4 * east + 3 * north).sin()])[None].double()
    widths = TileWidths.preset(name, 32).pixels(width)
    tiles = pseudocylindrical_slice(x, widths)
    assert tiles.shape == (32, 3, 4, width)
    back = pseudocylindrical_unslice(tiles, widths)
    assert (back - x).abs().max() < 0.01


def test_threads_give_the_same_bits():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 24, 40)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            tiles = pseudocylindrical_slice(x, [7, 30, 40, 31], backend="native")
            back = pseudocylindrical_unslice(tiles, [7, 30, 40, 31], backend="native")
            results.append((tiles, back))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("to_tiles", "transposed"), [(True, False), (False, False), (True, True)])
def test_opcheck(to_tiles, transposed):
    shape = (2, 3, 8, 9) if to_tiles else (4, 3, 4, 9)
    x = torch.randn(shape, requires_grad=True)
    arguments = x, [4, 9], to_tiles, transposed, None
    torch.library.opcheck(torch.ops.pycodec.pseudocylindrical_resample, arguments)


BAD_PICTURES = {
    "dtype": (torch.zeros(1, 1, 4, 8, dtype=torch.int8), [4, 8]),
    "dimensions": (torch.zeros(1, 4, 8), [4, 8]),
    "rows": (torch.zeros(1, 1, 5, 8), [4, 8]),
    "empty": (torch.zeros(1, 1, 0, 8), [4, 8]),
    "no tiles": (torch.zeros(1, 1, 4, 8), []),
    "too wide": (torch.zeros(1, 1, 4, 8), [4, 9]),
    "no columns": (torch.zeros(1, 1, 4, 8), [0, 8]),
}
BAD_TILES = {
    "dtype": (torch.zeros(2, 1, 4, 8, dtype=torch.int8), [4, 8]),
    "dimensions": (torch.zeros(2, 4, 8), [4, 8]),
    "batch": (torch.zeros(3, 1, 5, 8), [4, 8]),
    "empty": (torch.zeros(2, 1, 4, 0), [4, 8]),
    "no tiles": (torch.zeros(2, 1, 4, 8), []),
    "too wide": (torch.zeros(2, 1, 4, 8), [4, 9]),
}


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_bad_arguments(backend):
    for x, widths in BAD_PICTURES.values():
        with pytest.raises(InputError, match="pseudocylindrical_slice: "):
            pseudocylindrical_slice(x, widths, backend=backend)
    for x, widths in BAD_TILES.values():
        with pytest.raises(InputError, match="pseudocylindrical_unslice: "):
            pseudocylindrical_unslice(x, widths, backend=backend)


def test_native_module_checks_for_itself():
    """It is an extension module, so nothing that Python passes may crash it."""
    good = {
        "x": np.ones((1, 1, 2, 8), np.float32),
        "dtype": "float32",
        "table": np.array([0, 1], np.int32),
        "sizes": np.array([[8, 4, 2], [8, 8, 1]], np.int32),
        "first": np.zeros((2, 8), np.int32),
        "weights": np.ones((2, 2, 8), np.float32),
        "to_tiles": True,
    }
    _cpu.pseudocylindrical_resample(**good)
    for changed in (
        {"x": good["x"][0]},
        {"x": good["x"][..., ::2]},
        {"x": np.ones((1, 1, 3, 8), np.float32)},
        {"x": good["x"].astype(np.int8), "dtype": "int8"},
        {"dtype": "float64"},
        {"table": good["table"][:0]},
        {"table": good["table"] + 1},
        {"table": good["table"] - 1},
        {"sizes": good["sizes"][:1]},
        {"sizes": good["sizes"] + 1},
        {"sizes": np.array([[0, 4, 2], [8, 8, 1]], np.int32)},
        {"first": good["first"] + 8},
        {"first": good["first"] - 1},
        {"first": good["first"][:, :7].copy()},
        {"weights": good["weights"].astype(np.float64)},
        {"weights": good["weights"][:1]},
        {"threads": 0},
    ):
        with pytest.raises(InputError):
            _cpu.pseudocylindrical_resample(**{**good, **changed})
