"""The tiles of a pseudocylindrical representation (arXiv 2112.13227) at all levels of a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycodec.errors import InputError
from pycodec.ops.pseudocylindrical_pad import nearest_positions, pseudocylindrical_pad


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
        own = np.arange(self.columns * rows) < rows * np.array(self.widths)[:, None]
        return np.repeat(own[:, None], rows, axis=1)

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
