"""Post-training quantization of a published hyperprior model: its convolutions become integers.

Of ``g_a``, ``h_a`` and ``g_s``, calibrated on what they see of pictures; the entropy model has been
integers since it was converted. All layers carry the signal: inputs have 14 bits and weights up to
12, as fine as int32 accumulators allow in the worst case.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from pycodec.errors import InputError
from pycodec.models.hyperprior import LATENT_BITS, hyperlatents
from pycodec.models.hyperprior_codec import HyperpriorCodec
from pycodec.models.integer_layers import PIXEL_CHANNELS, as_convolutions, find_runs
from pycodec.models.integer_transforms import NARROW_BITS
from pycodec.quantization.calibration import (
    SIGNAL_INPUT_BITS,
    SIGNAL_WEIGHT_BITS,
    STREAM_ROOM,
    Observation,
    Observer,
    activation_grid,
    round_rows,
)
from pycodec.quantization.int16 import INT16_MAX
from pycodec.quantization.recipe import MAX_BIAS, best_weight_scale, middle
from pycodec.quantization.transforms import (
    ActivationGrid,
    LayerPlan,
    export_layer,
    fold_weight,
    input_range,
)

RELU_BITS = 15
"""Of a wide input after a ReLU, the non-negative half of int16."""

_ACCUMULATOR_LIMIT = 2**31 - 1


def default_bits(layer: str) -> tuple[int, int]:
    """Of a layer's inputs and of its weights."""
    return SIGNAL_INPUT_BITS, SIGNAL_WEIGHT_BITS


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
        with self.observer.watching(), torch.inference_mode():
            for picture in pictures:
                self._watch(codec, middle(picture))

    def _watch(self, codec: HyperpriorCodec, x: Tensor) -> None:
        entropy_model = codec.entropy_model
        y, z = self.network.g_a(x), None
        if entropy_model.has_hyperprior:
            z = hyperlatents(self.network, y, abs_latents=not entropy_model.has_means)[0]
        latents = entropy_model.encode(y[0], z).latents
        self.network.g_s(latents.permute(2, 0, 1)[None].float() / (1 << LATENT_BITS))

    @torch.no_grad()
    def export(
        self, bits: Callable[[str], tuple[int, int]] = default_bits, method: str = "mse"
    ) -> dict[str, Tensor]:
        """The integers of ``int8``, as ``save_integers`` takes them.

        Args:
            bits: of a layer's inputs and of its weights, by its name.
            method: of ``pycodec.quantization.calibration.METHODS``, for inputs of 8 bits or fewer.

        Raises:
            CodecError: scales are too far apart for integers.
        """
        tensors: dict[str, Tensor] = {}
        for run in self.runs:
            plans = [
                self._plan(layer.name, place > 0, *bits(layer.name), method)
                for place, layer in enumerate(run.layers)
            ]
            for layer, plan, after in zip_longest(run.layers, plans, plans[1:]):
                name = layer.name
                conv = self.network.get_submodule(name)
                if after is None:
                    peak = self.observer.outputs[name].view(-1, layer.upscale**2).amax(1)
                    out_scale = peak.clamp(min=1e-6) * STREAM_ROOM / INT16_MAX
                    tensors[f"{name}.output.scale"] = out_scale
                else:
                    out_scale = after.input.scale
                grid = plan.input
                tensors |= export_layer(
                    name,
                    conv.weight,
                    plan.bias,
                    plan,
                    out_scale,
                    signed=name == run.layers[0].name and conv.in_channels != PIXEL_CHANNELS,
                    upscale=layer.upscale,
                    zero=grid.zero_point.double(),
                )
                tensors[f"{name}.input.bits"] = torch.tensor(grid.bits, dtype=torch.int32)
                if bool(grid.zero_point.any()):
                    tensors[f"{name}.zero_point"] = grid.zero_point.to(torch.int16)
            first = run.layers[0].name
            tensors[f"{first}.input.scale"] = plans[0].input.scale.float()
        return tensors

    def _plan(
        self, name: str, after_relu: bool, input_bits: int, weight_bits: int, method: str
    ) -> LayerPlan:
        conv, seen = self.network.get_submodule(name), self.observer.inputs[name]
        if conv.in_channels == PIXEL_CHANNELS:
            zero = torch.zeros(PIXEL_CHANNELS, dtype=torch.int64)
            grid = ActivationGrid(torch.full((PIXEL_CHANNELS,), 1 / 255), zero, 8)
        elif after_relu and input_bits > NARROW_BITS:
            grid = replace(activation_grid(seen, False, RELU_BITS + 1, method), bits=RELU_BITS)
        else:
            grid = activation_grid(seen, not after_relu, input_bits, method)
        plan = LayerPlan(grid, weight_bits, bias=conv.bias.double())
        is_signed = not after_relu and conv.in_channels != PIXEL_CHANNELS
        folded, _ = fold_weight(conv.weight, plan, plan.bias)
        plan.weight_scale = _weight_scale(folded, plan, is_signed)
        if weight_bits <= NARROW_BITS:
            plan.rounded, plan.bias = self._round(folded, plan, seen)
        return plan

    def _round(
        self, folded: Tensor, plan: LayerPlan, seen: Observation
    ) -> tuple[Tensor, Tensor]:
        """Weights rounded for inputs like those seen, and the bias that makes up for the rest."""
        x = torch.cat(seen.windows, 1).double()
        steps = plan.input.scale.double().repeat_interleave(folded[0, 0].numel())
        x = x / steps[:, None]
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
