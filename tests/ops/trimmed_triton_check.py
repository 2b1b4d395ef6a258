"""Run by test_trimmed_conv2d_gpu.py with TRITON_INTERPRET=1: the Triton kernels, without a GPU."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import torch

from pycodec.ops.masked_conv2d import masked_conv2d
from pycodec.ops.quantized_trimmed_conv2d import quantized_trimmed_conv2d
from pycodec.ops.trimmed_conv2d import trimmed_conv2d

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: pycodec is the installed one

from tests.ops import trimmed_cases
from tests.ops.test_trimmed_conv2d import make_layer


def check_floats() -> int:
    count = 0
    for (shape, cout, kernel, groups), dtype, order in itertools.product(
        trimmed_cases.SHAPES,
        (torch.float32, torch.float64, torch.float16, torch.bfloat16),
        (None, "slope"),
    ):
        layer = make_layer(count, shape, cout, kernel, groups, bias=count % 3 > 0, order=order)
        x, weight, mask, bias = layer
        rounded = [t if t is None else t.to(dtype) for t in (x, weight, bias)]
        actual = trimmed_conv2d(*rounded[:2], mask, rounded[2], backend="triton")
        expected = trimmed_conv2d(x, weight, mask, bias, backend="reference")
        # Sums of small integers are exact in the accumulator; the output is rounded once, to
        # bfloat16 towards zero by the interpreter.
        error = 2**-7 if dtype == torch.bfloat16 else 0
        equal = torch.allclose(actual.double(), expected.to(dtype).double(), rtol=error, atol=0)
        if actual.dtype != dtype or not equal:
            raise SystemExit(f"differs: {shape} {cout} {kernel} {groups} {dtype} {order}")
        count += 1
    return count


def check_masked() -> int:
    x, weight, _, bias = make_layer(0, (1, 5, 6, 7), 9, (5, 3), (1, 1), dtype=torch.float32)
    for kind in "AB":
        expected = masked_conv2d(x, weight, bias, kind=kind, backend="reference")
        if not torch.equal(masked_conv2d(x, weight, bias, kind=kind, backend="triton"), expected):
            raise SystemExit(f"differs: masked {kind}")
    return 2


def check_gradients() -> int:
    gradients = []
    for backend in ("reference", "triton"):
        x, weight, mask, bias = make_layer(1, (1, 4, 3, 5), 6, (3, 3), (2, 3))
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        trimmed_conv2d(x, weight, mask, bias, backend=backend).square().sum().backward()
        gradients.append([t.grad for t in leaves])
    if not all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)):
        raise SystemExit("gradients differ")
    return 1


def check_integers() -> int:
    rng = np.random.default_rng(0)
    count = 0
    for shape, extreme in itertools.product(trimmed_cases.INTEGER_SHAPES, (False, True)):
        for shift in (1, 40, 62):
            case = trimmed_cases.integer_case(rng, *shape, shift, extreme)
            expected = quantized_trimmed_conv2d(**case, backend="reference")
            actual = quantized_trimmed_conv2d(**case, backend="triton")
            if actual.dtype != expected.dtype or not torch.equal(actual, expected):
                raise SystemExit(f"differs: {shape} {shift} {extreme}")
            count += 1
    return count


def main() -> None:
    counts = [check() for check in (check_floats, check_masked, check_gradients, check_integers)]
    print(f"{sum(counts)} cases are equal")


if __name__ == "__main__":
    main()
