"""Run by test_quantized_conv2d.py with TRITON_INTERPRET=1: the Triton kernel, without a GPU."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from pycodec.ops import quantized_conv2d
from pycodec.ops.quantized_conv2d import pack_int4

SHAPES = (
    # batch, height, width, in_channels, out_channels, kernel
    (1, 1, 1, 1, 1, (1, 1)),
    (1, 1, 9, 3, 5, (3, 3)),
    (2, 5, 8, 70, 67, (3, 3)),
    (1, 4, 3, 6, 2, (5, 1)),
)
X_DTYPES = (torch.uint8, torch.int8)
OUTPUTS = ((torch.uint8, True), (torch.int8, False), (torch.int16, True), (torch.int32, False))


def check_wide(rng: np.random.Generator) -> int:
    """int16 inputs and weights, packed weights, strides, patches, zero points, residuals."""
    count = 0
    for x_dtype, weight_bits, stride, upscale in itertools.product(
        (torch.uint8, torch.int8, torch.int16), (4, 8, 16), (1, 2), (1, 2)
    ):
        limits = torch.iinfo(x_dtype)
        x = torch.from_numpy(rng.integers(limits.min, limits.max + 1, (2, 5, 4, 7))).to(x_dtype)
        top = (1 << (weight_bits - 1)) - 129 if weight_bits == 16 else (1 << (weight_bits - 1)) - 1
        weight = torch.from_numpy(rng.integers(-top - 1, top + 1, (8, 3, 3, 7)))
        weight = weight.to(torch.int16 if weight_bits == 16 else torch.int8)
        options = {
            "out_dtype": torch.int16,
            "stride": stride,
            "upscale": upscale,
            "zero_point": torch.from_numpy(rng.integers(0, 100, 7, np.int16)),
        }
        if upscale == 1:
            size = (2, -(-5 // stride), -(-4 // stride), 8)
            options["residual"] = torch.from_numpy(rng.integers(-9999, 9999, size, np.int16))
        layer = (
            x,
            pack_int4(weight) if weight_bits == 4 else weight,
            torch.from_numpy(rng.integers(-9999, 9999, 8, np.int32)),
            torch.from_numpy(rng.integers(0, 2**30, 8, np.int32)),
        )
        actual = quantized_conv2d(*layer, 40, **options, backend="triton")
        expected = quantized_conv2d(*layer, 40, **options, backend="reference")
        if not torch.equal(actual, expected):
            raise SystemExit(f"differs: {x_dtype}, {weight_bits} bits, {stride}, {upscale}")
        count += 1
    return count


def main() -> None:
    rng = np.random.default_rng(0)
    count = 0
    for (n, height, width, cin, cout, kernel), x_dtype, extreme in itertools.product(
        SHAPES, X_DTYPES, (False, True)
    ):
        limits = torch.iinfo(x_dtype)
        x = rng.integers(limits.min, limits.max, (n, height, width, cin), endpoint=True)
        weight = rng.integers(-128, 127, (cout, *kernel, cin), endpoint=True)
        if extreme:
            x = np.where(x > np.median(x), limits.max, limits.min)
            weight = np.where(weight > 0, 127, -128)
        layer = (
            torch.from_numpy(x).to(x_dtype),
            torch.from_numpy(weight).to(torch.int8),
            torch.from_numpy(rng.integers(-(2**31), 2**31 - 1, cout, np.int32)),
            torch.from_numpy(rng.integers(0, 2**31 - 1, cout, np.int32)),
        )
        for (out_dtype, relu), shift in itertools.product(OUTPUTS, (1, 40, 62)):
            options = {"out_dtype": out_dtype, "relu": relu}
            actual = quantized_conv2d(*layer, shift, **options, backend="triton")
            expected = quantized_conv2d(*layer, shift, **options, backend="reference")
            if not torch.equal(actual, expected):
                raise SystemExit(f"differs: {x.shape} {weight.shape} {x_dtype} {options} {shift}")
            count += 1
    count += check_wide(rng)
    print(f"{count} cases are equal")


if __name__ == "__main__":
    main()
