"""The pseudocylindrical padding in Triton, and its transposed map.

:mod:`pycodec.ops.pseudocylindrical_pad` is the definition. A program computes a block of columns by
a block of channels of one row. Positions are int64: twice the product of two widths may need it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
BLOCK = (128, 4)  # columns, channels
BLOCK_CHANNELS_LAST = (8, 64)


@triton.jit
def modulo(a, b):
    """From 0 to b - 1, for negative numbers too."""
    return (a % b + b) % b


@triton.jit
def turn(source, target, turned):
    """See csrc/sphere/tiles.hpp."""
    return source - target + turned * source * target


@triton.jit
def tile_index(number, channel, row, column, channels, rows, columns, CHANNELS_LAST: tl.constexpr):
    """Offsets [columns, channels] in tiles of so many rows and columns."""
    if CHANNELS_LAST:
        return ((number * rows + row) * columns + column[:, None]) * channels + channel[None, :]
    return ((number * channels + channel[None, :]) * rows + row) * columns + column[:, None]


@triton.jit
def pad_kernel(
    x_ptr,  # tiles
    widths_ptr,  # int32 [tiles]
    y_ptr,  # padded tiles
    tiles,
    channels,
    height,
    width,
    pad_rows,
    pad_columns,
    CHANNELS_LAST: tl.constexpr,
    COPIED: tl.constexpr,  # the nearest column, not an interpolation in SUM
    SUM: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    rows = height + 2 * pad_rows
    columns = width + 2 * pad_columns
    number = (tl.program_id(0) // rows).to(tl.int64)
    r = tl.program_id(0) % rows
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    tile = number % tiles
    all_rows = tiles * height
    g = modulo(tile * height - pad_rows + r, 2 * all_rows)
    turned = (g >= all_rows).to(tl.int64)
    g = tl.where(turned == 1, 2 * all_rows - 1 - g, g)
    source_tile = g // height
    source = tl.load(widths_ptr + source_tile).to(tl.int64)
    target = tl.load(widths_ptr + tile).to(tl.int64)
    w = (column - pad_columns).to(tl.int64)
    position = modulo(2 * w * source + turn(source, target, turned), 2 * source * target)
    left = position // (2 * target)
    rest = position % (2 * target)
    right = tl.where(left + 1 < source, left + 1, 0)
    inside = (column < target + 2 * pad_columns)[:, None] & (channel < channels)[None, :]
    from_tile = number - tile + source_tile
    row = g % height
    if COPIED:
        nearest = tl.where(rest >= target, right, left)
        index = tile_index(from_tile, channel, row, nearest, channels, height, width, CHANNELS_LAST)
        value = tl.load(x_ptr + index, mask=inside, other=0)
    else:
        index = tile_index(from_tile, channel, row, left, channels, height, width, CHANNELS_LAST)
        a = tl.load(x_ptr + index, mask=inside, other=0).to(SUM)
        index = tile_index(from_tile, channel, row, right, channels, height, width, CHANNELS_LAST)
        b = tl.load(x_ptr + index, mask=inside & (rest > 0)[:, None], other=0).to(SUM)
        weight = (rest.to(SUM) / (2 * target).to(SUM))[:, None]
        value = tl.where(weight == 0, a, (1 - weight) * a + weight * b)
    index = tile_index(number, channel, r, column, channels, rows, columns, CHANNELS_LAST)
    stored = (column < columns)[:, None] & (channel < channels)[None, :]
    tl.store(y_ptr + index, value.to(y_ptr.dtype.element_ty), mask=stored)


@triton.jit
def pad_adjoint_kernel(
    y_ptr,  # padded tiles
    widths_ptr,
    begins_ptr,  # int32 [tiles * height + 1]
    readers_ptr,  # int32, see row_readers() in pycodec/ops/pseudocylindrical_kernels.py
    x_ptr,  # tiles
    tiles,
    channels,
    height,
    width,
    pad_rows,
    pad_columns,
    CHANNELS_LAST: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    rows = height + 2 * pad_rows
    columns = width + 2 * pad_columns
    number = (tl.program_id(0) // height).to(tl.int64)
    r = tl.program_id(0) % height
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    tile = number % tiles
    source = tl.load(widths_ptr + tile).to(tl.int64)
    inside = (column < source)[:, None] & (channel < channels)[None, :]
    total = tl.zeros((BLOCK_COLUMNS, BLOCK_CHANNELS), dtype=SUM)
    first_reader = tl.load(begins_ptr + tile * height + r)
    last_reader = tl.load(begins_ptr + tile * height + r + 1)
    for n in range(first_reader, last_reader):
        reader = tl.load(readers_ptr + n)
        padded_tile = (reader // 2 // rows).to(tl.int64)
        padded_row = reader // 2 % rows
        target = tl.load(widths_ptr + padded_tile).to(tl.int64)
        # The columns w that read this one lie, without turning around, side by side: those whose
        # position is less than a column away, 2 target in the units of `distance`.
        turned = (reader % 2).to(tl.int64)
        offset = turn(source, target, turned) - 2 * target * column.to(tl.int64)
        start = -2 * target - offset
        first = (start - modulo(start, 2 * source)) // (2 * source) + 1
        for i in range(2 * target // source + 1):
            w = first + i
            distance = 2 * source * w + offset
            weight = (2 * target - tl.abs(distance)).to(SUM) / (2 * target).to(SUM)
            from_padding = modulo(w + pad_columns, target)
            for turns in range(2 * pad_columns // target + 2):
                padded_column = from_padding + turns * target
                seen = (distance < 2 * target) & (padded_column < target + 2 * pad_columns)
                index = tile_index(
                    number - tile + padded_tile,
                    channel,
                    padded_row,
                    padded_column,
                    channels,
                    rows,
                    columns,
                    CHANNELS_LAST,
                )
                value = tl.load(y_ptr + index, mask=inside & seen[:, None], other=0).to(SUM)
                total += tl.where(seen[:, None], weight[:, None] * value, 0)
    index = tile_index(number, channel, r, column, channels, height, width, CHANNELS_LAST)
    stored = (column < width)[:, None] & (channel < channels)[None, :]
    tl.store(x_ptr + index, total.to(x_ptr.dtype.element_ty), mask=stored)


def launch(
    x: Tensor,
    widths: Tensor,
    y: Tensor,
    channels_last: bool,
    is_copied: bool,
    *,
    batch: int,
    channels: int,
    height: int,
    width: int,
    pad_rows: int,
    pad_columns: int,
) -> None:
    """Runs the kernel on checked, contiguous arguments and writes ``y``; sizes are those of x."""
    if y.numel() == 0:
        return
    block = BLOCK_CHANNELS_LAST if channels_last else BLOCK
    pad_kernel[_grid(batch * (height + 2 * pad_rows), width + 2 * pad_columns, channels, block)](
        x,
        widths,
        y,
        len(widths),
        channels,
        height,
        width,
        pad_rows,
        pad_columns,
        COPIED=is_copied,
        num_warps=NUM_WARPS,
        **_constants(x, channels_last, block),
    )


def launch_adjoint(
    y: Tensor,
    widths: Tensor,
    begins: Tensor,
    readers: Tensor,
    x: Tensor,
    channels_last: bool,
    *,
    batch: int,
    channels: int,
    height: int,
    width: int,
    pad_rows: int,
    pad_columns: int,
) -> None:
    """Runs the transposed map on checked, contiguous arguments and writes ``x``."""
    if x.numel() == 0:
        return
    block = BLOCK_CHANNELS_LAST if channels_last else BLOCK
    pad_adjoint_kernel[_grid(batch * height, width, channels, block)](
        y,
        widths,
        begins,
        readers,
        x,
        len(widths),
        channels,
        height,
        width,
        pad_rows,
        pad_columns,
        num_warps=NUM_WARPS,
        **_constants(y, channels_last, block),
    )


def _grid(rows: int, columns: int, channels: int, block: tuple[int, int]) -> tuple[int, int, int]:
    return rows, triton.cdiv(columns, block[0]), triton.cdiv(channels, block[1])


def _constants(x: Tensor, channels_last: bool, block: tuple[int, int]) -> dict:
    return {
        "CHANNELS_LAST": channels_last,
        "SUM": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "BLOCK_COLUMNS": block[0],
        "BLOCK_CHANNELS": block[1],
    }


def compile_variants():
    """What to compile ahead of time as a check: (kernel, signature, constants, options)."""
    options = {"num_warps": NUM_WARPS}
    for element, channels_last in (
        ("fp32", False),
        ("fp64", False),
        ("fp16", True),
        ("bf16", False),
        ("i8", True),
        ("u8", False),
    ):
        columns, channels = BLOCK_CHANNELS_LAST if channels_last else BLOCK
        constants = {
            "CHANNELS_LAST": channels_last,
            "SUM": tl.float64 if element == "fp64" else tl.float32,
            "BLOCK_COLUMNS": columns,
            "BLOCK_CHANNELS": channels,
        }
        types = {"x_ptr": f"*{element}", "y_ptr": f"*{element}"}
        is_copied = element.endswith("i8") or element == "u8"
        yield from _variant(pad_kernel, types, {**constants, "COPIED": is_copied}, options)
        if not is_copied:
            yield from _variant(pad_adjoint_kernel, types, constants, options)


def _variant(kernel, types: dict, constants: dict, options: dict):
    signature = {
        n: "constexpr" if n in constants else types.get(n, "*i32" if n.endswith("_ptr") else "i32")
        for n in kernel.arg_names
    }
    yield kernel, signature, constants, options
