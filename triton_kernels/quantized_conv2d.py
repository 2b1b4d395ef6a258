"""The integer convolution in Triton; :mod:`pycodec.ops.quantized_conv2d` is its definition.

An implicit matrix product: rows are output positions, columns output channels, and the inner
dimension runs over kernel taps and, within a tap, blocks of input channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pycodec.ops.quantized_conv2d import ConvOptions, unpack_int4

BLOCK_POSITIONS = 64
BLOCK_OUT = 64
NUM_WARPS = 4
NUM_STAGES = 4
# Sizes and ranges vary from picture to picture and layer to layer: one compiled kernel for all.
NOT_SPECIALIZED = (
    *("positions", "height", "width", "out_height", "out_width"),
    *("half", "shift", "lower", "upper"),
)


def block_in(in_channels: int) -> int:
    """Input channels of a product: 64, or the 32 that an int8 product needs if fewer are wasted."""
    return 64 if -(-in_channels // 32) % 2 == 0 else 32


@triton.jit
def _high_and_low(x):
    """int16 or int32 as 256 * high + low, both int8; x is at most 2**15 - 129."""
    x = x.to(tl.int32)
    high = (x + 128) >> 8
    return high.to(tl.int8), (x - high * 256).to(tl.int8)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def quantized_conv2d_kernel(
    x_ptr,  # uint8, int8 or int16 [batch, height, width, in_channels]
    weight_ptr,  # int8 or int16 [out_channels, KERNEL_HEIGHT, KERNEL_WIDTH, in_channels], or packed
    bias_ptr,  # int32 [out_channels]
    multiplier_ptr,  # int32 [out_channels]
    zero_ptr,  # int16 [in_channels], if HAS_ZERO
    residual_ptr,  # int16 like out, if HAS_RESIDUAL
    out_ptr,  # [batch, out_height, out_width, out_channels], patches apart
    positions,  # batch * out_height * out_width
    height,
    width,
    out_height,
    out_width,
    in_channels,
    out_channels,
    half,  # 2 ** (shift - 1)
    shift,
    lower,
    upper,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    UPSCALE: tl.constexpr,
    X_SIGNED: tl.constexpr,
    X_WIDE: tl.constexpr,
    WEIGHT_WIDE: tl.constexpr,
    WEIGHT_PACKED: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """One block of positions by one block of output channels."""
    p = tl.program_id(0).to(tl.int64) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    o = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    c = tl.arange(0, BLOCK_IN)
    out_row = p // out_width % out_height
    out_column = p % out_width
    image = p // out_width // out_height
    taps: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH
    row_bytes = (in_channels + 1) // 2 if WEIGHT_PACKED else in_channels

    acc = tl.zeros((BLOCK_POSITIONS, BLOCK_OUT), dtype=tl.int32)
    # One loop, so that a tap's loads run while the last channels of the one before are multiplied.
    blocks = tl.cdiv(in_channels, BLOCK_IN)
    for step in range(taps * blocks):
        tap = step // blocks
        row = out_row * STRIDE + tap // KERNEL_WIDTH - KERNEL_HEIGHT // 2
        column = out_column * STRIDE + tap % KERNEL_WIDTH - KERNEL_WIDTH // 2
        inside = (p < positions) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        x_base = ((image * height + row) * width + column) * in_channels
        channel = step % blocks * BLOCK_IN + c
        channel_inside = channel < in_channels
        x = tl.load(
            x_ptr + x_base[:, None] + channel[None, :],
            mask=inside[:, None] & channel_inside[None, :],
            other=0,
        )
        if HAS_ZERO:
            zero = tl.load(zero_ptr + channel, mask=channel_inside, other=0)
            x = tl.where(inside[:, None], x, zero[None, :].to(x.dtype))
        place = (o[None, :] * taps + tap) * row_bytes
        weight = tl.load(
            weight_ptr + place + (channel // 2 if WEIGHT_PACKED else channel)[:, None],
            mask=(o < out_channels)[None, :] & channel_inside[:, None],
            other=0,
        )
        if WEIGHT_PACKED:
            nibble = (weight.to(tl.int32) >> (channel % 2 * 4)[:, None]) & 15
            weight = ((nibble ^ 8) - 8).to(tl.int8)
        # Tensor cores multiply like signs only: what is below is x - 128, or x less the 128 of
        # its low byte, and 128 * weight is in the bias.
        if X_WIDE:
            x_high = (x >> 8).to(tl.int8)
            x = ((x.to(tl.int32) & 255) - 128).to(tl.int8)
        elif not X_SIGNED:
            x = (x ^ 128).to(tl.int8, bitcast=True)
        if WEIGHT_WIDE:
            weight_high, weight = _high_and_low(weight)
            acc += tl.dot(x, weight_high, out_dtype=tl.int32) * 256
            if X_WIDE:
                acc += tl.dot(x_high, weight_high, out_dtype=tl.int32) * 65536
        if X_WIDE:
            acc += tl.dot(x_high, weight, out_dtype=tl.int32) * 256
        acc = tl.dot(x, weight, acc, out_dtype=tl.int32)

    acc += tl.load(bias_ptr + o, mask=o < out_channels, other=0)[None, :]
    multiplier = tl.load(multiplier_ptr + o, mask=o < out_channels, other=0).to(tl.int64)
    value = (acc.to(tl.int64) * multiplier[None, :] + half) >> shift
    used = (p < positions)[:, None] & (o < out_channels)[None, :]
    if HAS_RESIDUAL:
        place = p[:, None] * out_channels + o[None, :]
        value += tl.load(residual_ptr + place, mask=used, other=0).to(tl.int64)
    value = tl.minimum(tl.maximum(value, lower), upper)
    if UPSCALE == 1:
        target = p[:, None] * out_channels + o[None, :]
    else:
        channels = out_channels // (UPSCALE * UPSCALE)
        patch = o // channels
        y = (image * out_height + out_row)[:, None] * UPSCALE + (patch // UPSCALE)[None, :]
        x_place = out_column[:, None] * UPSCALE + (patch % UPSCALE)[None, :]
        target = (y * (out_width * UPSCALE) + x_place) * channels + (o % channels)[None, :]
    tl.store(out_ptr + target, value.to(out_ptr.dtype.element_ty), mask=used)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: int,
    options: ConvOptions,
    zero_point: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    """Runs the kernel on checked arguments and writes ``out``."""
    batch, height, width, in_channels = x.shape
    out_channels, kernel_height, kernel_width, _ = weight.shape
    out_height, out_width = (side // options.upscale for side in out.shape[1:3])
    positions = batch * out_height * out_width
    if positions == 0:
        return
    packed = weight.dtype == torch.uint8
    if x.dtype != torch.int8:
        whole = unpack_int4(weight, in_channels) if packed else weight
        # Modulo 2**32, as the accumulators are.
        bias = (bias.long() + 128 * whole.sum(dim=(1, 2, 3), dtype=torch.int64)).to(torch.int32)
    grid = (triton.cdiv(positions, BLOCK_POSITIONS), triton.cdiv(out_channels, BLOCK_OUT))
    quantized_conv2d_kernel[grid](
        x,
        weight,
        bias,
        multiplier,
        bias if zero_point is None else zero_point,
        bias if residual is None else residual,
        out,
        positions,
        height,
        width,
        out_height,
        out_width,
        in_channels,
        out_channels,
        1 << (shift - 1),
        shift,
        options.lower,
        options.upper,
        KERNEL_HEIGHT=kernel_height,
        KERNEL_WIDTH=kernel_width,
        STRIDE=options.stride,
        UPSCALE=options.upscale,
        X_SIGNED=x.dtype != torch.uint8,
        X_WIDE=x.dtype == torch.int16,
        WEIGHT_WIDE=weight.dtype == torch.int16,
        WEIGHT_PACKED=packed,
        HAS_ZERO=zero_point is not None,
        HAS_RESIDUAL=residual is not None,
        BLOCK_POSITIONS=BLOCK_POSITIONS,
        BLOCK_OUT=BLOCK_OUT,
        BLOCK_IN=block_in(in_channels),
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )


def compile_variants():
    """What to compile ahead of time as a check: (kernel, signature, constants, options)."""
    names = quantized_conv2d_kernel.arg_names
    for x_type, weight_type, out_type, kernel_size, stride, upscale, extras in (
        ("*u8", "*i8", "*u8", 3, 1, 1, False),
        ("*i8", "*i8", "*i8", 1, 1, 1, False),
        ("*u8", "*u8", "*i16", 5, 2, 1, True),
        ("*i8", "*i8", "*i32", 3, 1, 1, False),
        ("*i16", "*i16", "*i16", 3, 2, 1, True),
        ("*i16", "*i8", "*u8", 1, 1, 2, False),
    ):
        constants = {
            "KERNEL_HEIGHT": kernel_size,
            "KERNEL_WIDTH": kernel_size,
            "STRIDE": stride,
            "UPSCALE": upscale,
            "X_SIGNED": x_type != "*u8",
            "X_WIDE": x_type == "*i16",
            "WEIGHT_WIDE": weight_type == "*i16",
            "WEIGHT_PACKED": weight_type == "*u8",
            "HAS_ZERO": extras,
            "HAS_RESIDUAL": extras,
            "BLOCK_POSITIONS": BLOCK_POSITIONS,
            "BLOCK_OUT": BLOCK_OUT,
            "BLOCK_IN": 32 if kernel_size == 3 else 64,
        }
        types = {
            "x_ptr": x_type,
            "weight_ptr": weight_type,
            "bias_ptr": "*i32",
            "multiplier_ptr": "*i32",
            "zero_ptr": "*i16",
            "residual_ptr": "*i16",
            "out_ptr": out_type,
            "half": "i64",
        }
        signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
        yield (
            quantized_conv2d_kernel,
            signature,
            constants,
            {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES},
        )
