"""Simulated transforms compute what the contract says, and gradients reach all that is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from pycodec.errors import InputError
from pycodec.models.blocks import convolutions_by
from pycodec.models.integer_transforms import IntegerTransform
from pycodec.models.photo import TRANSFORMS
from pycodec.models.photo_network import PhotoNetwork
from pycodec.ops.quadtree_stage import LATENT_FRACTION_BITS
from pycodec.quantization.bit_width import WIDTHS
from pycodec.quantization.fake_quant import round_ste
from pycodec.quantization.finetune import (
    CropPool,
    FineTuning,
    calibrate_selectors,
    device_of,
    fine_tune,
    quantization_loss,
    rate_factor,
    start_selectors,
)
from pycodec.quantization.gradient_modulator import round_modulated
from pycodec.quantization.photo import Calibration
from pycodec.quantization.recipe import Plans, by_layer, named_layers, plan
from pycodec.quantization.report import rate_distortion
from pycodec.quantization.simulation import (
    LayerQuantizer,
    LearnedGrid,
    SimulatedTransforms,
    _convolve_all,
    _convolve_each,
    drop_unused_variants,
    export,
    multiply_accumulates,
)
from pycodec.quantization.transforms import ActivationGrid, LayerPlan, export_transform
from pycodec.training.data import CropSampler
from pycodec.training.train import rate_distortion_loss

from ..networks import SMALL, quantized_network, random_codec


@pytest.fixture(scope="module")
def plans() -> Plans:
    pictures = np.random.default_rng(4).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    return plan(Calibration(random_codec(4, precision="fp32"), list(pictures)), WIDTHS, rounded=())


def simulated(plans: Plans, widths: tuple[int, ...], dynamic: bool = False) -> SimulatedTransforms:
    network = quantized_network(4)
    layers = by_layer(plans, widths)
    streams = {name: one[8].streams for name, one in plans.items()}
    return SimulatedTransforms(network, layers, streams, dynamic=dynamic).eval()


@pytest.mark.parametrize("after_relu", [False, True])
def test_a_layer_is_its_integers(after_relu):
    """acc = bias + sum of weight * q on integers, a window of zero points around the picture."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    scale = torch.tensor([0.02, 0.11, 0.5])
    zero = torch.zeros(3) if after_relu else torch.tensor([3.0, -40.0, 90.0])
    quantizer = LayerQuantizer(
        layer, {8: LayerPlan(ActivationGrid(scale, zero.int(), 8))}, after_relu
    )
    x = torch.randn(2, 3, 9, 12) * 20
    x = x.relu() if after_relu else x
    with torch.no_grad():
        result = quantizer(layer, x, None, round_ste)
    low, high = (0, 255) if after_relu else (-128, 127)
    chosen = quantizer.plans(layer)[8]
    assert torch.equal(chosen.input.zero_point, zero.int())
    scale, zero = chosen.input.scale.view(1, -1, 1, 1), zero.view(1, -1, 1, 1)
    unit = chosen.weight_scale.view(-1, 1, 1, 1)
    q = ((x / scale).round() + zero).clamp(low, high)
    weight = (layer.weight * scale / unit).round().clamp(-127, 127)
    padded = F.pad(q - zero, (1, 1, 1, 1)) + zero
    bias = layer.bias / unit.flatten() - (weight * zero).sum((1, 2, 3))
    accumulator = F.conv2d(padded.double(), weight.double(), bias.double(), stride=2)
    assert torch.allclose(result.double(), accumulator * unit.view(1, -1, 1, 1), atol=1e-4)


def test_trained_offsets_become_zero_points():
    start = ActivationGrid(torch.tensor([0.5, 0.1]), torch.tensor([10, -100]), 8)
    grid = LearnedGrid([start], after_relu=False)
    frozen = grid.frozen()
    assert torch.equal(frozen.zero_point, start.zero_point)
    assert torch.allclose(frozen.scale, start.scale)
    # Values beyond the upper end, pulled upwards, raise the end: the zero point falls.
    x = torch.full((1, 2, 4, 4), 300.0)
    (-grid(x, round_ste)).sum().backward()
    assert (grid.offset.grad < 0).all() and (grid.log_scale.grad < 0).all()
    inside = torch.zeros(1, 2, 4, 4, requires_grad=True)
    grid.zero_grad()
    grid(inside, round_ste).sum().backward()
    assert not grid.offset.grad.any() and (inside.grad == 1).all()


def test_gradients_follow_the_estimator():
    start = ActivationGrid(torch.tensor([1.0]), torch.tensor([0]), 8)
    grid = LearnedGrid([start], after_relu=False)
    x = torch.tensor([0.01, 0.49, 3.2]).view(1, 1, 1, 3).requires_grad_(True)
    gradients = {}
    for rounding in (round_ste, round_modulated):
        (gradients[rounding],) = torch.autograd.grad(grid(x, rounding).sum(), x)
    assert (gradients[round_ste] == 1).all()
    on_level, between, _ = gradients[round_modulated].flatten().tolist()
    assert on_level < 0.6 and between > 1.3


def test_eight_bits_are_near_the_float_network_and_four_are_not(plans):
    eight, four = simulated(plans, (8,)), simulated(plans, (4,))
    x, quality = torch.rand(2, 3, 64, 64), torch.tensor([20.0, 80.0])
    with torch.no_grad():
        plain, *_ = eight.network(x, quality)
        near, far = eight(x, quality), four(x, quality)
    assert near.x_hat.shape == x.shape and not near.choices
    assert torch.allclose(near.weight_bits, torch.tensor(8.0))
    assert torch.allclose(far.weight_bits, torch.tensor(4.0))
    spread = (plain - plain.mean()).square().mean()
    errors = [(r.x_hat - plain).square().mean() / spread for r in (near, far)]
    assert errors[0] < 0.1 and errors[1] > 3 * errors[0]


def test_multiply_accumulates():
    costs = multiply_accumulates(quantized_network(4))
    quarter, eighth, _ = SMALL.widths
    assert list(costs) == list(named_layers(PhotoNetwork(SMALL)))
    assert costs["analysis.down8"] == 9 * quarter * eighth / 64
    assert costs["synthesis.tail"] == 9 * quarter * 48 / 16
    assert costs["hyper_analysis.conv1"] == 9 * 32 * 16 / 32**2


def test_a_choice_for_each_picture(plans):
    """A batch gives each picture what it gets alone with its bits."""
    model = simulated(plans, (4, 6, 8), dynamic=True)
    x = torch.rand(2, 3, 64, 64)
    quality = torch.tensor([30.0, 70.0])
    names = model.dynamic_layers("synthesis")
    assert "synthesis.head" not in names and len(names) == 17
    layer = model.network.get_submodule(names[3])
    quantizer = model.layer(names[3])
    inputs = torch.rand(2, layer.in_channels, 6, 6)
    choice = torch.eye(3)[[0, 2]]
    both = quantizer(layer, inputs, choice, round_ste)
    for number in range(2):
        alone = quantizer(
            layer, inputs[number : number + 1], choice[number : number + 1], round_ste
        )
        assert torch.allclose(both[number], alone[0], atol=1e-5)
    assert not torch.allclose(both[0], quantizer(layer, inputs, choice[[1, 1]], round_ste)[0])
    # The way of a GPU is the same, and so are its gradients; of 1 x 1 and of 3 x 3.
    for name in names[3:5]:
        layer, quantizer = model.network.get_submodule(name), model.layer(name)
        weights, biases = quantizer.quantized_weights(layer, slice(None), round_ste)
        seen = torch.rand(2, layer.in_channels, 6, 6)
        found = []
        for convolve in (_convolve_each, _convolve_all):
            leaves = [t.detach().requires_grad_(True) for t in (seen, weights, biases, choice)]
            result = convolve(layer, *leaves)
            found.append((result, *torch.autograd.grad(result.square().sum(), leaves)))
        for each, together in zip(*found, strict=True):
            assert torch.allclose(each, together, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for selector in model.selectors.values():
            selector.choice.bias.view(-1, 3)[:, 0] = 9.0  # 4 bits
        few = model(x, quality)
    assert set(few.choices) == {*names, *model.dynamic_layers("analysis")}
    assert torch.allclose(few.weight_bits, torch.tensor(4.0))


def test_integers_compute_what_was_simulated(plans):
    """Analysis, hyper-analysis and synthesis: the exported integers against the simulation."""
    model = simulated(plans, (8,))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(pixels.repeat(2, 0).repeat(2, 1))
    exported = model.transform_plans()
    integer = {
        name: IntegerTransform(
            name,
            export_transform(name, getattr(model.network, name), exported[name]),
            backend="reference",
        )
        for name in TRANSFORMS
    }
    latents = integer["analysis"](torch.from_numpy(pixels), 6000)
    y_int = latents.float().permute(2, 0, 1)[None] / (1 << LATENT_FRACTION_BITS)
    quality = torch.tensor([60.0])
    x = torch.from_numpy(pixels).float().permute(2, 0, 1)[None] / 255
    with torch.no_grad(), convolutions_by(model._convolution):
        y = model.network.analysis(x, quality)
        z = model.network.hyperlatents(y_int, quality)
        x_hat = model.network.synthesis(y_int, quality)
    unit = y.abs().mean()
    assert (y_int - y).abs().mean() < 0.02 * unit
    hyper = integer["hyper_analysis"](latents, 6000).permute(2, 0, 1)[None]
    assert ((hyper - z.round()).abs() > 0).float().mean() < 0.1
    decoded = integer["synthesis"](latents, 6000).permute(2, 0, 1)[None].float()
    # Here and there a value rounds the other way, since streams have 16 bits.
    assert (decoded - (x_hat * 255).clamp(0, 255)).abs().mean() < 1.0


def test_loss_is_rate_distortion_and_bits():
    x, x_hat = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    bits, quality = torch.tensor([900.0, 1500.0]), torch.tensor([20.0, 90.0])
    loss = quantization_loss(x, x_hat, bits, quality, torch.tensor([5.0, 7.0]), 0.25)
    plain, _, _ = rate_distortion_loss(x, x_hat, bits, quality)
    assert loss.item() == pytest.approx(plain.item() + 0.25 * 6, rel=1e-6)


class Crops:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def batch(self, size: int) -> torch.Tensor:
        low = torch.rand(size, 3, 8, 8, generator=self.generator) * 255
        return F.interpolate(low, size=(64, 64), mode="bilinear").to(torch.uint8)


def test_pictures_together_measure_as_one_by_one(plans):
    model = simulated(plans, (4, 6, 8), dynamic=True)
    for selector in model.selectors.values():  # widths that depend on the picture
        torch.nn.init.normal_(selector.choice.weight, std=3.0)
    pictures = [torch.rand(1, 3, 64, 64) * share for share in (1.0, 0.3, 0.05)]
    apart = rate_distortion(model, pictures, (20.0, 90.0))
    together = rate_distortion(model, [torch.cat(pictures[:2]), pictures[2]], (20.0, 90.0))
    assert together.points == [pytest.approx(point, rel=2e-3) for point in apart.points]
    assert together.cost == pytest.approx(apart.cost, abs=2e-3)
    assert together.bits == pytest.approx(apart.bits) and len(set(apart.bits)) > 2
    assert together.choices == apart.choices


def test_selectors_start_from_what_layers_lose_alone(plans):
    model = simulated(plans, (4, 6, 8), dynamic=True)
    names = [n for t in ("analysis", "synthesis") for n in model.dynamic_layers(t)]
    tender = {4: 50.0, 6: 20.0, 8: 0.0}
    losses = {
        30.0: dict.fromkeys(names, dict.fromkeys(WIDTHS, 0.0)),
        90.0: dict.fromkeys(names, tender) | {names[2]: dict.fromkeys(WIDTHS, 0.0)},
    }
    start_selectors(model, losses, bits_cost=0.01)
    with torch.no_grad():
        result = model(torch.rand(2, 3, 64, 64), torch.tensor([5.0, 95.0]))
    assert result.weight_bits[0] == pytest.approx(4)
    share = model.share(names[2])
    assert result.weight_bits[1] == pytest.approx(8 - 4 * share)
    # Bits that are dear enough are saved whatever they are worth.
    start_selectors(model, losses, bits_cost=100.0)
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64), torch.tensor([95.0])).weight_bits < 4.01


def test_the_widest_variant_that_is_left_is_the_layers_own(plans):
    model = simulated(plans, (4, 6, 8), dynamic=True)
    names = [n for t in ("analysis", "synthesis") for n in model.dynamic_layers(t)]
    chosen = dict.fromkeys(names, WIDTHS) | {names[3]: (4,), names[20]: (4, 6)}
    x, quality = torch.rand(1, 3, 64, 64), torch.tensor([40.0])
    with torch.no_grad():
        for name, layer, quantizer in model.layers():
            if name in chosen:
                layer.weight.neg_()  # so that variants are not like each other
                quantizer.narrow_weights[1].mul_(0.5)
                quantizer.narrow_biases.add_(torch.tensor([[1.0], [2.0]]))
        for selector in model.selectors.values():
            selector.by_quality.nodes.view(9, -1, 3)[:, :, 0] = 9.0  # 4 bits
        before = model(x, quality).x_hat
        drop_unused_variants(model, chosen)
        assert torch.equal(model(x, quality).x_hat, before)
    assert model.layer(names[3]).widths == (4,) and model.layer(names[3]).narrow_weights is None
    assert model.layer(names[20]).widths == (4, 6)
    made = export(model)
    assert made[f"{names[3]}.weight"].dtype == torch.uint8  # two of 4 bits
    assert f"{names[20]}@4.weight" in made and f"{names[20]}@6.weight" not in made
    assert made[f"{names[20]}.weight"].abs().max() <= 31
    assert not any(key.startswith(f"{names[3]}@") for key in made)


@pytest.fixture
def crops(tmp_path) -> CropSampler:
    noise = np.random.default_rng(2).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    return CropSampler([tmp_path / "noise.png"], 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pool_of_crops(crops, workers):
    pool = CropPool(crops, 70, "cpu", workers)
    assert pool.crops.shape == (70, 3, 32, 32)
    assert len(torch.unique(pool.crops.flatten(1), dim=0)) == 70
    batch = pool.batch(5)
    assert batch.dtype == torch.uint8
    assert all((pool.crops == crop).flatten(1).all(1).any() for crop in batch)


def test_a_clock_ends_fine_tuning(plans):
    model = simulated(plans, (8,))
    steps = []
    options = FineTuning(steps=10**6, seconds=0.5, batch=1, crop=64, report_every=1)
    made = fine_tune(model, Crops(), options, lambda step, loss: steps.append(step))
    assert made == len(steps) and 0 < made < 10**4


def test_rates_rise_and_fall():
    factors = [rate_factor(step / 100) for step in range(101)]
    assert factors[0] == 0 and factors[5:50] == [1] * 45 and factors[100] == 0
    assert factors[75] == pytest.approx(0.5)


def test_a_step_that_overflows_changes_nothing(plans):
    model = simulated(plans, (8,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():  # an infinite gradient, and that alone
        model.network.synthesis.tail.bias[0] = torch.inf
    fine_tune(model, Crops(), FineTuning(steps=2, batch=1, crop=64))
    with torch.no_grad():
        model.network.synthesis.tail.bias[0] = before["network.synthesis.tail.bias"][0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_fine_tuning_goes_on_from_a_checkpoint(plans, tmp_path):
    whole, first, second = (simulated(plans, (4, 8), dynamic=True) for _ in range(3))
    options = FineTuning(steps=4, batch=1, crop=64, save_seconds=0.0)
    seen = []
    fine_tune(first, Crops(), options, checkpoint=tmp_path / "run.pt")
    assert fine_tune(second, Crops(), options, seen.append, tmp_path / "run.pt") == 4
    assert not seen
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    more = replace(options, steps=6)
    steps = []
    fine_tune(whole, Crops(), more, lambda step, _: steps.append(step), tmp_path / "run.pt")
    assert steps == [5, 6]


@pytest.mark.parametrize("name", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_here(name):
    with pytest.raises(InputError, match=name):
        device_of(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_cuda_graph_trains_as_steps_do(plans, dynamic):
    losses = {}
    for graph in (False, True):
        model = simulated(plans, (4, 6, 8) if dynamic else (8,), dynamic).to("cuda")
        losses[graph] = []
        options = FineTuning(
            steps=30, batch=4, crop=64, learning_rate=1e-3, graph=graph, report_every=10
        )
        fine_tune(model, Crops(), options, lambda step, loss, g=graph: losses[g].append(loss))
    for eager, recorded in zip(*losses.values(), strict=True):
        assert recorded == pytest.approx(eager, rel=0.1)  # they draw other noise
    assert losses[True][-1] < losses[True][0]


@pytest.mark.parametrize("rounding", [round_ste, round_modulated])
def test_fine_tuning_lowers_the_loss_and_the_bits(plans, rounding):
    model = simulated(plans, (4, 6, 8), dynamic=True)
    model.rounding = rounding
    network = model.network
    entropy = {k: v.clone() for k, v in network.entropy_model.state_dict().items()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, quality = Crops().batch(2).float() / 255, torch.tensor([30.0, 70.0])
    calibrate_selectors(model, [x[:1], x[1:]], (30.0, 70.0))
    assert model.selectors["analysis"].spread.min() >= 0.1
    losses = []
    options = FineTuning(
        steps=8, batch=2, crop=64, learning_rate=1e-3, selector_rate=0.3, bits_cost=2.0
    )
    fine_tune(model, Crops(), options, lambda step, loss: losses.append(loss))
    assert len(losses) == 8 and sum(losses[-3:]) < sum(losses[:3])
    assert not model.training
    with torch.no_grad():
        assert model(x, quality).weight_bits.mean() < 7
    after = model.state_dict()
    for part in ("log_scale", "offset", "log_weight_scales", "selectors", "conv1.weight"):
        names = [n for n in before if part in n]
        assert names and any(not torch.equal(before[n], after[n]) for n in names), part
    for name, value in network.entropy_model.state_dict().items():
        assert torch.equal(value, entropy[name]), name
