"""The GPU kernels of the trimmed convolutions, on a GPU where there is one, and on the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec.errors import InputError
from pycodec.ops import trimmed_kernels
from pycodec.ops.backends import cuda_kernels
from pycodec.ops.masked_conv2d import masked_conv2d
from pycodec.ops.quantized_trimmed_conv2d import quantized_trimmed_conv2d
from pycodec.ops.trimmed_conv2d import trimmed_conv2d

from ..emulation import build
from . import trimmed_cases
from .test_trimmed_conv2d import make_layer

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    source = Path(__file__).with_name("trimmed_conv2d_emulation.cpp")
    return build(source, "cuda_trimmed_conv2d.cpp", tmp_path_factory.mktemp("emulation"))


@pytest.fixture(
    scope="class", params=["host", "host, threads backwards", "host, tensor cores backwards"]
)
def host(request, emulation):
    """Lets the CUDA kernels run on the host."""
    emulation.set_backwards("backwards" in request.param)
    emulation.set_has_mma("tensor cores" in request.param)

    def launch(name, device, **arguments):
        getattr(emulation, name)(**arguments, stream=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trimmed_kernels, "launch_cuda", launch)
        patch.setattr(trimmed_kernels, "_DEVICE_TYPE", "cpu")
        # Where there is no nvcc pycodec._cuda is not built.
        patch.setattr("pycodec.ops.backends.cuda_kernels", lambda: emulation)
        yield


@st.composite
def shapes(draw, largest=20, square=False):
    """(shape of x, Cout, kernel, groups) with tiles that are full, partial and several."""
    groups = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    if square:
        groups = groups[:1] * 2
    x = (
        draw(st.integers(1, 2)),
        groups[0] * draw(st.integers(1, largest)),
        draw(st.integers(1, 12)),
        draw(st.integers(1, 40)),
    )
    kernel = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 5]))
    cout = groups[1] * draw(st.sampled_from([1, 3, 8, 9, 16, 17, 65]))
    return x, cout, kernel, groups


@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.tuples(st.integers(1, 6), st.integers(1, 3)),
    width=st.integers(1, 40),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    block_in=st.sampled_from([1, 4, 16, 32]),
)
@settings(max_examples=50)
def test_block_lists(seed, groups, width, kernel, block_in):
    """A block is in a group's list if, and only if, the group sees one of its channels."""
    mask = torch.from_numpy(np.random.default_rng(seed).random((*groups[::-1], *kernel)) < 0.3)
    in_channels = groups[0] * width
    counts, blocks = trimmed_kernels.block_lists(mask, in_channels, block_in)
    blocks_per_tap = -(-in_channels // block_in)
    assert blocks.shape == (groups[1], kernel[0] * kernel[1] * blocks_per_tap)
    for group in range(groups[1]):
        expected = [
            tap * blocks_per_tap + block
            for tap, (i, j) in enumerate(np.ndindex(kernel))
            for block in range(blocks_per_tap)
            if any(
                mask[group, channel // width, i, j]
                for channel in range(block * block_in, min(in_channels, (block + 1) * block_in))
            )
        ]
        assert blocks[group, : counts[group]].tolist() == expected


@pytest.mark.interpreted("ops/trimmed_triton_check.py")
def test_triton_interpreter_equals_reference(interpreted):
    assert "cases are equal" in interpreted("ops/trimmed_triton_check.py")


def check_floats(seed, shape, dtype, bias, order, device, backend):
    """Sums of small integers are exact in the accumulator, so only the output is rounded."""
    x, weight, mask, b = make_layer(seed, *shape, bias=bias, order=order)
    arguments = [t if t is None else t.to(device, dtype) for t in (x, weight, b)]
    actual = trimmed_conv2d(*arguments[:2], mask.to(device), arguments[2], backend=backend)
    assert actual.dtype == dtype
    assert torch.equal(actual.cpu(), trimmed_conv2d(x, weight, mask, b).to(dtype))


SEEDS = st.integers(0, 2**32 - 1)
MASKS = st.sampled_from([None, "plane", "slope"])


class TestCudaSourceOnTheHost:
    @given(SEEDS, shapes(), st.sampled_from([torch.float32, torch.float64]), st.booleans(), MASKS)
    @settings(max_examples=40)
    def test_floats(self, host, seed, shape, dtype, bias, order):
        check_floats(seed, shape, dtype, bias, order, "cpu", "cuda")

    def test_masked_and_gradients(self, host):
        x, weight, _, bias = make_layer(0, (1, 5, 6, 7), 9, (5, 3), (1, 1), dtype=torch.float32)
        weight.requires_grad_()
        for kind in "AB":
            actual = masked_conv2d(x, weight, bias, kind=kind, backend="cuda")
            expected = masked_conv2d(x, weight, bias, kind=kind, backend="reference")
            assert torch.equal(actual, expected)
            gradients = [
                torch.autograd.grad(t.square().sum(), weight)[0] for t in (actual, expected)
            ]
            torch.testing.assert_close(*gradients)

    @given(SEEDS, shapes(square=True), st.sampled_from([1, 24, 40, 62]), st.booleans())
    @settings(max_examples=40)
    def test_integers(self, host, seed, shape, shift, extreme):
        case = trimmed_cases.integer_case(np.random.default_rng(seed), *shape, shift, extreme)
        actual, expected = (
            quantized_trimmed_conv2d(**case, backend=b) for b in ("cuda", "reference")
        )
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


@needs_gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@given(SEEDS, shapes(), st.sampled_from(DTYPES), st.booleans(), MASKS)
@settings(max_examples=60)
def test_gpu_floats(backend, seed, shape, dtype, bias, order):
    check_floats(seed, shape, dtype, bias, order, "cuda", backend)


@needs_gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@given(SEEDS, shapes(square=True), st.sampled_from([1, 24, 40, 62]), st.booleans())
@settings(max_examples=60)
def test_gpu_integers(backend, seed, shape, shift, extreme):
    case = trimmed_cases.integer_case(np.random.default_rng(seed), *shape, shift, extreme)
    on_gpu = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in case.items()}
    actual = quantized_trimmed_conv2d(**on_gpu, backend=backend).cpu()
    assert torch.equal(actual, quantized_trimmed_conv2d(**case, backend="reference"))


@needs_gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gpu_relative_error(backend):
    """Of real numbers, against float64."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 64, 40, 50), torch.randn(64, 64, 5, 5)
    mask = make_layer(0, (1, 64, 1, 1), 64, (5, 5), (8, 8), order="plane")[2]
    expected = trimmed_conv2d(x.double(), weight.double(), mask, backend="reference")
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.003)):
        rounded = [t.to("cuda", dtype) for t in (x, weight)]
        actual = trimmed_conv2d(*rounded, mask.cuda(), backend=backend).double().cpu()
        assert (actual - expected).norm() <= error * expected.norm()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_error_says_so():
    if cuda_kernels() is None:
        pytest.skip("needs the CUDA kernels")
    layer = make_layer(9, (1, 1, 1, 1), 1, (1, 1), (1, 1))
    with pytest.raises(InputError, match="runs on a GPU, but x is on cpu"):
        trimmed_conv2d(*layer, backend="cuda")
