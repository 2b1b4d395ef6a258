"""Pseudocylindrical tiles as what they are, pixels of a sphere: slow, exact, a pixel at a time."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from hypothesis import strategies as st

HALF = Fraction(1, 2)

# Tiles, width they are stored in, height, padding: of equal and unequal, odd, single and few
# columns, with padding beyond neighbours, poles and whole turns.
GEOMETRIES = (
    ((8, 8, 8), 8, 4, (1, 1)),
    ((3, 7, 8, 8, 5), 9, 2, (2, 2)),
    ((1,), 1, 1, (3, 2)),
    ((1, 2, 1), 40, 1, (4, 5)),
    ((5, 11), 12, 3, (7, 30)),
    ((20, 33, 40, 37), 40, 2, (1, 0)),
    ((70, 130, 91), 130, 2, (0, 3)),
    ((64, 36), 70, 1, (2, 2)),
)


@st.composite
def geometries(draw, largest=70):
    """(widths, width, height, (rows, columns) of padding)."""
    width = draw(st.integers(1, largest))
    widths = draw(st.lists(st.integers(1, width), min_size=1, max_size=6))
    if draw(st.booleans()):
        widths = [widths[0]] * len(widths)
    return tuple(widths), width, draw(st.integers(1, 4)), draw(st.tuples(*[st.integers(0, 7)] * 2))


def draw_tiles(seed, geometry, pictures=1, channels=1, dtype=torch.float64, channels_last=False):
    """Small random integers in the tiles, and what must not be read beyond them."""
    widths, width, height, _ = geometry
    rng = np.random.default_rng(seed)
    shape = pictures * len(widths), channels, height, width
    low, high = (0, 256) if dtype == torch.uint8 else (-128, 128)
    x = torch.from_numpy(rng.integers(low, high, shape)).to(dtype)
    for tile, w in enumerate(widths):
        x[tile :: len(widths), ..., w:] = float("nan") if dtype.is_floating_point else 77
    return x.permute(0, 2, 3, 1).contiguous() if channels_last else x


def naive_pad(x, geometry, mixed=False):
    """Pads float64 or integers [N * T, C, h, W]: every pixel is looked up by where it is.

    ``mixed``: integers in 256ths of two of them, not the nearest.
    """
    widths, width, height, (rows, columns) = geometry
    tiles = len(widths)
    x = x.numpy()
    out = np.zeros((*x.shape[:2], height + 2 * rows, width + 2 * columns), x.dtype)
    for t, r in np.ndindex(tiles, height + 2 * rows):
        for w in range(-columns, widths[t] + columns):
            colatitude = (t * height - rows + r + HALF) / (tiles * height)  # of half a turn
            longitude = (w + HALF) / widths[t]  # of a turn
            while not 0 <= colatitude <= 1:
                colatitude = -colatitude if colatitude < 0 else 2 - colatitude
                longitude += HALF
            tile, row = divmod(math.floor(colatitude * tiles * height), height)
            source = x[tile::tiles, :, row, : widths[tile]]
            position = longitude % 1 * widths[tile]
            if x.dtype.kind == "f" or mixed:
                left = math.floor(position - HALF)
                weight = position - HALF - left
                ends = source[..., left % widths[tile]], source[..., (left + 1) % widths[tile]]
                if mixed:
                    share = math.floor(256 * weight + HALF)
                    a, b = (end.astype(int) for end in ends)
                    value = (a * (256 - share) + b * share + 128) // 256
                else:
                    value = (1 - float(weight)) * ends[0] + float(weight) * ends[1]
            else:
                value = source[..., math.floor(position)]
            out[t::tiles, :, r, w + columns] = value
    return torch.from_numpy(out)


def naive_resample(x, widths, to_tiles):
    """Slices float64 [N, C, H, W], or unslices [N * T, C, h, W], by the formula."""
    tiles, (n, channels, height, width) = len(widths), x.shape
    if to_tiles:
        rows = x.view(n, channels, tiles, height // tiles, width).transpose(1, 2).numpy()
    else:
        rows = x.view(n // tiles, tiles, channels, height, width).numpy()
    out = np.zeros(rows.shape)
    for t, w in enumerate(widths):
        source, target = (width, w) if to_tiles else (w, width)
        for column in range(target):
            out[:, t, ..., column] = _cubic_at(rows[:, t, ..., :source], column, target)
    result = torch.from_numpy(out)
    return result.flatten(0, 1) if to_tiles else result.transpose(1, 2).flatten(2, 3)


def _cubic_at(row, column, target):
    """A row's value at a column's longitude."""
    source = row.shape[-1]
    if source == target:
        return row[..., column]
    scale = max(Fraction(1), Fraction(source, target))
    centre = (column + HALF) * source / target - HALF
    total, value = 0.0, 0.0
    for i in range(math.floor(centre - 2 * scale), math.ceil(centre + 2 * scale) + 1):
        d = float(abs(i - centre) / scale)
        if d < 1:
            k = 1.5 * d**3 - 2.5 * d**2 + 1
        elif d < 2:
            k = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        else:
            continue
        total += k
        value = value + k * row[..., i % source]
    return value / total
