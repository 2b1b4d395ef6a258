"""Plans by width, and the way from calibration's integers to weights for training and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pycodec.errors import InputError
from pycodec.models.integer_variants import branch_layers
from pycodec.models.photo import TRANSFORMS
from pycodec.models.transforms import Analysis
from pycodec.ops.quantized_conv2d import unpack_int4
from pycodec.quantization.calibration import default_weight_bits, round_weights
from pycodec.quantization.photo import Calibration
from pycodec.quantization.recipe import (
    assemble,
    best_weight_scale,
    by_layer,
    calibration_pictures,
    layers_after_relu,
    layers_of_pixels,
    named_layers,
    plan,
    start_rounded,
    torch_order,
)
from pycodec.quantization.simulation import SimulatedTransforms, export
from pycodec.quantization.transforms import export_transform, unshuffled_weight

from ..networks import SMALL, quantized_network, random_codec


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    return Calibration(random_codec(3, precision="fp32"), list(pictures))


def test_layers_by_what_they_read():
    network = quantized_network(3)
    names = named_layers(network)
    modules = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {id(m) for m in names.values()} == {id(m) for m in modules}
    assert layers_after_relu("hyper_analysis") == {"conv2", "conv3"}
    assert {"block4.conv2", "blocks8.2.expand"} <= layers_after_relu("synthesis")
    assert "blocks8.2.reduce" not in layers_after_relu("synthesis")
    assert layers_of_pixels("analysis") == {"stem"} and not layers_of_pixels("synthesis")
    assert len(branch_layers("analysis")) == 14 and not branch_layers("hyper_analysis")
    assert all(default_weight_bits(path) == 8 for path in branch_layers("synthesis"))


def test_plans_and_widths(calibration):
    plans = plan(calibration, (4, 8), rounded=())
    layers = by_layer(plans, (4, 8))
    assert {4, 8} == set(layers["synthesis.block4.conv1"])
    assert list(layers["synthesis.tail"]) == [default_weight_bits("tail")]
    widths = {f"{t}.{p}": 4 if "16" in p else 8 for t in TRANSFORMS for p in branch_layers(t)}
    chosen = assemble(plans, widths)
    for transform in TRANSFORMS:
        assert chosen[transform].streams.keys() == plans[transform][8].streams.keys()
        for path in branch_layers(transform):
            layer = chosen[transform].layers[path]
            assert layer.weight_bits == widths[f"{transform}.{path}"]
            top = 2 ** (layer.weight_bits - 1) - 1
            weight = getattr(quantized_network(3), transform).get_submodule(path).weight
            folded = weight.detach().abs() * layer.input.scale.view(1, -1, 1, 1)
            # Clipping costs less than a wider grid, but never most of the range.
            reach = folded.amax((1, 2, 3)) / (layer.weight_scale * top)
            assert (reach > 0.9).all() and (reach < 2.6).all()


def test_training_starts_from_the_rounded_weights(calibration):
    """What is not trained is exported as the integers that calibration chose."""
    plans = plan(calibration, (8,), rounded=())
    chosen = assemble(plans, {f"{t}.{p}": 8 for t in TRANSFORMS for p in branch_layers(t)})
    expected = {}
    for name, module in calibration.modules.items():
        round_weights(name, module, calibration.observers[name], chosen[name])
        made = export_transform(name, module, chosen[name])
        expected |= {f"{name}.{key}": tensor for key, tensor in made.items()}
    network = quantized_network(3)
    start_rounded(network, chosen)
    streams = {name: by_width[8].streams for name, by_width in plans.items()}
    made = export(SimulatedTransforms(network, by_layer(plans, (8,)), streams))
    assert made.keys() == expected.keys()
    for key, tensor in expected.items():
        difference = (made[key].double() - tensor.double()).abs()
        if "weight" in key or key.endswith(("zero_point", ".bits", ".shift")):
            assert not difference.any(), key
        else:  # 24 bits of a float scale
            assert (difference <= 1 + 1e-5 * tensor.double().abs().max()).all(), key


def test_variants_start_from_the_rounding_of_their_own_width(calibration):
    plans = plan(calibration, (4, 6, 8))
    widths = {f"{t}.{p}": 8 for t in TRANSFORMS for p in branch_layers(t)}
    network = quantized_network(3)
    start_rounded(network, assemble(plans, widths))
    streams = {name: by_width[8].streams for name, by_width in plans.items()}
    made = export(SimulatedTransforms(network, by_layer(plans, (4, 6, 8)), streams, dynamic=True))
    name, path = "synthesis.blocks8.0.conv", "blocks8.0.conv"
    for key, bits in ((name, 8), (f"{name}@6", 6), (f"{name}@4", 4)):
        expected = plans["synthesis"][bits].layers[path]
        weight = made[f"{key}.weight"]
        weight = unpack_int4(weight, expected.rounded.shape[1]) if bits == 4 else weight
        assert torch.equal(weight.long(), expected.rounded.permute(0, 2, 3, 1).long())
        zero = expected.input.zero_point.double()
        unit = expected.weight_scale.double()
        bias = expected.bias / unit - (expected.rounded.sum((2, 3)) * zero).sum(1)
        assert (made[f"{key}.bias"] - bias).abs().max() <= 1 + 1e-5 * bias.abs().max()
    rounded = [plans["synthesis"][bits].layers[path].rounded for bits in (4, 8)]
    assert not torch.equal(rounded[0], rounded[1])


def test_processes_round_alike(calibration):
    here, there = plan(calibration, (4, 8)), plan(calibration, (4, 8), workers=2)
    for transform, by_width in here.items():
        for bits, one in by_width.items():
            for path, layer in one.layers.items():
                other = there[transform][bits].layers[path]
                assert other.weight_bits == layer.weight_bits
                # Sums in another order may tip a value that lies between two integers.
                assert (other.rounded != layer.rounded).double().mean() < 0.01, path
                assert other.rounded.dtype == layer.rounded.dtype
                assert (other.bias - layer.bias).abs().max() < 0.1 * layer.bias.abs().max() + 1e-3


def test_the_order_of_patches_is_undone():
    weight = Analysis(SMALL.widths, 32).stem.weight.detach()
    assert torch.equal(torch_order(unshuffled_weight(weight)), weight)
    assert not torch.equal(unshuffled_weight(weight), weight)


@pytest.mark.parametrize("bits", [4, 6, 12])
def test_the_best_scale_is_the_best(bits):
    torch.manual_seed(2)
    weight = torch.randn(4, 2000)
    top = 2 ** (bits - 1) - 1

    def loss(scale: torch.Tensor) -> torch.Tensor:
        scale = scale[:, None]
        return ((weight / scale).round().clamp(-top, top) * scale - weight).square().sum(1)

    best = best_weight_scale(weight, bits)
    peak = weight.abs().amax(1) / top
    assert (loss(best) <= loss(peak)).all()
    if bits == 4:  # few levels: cutting the tails pays
        assert (loss(best) < 0.8 * loss(peak)).all()
    for factor in (0.7, 1.4):
        assert (loss(best) <= loss(best * factor)).all()


def test_calibration_pictures_are_spread_over_the_folder(tmp_path):
    with pytest.raises(InputError, match="calibration needs pictures"):
        calibration_pictures(tmp_path, 4)
    for number in range(10):
        Image.new("RGB", (120, 88), (number, 0, 0)).save(tmp_path / f"{number}.png")
    Image.new("RGB", (40, 300)).save(tmp_path / "5.png")
    found = calibration_pictures(tmp_path, 4)
    assert [int(p[0, 0, 0]) for p in found] == [0, 2, 4, 6]
    assert found[0].shape == (66, 90, 3)
    (tmp_path / "4.png").unlink()
    assert [int(p[0, 0, 0]) for p in calibration_pictures(tmp_path, 2)] == [0]
