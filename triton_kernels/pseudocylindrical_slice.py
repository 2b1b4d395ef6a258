"""Resampling between pictures and pseudocylindrical tiles in Triton.

:mod:`pycodec.ops.pseudocylindrical_slice` is the definition, and makes the tables. A program
computes a block of columns of one row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
BLOCK_COLUMNS = 256


@triton.jit
def resample_kernel(
    x_ptr,
    table_ptr,  # int32 [tiles]
    sizes_ptr,  # int32 [maps, 3]: source, target, taps
    first_ptr,  # int32 [maps, width]
    weights_ptr,  # [maps, most_taps, width]
    out_ptr,
    channels,
    tiles,
    height,
    width,
    most_taps,
    TO_TILES: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Rows are counted as the tiles have them."""
    tile_row = tl.program_id(0).to(tl.int64)
    w = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    r = tile_row % height
    channel = tile_row // height % channels
    number = tile_row // height // channels
    tile = number % tiles
    picture_row = ((number // tiles * channels + channel) * tiles + tile) * height + r
    source_row = picture_row if TO_TILES else tile_row
    target_row = tile_row if TO_TILES else picture_row
    map_number = tl.load(table_ptr + tile).to(tl.int64)
    source = tl.load(sizes_ptr + 3 * map_number)
    target = tl.load(sizes_ptr + 3 * map_number + 1)
    taps = tl.load(sizes_ptr + 3 * map_number + 2)
    inside = w < target
    first = tl.load(first_ptr + map_number * width + w, mask=inside, other=0)
    total = tl.zeros((BLOCK_COLUMNS,), dtype=SUM)
    for k in range(taps):
        weight = tl.load(
            weights_ptr + (map_number * most_taps + k) * width + w, mask=inside, other=0
        )
        column = (first + k) % source
        value = tl.load(x_ptr + source_row * width + column, mask=inside, other=0)
        total += weight * value.to(SUM)
    tl.store(out_ptr + target_row * width + w, total.to(out_ptr.dtype.element_ty), mask=w < width)


def launch(
    x: Tensor,
    tables,
    out: Tensor,
    to_tiles: bool,
    *,
    pictures: int,
    channels: int,
    tiles: int,
    height: int,
    width: int,
) -> None:
    """Runs the kernel on checked, contiguous arguments and writes ``out``.

    ``tables`` are those of ``resampling_tables``; ``height`` is that of a tile.
    """
    if out.numel() == 0:
        return
    grid = (pictures * tiles * channels * height, triton.cdiv(width, BLOCK_COLUMNS))
    resample_kernel[grid](
        x,
        tables.table,
        tables.sizes,
        tables.first,
        tables.weights,
        out,
        channels,
        tiles,
        height,
        width,
        tables.weights.shape[1],
        TO_TILES=to_tiles,
        SUM=tl.float64 if x.dtype == torch.float64 else tl.float32,
        BLOCK_COLUMNS=BLOCK_COLUMNS,
        num_warps=NUM_WARPS,
    )


def compile_variants():
    """What to compile ahead of time as a check: (kernel, signature, constants, options)."""
    for element, to_tiles in (("fp32", True), ("fp64", False), ("fp16", True), ("bf16", False)):
        total = "fp64" if element == "fp64" else "fp32"
        constants = {
            "TO_TILES": to_tiles,
            "SUM": tl.float64 if element == "fp64" else tl.float32,
            "BLOCK_COLUMNS": BLOCK_COLUMNS,
        }
        types = {"x_ptr": f"*{element}", "out_ptr": f"*{element}", "weights_ptr": f"*{total}"}
        types |= {name: "*i32" for name in ("table_ptr", "sizes_ptr", "first_ptr")}
        signature = {
            n: "constexpr" if n in constants else types.get(n, "i32")
            for n in resample_kernel.arg_names
        }
        yield resample_kernel, signature, constants, {"num_warps": NUM_WARPS}
