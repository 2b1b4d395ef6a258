"""The integer convolution in Triton; :mod:`pycodec.ops.quantized_conv2d` is its definition.

An implicit matrix product: rows are output positions, columns output channels, and the inner
dimension runs over kernel taps and, within a tap, blocks of input channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_POSITIONS = 64
BLOCK_OUT = 64
BLOCK_IN = 64
NUM_WARPS = 4


@triton.jit
def quantized_conv2d_kernel(
    x_ptr,  # uint8 or int8 [batch, height, width, in_channels]
    weight_ptr,  # int8 [out_channels, KERNEL_HEIGHT, KERNEL_WIDTH, in_channels]
    bias_ptr,  # int32 [out_channels]
    multiplier_ptr,  # int32 [out_channels]
    out_ptr,  # [batch, height, width, out_channels]
    positions,  # batch * height * width
    height,
    width,
    in_channels,
    out_channels,
    half,  # 2 ** (shift - 1)
    shift,
    lower,
    upper,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    X_SIGNED: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """One block of positions by one block of output channels."""
    p = tl.program_id(0).to(tl.int64) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    o = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    c = tl.arange(0, BLOCK_IN)
    row = p // width % height
    column = p % width
    taps: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH

    acc = tl.zeros((BLOCK_POSITIONS, BLOCK_OUT), dtype=tl.int32)
    for tap in range(taps):
        dy = tap // KERNEL_WIDTH - KERNEL_HEIGHT // 2
        dx = tap % KERNEL_WIDTH - KERNEL_WIDTH // 2
        inside = (p < positions) & (row + dy >= 0) & (row + dy < height)
        inside = inside & (column + dx >= 0) & (column + dx < width)
        x_base = (p + dy * width + dx) * in_channels
        for first in range(0, in_channels, BLOCK_IN):
            channel_inside = first + c < in_channels
            x = tl.load(
                x_ptr + x_base[:, None] + (first + c)[None, :],
                mask=inside[:, None] & channel_inside[None, :],
                other=0,
            )
            if not X_SIGNED:
                # Tensor cores multiply like signs only: x - 128 here, 128 * weight in the bias.
                x = (x ^ 128).to(tl.int8, bitcast=True)
            weight = tl.load(
                weight_ptr + (o[None, :] * taps + tap) * in_channels + (first + c)[:, None],
                mask=(o < out_channels)[None, :] & channel_inside[:, None],
                other=0,
            )
            acc = tl.dot(x, weight, acc, out_dtype=tl.int32)

    acc += tl.load(bias_ptr + o, mask=o < out_channels, other=0)[None, :]
    multiplier = tl.load(multiplier_ptr + o, mask=o < out_channels, other=0).to(tl.int64)
    value = (acc.to(tl.int64) * multiplier[None, :] + half) >> shift
    value = tl.minimum(tl.maximum(value, lower), upper)
    tl.store(
        out_ptr + p[:, None] * out_channels + o[None, :],
        value.to(out_ptr.dtype.element_ty),
        mask=(p < positions)[:, None] & (o < out_channels)[None, :],
    )


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    relu: bool,
    out: Tensor,
) -> None:
    """Runs the kernel on checked arguments and writes ``out``."""
    batch, height, width, in_channels = x.shape
    out_channels, kernel_height, kernel_width, _ = weight.shape
    positions = batch * height * width
    if positions == 0:
        return
    if x.dtype == torch.uint8:
        bias = bias + 128 * weight.sum(dim=(1, 2, 3), dtype=torch.int32)
    limits = torch.iinfo(out.dtype)
    grid = (triton.cdiv(positions, BLOCK_POSITIONS), triton.cdiv(out_channels, BLOCK_OUT))
    quantized_conv2d_kernel[grid](
        x,
        weight,
        bias,
        multiplier,
        out,
        positions,
        height,
        width,
        in_channels,
        out_channels,
        1 << (shift - 1),
        shift,
        max(limits.min, 0) if relu else limits.min,
        limits.max,
        KERNEL_HEIGHT=kernel_height,
        KERNEL_WIDTH=kernel_width,
        X_SIGNED=x.dtype == torch.int8,
        BLOCK_POSITIONS=BLOCK_POSITIONS,
        BLOCK_OUT=BLOCK_OUT,
        BLOCK_IN=BLOCK_IN,
        num_warps=NUM_WARPS,
    )


def compile_variants():
    """What to compile ahead of time as a check: (kernel, signature, constants, options)."""
    names = quantized_conv2d_kernel.arg_names
    for x_type, out_type, kernel_size in (
        ("*u8", "*u8", 3),
        ("*i8", "*i8", 1),
        ("*u8", "*i16", 5),
        ("*i8", "*i32", 3),
    ):
        constants = {
            "KERNEL_HEIGHT": kernel_size,
            "KERNEL_WIDTH": kernel_size,
            "X_SIGNED": x_type == "*i8",
            "BLOCK_POSITIONS": BLOCK_POSITIONS,
            "BLOCK_OUT": BLOCK_OUT,
            "BLOCK_IN": BLOCK_IN,
        }
        types = {
            "x_ptr": x_type,
            "weight_ptr": "*i8",
            "bias_ptr": "*i32",
            "multiplier_ptr": "*i32",
            "out_ptr": out_type,
            "half": "i64",
        }
        signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
        yield quantized_conv2d_kernel, signature, constants, {"num_warps": NUM_WARPS}
