"""The integer entropy model on tiles of a sphere: one stream, contexts across all borders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pycodec.context.integer_entropy_model import IntegerEntropyModel
from pycodec.errors import CodecError, InputError
from pycodec.projection.grid import SphereGrid
from pycodec.quantization.export import export_entropy_model

from ..networks import quantized_network

GRIDS = (
    SphereGrid((1, 2, 4, 3, 1)),
    SphereGrid((3,)),
    SphereGrid((2, 4, 4), south=False),
    SphereGrid((4, 1), north=False, south=False),
)


@pytest.fixture(scope="module")
def models() -> dict[str, IntegerEntropyModel]:
    tensors = export_entropy_model(quantized_network(0).entropy_model)
    return {name: IntegerEntropyModel(tensors, name) for name in ("native", "reference")}


def random_tiles(rng: np.random.Generator, grid: SphereGrid, model: IntegerEntropyModel):
    y = rng.normal(0, 4000, (grid.tiles, 4, 4 * grid.columns, model.latent_channels))
    z = rng.integers(-6, 7, (grid.tiles, 1, grid.columns, model.hyper_channels))
    return torch.from_numpy(y.astype(np.int32)), torch.from_numpy(z.astype(np.int32))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_backends_and_threads_agree_and_latents_come_back(models, grid):
    rng = np.random.default_rng(grid.tiles)
    native, reference = models["native"], models["reference"]
    y, z = random_tiles(rng, grid, native)
    codes = rng.integers(100, 10_001, grid.tiles).tolist()
    made = native.encode_sphere(y, z, grid, codes)
    own = torch.from_numpy(grid.mask(4))
    count = own.sum().item() * native.latent_channels
    assert len(made.symbols) == count + sum(grid.widths) * native.hyper_channels
    for model, threads in ((native, 2), (reference, 1)):
        assert model.encode_sphere(y, z, grid, codes, threads).stream == made.stream
        decoded = model.decode_sphere(made.stream, grid, codes, threads)
        assert torch.equal(decoded[own], made.latents[own])


def test_what_lies_right_of_a_tile_changes_nothing(models):
    grid, model = GRIDS[0], models["native"]
    y, z = random_tiles(np.random.default_rng(1), grid, model)
    made = model.encode_sphere(y, z, grid, [5000] * 5)
    y[~torch.from_numpy(grid.mask(4))] = 12345
    z[~torch.from_numpy(grid.mask(1))] = 99
    assert model.encode_sphere(y, z, grid, [5000] * 5).stream == made.stream


def test_contexts_go_around_and_across_tiles_but_not_beyond_a_cut(models):
    grid, model = SphereGrid((2, 2)), models["native"]
    y, z = random_tiles(np.random.default_rng(2), grid, model)

    def indexes_of_tile_0(grid: SphereGrid, y: torch.Tensor, z: torch.Tensor) -> np.ndarray:
        coded = model.encode_sphere(y, z, grid, [5000] * grid.tiles)
        start = sum(grid.widths) * model.hyper_channels
        stages = coded.indexes[start:].reshape(4, grid.tiles, 4, 8, model.latent_channels // 4)
        return stages[:, 0]

    before = indexes_of_tile_0(grid, y, z)
    moved = y.clone()
    # The first row of the tile below: three stages look a row further each.
    moved[1, 0] += 9999
    differs = (indexes_of_tile_0(grid, moved, z) != before).any((0, 3))
    assert differs[3].any() and not differs[0].any()
    moved = y.clone()
    moved[0, :, -1] += 9999  # the last column, which is next to the first
    differs = (indexes_of_tile_0(grid, moved, z) != before).any((0, 3))
    # Over the pole the opposite column of the first row is a neighbour, too.
    assert differs[:, 0].any() and differs[0, 3].any() and not differs[3, 3].any()
    alone = grid.cut(0, 1)
    assert not np.array_equal(indexes_of_tile_0(alone, y[:1], z[:1]), before)


def test_bad_input(models):
    grid, model = GRIDS[0], models["native"]
    y, z = random_tiles(np.random.default_rng(4), grid, model)
    with pytest.raises(InputError, match="5 tiles, but 2 qualities"):
        model.encode_sphere(y, z, grid, [5000, 5000])
    with pytest.raises(InputError, match="quality"):
        model.encode_sphere(y, z, grid, [5000, 5000, 5000, 5000, 99])
    stream = model.encode_sphere(y, z, grid, [5000] * 5).stream
    for damaged in (stream[: len(stream) // 2], stream + b"\0", b""):
        with pytest.raises(CodecError):
            model.decode_sphere(damaged, grid, [5000] * 5)
