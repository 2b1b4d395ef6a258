"""Widths for the tiles of the pseudocylindrical representation, searched for on a set of pictures.

A greedy search, as in arXiv 2112.13227, for the least of a proxy of rate and distortion on the
sphere,

    J = sum of bits + 255^2 lambda (sum of all pixels' area-weighted squared error)

with the multiplier lambda of the photo model and errors that are means of the channels. The proxy
is a transform coder: a tile, resampled to a width, goes through an orthonormal 16x16 DCT (and one
of the colours), a uniform quantizer, and back to the picture, where its error counts. Its step is
the one whose slope at high rate is the multiplier, D' = -2 ln 2 step^2 / 12, so it follows latitude
and width as the qualities of the codec's tiles do. Bits are those of two-sided geometric
distributions whose mean magnitudes are known around each block for each diagonal of frequencies:
roughly what a hyperprior tells.

What is made least is the mean of J over pictures and qualities, of each relative to its J at full
width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pycodec.errors import InputError
from pycodec.evaluation.sphere import row_weights
from pycodec.models.photo_network import quality_lambda
from pycodec.models.sphere import resize
from pycodec.ops.pseudocylindrical_slice import pseudocylindrical_slice, pseudocylindrical_unslice
from pycodec.projection.widths import FULL, TileWidths

BLOCK = 16
"""Rows and columns of the transform; of the codec's latents, too."""

_AROUND = 2
"""Blocks at each side whose magnitudes are averaged."""


@dataclass(frozen=True)
class Found:
    """What the search found.

    Attributes:
        widths: of the tiles.
        objective: mean of J at these widths over J where all tiles are as wide as the picture.
        steps: how often a tile was narrowed.
    """

    widths: TileWidths
    objective: float
    steps: int


def search_widths(
    pictures: Iterable[NDArray[np.uint8]],
    qualities: Sequence[float],
    *,
    tiles: int = 32,
    step: int = 4,
) -> Found:
    """The greedy search.

    Pictures and qualities count the same; north and south are treated alike.

    Args:
        pictures: uint8 [H, W, 3] or [H, W], equirectangular; resampled to multiples of 1024 columns
            and of 16 ``tiles`` rows if need be.
        qualities: 1 to 100.
        tiles: an even number.
        step: widths that are tried are multiples of so many 64ths.

    Raises:
        InputError: there are no pictures or no qualities, or an argument is out of range.
    """
    if tiles < 2 or tiles % 2:
        raise InputError(f"the search takes an even number of tiles, not {tiles}")
    if not 1 <= step <= FULL or FULL % step:
        raise InputError(f"the step must divide {FULL}, not be {step}")
    if not qualities or not all(1 <= quality <= 100 for quality in qualities):
        raise InputError(f"qualities must be in 1 to 100: {list(qualities)}")
    total, count = np.zeros((FULL // step, tiles)), 0
    for pixels in pictures:
        found = objectives(pixels, qualities, tiles=tiles, step=step)
        total += (found / found[:, -1:].sum(axis=2, keepdims=True)).mean(axis=0)
        count += 1
    if not count:
        raise InputError("the search needs a picture")
    total /= count
    chosen, steps = _greedy(total + total[:, ::-1])
    widths = TileWidths(tuple(step * (int(c) + 1) for c in (*chosen, *chosen[::-1])))
    objective = total[[*chosen, *chosen[::-1]], np.arange(tiles)].sum()
    return Found(widths, float(objective), steps)


def objectives(
    pixels: NDArray[np.uint8], qualities: Sequence[float], *, tiles: int, step: int
) -> NDArray[np.float64]:
    """J of each tile of a picture at each width: [qualities, 64 / step, tiles], bits a pixel.

    Of the whole picture's pixels: the sum over the tiles is that of the picture.
    """
    if pixels.ndim == 2:
        pixels = np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
    height, width = (
        multiple * max(1, round(side / multiple))
        for side, multiple in zip(pixels.shape[:2], (BLOCK * tiles, BLOCK * FULL), strict=True)
    )
    with torch.inference_mode():
        x = resize(pixels, height, width)
        areas = torch.from_numpy(row_weights(height)).float().view(tiles, 1, -1, 1)
        result = np.empty((len(qualities), FULL // step, tiles))
        for number in range(FULL // step):
            columns = width * step * (number + 1) // FULL
            cut = pseudocylindrical_slice(x, [columns] * tiles)[..., :columns]
            blocks = _transform(cut)
            for at, quality in enumerate(qualities):
                # Of a squared error, in units of the pixels' range, of one sample of the picture.
                multiplier = float(quality_lambda(torch.tensor(quality))) * 255**2 / 3
                area = areas.mean(dim=2).view(tiles, 1, 1, 1, 1, 1) * (width / columns)
                quantum = torch.sqrt(6 / (math.log(2) * multiplier * area))
                levels = torch.round(blocks / quantum)
                back = F.pad(_inverse(levels * quantum), (0, width - columns))
                picture = pseudocylindrical_unslice(back, [columns] * tiles)
                errors = (picture - x).square_().unflatten(2, (tiles, -1))
                errors = errors[0].permute(1, 0, 2, 3) * areas
                bits = _bits(levels) + multiplier * errors.sum((1, 2, 3)).double()
                result[at, number] = bits.numpy() / (height * width)
    return result


def _greedy(objective: NDArray[np.float64]) -> tuple[list[int], int]:
    """Indexes of widths from the pole to the equator, where none is narrower than the one before.

    From full widths, always the narrowing of one tile that gains most; until none gains.

    Args:
        objective: [widths, tiles], both hemispheres' sum; only the first half of the tiles is read.
    """
    tiles = objective.shape[1] // 2
    chosen = [len(objective) - 1] * tiles
    steps = 0
    while True:
        moves = (
            (objective[chosen[tile], tile] - objective[index, tile], tile, index)
            for tile in range(tiles)
            for index in range(chosen[tile - 1] if tile else 0, chosen[tile])
        )
        gain, tile, index = max(moves, default=(0.0, 0, 0))
        if gain <= 0:
            return chosen, steps
        chosen[tile] = index
        steps += 1


@functools.lru_cache
def _cosines(size: int) -> Tensor:
    """The orthonormal DCT-II, [frequency, position]."""
    position = torch.arange(size, dtype=torch.float64) + 0.5
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    table = torch.cos(math.pi / size * frequency * position) * math.sqrt(2 / size)
    table[0] /= math.sqrt(2)
    return table.float()


def _transform(x: Tensor) -> Tensor:
    """[T, 3, h, w] to coefficients [T, 3, h / 16, 16, w / 16, 16]."""
    blocks = x.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    table = _cosines(BLOCK)
    return torch.einsum("cd,tdiajb,fa,gb->tcifjg", _cosines(3), blocks, table, table)


def _inverse(coefficients: Tensor) -> Tensor:
    table = _cosines(BLOCK)
    blocks = torch.einsum("cd,tcifjg,fa,gb->tdiajb", _cosines(3), coefficients, table, table)
    return blocks.flatten(4, 5).flatten(2, 3)


def _bits(levels: Tensor) -> Tensor:
    """Bits of the levels of each tile, float64 [T]."""
    tiles, channels, rows, _, columns, _ = levels.shape
    magnitudes = levels.abs().permute(0, 1, 2, 4, 3, 5).flatten(4)
    diagonal = (torch.arange(BLOCK)[:, None] + torch.arange(BLOCK)).flatten()
    size = torch.bincount(diagonal).double()
    sums = torch.zeros(tiles, channels, rows, columns, len(size), dtype=torch.float64)
    sums.index_add_(4, diagonal, magnitudes.double())
    near = sum(sums.roll(shift, 3) for shift in range(-_AROUND, _AROUND + 1))
    mean = near / (size * (2 * _AROUND + 1))
    # Two-sided geometric: p(q) = (1 - r) / (1 + r) r^|q|, E|q| = 2 r / (1 - r^2).
    ratio = ((1 + mean.square()).sqrt() - 1) / mean.clamp(min=1e-12)
    bits = size * torch.log2((1 + ratio) / (1 - ratio)) - sums * torch.log2(ratio.clamp(min=1e-12))
    return bits.sum((1, 2, 3, 4))
