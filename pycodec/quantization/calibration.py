"""Post-training quantization of the transforms: grids from what layers see, then rounding.

Grids of activations come from calibration pictures, by one of three rules: the extremes
(``minmax``), a percentile, or the least squared error of rounding and clipping (``mse``). Weights
are rounded one input at a time, those not yet rounded making up for the error (GPTQ, arXiv
2210.17323), and biases for what is left of its mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pycodec.models import blocks
from pycodec.models.integer_transforms import PROGRAMS, Convert, Convolve, ReadPixels
from pycodec.quantization.transforms import (
    ActivationGrid,
    LayerPlan,
    TransformPlan,
    fold_weight,
    layer_weight,
    pixel_grid,
    unshuffled_weight,
)

METHODS = ("minmax", "percentile", "mse")
SIGNAL_LAYERS = ("stem", "down8", "down16", "head", "up8.conv", "up4.conv", "tail")
"""Carry the signal itself, whose errors nothing corrects: their inputs and weights are wide."""

SIGNAL_INPUT_BITS, SIGNAL_WEIGHT_BITS = 14, 12
"""As many as the accumulators of their largest layers have room for."""

STREAM_ROOM = 2.0
"""How far a stream may exceed what calibration saw."""

_SAMPLES = 4096
"""Values of a channel, and windows of a layer, that are kept."""


def minmax_scale(x: Tensor, levels: int) -> Tensor:
    """Scales that clip nothing: x [C, n] to [C], for integers up to ``levels``."""
    return x.abs().amax(1).clamp(min=1e-6) / levels


def percentile_scale(x: Tensor, levels: int, percentile: float = 99.99) -> Tensor:
    """Scales that clip all but so many percent of each channel."""
    return x.abs().quantile(percentile / 100, dim=1).clamp(min=1e-6) / levels


def mse_scale(x: Tensor, levels: int, lower: int, steps: int = 24) -> Tensor:
    """Scales with the least squared error, of 24 from the extremes down to a fifth of them."""
    peak = minmax_scale(x, levels)
    best, least = peak, None
    for factor in np.geomspace(1.0, 0.2, steps):
        scale = (peak * factor)[:, None]
        error = ((x / scale).round().clamp(lower, levels) * scale - x).square().mean(1)
        if least is None:
            least = error
            continue
        better = error < least
        best = torch.where(better, scale[:, 0], best)
        least = torch.where(better, error, least)
    return best


@dataclass
class Observation:
    """What the input of a layer was: ``samples`` [C, n], the extremes, and some of its windows."""

    peak: Tensor
    samples: list[Tensor] = field(default_factory=list)
    windows: list[Tensor] = field(default_factory=list)


class Observer:
    """Watches the inputs of convolutions while a float transform runs in :meth:`watching`."""

    def __init__(self, module: nn.Module, pictures: int, seed: int = 0) -> None:
        self._names = {m: n for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
        self._share = max(1, _SAMPLES // pictures)
        self._generator = torch.Generator().manual_seed(seed)
        self.inputs: dict[str, Observation] = {}
        self.outputs: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within, all calls of the module's convolutions are recorded."""
        original = blocks.convolve

        def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            out = original(layer, x, weight, bias)
            if layer in self._names:
                self._record(self._names[layer], layer, x.float(), out.float())
            return out

        def hook(layer: nn.Conv2d, inputs: tuple[Tensor], out: Tensor) -> None:
            self._record(self._names[layer], layer, inputs[0].float(), out.float())

        blocks.convolve = convolve
        plain = [m for m in self._names if not isinstance(m, blocks.Conv2d)]
        handles = [m.register_forward_hook(hook) for m in plain]  # of upsampling layers
        try:
            yield
        finally:
            blocks.convolve = original
            for handle in handles:
                handle.remove()

    def _record(self, name: str, layer: nn.Conv2d, x: Tensor, out: Tensor) -> None:
        flat = x.transpose(0, 1).flatten(1)
        peak = torch.stack([flat.amin(1), flat.amax(1)])
        seen = self.inputs.setdefault(name, Observation(peak))
        seen.peak = torch.stack([seen.peak[0].minimum(peak[0]), seen.peak[1].maximum(peak[1])])
        some = torch.randperm(flat.shape[1], generator=self._generator)[: self._share]
        seen.samples.append(flat[:, some])
        windows = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
        windows = windows.transpose(0, 1).flatten(1)
        some = torch.randperm(windows.shape[1], generator=self._generator)[: self._share]
        seen.windows.append(windows[:, some].clone())
        peak = out.abs().amax((0, 2, 3))
        self.outputs[name] = self.outputs.get(name, peak).maximum(peak)


def activation_grid(seen: Observation, signed: bool, bits: int, method: str) -> ActivationGrid:
    """The grid of a layer's input."""
    zero = torch.zeros(len(seen.peak[0]), dtype=torch.int64)
    peak = seen.peak.abs().amax(0).clamp(min=1e-6)
    if bits > 8:
        return ActivationGrid(peak * STREAM_ROOM / ((1 << (bits - 1)) - 1), zero, bits)
    x = torch.cat([*seen.samples, seen.peak.T], 1)
    if not signed:
        levels, lower = (1 << bits) - 1, 0
    else:  # centred: the offset becomes the zero point
        levels, lower = (1 << (bits - 1)) - 1, -(1 << (bits - 1))
        centre = x.mean(1)
        x = x - centre[:, None]
    if method == "minmax":
        scale = minmax_scale(x, levels)
    elif method == "percentile":
        scale = percentile_scale(x, levels)
    else:
        scale = mse_scale(x, levels, lower)
    if signed:
        zero = (-centre / scale).round().long().clamp(lower, levels)
    return ActivationGrid(scale, zero, bits)


def stream_of(name: str) -> dict[str, str]:
    """For each convolution of a transform that writes a stream, the stream."""
    steps = PROGRAMS[name]
    return {
        step.layer: step.to for step in steps if isinstance(step, Convolve) and not step.to_layer
    }


def plan_transform(
    name: str,
    observer: Observer,
    streams: dict[str, Tensor],
    *,
    method: str = "mse",
    weight_bits: Callable[[str], int] | None = None,
    input_bits: Callable[[str], int] | None = None,
) -> TransformPlan:
    """A plan from what was observed.

    Args:
        name: of the transform.
        observer: that watched it.
        streams: largest absolute value of each stream's channels, [C].
        method: of :data:`METHODS`, for inputs of 8 bits and fewer.
        weight_bits, input_bits: by layer; see the defaults.
    """
    weight_bits = weight_bits or default_weight_bits
    input_bits = input_bits or default_input_bits
    layers = {}
    for step in PROGRAMS[name]:
        if isinstance(step, ReadPixels):
            grid = pixel_grid()
        elif isinstance(step, Convert) or step.to_layer:
            signed = isinstance(step, Convert) and not step.relu
            layer = step.layer if isinstance(step, Convert) else step.to
            bits = input_bits(layer) if signed else min(8, input_bits(layer))
            layers[layer] = LayerPlan(
                activation_grid(observer.inputs[layer], signed, bits, method), weight_bits(layer)
            )
            continue
        else:
            continue
        layers[step.layer] = LayerPlan(grid, weight_bits(step.layer))
    scales = {k: v.clamp(min=1e-6) * STREAM_ROOM / 32767 for k, v in streams.items()}
    return TransformPlan(layers, scales)


def default_input_bits(layer: str) -> int:
    """8, and more where the signal itself passes or latents are read."""
    return SIGNAL_INPUT_BITS if layer in SIGNAL_LAYERS or layer == "conv1" else 8


def default_weight_bits(layer: str) -> int:
    """8, and more where the signal itself passes."""
    return SIGNAL_WEIGHT_BITS if layer in SIGNAL_LAYERS else 8


@torch.no_grad()
def round_weights(
    name: str,
    module: nn.Module,
    observer: Observer,
    plan: TransformPlan,
    layers: Collection[str] | None = None,
) -> None:
    """Choose ``rounded`` and ``bias`` of layers of the plan, for inputs like those seen.

    ``layers``: their names within the transform; all if None.
    """
    for step in PROGRAMS[name]:
        if not isinstance(step, Convolve) or (layers is not None and step.layer not in layers):
            continue
        conv, layer = module.get_submodule(step.layer), plan.layers[step.layer]
        weight, scale = fold_weight(layer_weight(step, conv), layer, conv.bias)
        x = torch.cat(observer.inputs[step.layer].windows, 1).double()
        if step.layer == "stem":
            x = unshuffled_weight(x.T.reshape(x.shape[1], 48, 3, 3)).flatten(1).T
        kernel = weight.shape[2] * weight.shape[3]
        x = x / layer.input.scale.double().repeat_interleave(kernel)[:, None]
        mean = x.mean(1)
        x = x - mean[:, None]
        covariance = (x.float() @ x.float().T).double() / x.shape[1]
        top = 2 ** (layer.weight_bits - 1) - 1
        real = (weight / scale).flatten(1)
        rounded = round_rows(real, covariance, top)
        layer.rounded = rounded.view_as(weight)
        layer.bias = conv.bias.double() + ((real - rounded) @ mean) * scale.flatten()


def round_rows(rows: Tensor, covariance: Tensor, top: int) -> Tensor:
    """Integers for rows [O, K] of weights, whose inputs have the covariance [K, K].

    Columns are rounded in the order of their inputs' variance; of each the error, as far as other
    inputs are correlated, goes to the columns that are left (GPTQ, arXiv 2210.17323).
    """
    order = covariance.diagonal().argsort(descending=True)
    square = covariance[order][:, order]
    damping = 0.01 * float(square.diagonal().mean()) + 1e-9
    square = square + torch.eye(len(square), dtype=square.dtype) * damping
    factor = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(square)), upper=True
    )
    left = rows[:, order].clone()
    result = torch.empty_like(left)
    block = 64
    for first in range(0, left.shape[1], block):
        last = min(first + block, left.shape[1])
        errors = torch.empty(len(left), last - first, dtype=left.dtype)
        for i in range(first, last):
            result[:, i] = left[:, i].round().clamp(-top, top)
            errors[:, i - first] = (left[:, i] - result[:, i]) / factor[i, i]
            left[:, i:last] -= errors[:, i - first, None] * factor[i, None, i:last]
        left[:, last:] -= errors @ factor[first:last, last:]
    rounded = torch.empty_like(result)
    rounded[:, order] = result
    return rounded


@torch.no_grad()
def stream_peaks(
    name: str, module: nn.Module, inputs: Sequence[tuple[Tensor, ...]]
) -> dict[str, Tensor]:
    """Largest absolute value of each channel of the streams.

    ``inputs``: what the transform is called with, picture by picture.
    """
    peaks: dict[str, Tensor] = {}
    handles = []

    def watch(stream: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, out: Tensor) -> None:
            peak = out.float().abs().amax((0, 2, 3))
            peaks[stream] = peaks.get(stream, peak).maximum(peak)

        return hook

    for layer, stream in stream_of(name).items():
        owner = module.get_submodule(layer.rpartition(".")[0]) if "." in layer else None
        watched = owner if owner is not None else module.get_submodule(layer)
        if stream.startswith("stream") or stream == "hidden":
            handles.append(watched.register_forward_hook(watch(stream)))
    try:
        for arguments in inputs:
            module(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    return peaks
