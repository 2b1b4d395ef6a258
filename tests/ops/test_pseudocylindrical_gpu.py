"""The GPU kernels of the pseudocylindrical operations, on a GPU or, emulated, on the host."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec.errors import InputError
from pycodec.ops import (
    pseudocylindrical_kernels,
    pseudocylindrical_mask,
    pseudocylindrical_pad,
    pseudocylindrical_slice,
    pseudocylindrical_unslice,
)
from pycodec.ops.backends import cuda_kernels
from pycodec.ops.pseudocylindrical_kernels import row_readers

from ..emulation import build
from .sphere_cases import GEOMETRIES, draw_tiles, geometries

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.uint8)
SEEDS = st.integers(0, 2**32 - 1)
RTOL = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2**-7}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    source = Path(__file__).with_name("pseudocylindrical_emulation.cpp")
    folder = tmp_path_factory.mktemp("emulation")
    return build(source, "cuda_pseudocylindrical.cpp", folder)


@pytest.fixture(scope="class")
def host(emulation):
    """Lets the CUDA kernels run on the host."""

    def launch(name, device, **arguments):
        getattr(emulation, name)(**arguments, stream=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pseudocylindrical_kernels, "launch_cuda", launch)
        patch.setattr(pseudocylindrical_kernels, "_DEVICE_TYPE", "cpu")
        patch.setattr("pycodec.ops.pseudocylindrical_tiles.check_backend", lambda name: None)
        yield


def compare(run, x, backend, device):
    """Results, and gradients of floats, of a backend and the definition."""
    results = []
    for name, where in (("reference", "cpu"), (backend, device)):
        leaf = x.to(where).requires_grad_(x.is_floating_point())
        out = run(leaf, backend=name)
        results.append([out.detach().cpu()])
        if leaf.requires_grad:
            torch.manual_seed(0)
            cotangent = torch.randint(-9, 9, out.shape).to(where, out.dtype)
            results[-1] += [g.cpu() for g in torch.autograd.grad(out, leaf, cotangent)]
        leaf.requires_grad_(False)
    for expected, actual in zip(*results, strict=True):
        error = RTOL.get(actual.dtype, 0)
        torch.testing.assert_close(actual, expected, rtol=error, atol=500 * error)


def check_tiles(seed, geometry, dtype, channels_last, channels, backend, device):
    """The padding and the mask."""
    widths, _, _, pad = geometry
    x = draw_tiles(seed, geometry, 2, channels, dtype, channels_last)

    def run_pad(x, backend):
        return pseudocylindrical_pad(x, widths, pad, channels_last=channels_last, backend=backend)

    def run_mask(x, backend):
        return pseudocylindrical_mask(x, widths, channels_last=channels_last, backend=backend)

    compare(run_pad, x, backend, device)
    zeroed = run_mask(x, "reference")
    assert torch.equal(run_mask(x.to(device), backend).cpu(), zeroed)
    compare(run_mask, zeroed, backend, device)


def check_pictures(seed, geometry, dtype, backend, device):
    """Slicing and unslicing."""
    widths, width, height, _ = geometry
    torch.manual_seed(seed)
    picture = torch.randint(-99, 99, (2, 3, len(widths) * height, width)).to(dtype)
    tiles = draw_tiles(seed, geometry, 2, 3, dtype)
    for run, x in ((pseudocylindrical_slice, picture), (pseudocylindrical_unslice, tiles)):

        def call(x, backend, run=run):
            return run(x, widths, backend=backend)

        compare(call, x, backend, device)


@given(geometries())
def test_row_readers(geometry):
    """Each padded row is in the list of the one row that it reads."""
    widths, _, height, (rows, _) = geometry
    tiles, padded = len(widths), height + 2 * rows
    begins, readers = row_readers(tiles, height, rows, torch.device("cpu"))
    assert sorted(reader // 2 for reader in readers.tolist()) == list(range(tiles * padded))
    assert (begins[0], begins[-1], len(begins)) == (0, len(readers), tiles * height + 1)
    for g in range(tiles * height):
        for reader in readers[begins[g] : begins[g + 1]].tolist():
            row = reader // 2 // padded * height + reader // 2 % padded - rows
            turned = False
            while not 0 <= row < tiles * height:
                row = -1 - row if row < 0 else 2 * tiles * height - 1 - row
                turned = not turned
            assert (row, turned) == (g, reader % 2 == 1)


@pytest.mark.interpreted("ops/pseudocylindrical_triton_check.py")
def test_triton_interpreter_equals_reference(interpreted):
    assert "cases are equal" in interpreted("ops/pseudocylindrical_triton_check.py")


class TestCudaSourceOnTheHost:
    @pytest.mark.parametrize("geometry", GEOMETRIES)
    def test_geometries(self, host, geometry):
        for dtype in (torch.float32, torch.int8):
            for channels_last in (False, True):
                check_tiles(0, geometry, dtype, channels_last, 3, "cuda", "cpu")
        check_pictures(0, geometry, torch.float32, "cuda", "cpu")

    @given(
        SEEDS,
        geometries(),
        st.sampled_from(FLOATS + INTEGERS),
        st.booleans(),
        st.sampled_from([1, 3, 8, 16, 20]),
    )
    @settings(max_examples=60)
    def test_tiles(self, host, seed, geometry, dtype, channels_last, channels):
        check_tiles(seed, geometry, dtype, channels_last, channels, "cuda", "cpu")

    @given(st.integers(0, 2**31), geometries(), st.sampled_from(FLOATS))
    @settings(max_examples=30)
    def test_pictures(self, host, seed, geometry, dtype):
        check_pictures(seed, geometry, dtype, "cuda", "cpu")

    def test_words(self, host):
        """Integers whose memory does not start where a word does."""
        geometry = (5, 11), 12, 2, (1, 2)
        for offset in (0, 1, 2, 4, 8):
            x = draw_tiles(offset, geometry, 1, 16, torch.int8, channels_last=True)
            moved = torch.zeros(x.numel() + offset, dtype=torch.int8)[offset:].view(x.shape)
            moved.copy_(x)
            actual, expected = (
                pseudocylindrical_pad(moved, (5, 11), (1, 2), channels_last=True, backend=backend)
                for backend in ("cuda", "reference")
            )
            assert torch.equal(actual, expected)


@needs_gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@given(
    SEEDS,
    geometries(),
    st.sampled_from(FLOATS + INTEGERS),
    st.booleans(),
    st.sampled_from([1, 3, 8, 16, 20]),
)
@settings(max_examples=60)
def test_gpu_tiles(backend, seed, geometry, dtype, channels_last, channels):
    check_tiles(seed, geometry, dtype, channels_last, channels, backend, "cuda")


@needs_gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@given(st.integers(0, 2**31), geometries(), st.sampled_from(FLOATS))
@settings(max_examples=30)
def test_gpu_pictures(backend, seed, geometry, dtype):
    check_pictures(seed, geometry, dtype, backend, "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_error_says_so():
    if cuda_kernels() is None:
        pytest.skip("needs the CUDA kernels")
    with pytest.raises(InputError, match="runs on a GPU, but x is on cpu"):
        pseudocylindrical_pad(torch.zeros(1, 1, 1, 1), [1], 1, backend="cuda")
