"""The trimmed convolutions in Triton: floats, and integers with their requantization.

:mod:`pycodec.ops.trimmed_conv2d` and :mod:`pycodec.ops.quantized_trimmed_conv2d` are the
definitions. Implicit matrix products: a program computes a block of positions by a block of the
output channels of one group, and its inner dimension runs over the blocks that the mask leaves to
this group (:func:`pycodec.ops.trimmed_kernels.block_lists`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_POSITIONS = 64
MAX_BLOCK_OUT = 64
BLOCK_IN = 16  # input channels in a block: the least that tl.dot takes, so that masks cut most
BLOCK_IN_INT8 = 32
NUM_WARPS = 4


@triton.jit
def trimmed_conv2d_kernel(
    x_ptr,  # [batch, in_channels, height, width]
    weight_ptr,  # [KERNEL_HEIGHT, KERNEL_WIDTH, in_channels, out_channels]
    counts_ptr,  # int32 [groups]
    blocks_ptr,  # int32 [groups, KERNEL_HEIGHT * KERNEL_WIDTH * blocks_per_tap]
    bias_ptr,  # [out_channels]
    out_ptr,  # [batch, out_channels, height, width]
    height,
    width,
    in_channels,
    out_channels,
    group_width,  # out_channels / groups
    blocks_per_tap,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    WIDEN: tl.constexpr,  # multiply in the accumulator's type: the same numbers, more slowly
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Positions are the columns, so that neighbours in memory are neighbours in a block."""
    area = height * width
    blocks_of_image = tl.cdiv(area, BLOCK_POSITIONS)
    image = (tl.program_id(0) // blocks_of_image).to(tl.int64)
    p = tl.program_id(0) % blocks_of_image * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    blocks_of_group = tl.cdiv(group_width, BLOCK_OUT)
    group = tl.program_id(1) // blocks_of_group
    in_group = tl.program_id(1) % blocks_of_group * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    o = group * group_width + in_group
    o_inside = in_group < group_width
    c = tl.arange(0, BLOCK_IN)
    row = p // width
    column = p % width
    x_ptr += image * in_channels * area
    list_ptr = blocks_ptr + group * (KERNEL_HEIGHT * KERNEL_WIDTH) * blocks_per_tap

    acc = tl.zeros((BLOCK_OUT, BLOCK_POSITIONS), dtype=ACCUMULATOR)
    for i in range(tl.load(counts_ptr + group)):
        block = tl.load(list_ptr + i)
        tap = block // blocks_per_tap
        channel = block % blocks_per_tap * BLOCK_IN + c
        dy = tap // KERNEL_WIDTH - KERNEL_HEIGHT // 2
        dx = tap % KERNEL_WIDTH - KERNEL_WIDTH // 2
        inside = (p < area) & (row + dy >= 0) & (row + dy < height)
        inside = inside & (column + dx >= 0) & (column + dx < width)
        c_inside = channel < in_channels
        x = tl.load(
            x_ptr + channel[:, None].to(tl.int64) * area + (p + dy * width + dx)[None, :],
            mask=c_inside[:, None] & inside[None, :],
            other=0,
        )
        weight = tl.load(
            weight_ptr + (tap * in_channels + channel[None, :]) * out_channels + o[:, None],
            mask=o_inside[:, None] & c_inside[None, :],
            other=0,
        )
        if WIDEN:
            weight, x = weight.to(ACCUMULATOR), x.to(ACCUMULATOR)
        acc = tl.dot(weight, x, acc, input_precision="ieee", out_dtype=ACCUMULATOR)

    if HAS_BIAS:
        bias = tl.load(bias_ptr + o, mask=o_inside, other=0)
        acc += bias.to(ACCUMULATOR)[:, None]
    tl.store(
        out_ptr + (image * out_channels + o[:, None]) * area + p[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=o_inside[:, None] & (p < area)[None, :],
    )


@triton.jit
def accumulate_int8(
    x_ptr,  # int8 [..., height, width, in_channels]
    weight_ptr,  # int8 [KERNEL_HEIGHT, KERNEL_WIDTH, in_channels, out_channels]
    list_ptr,  # int32 [count]
    count,
    position,  # int64: of the pixel in x
    row,
    column,
    valid,  # whether there is such a position
    o,  # output channels
    o_inside,
    height,
    width,
    in_channels,
    out_channels,
    blocks_per_tap,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Sums of products at some positions, int32 [BLOCK_POSITIONS, BLOCK_OUT]."""
    c = tl.arange(0, BLOCK_IN)
    acc = tl.zeros((BLOCK_POSITIONS, BLOCK_OUT), dtype=tl.int32)
    for i in range(count):
        block = tl.load(list_ptr + i)
        tap = block // blocks_per_tap
        channel = block % blocks_per_tap * BLOCK_IN + c
        dy = tap // KERNEL_WIDTH - KERNEL_HEIGHT // 2
        dx = tap % KERNEL_WIDTH - KERNEL_WIDTH // 2
        inside = valid & (row + dy >= 0) & (row + dy < height)
        inside = inside & (column + dx >= 0) & (column + dx < width)
        c_inside = channel < in_channels
        x = tl.load(
            x_ptr + (position + dy * width + dx)[:, None] * in_channels + channel[None, :],
            mask=inside[:, None] & c_inside[None, :],
            other=0,
        )
        weight = tl.load(
            weight_ptr + (tap * in_channels + channel[:, None]) * out_channels + o[None, :],
            mask=c_inside[:, None] & o_inside[None, :],
            other=0,
        )
        acc = tl.dot(x, weight, acc, out_dtype=tl.int32)
    return acc


@triton.jit
def requantize(
    acc,  # int32 [BLOCK_POSITIONS, BLOCK_OUT], without bias
    bias_ptr,
    multiplier_ptr,
    negative_multiplier_ptr,
    residual_ptr,  # int8 [..., out_channels]
    residual_multiplier_ptr,
    half,  # int64: 2 ** (shift - 1)
    shift,
    lower,
    upper,
    position,
    valid,
    o,
    o_inside,
    out_channels,
    HAS_RESIDUAL: tl.constexpr,
):
    """The layer's outputs, int64."""
    acc += tl.load(bias_ptr + o, mask=o_inside, other=0)[None, :]
    positive = tl.load(multiplier_ptr + o, mask=o_inside, other=0)
    negative = tl.load(negative_multiplier_ptr + o, mask=o_inside, other=0)
    multiplier = tl.where(acc >= 0, positive[None, :], negative[None, :])
    total = acc.to(tl.int64) * multiplier.to(tl.int64) + half
    if HAS_RESIDUAL:
        residual = tl.load(
            residual_ptr + position[:, None] * out_channels + o[None, :],
            mask=valid[:, None] & o_inside[None, :],
            other=0,
        )
        scale = tl.load(residual_multiplier_ptr + o, mask=o_inside, other=0)
        total += residual.to(tl.int64) * scale[None, :].to(tl.int64)
    return tl.minimum(tl.maximum(total >> shift, lower), upper)


@triton.jit
def quantized_trimmed_conv2d_kernel(
    x_ptr,
    weight_ptr,
    counts_ptr,
    blocks_ptr,
    bias_ptr,
    multiplier_ptr,
    negative_multiplier_ptr,
    residual_ptr,
    residual_multiplier_ptr,
    out_ptr,  # int8 or uint8 [batch, height, width, out_channels]
    positions,  # batch * height * width
    height,
    width,
    in_channels,
    out_channels,
    group_width,
    blocks_per_tap,
    half,
    shift,
    lower,
    upper,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    valid = p < positions
    blocks_of_group = tl.cdiv(group_width, BLOCK_OUT)
    group = tl.program_id(1) // blocks_of_group
    in_group = tl.program_id(1) % blocks_of_group * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    o = group * group_width + in_group
    o_inside = in_group < group_width
    acc = accumulate_int8(
        x_ptr,
        weight_ptr,
        blocks_ptr + group * (KERNEL_HEIGHT * KERNEL_WIDTH) * blocks_per_tap,
        tl.load(counts_ptr + group),
        p,
        p // width % height,
        p % width,
        valid,
        o,
        o_inside,
        height,
        width,
        in_channels,
        out_channels,
        blocks_per_tap,
        KERNEL_HEIGHT,
        KERNEL_WIDTH,
        BLOCK_POSITIONS,
        BLOCK_OUT,
        BLOCK_IN,
    )
    value = requantize(
        acc,
        bias_ptr,
        multiplier_ptr,
        negative_multiplier_ptr,
        residual_ptr,
        residual_multiplier_ptr,
        half,
        shift,
        lower,
        upper,
        p,
        valid,
        o,
        o_inside,
        out_channels,
        HAS_RESIDUAL,
    )
    tl.store(
        out_ptr + p[:, None] * out_channels + o[None, :],
        value.to(out_ptr.dtype.element_ty),
        mask=valid[:, None] & o_inside[None, :],
    )


def block_out(group_width: int) -> int:
    """Output channels in a block, for groups of this width: a power of two that tl.dot takes."""
    return max(16, min(MAX_BLOCK_OUT, triton.next_power_of_2(group_width)))


def launch(
    x: Tensor, weight: Tensor, counts: Tensor, blocks: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    """Runs the float kernel on checked, contiguous arguments and writes ``out``.

    ``weight`` is trimmed and [kh, kw, Cin, Cout]; the lists are those of ``block_lists``.
    """
    if out.numel() == 0:
        return
    batch, in_channels, height, width = x.shape
    kernel_height, kernel_width, _, out_channels = weight.shape
    group_width = out_channels // len(counts)
    width_of_block = block_out(group_width)
    grid = (
        batch * triton.cdiv(height * width, BLOCK_POSITIONS),
        len(counts) * triton.cdiv(group_width, width_of_block),
    )
    trimmed_conv2d_kernel[grid](
        x,
        weight,
        counts,
        blocks,
        weight if bias is None else bias,
        out,
        height,
        width,
        in_channels,
        out_channels,
        group_width,
        triton.cdiv(in_channels, BLOCK_IN),
        KERNEL_HEIGHT=kernel_height,
        KERNEL_WIDTH=kernel_width,
        HAS_BIAS=bias is not None,
        ACCUMULATOR=tl.float64 if x.dtype == torch.float64 else tl.float32,
        # The interpreter takes bfloat16 for integers in dot products.
        WIDEN=x.dtype == torch.bfloat16 and triton.knobs.runtime.interpret,
        BLOCK_POSITIONS=BLOCK_POSITIONS,
        BLOCK_OUT=width_of_block,
        BLOCK_IN=BLOCK_IN,
        num_warps=NUM_WARPS,
    )


def launch_quantized(
    x: Tensor,
    weight: Tensor,
    counts: Tensor,
    blocks: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor],
    shift: int,
    residual: Tensor | None,
    residual_multiplier: Tensor | None,
    lower: int,
    upper: int,
    out: Tensor,
) -> None:
    """Runs the integer kernel on checked, contiguous arguments and writes ``out``.

    ``weight`` is trimmed and [kh, kw, Cin, Cout]; ``parameters`` are bias, multiplier and negative
    multiplier.
    """
    batch, height, width, in_channels = x.shape
    kernel_height, kernel_width, _, out_channels = weight.shape
    positions = batch * height * width
    if positions == 0:
        return
    group_width = out_channels // len(counts)
    width_of_block = block_out(group_width)
    grid = (
        triton.cdiv(positions, BLOCK_POSITIONS),
        len(counts) * triton.cdiv(group_width, width_of_block),
    )
    quantized_trimmed_conv2d_kernel[grid](
        x,
        weight,
        counts,
        blocks,
        *parameters,
        x if residual is None else residual,
        blocks if residual_multiplier is None else residual_multiplier,
        out,
        positions,
        height,
        width,
        in_channels,
        out_channels,
        group_width,
        triton.cdiv(in_channels, BLOCK_IN_INT8),
        1 << (shift - 1),
        shift,
        lower,
        upper,
        KERNEL_HEIGHT=kernel_height,
        KERNEL_WIDTH=kernel_width,
        HAS_RESIDUAL=residual is not None,
        BLOCK_POSITIONS=BLOCK_POSITIONS,
        BLOCK_OUT=width_of_block,
        BLOCK_IN=BLOCK_IN_INT8,
        num_warps=NUM_WARPS,
    )


def compile_variants():
    """What to compile ahead of time as a check: (kernel, signature, constants, options)."""
    options = {"num_warps": NUM_WARPS}
    sizes = {"BLOCK_POSITIONS": BLOCK_POSITIONS, "KERNEL_HEIGHT": 5, "KERNEL_WIDTH": 5}
    for element, width_of_block in (("fp32", 16), ("bf16", 64), ("fp16", 32), ("fp64", 16)):
        constants = {
            **sizes,
            "HAS_BIAS": element != "fp16",
            "ACCUMULATOR": tl.float64 if element == "fp64" else tl.float32,
            "WIDEN": False,
            "BLOCK_OUT": width_of_block,
            "BLOCK_IN": BLOCK_IN,
        }
        types = {f"{name}_ptr": f"*{element}" for name in ("x", "weight", "bias", "out")}
        types |= {"counts_ptr": "*i32", "blocks_ptr": "*i32"}
        names = trimmed_conv2d_kernel.arg_names
        signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
        yield trimmed_conv2d_kernel, signature, constants, options
    for out, width_of_block, has_residual in (("*i8", 16, True), ("*u8", 64, False)):
        constants = {
            **sizes,
            "HAS_RESIDUAL": has_residual,
            "BLOCK_OUT": width_of_block,
            "BLOCK_IN": BLOCK_IN_INT8,
        }
        names = quantized_trimmed_conv2d_kernel.arg_names
        signature = quantized_signature(names, constants, out)
        yield quantized_trimmed_conv2d_kernel, signature, constants, options


def quantized_signature(names: list[str], constants: dict, out: str) -> dict[str, str]:
    """Types of an integer kernel's arguments, ``out`` being its output's."""
    types = {
        "out_ptr": out,
        "x_ptr": "*i8",
        "weight_ptr": "*i8",
        "residual_ptr": "*i8",
        "half": "i64",
    }
    return {
        n: "constexpr" if n in constants else types.get(n, "*i32" if n.endswith("_ptr") else "i32")
        for n in names
    }
