"""Tiles of the sphere at the levels of a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pycodec.errors import InputError
from pycodec.projection.grid import GridBatch, SphereGrid

GRID = SphereGrid((1, 3, 3, 2))


def tiles_of(grid: SphereGrid, rows: int, channels: int = 2, pictures: int = 1) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(pictures * grid.tiles, channels, rows, rows * grid.columns)


def test_mask_marks_the_columns_of_each_tile():
    mask = GRID.mask(4)
    assert mask.shape == (4, 4, 12)
    assert mask.sum((1, 2)).tolist() == [16, 48, 48, 32]
    assert mask[0, :, :4].all() and not mask[0, :, 4:].any()


def test_a_tile_sees_its_neighbours_itself_and_over_the_pole():
    x = tiles_of(GRID, 4, pictures=2)
    padded = GRID.pad(x, 1)
    assert padded.shape == (8, 2, 6, 14)
    second = slice(1, 13)  # tiles 1 and 2 are of one width
    torch.testing.assert_close(padded[1, :, 1:-1, second], x[1])
    torch.testing.assert_close(padded[1, :, -1, second], x[2, :, 0])
    torch.testing.assert_close(padded[6, :, 0, second], x[5, :, -1])  # of the second picture
    torch.testing.assert_close(padded[1, :, 1:-1, 0], x[1, :, :, -1])
    pole = padded[0, :, 0, 1:5]
    torch.testing.assert_close(pole, x[0, :, 0, :4].roll(2, -1))


def test_what_lies_right_of_a_tile_is_never_read():
    x = tiles_of(GRID, 2)
    spoiled = x.clone()
    spoiled[:, :][~torch.from_numpy(GRID.mask(2))[:, None].expand_as(x)] = float("nan")
    own = [slice(0, 2 * w + 2) for w in GRID.widths]
    for tile, columns in enumerate(own):
        a, b = (GRID.pad(t, 1)[tile, ..., columns] for t in (x, spoiled))
        torch.testing.assert_close(a, b)


def test_integers_are_channels_last_and_backends_agree():
    x = torch.randint(-127, 128, (4, 2, 6, 5), dtype=torch.int8)
    padded = GRID.pad(x, 1)
    assert padded.dtype == torch.int8 and padded.shape == (4, 4, 8, 5)
    assert torch.equal(padded, GRID.pad(x, 1, backend="reference"))
    assert torch.equal(padded[1, -1, 1:7], x[2, 0])


@pytest.mark.parametrize("integer", [False, True])
def test_beyond_a_cut_are_zeros_and_the_rest_is_as_before(integer):
    x = tiles_of(GRID, 4)
    if integer:
        x = (20 * x).permute(0, 2, 3, 1).to(torch.int8).contiguous()
    part = GRID.cut(1, 3)
    assert part == SphereGrid((3, 3), north=False, south=False)
    whole, cut = GRID.pad(x, 1), part.pad(x[1:3], 1)
    if integer:
        whole, cut = whole.permute(0, 3, 1, 2), cut.permute(0, 3, 1, 2)
    assert not cut[0, :, 0].any() and not cut[1, :, -1].any()
    assert torch.equal(cut[0, :, 1:], whole[1, :, 1:])
    assert torch.equal(cut[1, :, :-1], whole[2, :, :-1])


def test_ends_at_poles_stay():
    assert GRID.cut(0, 2) == SphereGrid((1, 3), south=False)
    assert GRID.cut(2, 4) == SphereGrid((3, 2), north=False)
    assert GRID.cut(0, 4) == GRID


@pytest.mark.parametrize("widths", [(), (3, 0), (-1,)])
def test_widths_must_be_positive(widths):
    with pytest.raises(InputError, match="widths"):
        SphereGrid(widths)


def test_a_turned_picture_gives_turned_tiles():
    grid = SphereGrid((2, 4, 4, 2))
    x = tiles_of(grid, 2)
    turned = x.clone()
    for tile, width in enumerate(grid.widths):  # by half a turn
        turned[tile, :, :, : 2 * width] = x[tile, :, :, : 2 * width].roll(width, -1)
    a, b = grid.pad(x, 1), grid.pad(turned, 1)
    for tile, width in enumerate(grid.widths):
        inner = slice(1, 1 + 2 * width)
        torch.testing.assert_close(b[tile, ..., inner], a[tile, ..., inner].roll(width, -1))
    assert np.array_equal(grid.mask(1)[:, 0].sum(1), grid.widths)


@pytest.mark.parametrize("grid", [GRID, SphereGrid((2, 4, 4), south=False)], ids=str)
def test_floats_padded_with_the_nearest_are_padded_like_integers(grid):
    values = torch.randint(-127, 128, (2 * grid.tiles, 4, 4 * grid.columns, 5), dtype=torch.int8)
    expected = grid.pad(values, 1)
    x = values.permute(0, 3, 1, 2).double().requires_grad_()
    padded = grid.pad(x, 1, nearest=True)
    own = np.pad(grid.mask(4), ((0, 0), (1, 1), (1, 1)), mode="edge")
    own[:, :, 0] = True
    for tile, width in enumerate(grid.widths):  # and a column to the right
        own[tile, :, 4 * width + 1] = True
    own = torch.from_numpy(own).repeat(2, 1, 1)
    assert torch.equal(padded.permute(0, 2, 3, 1)[own], expected[own].double())
    assert not padded.permute(0, 2, 3, 1)[~own].any()
    small = torch.randn(grid.tiles, 1, 1, grid.columns, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: grid.pad(t, 1, nearest=True), small)


BATCH = (GRID, SphereGrid((2, 4), south=False), GRID.cut(1, 3), SphereGrid((1, 1)))


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pad", [1, 2])
def test_a_batch_of_grids_is_padded_like_each(nearest, dtype, pad):
    rows = 2
    batch = GridBatch(BATCH)
    assert (batch.tiles, batch.columns) == (10, 4)
    torch.manual_seed(0)
    x = torch.randn(10, 3, rows, rows * 4, dtype=dtype, requires_grad=True)
    parts = x.split([grid.tiles for grid in BATCH])
    expected = [g.pad(part, pad, nearest=nearest) for g, part in zip(BATCH, parts, strict=True)]
    expected = torch.cat(expected)
    padded = batch.pad(x, pad, nearest=nearest)
    assert padded.dtype == dtype
    torch.testing.assert_close(padded, expected, rtol=1e-6 if dtype == torch.float64 else 0, atol=0)
    by_kernels = GridBatch(BATCH, "native").pad(x, pad, nearest=nearest)
    assert torch.equal(by_kernels, expected)
    weights = torch.randn_like(padded)
    a, b = (torch.autograd.grad((t * weights).sum(), x)[0] for t in (padded, expected))
    # SphereGrid adds up gradients of the nearest in their own precision, a batch in float32.
    close = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float64 else {"rtol": 0.03, "atol": 0.02}
    torch.testing.assert_close(a, b, **close)


def test_tables_made_ahead_travel(monkeypatch):
    batch = GridBatch(BATCH)
    batch.prepare([(2, 1, False), (4, 1, True)])
    x = torch.randn(10, 3, 4, 16)
    expected = GridBatch(BATCH).pad(x, 1, nearest=True)
    moved = batch.to("cpu")
    monkeypatch.setattr("pycodec.projection.grid._grid_table", None)
    assert torch.equal(moved.pad(x, 1, nearest=True), expected)
    own = moved.own(x)
    assert own.shape == (10, 1, 1, 16) and own.dtype == x.dtype
    masks = [np.pad(g.mask(4)[:, 0], ((0, 0), (0, 16 - 4 * g.columns))) for g in BATCH]
    assert np.array_equal(own[:, 0, 0].bool().numpy(), np.concatenate(masks))
