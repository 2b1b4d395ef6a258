"""Quantization and back in Triton; :mod:`pycodec.ops.quantize` defines both.

A program computes a block of values, channels innermost.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
BLOCK = 1024


@triton.jit
def quantize_kernel(
    real_ptr,  # float32 [values]
    integers_ptr,
    scale_ptr,  # float32 [channels]
    zero_point_ptr,  # int32 [channels]
    values,
    channels,
    lower,
    upper,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < values
    c = i % channels
    zero = tl.load(zero_point_ptr + c, mask=inside, other=0)
    scale = tl.load(scale_ptr + c, mask=inside, other=1.0)
    inverse = tl.div_rn(tl.full([BLOCK], 1.0, tl.float32), scale)  # "/" is not exact
    value = tl.load(real_ptr + i, mask=inside, other=0.0) * inverse
    # The greater of NaN and a number is the number.
    value = tl.maximum(value, (lower - zero).to(tl.float32))
    value = tl.minimum(value, (upper - zero).to(tl.float32))
    # 1.5 * 2^23 leaves integers, halves to even.
    rounded = (value + 12582912.0) - 12582912.0
    result = rounded.to(tl.int32) + zero
    tl.store(integers_ptr + i, result.to(integers_ptr.dtype.element_ty), mask=inside)


@triton.jit
def dequantize_kernel(
    real_ptr,
    integers_ptr,
    scale_ptr,
    zero_point_ptr,
    values,
    channels,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < values
    c = i % channels
    zero = tl.load(zero_point_ptr + c, mask=inside, other=0)
    scale = tl.load(scale_ptr + c, mask=inside, other=1.0)
    steps = tl.load(integers_ptr + i, mask=inside, other=0).to(tl.int32) - zero
    tl.store(real_ptr + i, steps.to(tl.float32) * scale, mask=inside)


def launch(
    real: Tensor, integers: Tensor, scale: Tensor, zero_point: Tensor, lower: int, upper: int
) -> None:
    """Quantizes checked, contiguous arguments and writes ``integers``."""
    _launch(quantize_kernel, real, integers, scale, zero_point, lower, upper)


def launch_back(real: Tensor, integers: Tensor, scale: Tensor, zero_point: Tensor) -> None:
    """The same on the way back: writes ``real``."""
    _launch(dequantize_kernel, real, integers, scale, zero_point)


def _launch(
    kernel, real: Tensor, integers: Tensor, scale: Tensor, zero_point: Tensor, *limits: int
) -> None:
    values = real.numel()
    if values == 0:
        return
    kernel[(triton.cdiv(values, BLOCK),)](
        *(real, integers, scale, zero_point, values, len(scale), *limits),
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
    )


def compile_variants():
    """What to compile ahead of time as a check: (kernel, signature, constants, options)."""
    constants = {"BLOCK": BLOCK}
    for kernel in (quantize_kernel, dequantize_kernel):
        for integers in ("u8", "i8", "i16"):
            types = {
                "real_ptr": "*fp32",
                "integers_ptr": f"*{integers}",
                "scale_ptr": "*fp32",
                "zero_point_ptr": "*i32",
            }
            signature = {
                name: "constexpr" if name in constants else types.get(name, "i32")
                for name in kernel.arg_names
            }
            yield kernel, signature, constants, {"num_warps": NUM_WARPS}
