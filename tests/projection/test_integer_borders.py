"""What integer convolutions see around tiles is what lies there on the sphere."""

from __future__ import annotations

import pytest
import torch

from pycodec.projection.grid import SphereGrid
from pycodec.projection.integer_borders import tile_borders, with_borders

from ..ops.sphere_cases import draw_tiles, naive_pad

GRIDS = ((4, 4, 4), (1, 3, 3, 2), (1,), (5, 2, 7, 1, 6))
DTYPES = (torch.int8, torch.uint8, torch.int16)


@pytest.mark.parametrize("widths", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("height", [1, 2, 4])
def test_tiles_are_surrounded_by_the_sphere(widths, dtype, height):
    geometry = tuple(height * w for w in widths), height * max(widths), height, (1, 1)
    x = draw_tiles(height, geometry, channels=3, dtype=dtype)
    expected = naive_pad(x, geometry, mixed=True)
    actual = with_borders(x.permute(0, 2, 3, 1).contiguous(), SphereGrid(widths))
    assert actual.dtype == dtype
    for tile, width in enumerate(geometry[0]):
        own = slice(0, width + 2)  # what is right of it has no meaning
        assert torch.equal(actual[tile, :, own].permute(2, 0, 1), expected[tile, ..., own])


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_cut_has_padding_beyond_it(first):
    whole = SphereGrid((2, 5, 3, 4))
    x = torch.randint(-128, 128, (4, 2, 10, 6), dtype=torch.int8)
    padded = with_borders(x, whole)
    zero_point = torch.arange(6, dtype=torch.int16) - 3
    part = whole.cut(first, first + 2)
    rest = x[first : first + 2, :, : 2 * part.columns].contiguous()
    cut = with_borders(rest, part, zero_point)
    columns = [2 * width + 2 for width in part.widths]
    inner = slice(int(first > 0), 4 - int(first < 2))
    tiles = slice(0, columns[0]), slice(0, columns[1])
    north, south = cut[0, :, tiles[0]], cut[1, :, tiles[1]]
    assert torch.equal(north[int(first > 0) :], padded[first, int(first > 0) :, tiles[0]])
    assert torch.equal(south[: inner.stop], padded[first + 1, : inner.stop, tiles[1]])
    if first > 0:
        assert bool((north[0] == zero_point).all())
    if first < 2:
        assert bool((south[-1] == zero_point).all())


def test_borders_are_read_inside_and_written_outside():
    grid = SphereGrid((1, 3, 2))
    target, left, right, weight = tile_borders(grid, 4).unbind(1)
    inside = torch.zeros(3, 6, 14, dtype=torch.bool)
    inside[:, 1:-1, 1:-1] = torch.from_numpy(grid.mask(4))
    assert not inside.flatten()[target].any() and len(target.unique()) == len(target)
    assert inside.flatten()[left].all() and inside.flatten()[right].all()
    assert int(weight.min()) >= 0 and int(weight.max()) <= 256
