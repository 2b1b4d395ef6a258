"""The tiles of a pseudocylindrical representation (arXiv 2112.13227) at all levels of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycodec.errors import InputError
from pycodec.ops.pseudocylindrical_pad import (
    nearest_positions,
    pseudocylindrical_pad,
    read_positions,
)
from pycodec.ops.pseudocylindrical_tiles import accumulator

TABLES = "tables"
"""What ``GridBatch`` pads by, besides the backends of the operation."""

Padding = tuple[int, int, bool]
"""Rows of a tile, the padding, and whether it takes the nearest pixels instead of two."""


@dataclass(frozen=True)
class SphereGrid:
    """How wide the tiles are, from north to south.

    At the coarsest level of a network a tile is one row of ``widths[t]`` columns; where it is s
    times finer, s rows of s * widths[t]. A tensor holds the tiles of N pictures as a batch,
    [N * T, C, s, s * columns] or, of integers, [N * T, s, s * columns, C]; what lies right of
    a tile's own columns has no meaning.

    Attributes:
        widths: columns of each tile at the coarsest level.
        north, south: whether the first and the last tile end at a pole; else they are cut out of a
            whole sphere, and beyond them is nothing but zeros.

    Raises:
        InputError: there are no tiles, or a width is not positive.
    """

    widths: tuple[int, ...]
    north: bool = True
    south: bool = True

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"tiles need widths of at least 1, not {list(self.widths)}")

    @property
    def tiles(self) -> int:
        return len(self.widths)

    @property
    def columns(self) -> int:
        """Of a tensor, at the coarsest level."""
        return max(self.widths)

    def cut(self, first: int, last: int) -> SphereGrid:
        """Tiles ``first`` to ``last`` - 1 alone."""
        return SphereGrid(
            self.widths[first:last], self.north and first == 0, self.south and last == self.tiles
        )

    def mask(self, rows: int) -> NDArray[np.bool_]:
        """Where a tensor with ``rows`` rows a tile has meaning: bool [T, rows, rows * columns]."""
        return _mask(np.array(self.widths), self.columns, rows)

    def own(self, x: Tensor) -> Tensor:
        """Ones where ``x [T, C, s, s * columns]`` has meaning, else zeros: [T, 1, s, ...]."""
        return torch.from_numpy(self.mask(x.shape[2])[:, None]).to(x)

    def pad(
        self, x: Tensor, pad: int, *, nearest: bool = False, backend: str | None = None
    ) -> Tensor:
        """What an unpadded convolution needs to act as if on the sphere.

        See :func:`pycodec.ops.pseudocylindrical_pad.pseudocylindrical_pad`.

        Args:
            x: floats [N * T, C, s, s * columns]; integers [N * T, s, s * columns, C].
            pad: rows and columns to add at each side.
            nearest: pad floats as integers are padded, which are never interpolated: for networks
                that simulate integer ones.
            backend: of the operation; ``nearest`` has but one.

        Returns:
            As x, with 2 pad more rows and columns. Memory is channels-last if that of x is.
        """
        if x.is_floating_point():
            return self._pad(x.permute(0, 2, 3, 1), pad, nearest, backend).permute(0, 3, 1, 2)
        return self._pad(x, pad, False, backend)

    def _pad(self, x: Tensor, pad: int, nearest: bool, backend: str | None) -> Tensor:
        """Of [N * T, s, s * columns, C]."""
        before, after = int(not self.north), int(not self.south)
        tiles, widths = self.tiles, self.widths
        if before or after:  # tiles of zeros stand for what was cut off
            widths = widths[:1] * before + widths + widths[-1:] * after
            pictures = x.unflatten(0, (-1, tiles))
            nothing = pictures.new_zeros((len(pictures), 1, *x.shape[1:]))
            x = torch.cat([nothing] * before + [pictures] + [nothing] * after, 1).flatten(0, 1)
        rows = x.shape[1]
        widths = [rows * width for width in widths]
        if nearest:
            x = _pad_nearest(x, tuple(widths), pad)
        else:
            x = pseudocylindrical_pad(
                x.contiguous(), widths, pad, channels_last=True, backend=backend
            )
        if before or after:
            x = x.unflatten(0, (-1, len(widths)))[:, before : before + tiles].flatten(0, 1)
        return x


def _pad_nearest(x: Tensor, widths: tuple[int, ...], pad: int) -> Tensor:
    """Floats [N * T, h, W, C] padded with the nearest pixels; differentiable."""
    tiles, height, width, channels = len(widths), *x.shape[1:]
    nearest, inside = _nearest_tensors(widths, height, width, pad)
    pixels = x.reshape(-1, tiles * height * width, channels)
    pixels = pixels.index_select(1, nearest.to(x.device)) * inside.to(x.device, x.dtype)
    return pixels.view(len(x), height + 2 * pad, width + 2 * pad, channels)


@lru_cache(maxsize=64)
def _nearest_tensors(
    widths: tuple[int, ...], height: int, width: int, pad: int
) -> tuple[Tensor, Tensor]:
    nearest, inside = nearest_positions(widths, height, width, (pad, pad))
    return torch.from_numpy(nearest), torch.from_numpy(inside.copy())[:, None]


def _mask(widths: NDArray[np.int64], columns: int, rows: int) -> NDArray[np.bool_]:
    own = np.arange(columns * rows) < rows * widths[:, None]
    return np.repeat(own[:, None], rows, axis=1)


@dataclass(eq=False)
class GridBatch:
    """Tiles of several spheres, or of parts of some, as one batch: for training.

    A network acts on all of them at once, where it would on those of a ``SphereGrid``. Tensors are
    [tiles of all, C, s, s * columns], of floats.

    By tables, padding is a sum of two gathered rows of channels for each pixel, on any device, and
    its gradient two scattered additions. Tables depend on all widths: :meth:`prepare` makes
    them ahead, perhaps in another process, and :meth:`to` copies them to a device all at once.

    Attributes:
        grids: one after the other.
        backend: what pads floats: ``TABLES``, or a backend of
            :func:`pycodec.ops.pseudocylindrical_pad.pseudocylindrical_pad`, a grid at a time. The
            nearest pixels are always found by tables.
    """

    grids: Sequence[SphereGrid]
    backend: str = TABLES
    _widths: Tensor = field(init=False, repr=False)
    _indices: Tensor = field(init=False, repr=False)  # of all tables, end to end
    _weights: Tensor = field(init=False, repr=False)
    _places: dict[Padding, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._widths = torch.tensor([w for grid in self.grids for w in grid.widths])
        self._indices = torch.empty(2, 0, dtype=torch.int32)
        self._weights = torch.empty(2, 0)
        self.columns = max(grid.columns for grid in self.grids)

    @property
    def tiles(self) -> int:
        return len(self._widths)

    def prepare(self, paddings: Sequence[Padding]) -> None:
        """Make the tables of these paddings, where there are none yet."""
        device = self._indices.device
        for padding in paddings:
            if padding in self._places:
                continue
            self._places[padding] = self._indices.shape[1]
            first, parts = 0, []
            for grid in self.grids:
                indices, weights = _grid_table(
                    grid.widths, grid.north, grid.south, self.columns, *padding
                )
                parts.append((indices + first, weights))
                rows = padding[0]
                first += grid.tiles * rows * rows * self.columns
            indices, weights = (
                torch.from_numpy(np.concatenate(p, 1)).to(device) for p in zip(*parts, strict=True)
            )
            self._indices = torch.cat([self._indices, indices.int()], 1)
            self._weights = torch.cat([self._weights, weights.float()], 1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GridBatch:
        """The same on a device."""
        result = GridBatch(self.grids, self.backend)
        for name in ("_widths", "_indices", "_weights"):
            setattr(result, name, getattr(self, name).to(device, non_blocking=non_blocking))
        result._places = dict(self._places)
        return result

    def tensors(self) -> list[Tensor]:
        """All that padding reads, for batches of one shape to be copied into one another."""
        return [self._widths, self._indices, self._weights]

    def own(self, x: Tensor) -> Tensor:
        """Ones where ``x [T, C, s, s * columns]`` has meaning, else zeros: [T, 1, 1, ...]."""
        own = torch.arange(x.shape[3], device=x.device) < x.shape[2] * self._widths[:, None]
        return own[:, None, None].to(x)

    def pad(self, x: Tensor, pad: int, *, nearest: bool = False) -> Tensor:
        """As ``SphereGrid.pad`` does for each of the grids."""
        if nearest or self.backend == TABLES:
            return self._pad_by_table(x.permute(0, 2, 3, 1), pad, nearest).permute(0, 3, 1, 2)
        parts = x.split([grid.tiles for grid in self.grids])
        padded = [
            grid.pad(part, pad, backend=self.backend)
            for grid, part in zip(self.grids, parts, strict=True)
        ]
        return torch.cat(padded)

    def _pad_by_table(self, x: Tensor, pad: int, nearest: bool) -> Tensor:
        """Of [T, s, s * columns, C]."""
        tiles, rows, width, channels = x.shape
        key = rows, pad, nearest
        self.prepare([key])
        shape = tiles, rows + 2 * pad, width + 2 * pad
        here = slice(self._places[key], self._places[key] + shape[0] * shape[1] * shape[2])
        indices, weights = self._indices[:, here], self._weights[:, here]
        pixels = x.reshape(-1, channels)
        return _Gathered.apply(pixels, indices, weights, not nearest).view(*shape, channels)


class _Gathered(torch.autograd.Function):
    """Rows of ``pixels [P, C]``, each a weighted sum of two (or the first) of them: [n, C]."""

    @staticmethod
    def forward(ctx, pixels: Tensor, indices: Tensor, weights: Tensor, both: bool) -> Tensor:
        weights = weights.to(accumulator(pixels.dtype))
        ctx.save_for_backward(indices, weights)
        ctx.both, ctx.pixels = both, len(pixels)
        value = pixels.index_select(0, indices[0]) * weights[0, :, None]
        if both:
            value = value + pixels.index_select(0, indices[1]) * weights[1, :, None]
        return value.to(pixels.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        indices, weights = ctx.saved_tensors
        result = weights.new_zeros(ctx.pixels, grad.shape[1])
        for side in range(1 + ctx.both):
            result.index_add_(0, indices[side], grad * weights[side, :, None])
        return result.to(grad.dtype), None, None, None


@lru_cache(maxsize=1024)
def _grid_table(
    widths: tuple[int, ...],
    north: bool,
    south: bool,
    columns: int,
    rows: int,
    pad: int,
    nearest: bool,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Two pixels of [T, rows, rows * columns] for each of the padded ones, and their weights.

    Both are [2, T * (rows + 2 pad) * (rows * columns + 2 pad)]; of the nearest one, the second
    weight is 0.
    """
    before, after = int(not north), int(not south)
    tiles, width = len(widths), rows * columns
    # As in SphereGrid: tiles of zeros stand for what was cut off.
    extended = widths[:1] * before + widths + widths[-1:] * after
    scaled = [rows * w for w in extended]
    g, position, source, inside = (
        a[before : before + tiles] for a in read_positions(scaled, rows, width, (pad, pad))
    )
    double = 2 * np.array(scaled[before : before + tiles])[:, None, None]
    g = g - before * rows
    inside = inside & (g >= 0) & (g < tiles * rows)
    if nearest:
        left = (position + double // 2) // double % source
        right, weight = left, np.zeros(position.shape)
    else:
        left = position // double
        right, weight = (left + 1) % source, position % double / double
    indices = np.stack([g * width + left, g * width + right])
    weights = np.stack([1 - weight, weight]).astype(np.float32)
    return np.where(inside, indices, 0).reshape(2, -1), (weights * inside).reshape(2, -1)
