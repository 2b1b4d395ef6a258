"""What integer convolutions see around the tiles of a sphere.

The same pixels as floats see (:mod:`pycodec.ops.pseudocylindrical_pad`), mixed in integers. Between
two columns, the weight of the right one is rounded to 256ths:

    border = (left * (256 - weight) + right * weight + 128) >> 8

Mixing before or after a scale and a zero point are applied is the same but for rounding.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from pycodec.ops.pseudocylindrical_pad import read_positions
from pycodec.projection.grid import SphereGrid

MARGIN = 1
"""Of 3 x 3 convolutions, which are all there are."""


@functools.lru_cache(maxsize=64)
def tile_borders(grid: SphereGrid, height: int) -> Tensor:
    """What borders tiles of ``height`` rows.

    Returns:
        int64 [pixels, 4]: target, left, right, weight, the former three as numbers of pixels of
        [T, height + 2, height * columns + 2]. Pixels beyond a border of the grid that is no pole
        are none of them: they stay padding.
    """
    before, after = int(not grid.north), int(not grid.south)
    tiles, width = grid.tiles, height * grid.columns
    # As in SphereGrid: tiles of nothing stand for what was cut off.
    extended = grid.widths[:1] * before + grid.widths + grid.widths[-1:] * after
    widths = [height * w for w in extended]
    row, position, source, inside = (
        a[before : before + tiles] for a in read_positions(widths, height, width, (MARGIN, MARGIN))
    )
    row = row - before * height
    target_width = height * np.array(grid.widths)[:, None, None]
    own_rows = np.arange(height + 2 * MARGIN)[None, :, None] - MARGIN
    own_columns = np.arange(width + 2 * MARGIN) - MARGIN
    own = (own_rows >= 0) & (own_rows < height) & (own_columns >= 0) & (own_columns < target_width)
    there = inside & ~own & (row >= 0) & (row < tiles * height)
    target = np.arange(there.size).reshape(there.shape)
    left = position // (2 * target_width)
    weight = (position % (2 * target_width) * 256 + target_width) // (2 * target_width)
    columns = np.stack([left, (left + 1) % source])
    stored_width = width + 2 * MARGIN
    stored_row = row // height * (height + 2 * MARGIN) + row % height + MARGIN
    pixels = stored_row * stored_width + columns + MARGIN
    table = np.stack([target, *pixels, weight], -1)[there]
    return torch.from_numpy(np.ascontiguousarray(table))


def with_borders(x: Tensor, grid: SphereGrid, zero_point: Tensor | None = None) -> Tensor:
    """Tiles with what borders them.

    Args:
        x: int8, uint8 or int16 [T, h, h * columns, C], the tiles of ``grid``.
        grid: what tiles there are.
        zero_point: [C], what there is where nothing borders; 0 if None.

    Returns:
        x's dtype [T, h + 2, h * columns + 2, C].
    """
    tiles, height, width, channels = x.shape
    padded = x.new_zeros(tiles, height + 2 * MARGIN, width + 2 * MARGIN, channels)
    if zero_point is not None:
        padded[:] = zero_point.to(x.dtype)
    padded[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = x
    flat = padded.view(-1, channels)
    target, left, right, weight = tile_borders(grid, height).to(x.device).unbind(1)
    weight = weight.int()[:, None]
    mixed = flat[left].int() * (256 - weight) + flat[right].int() * weight + 128
    flat[target] = (mixed >> 8).to(x.dtype)
    return padded
