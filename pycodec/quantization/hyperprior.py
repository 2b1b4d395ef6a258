"""Post-training quantization of a published hyperprior model: its convolutions become integers.

Of ``g_a``, ``h_a`` and ``g_s``, calibrated on what they see of pictures; the entropy model has been
integers since it was converted. Inputs have 14 bits, since nearly every layer carries the signal
itself. Weights have 12, or as many as int32 accumulators allow in the worst case; 8, rounded for
their inputs, where the decoded pictures hardly suffer: that halves the products.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor, nn

from pycodec.errors import InputError
from pycodec.models.hyperprior import LATENT_BITS, hyperlatents
from pycodec.models.hyperprior_codec import HyperpriorCodec
from pycodec.models.integer_layers import as_convolutions, find_runs
from pycodec.models.integer_transforms import NARROW_BITS
from pycodec.quantization.calibration import (
    SIGNAL_INPUT_BITS,
    SIGNAL_WEIGHT_BITS,
    Observation,
    Observer,
    round_rows,
)
from pycodec.quantization.int16 import INT16_MAX, peak_scales
from pycodec.quantization.recipe import MAX_BIAS, best_weight_scale, middle
from pycodec.quantization.transforms import (
    ActivationGrid,
    LayerPlan,
    export_layer,
    fold_weight,
    input_range,
)

PIXEL_CHANNELS = 3
"""Inputs of so many channels are pixels: uint8 / 255."""

RELU_BITS = 15
"""Of a wide input after a ReLU, the non-negative half of int16."""

WEIGHT_BITS = (8, SIGNAL_WEIGHT_BITS)
"""That a layer of g_a or g_s may have. Those of h_a, which take no time, have the most."""

ERROR_BUDGET = 0.5
"""Added squared error of pixels, in per cent of the codec's own, that 8 bits may cost in all: 0.02
dB."""

CROP, SMALL_CROP = 256, 128
"""Of the middle of pictures: for what layers see, and for what their errors do."""

_ACCUMULATOR_LIMIT = 2**31 - 1


@dataclass
class _Coded:
    """A picture, its latents before and after coding, and the decoded picture."""

    x: Tensor
    y: Tensor
    latents: Tensor
    x_hat: Tensor


class HyperpriorCalibration:
    """What the convolutions of a codec saw on calibration pictures.

    Args:
        codec: in ``fp32``, on the CPU.
        pictures: uint8 [H, W, 3], of at least 64 by 64.

    Raises:
        InputError: there are no pictures, or the codec has another precision.
    """

    def __init__(self, codec: HyperpriorCodec, pictures: Sequence[np.ndarray]) -> None:
        if codec.precision != "fp32":
            raise InputError("calibration needs a codec loaded with precision fp32")
        if not pictures:
            raise InputError("calibration needs pictures")
        self.network = copy.deepcopy(codec.network)
        as_convolutions(self.network)
        self.runs = find_runs(self.network)
        self.observer = Observer(self.network, len(pictures))
        self._entropy_model = codec.entropy_model
        self._after_relu = {layer.name for run in self.runs for layer in run.layers[1:]}
        self._plans: dict[tuple[str, int], LayerPlan] = {}
        with self.observer.watching(), torch.no_grad():
            for picture in pictures:
                self._code(middle(picture, CROP))

    def _code(self, x: Tensor) -> _Coded:
        entropy_model = self._entropy_model
        y, z = self.network.g_a(x), None
        if entropy_model.has_hyperprior:
            z = hyperlatents(self.network, y, abs_latents=not entropy_model.has_means)[0]
        latents = entropy_model.encode(y[0], z, torch.get_num_threads()).latents
        latents = latents.permute(2, 0, 1)[None].float() / (1 << LATENT_BITS)
        return _Coded(x, y, latents, self.network.g_s(latents))

    @torch.no_grad()
    def sensitivity(self, pictures: Sequence[np.ndarray]) -> dict[str, dict[int, float]]:
        """Added squared error of pixels, in per cent of the codec's, when one layer is rounded.

        Of each layer of g_a and g_s, by the bits of its weights. Errors of g_a go through g_s on
        top of the decoded latents; that they change how many bits latents take is left out.

        Args:
            pictures: uint8 [H, W, 3], of at least 64 by 64.
        """
        seen = [self._code(middle(picture, SMALL_CROP)) for picture in pictures]
        own = sum(float((one.x_hat - one.x).square().sum()) for one in seen)
        shares: dict[str, dict[int, float]] = {}
        for name in self._coded_layers():
            shares[name] = {}
            for bits in WEIGHT_BITS:
                with self._rounded_alone(name, bits):
                    added = sum(self._added_error(name, one) for one in seen)
                shares[name][bits] = 100 * added / own
        return shares

    def _coded_layers(self) -> list[str]:
        names = [layer.name for run in self.runs for layer in run.layers]
        return [name for name in names if name.startswith(("g_a.", "g_s."))]

    def _added_error(self, name: str, one: _Coded) -> float:
        latents = one.latents
        if name.startswith("g_a."):
            latents = latents + self.network.g_a(one.x) - one.y
        return float((self.network.g_s(latents) - one.x_hat).square().sum())

    @contextlib.contextmanager
    def _rounded_alone(self, name: str, bits: int) -> Iterator[None]:
        """Within, a float layer computes what its integers will."""
        conv, plan = self.network.get_submodule(name), self.plan(name, bits)
        low, high = input_range(plan.input.bits, self._is_signed(name))
        step = plan.input.scale.view(1, -1, 1, 1)
        folded, scale = fold_weight(conv.weight, plan, plan.bias)
        weight = (folded / scale).round() if plan.rounded is None else plan.rounded
        weight = weight * scale / step
        before = conv.weight, conv.bias

        def round_input(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            return (inputs[0] / step).round().clamp(low, high) * step

        handle = conv.register_forward_pre_hook(round_input)
        conv.weight, conv.bias = (
            nn.Parameter(value.float(), requires_grad=False) for value in (weight, plan.bias)
        )
        try:
            yield
        finally:
            handle.remove()
            conv.weight, conv.bias = before

    def choose_bits(self, shares: Mapping[str, Mapping[int, float]]) -> dict[str, int]:
        """Of each layer's weights: 8 where that costs least for what it saves.

        Args:
            shares: of :meth:`sensitivity`; in all :data:`ERROR_BUDGET` may be added.
        """
        few, most = WEIGHT_BITS
        chosen = {layer.name: most for run in self.runs for layer in run.layers}
        work = self.multiplications()

        def price(name: str) -> float:
            return (shares[name][few] - shares[name][most]) / work[name]

        total = sum(share[most] for share in shares.values())
        for name in sorted(shares, key=price):
            total += shares[name][few] - shares[name][most]
            if total > ERROR_BUDGET:
                break
            chosen[name] = few
        return chosen

    @torch.no_grad()
    def multiplications(self) -> dict[str, float]:
        """Of each layer, for a pixel of the picture."""
        x = torch.full((1, PIXEL_CHANNELS, 64, 64), 0.5)
        counted: dict[str, float] = {}

        def count(name: str) -> Callable[..., None]:
            def hook(conv: nn.Conv2d, _: object, out: Tensor) -> None:
                counted[name] = conv.weight.numel() * out[0, 0].numel() / x[0, 0].numel()

            return hook

        names = [layer.name for run in self.runs for layer in run.layers]
        handles = [
            self.network.get_submodule(name).register_forward_hook(count(name)) for name in names
        ]
        try:
            self._code(x)
        finally:
            for handle in handles:
                handle.remove()
        return counted

    @torch.no_grad()
    def export(self, bits: Mapping[str, int]) -> dict[str, Tensor]:
        """The integers of ``int8``, as ``save_integers`` takes them.

        Args:
            bits: of each layer's weights, of :data:`WEIGHT_BITS`.

        Raises:
            CodecError: scales are too far apart for integers.
        """
        tensors: dict[str, Tensor] = {}
        for run in self.runs:
            plans = [self.plan(layer.name, bits[layer.name]) for layer in run.layers]
            for layer, plan, after in zip_longest(run.layers, plans, plans[1:]):
                name = layer.name
                if after is None:
                    peak = self.observer.outputs[name].view(-1, layer.upscale**2).amax(1)
                    out_scale = peak_scales(peak, INT16_MAX)
                    tensors[f"{name}.output.scale"] = out_scale
                else:
                    out_scale = after.input.scale
                tensors |= export_layer(
                    name,
                    self.network.get_submodule(name).weight,
                    plan.bias,
                    plan,
                    out_scale,
                    signed=self._is_signed(name),
                    upscale=layer.upscale,
                )
            first = run.layers[0].name
            tensors[f"{first}.input.scale"] = plans[0].input.scale.float()
            tensors[f"{first}.input.bits"] = torch.tensor(plans[0].input.bits, dtype=torch.int32)
        return tensors

    def _is_signed(self, name: str) -> bool:
        return name not in self._after_relu and not self._reads_pixels(name)

    def _reads_pixels(self, name: str) -> bool:
        return self.network.get_submodule(name).in_channels == PIXEL_CHANNELS

    @torch.no_grad()
    def plan(self, name: str, weight_bits: int) -> LayerPlan:
        """Of a layer, weights of 8 bits rounded."""
        if (name, weight_bits) not in self._plans:
            self._plans[name, weight_bits] = self._plan(name, weight_bits)
        return self._plans[name, weight_bits]

    def _plan(self, name: str, weight_bits: int) -> LayerPlan:
        conv, seen = self.network.get_submodule(name), self.observer.inputs[name]
        zero = torch.zeros(conv.in_channels, dtype=torch.int64)
        if self._reads_pixels(name):
            grid = ActivationGrid(torch.full((conv.in_channels,), 1 / 255), zero, 8)
        else:
            bits = SIGNAL_INPUT_BITS if self._is_signed(name) else RELU_BITS
            high = input_range(bits, self._is_signed(name))[1]
            grid = ActivationGrid(peak_scales(seen.peak.abs().amax(0), high), zero, bits)
        plan = LayerPlan(grid, weight_bits, bias=conv.bias.double())
        folded, _ = fold_weight(conv.weight, plan, plan.bias)
        plan.weight_scale = _weight_scale(folded, plan, self._is_signed(name))
        if weight_bits <= NARROW_BITS:
            plan.rounded, plan.bias = _round(folded, plan, seen)
        return plan


def _round(folded: Tensor, plan: LayerPlan, seen: Observation) -> tuple[Tensor, Tensor]:
    """Weights rounded for inputs like those seen, and the bias that makes up for the rest."""
    x = torch.cat(seen.windows, 1).double()
    x = x / plan.input.scale.double().repeat_interleave(folded[0, 0].numel())[:, None]
    mean = x.mean(1)
    x = (x - mean[:, None]).float()
    scale = plan.weight_scale.double()
    real = (folded / scale.view(-1, 1, 1, 1)).flatten(1)
    top = 2 ** (plan.weight_bits - 1) - 1
    rounded = round_rows(real, (x @ x.T).double() / x.shape[1], top)
    return rounded.view_as(folded), plan.bias + ((real - rounded) @ mean) * scale


def _weight_scale(folded: Tensor, plan: LayerPlan, is_signed: bool) -> Tensor:
    """Of each output, as fine as the weights' bits and int32 accumulators allow, [Cout]."""
    if plan.weight_bits <= NARROW_BITS:
        peak = best_weight_scale(folded, plan.weight_bits)
    else:
        peak = folded.abs().amax((1, 2, 3)) / (2 ** (plan.weight_bits - 1) - 1)
    low, high = input_range(plan.input.bits, is_signed)
    largest = max(-low, high)
    # Rounding adds half a step to each weight, GPTQ somewhat more.
    room = _ACCUMULATOR_LIMIT - folded[0].numel() * largest
    reach = folded.abs().sum((1, 2, 3)) * largest + plan.bias.abs()
    floor = plan.bias.abs() / MAX_BIAS
    return peak.maximum(reach / room).maximum(floor).clamp(min=1e-30)
