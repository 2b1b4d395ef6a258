"""Convolutions and PReLU for training in bfloat16, against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.context.orders import mask
from pycodec.ops import trimmed_training
from pycodec.ops.trimmed_conv2d import expand_mask, trim

from ..levels import LEVELS, simd_level

CASES = [
    # images, height, width, channels in and out, kernel, groups
    (1, 1, 1, 64, 64, (5, 5), 8),
    (2, 33, 70, 64, 64, (5, 5), 8),  # bands that are not full, columns past a multiple of 32
    (1, 5, 7, 32, 96, (3, 5), 4),
    (2, 16, 130, 96, 32, (1, 1), 2),
    (3, 20, 31, 64, 128, (3, 3), 1),
    (1, 40, 36, 64, 64, (7, 35), 8),  # wider than the picture
]


def runs_bfloat16(level: str) -> bool:
    with simd_level(level):
        return _cpu.runs_bfloat16()


KERNELS = [level for level in LEVELS if runs_bfloat16(level)]
"""The levels with kernels of bfloat16; without any, tests of them are skipped."""


@pytest.fixture(params=KERNELS)
def kernel(request) -> Iterator[str]:
    """A level with kernels, in force during the test."""
    with simd_level(request.param):
        yield request.param


def operands(case: tuple) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, weight and bias in bfloat16, a mask, and a gradient of the result."""
    images, height, width, cin, cout, kernel, groups = case
    generator = torch.Generator().manual_seed(sum(case[:5]))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    x = random(images, cin, height, width)
    weight = random(cout, cin, *kernel)
    seen = mask("slope", "B", groups, groups, kernel)
    return x, weight, seen, random(cout), random(images, cout, height, width)


def results(convolve, x, weight, bias, grad) -> list[Tensor]:
    """The result, and gradients in all three."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    out = convolve(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("order", ["slope", "plane"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution(case, order, level):
    x, weight, seen, bias, grad = operands(case)
    groups = seen.shape[0]
    seen = mask(order, "B", groups, groups, tuple(weight.shape[2:]))
    wide = expand_mask(seen, weight)
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    expected = results(
        lambda x, weight, bias: F.conv2d(x, trim(weight, wide), bias, padding=padding),
        *(t.double() for t in (x, weight, bias, grad)),
    )
    with simd_level(level):
        actual = results(
            lambda x, weight, bias: trimmed_training.conv2d(x, weight, seen, bias),
            *(x, weight, bias, grad),
        )
    for name, a, e in zip(("out", "x", "weight", "bias"), actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == torch.bfloat16, name
        assert relative(a, e) < 2**-8, name
    assert not actual[2][~wide].any()


def test_sums_are_float32(kernel):
    """A result is rounded once, gradients of weights are not rounded by the kernel at all."""
    x, weight, seen, _, grad = operands(CASES[1])
    last = [t.permute(0, 2, 3, 1).contiguous() for t in (x, grad)]
    bits = [t.view(torch.int16).numpy().view(np.uint16) for t in last]
    found = _cpu.bfloat16_trimmed_conv2d_gradients(*bits, seen.numpy(), 2)
    wide = trim(weight, expand_mask(seen, weight)).double().requires_grad_()
    F.conv2d(x.double(), wide, padding=(2, 2)).backward(grad.double())
    expected = trim(wide.grad, expand_mask(seen, weight))
    assert relative(torch.from_numpy(found[0]), expected) < 1e-5
    assert relative(torch.from_numpy(found[1]), grad.double().sum((0, 2, 3))) < 1e-5


def test_trimmed_weights_take_no_part(kernel):
    x, weight, seen, bias, grad = operands(CASES[1])
    wide = expand_mask(seen, weight)
    with_nan = torch.where(wide, weight, torch.nan)

    def convolve(*arguments: Tensor) -> Tensor:
        return trimmed_training.conv2d(*arguments[:2], seen, arguments[2])

    pairs = zip(
        results(convolve, x, weight, bias, grad),
        results(convolve, x, with_nan, bias, grad),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads(threads, kernel):
    x, weight, seen, bias, grad = operands(CASES[4])

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return trimmed_training.conv2d(x, weight, seen, bias)

    expected = results(convolve, x, weight, bias, grad)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = results(convolve, x, weight, bias, grad)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
    assert relative(actual[2], expected[2].double()) < 2**-8


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(1, 32, 1, 1), (2, 64, 37, 61)], ids=str)
def test_prelu(shape, level):
    torch.manual_seed(1)
    x, grad = torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()
    x[0, :, 0, 0] = torch.tensor([0.0, -0.0, -1.0, 1.0]).bfloat16().repeat(shape[1] // 4)
    slope = torch.randn(shape[1])
    with simd_level(level):
        leaves = [x.clone().requires_grad_(), slope.clone().requires_grad_()]
        out = trimmed_training.prelu(*leaves)
        out.backward(grad)
    exact = [x.double().requires_grad_(), slope.double().requires_grad_()]
    expected = F.prelu(*exact)
    expected.backward(grad.double())
    assert relative(out.detach(), expected.detach()) < 2**-7
    assert relative(leaves[0].grad, exact[0].grad) < 2**-7
    # PyTorch rounds the slopes and their gradients, the kernel does not.
    assert relative(leaves[1].grad, exact[1].grad) < (1e-4 if level in KERNELS else 2**-4)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("added", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("shape", [(1, 32, 1, 1), (2, 64, 37, 61)], ids=str)
def test_fake_quantize(shape, added, level):
    torch.manual_seed(2)
    x, grad, residual = (60 * torch.randn(shape).bfloat16() for _ in range(3))
    scale = torch.rand(shape[1]) + 0.5
    scale[:4] = 1.0
    x[0, :4, 0, 0] = torch.tensor([0.5, -1.5, 127.0, 500.0])  # ties, the last inside, and beyond
    residual[0, :4, 0, 0] = 0
    operands = [x, scale, residual][: 3 if added else 2]

    def run(function, operands: list[Tensor]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in operands]
        out = function(*leaves)
        out.backward(grad.to(out.dtype))
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    with simd_level(level):
        actual = run(trimmed_training.fake_quantize, operands)
    expected = run(trimmed_training.fake_quantize_reference, [t.float() for t in operands])
    assert actual[0][0, :4, 0, 0].tolist() == [0, -2, 127, 127]
    assert actual[1][0, :4, 0, 0].tolist() == [*grad[0, :3, 0, 0].tolist(), 0]
    if level in KERNELS or not added:  # else PyTorch rounds the sum to bfloat16 first
        assert torch.equal(actual[0], expected[0].to(actual[0].dtype))
        for a, e in zip(actual[1:], expected[1:], strict=True):
            assert relative(a, e.double()) < 2**-8
    else:
        assert relative(actual[0], expected[0].double()) < 2**-6


def test_fake_quantize_on_any_number_of_threads(kernel):
    torch.manual_seed(3)
    x, scale = 60 * torch.randn(2, 96, 40, 50).bfloat16(), torch.rand(96) + 0.5
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(trimmed_training.fake_quantize(x, scale))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_other_types_take_pytorch():
    x, weight, seen, bias, _ = operands(CASES[2])
    x, weight, bias = x.double(), weight.double(), bias.double()
    out = trimmed_training.conv2d(x, weight, seen, bias)
    wide = trim(weight, expand_mask(seen, weight))
    torch.testing.assert_close(out, F.conv2d(x, wide, bias, padding=(1, 2)))
    torch.testing.assert_close(trimmed_training.prelu(x, bias[:1].repeat(32)), F.prelu(x, bias[:1]))


def test_autocast_reaches_the_kernel():
    x, weight, seen, bias, _ = operands(CASES[1])
    with torch.autocast("cpu", torch.bfloat16):
        out = trimmed_training.conv2d(x.float(), weight.float(), seen, bias.float())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, trimmed_training.conv2d(x, weight, seen, bias))


@pytest.mark.parametrize(
    "changed",
    [
        {"x": np.zeros((1, 4, 4, 16), np.uint16)},
        {"x": np.zeros((4, 4, 32), np.uint16)},
        {"weight": np.zeros((48, 32, 3, 3), np.uint16), "bias": np.zeros(48, np.float32)},
        {"weight": np.zeros((32, 32, 3, 1), np.uint16)},
        {"mask": np.ones((1, 1, 2, 2), bool), "weight": np.zeros((32, 32, 2, 2), np.uint16)},
        {"mask": np.ones((3, 1, 3, 3), bool)},
        {"bias": np.zeros(31, np.float32)},
        {"threads": 0},
    ],
    ids=str,
)
def test_bad_arguments(changed, kernel):
    good = {
        "x": np.zeros((1, 4, 4, 32), np.uint16),
        "weight": np.zeros((32, 32, 3, 3), np.uint16),
        "mask": np.ones((1, 1, 3, 3), bool),
        "bias": np.zeros(32, np.float32),
    }
    assert _cpu.bfloat16_trimmed_conv2d(**good).shape == (1, 4, 4, 32)
    with pytest.raises(ValueError):
        _cpu.bfloat16_trimmed_conv2d(**{**good, **changed})


def test_levels_without_kernels_say_so():
    with simd_level("scalar"):
        assert not _cpu.runs_bfloat16()
        with pytest.raises(ValueError, match="AVX-512 BF16 or AMX"):
            _cpu.bfloat16_prelu_gradients(
                np.zeros((1, 32), np.uint16), np.zeros(32, np.float32), np.zeros((1, 32), np.uint16)
            )
