"""Export: integers compute what the simulation computed, and no accumulator can overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pycodec.context.integer_entropy_model import IntegerEntropyModel
from pycodec.context.quadtree import stage_mask
from pycodec.errors import CodecError
from pycodec.models.blocks import on_sphere
from pycodec.models.photo_network import PhotoNetwork
from pycodec.ops.quadtree_stage import LATENT_FRACTION_BITS
from pycodec.ops.quantized_conv2d import quantized_conv2d
from pycodec.projection.grid import SphereGrid
from pycodec.quantization.export import (
    check_accumulator,
    export_entropy_model,
    fixed_multiplier,
    restore_entropy_model,
)

from ..networks import SMALL, quantized_network


def test_multiplier_is_exact_to_29_bits():
    ratio = torch.tensor([3.7e-5, 1.2e-3, 0.9, 1e-9])
    multiplier, shift = fixed_multiplier(ratio)
    assert int(multiplier.max()) < 2**31
    value = multiplier.double() / 2.0**shift
    assert torch.allclose(value[:3], ratio[:3].double(), rtol=1e-4)
    assert abs(float(value[2]) - float(ratio[2])) < 1e-8
    with pytest.raises(CodecError):
        fixed_multiplier(torch.tensor([float("nan")]))


def test_worst_case_is_reached_without_overflow():
    weight = torch.full((1, 3, 3, 64), 127, dtype=torch.int8)
    bias = torch.tensor([1000], dtype=torch.int32)
    bound = check_accumulator("layer", weight, bias, 255)
    assert bound == 9 * 64 * 127 * 255 + 1000
    x = torch.full((1, 3, 3, 64), 255, dtype=torch.uint8)
    one = torch.tensor([2], dtype=torch.int32)
    out = quantized_conv2d(x, weight, bias, one, 1, out_dtype=torch.int32)
    assert int(out[0, 1, 1, 0]) == bound
    with pytest.raises(CodecError, match="overflow"):
        check_accumulator("layer", weight, torch.tensor([2**31 - 1], dtype=torch.int32), 255)


def test_export_needs_quantization():
    network = quantized_network(3)
    network.entropy_model.set_quantization(False)
    with pytest.raises(CodecError, match="quantization"):
        export_entropy_model(network.entropy_model)


@pytest.mark.parametrize("seed", [1, 2])
def test_integer_network_follows_the_simulation(seed):
    """Latents and bits of the integer model against the float model with simulated rounding."""
    model = quantized_network(seed).entropy_model
    exported = export_entropy_model(model)
    integer = IntegerEntropyModel(exported)
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.integers(-4, 5, (2, 3, integer.hyper_channels)).astype(np.int32))
    # Latents near what the model expects, so that the bits are not those of far tails: its means,
    # which are what it decodes when every symbol is zero, and some noise.
    zeros = {**exported, "rounding": torch.full_like(exported["rounding"], -1)}
    start = torch.zeros((8, 12, model.latent_channels), dtype=torch.int32)
    means = IntegerEntropyModel(zeros).encode(start, z, 4000).latents
    noise = rng.normal(0, 300, means.shape).astype(np.int32)
    latents = means + torch.from_numpy(noise)
    y = latents.permute(2, 0, 1)[None].float() / (1 << LATENT_FRACTION_BITS)
    with torch.no_grad():
        y_hat, y_bits, z_bits = model(y, z.permute(2, 0, 1)[None].float(), torch.tensor([40.0]))
    coded = integer.encode(latents, z, 4000)
    decoded = coded.latents.permute(2, 0, 1)[None].float() / (1 << LATENT_FRACTION_BITS)
    # A rounding that falls the other way moves a latent by a step and its successors a little.
    assert float(((decoded - y_hat).abs() < 0.05).float().mean()) > 0.95
    bits = integer.tables.cost_bits(coded.symbols, coded.indexes)
    assert bits == pytest.approx(float(y_bits + z_bits), rel=0.03)


@pytest.mark.parametrize(
    "grid", [SphereGrid((1, 3, 4, 2)), SphereGrid((4, 2), north=False, south=False)], ids=str
)
def test_integer_network_follows_the_simulation_on_the_sphere(grid):
    """The same across the borders of tiles of unequal width, over the poles, and at a cut."""
    model = quantized_network(7).entropy_model
    exported = export_entropy_model(model)
    integer = IntegerEntropyModel(exported)
    rng = np.random.default_rng(7)
    codes = rng.integers(2000, 6000, grid.tiles).tolist()
    shape = (grid.tiles, 1, grid.columns, integer.hyper_channels)
    z = torch.from_numpy(rng.integers(-4, 5, shape).astype(np.int32))
    zeros = {**exported, "rounding": torch.full_like(exported["rounding"], -1)}
    start = torch.zeros((grid.tiles, 4, 4 * grid.columns, model.latent_channels), dtype=torch.int32)
    means = IntegerEntropyModel(zeros).encode_sphere(start, z, grid, codes).latents
    latents = means + torch.from_numpy(rng.normal(0, 300, means.shape).astype(np.int32))
    y = latents.permute(0, 3, 1, 2).float() / (1 << LATENT_FRACTION_BITS)
    qualities = torch.tensor(codes) / 100
    with torch.no_grad(), on_sphere(grid):
        y_hat, y_bits, z_bits = model(y, z.permute(0, 3, 1, 2).float(), qualities)
    coded = integer.encode_sphere(latents, z, grid, codes)
    decoded = coded.latents.permute(0, 3, 1, 2).float() / (1 << LATENT_FRACTION_BITS)
    own = torch.from_numpy(grid.mask(4))
    close = ((decoded - y_hat).abs() < 0.05).permute(0, 2, 3, 1)[own]
    assert float(close.float().mean()) > 0.95
    bits = integer.tables.cost_bits(coded.symbols, coded.indexes)
    assert bits == pytest.approx(float((y_bits + z_bits).sum()), rel=0.03)
    # What lies right of a tile changes nothing.
    y[~own[:, None].expand_as(y)] = 77.0
    with torch.no_grad(), on_sphere(grid):
        again, again_bits, _ = model(y, z.permute(0, 3, 1, 2).float(), qualities)
    assert torch.equal(again_bits, y_bits)
    assert torch.equal(again.permute(0, 2, 3, 1)[own], y_hat.permute(0, 2, 3, 1)[own])


def test_first_stage_means_agree_closely():
    """Before the first feedback of rounded latents, integers and simulation differ by roundings."""
    model = quantized_network(5).entropy_model
    integer = IntegerEntropyModel(export_entropy_model(model))
    z = torch.randint(-4, 5, (1, integer.hyper_channels, 2, 2)).float()
    quality = torch.tensor([70.0])
    with torch.no_grad():
        features = model.hyper_synthesis(z, quality)
        mean, _ = model.stages[0](
            features, model.hyper_synthesis.act4.scale, features, features, quality
        )
    zero = torch.zeros((8, 8, model.latent_channels), dtype=torch.int32)
    coded = integer.encode(zero, z[0].permute(1, 2, 0).int(), 7000)
    step = torch.exp2(model.log2_step(quality))[0].detach()
    decoded = coded.latents.float() / (1 << LATENT_FRACTION_BITS)
    mask = torch.from_numpy(stage_mask(0, model.latent_channels, 8, 8))
    expected = torch.round(-mean[0] / step[:, None, None]) * step[:, None, None] + mean[0]
    difference = (decoded.permute(2, 0, 1) - expected)[mask].abs()
    assert float(difference.median()) < 0.01


def test_restoring_is_the_inverse_of_exporting():
    """A restored model exports the same integers, so training can go on from a model folder."""
    exported = export_entropy_model(quantized_network(6).entropy_model)
    restored = PhotoNetwork(SMALL).entropy_model
    restore_entropy_model(restored, exported)
    again = export_entropy_model(restored)
    assert again.keys() == exported.keys()
    for name, tensor in exported.items():
        difference = (again[name].double() - tensor.double()).abs().max()
        if name.endswith((".weight", "log2_step", "hyper_log2_scale")):
            assert difference == 0, name
        elif name.endswith((".bias", ".multiplier")):
            assert difference <= 1e-5 * tensor.double().abs().max() + 1, name
