"""Post-training calibration of the photo codec's transforms: grids of inputs, rounding of weights.

Pictures go through the float network once at several qualities. What each convolution reads gives
its grid (smallest and largest value, a percentile of them, or the least squared error) and the
covariance by which its weights are rounded (GPTQ, arXiv 2210.17323).

Convolutions that carry the signal read 16 bits with one scale for all channels. Their scales are
folded into the weights before these are rounded, and channels differ a hundredfold in what they
carry: with a scale for each, the weights of weak channels would become so much smaller than those
of strong ones that they round to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pycodec.errors import CodecError, InputError
from pycodec.models.blocks import BottleneckBlock, ResidualBlock, convolutions_by
from pycodec.models.photo_network import PhotoNetwork
from pycodec.models.transforms import HyperAnalysis
from pycodec.quantization.plan import ActivationGrid, LayerPlan

TRANSFORMS = ("analysis", "hyper_analysis", "synthesis")
METHODS = ("min-max", "percentile", "mse")
QUALITIES = (5.0, 50.0, 95.0)
PERCENTILE = 99.99
HEADROOM = 1.5
"""Of 16-bit grids, over the largest value seen: they have bits to spare."""

_VALUES = 16_384  # kept of each channel
_POSITIONS = 1_024  # that enter a covariance, for each picture and quality
_BLOCK = 128  # of weights, whose errors the weights after it make up for together
_MOST_WEIGHTS = 2_048  # of an output that are rounded together; those of more to the nearest
_LEAST_SCALE = 1e-5
_SHARES = torch.cat([torch.linspace(1.0, 0.5, 21), torch.linspace(0.45, 0.1, 8)])

Plans = dict[str, dict[str, dict[int, LayerPlan]]]
"""For each transform, for each layer, its variants by bits of the weights."""


def layers_of(transform: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions of a transform by their path."""
    return {n: m for n, m in transform.named_modules() if isinstance(m, nn.Conv2d)}


def named_layers(network: PhotoNetwork) -> dict[str, nn.Conv2d]:
    """The convolutions of all transforms: ``synthesis.blocks8.0.conv``."""
    return {
        f"{transform}.{path}": layer
        for transform in TRANSFORMS
        for path, layer in layers_of(getattr(network, transform)).items()
    }


def layers_after_relu(transform: nn.Module) -> set[str]:
    """Paths of the convolutions whose input is the result of a ReLU."""
    inner: set[str] = set()
    for path, module in transform.named_modules():
        if isinstance(module, BottleneckBlock):
            inner |= {f"{path}.conv", f"{path}.expand"}
        elif isinstance(module, ResidualBlock):
            inner.add(f"{path}.conv2")
        elif isinstance(module, HyperAnalysis):
            inner |= {"conv2", "conv3"}
    return inner


def branch_layers(transform: nn.Module) -> set[str]:
    """Paths of the convolutions in residual branches, which only correct the signal."""
    return {
        f"{path}.{name}"
        for path, module in transform.named_modules()
        if isinstance(module, (BottleneckBlock, ResidualBlock))
        for name in layers_of(module)
    }


@dataclass
class LayerInputs:
    """What a convolution read while pictures went through the network.

    Attributes:
        values: [C, N], some of each channel.
        low, high: [C], the extremes of all.
        moment: [C k k, C k k], mean products in the windows that the kernel sees.
    """

    values: Tensor
    low: Tensor
    high: Tensor
    moment: Tensor


@torch.no_grad()
def observe(
    network: PhotoNetwork, pictures: Sequence[Tensor], qualities: Sequence[float] = QUALITIES
) -> dict[str, LayerInputs]:
    """Run pictures through the float network.

    Args:
        network: in evaluation mode.
        pictures: float [1, 3, H, W] in [0, 1], sides multiples of 16.
        qualities: each picture is coded at each of them.

    Raises:
        InputError: there is no picture.
    """
    if not pictures:
        raise InputError("calibration needs pictures")
    names = {layer: name for name, layer in named_layers(network).items()}
    rounds = len(pictures) * len(qualities)
    values: dict[str, list[Tensor]] = {name: [] for name in names.values()}
    extremes: dict[str, tuple[Tensor, Tensor]] = {}
    sums: dict[str, tuple[Tensor, int]] = {}

    def record(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        name = names[layer]
        flat = x[0].flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        if name in extremes:
            low, high = low.minimum(extremes[name][0]), high.maximum(extremes[name][1])
        extremes[name] = low, high
        some = torch.randint(flat.shape[1], (max(1, _VALUES // rounds),))
        values[name].append(flat[:, some])
        windows = F.unfold(x, layer.kernel_size, 1, layer.padding, layer.stride)[0]
        if windows.shape[1] > _POSITIONS:
            windows = windows[:, torch.randint(windows.shape[1], (_POSITIONS,))]
        moment, count = sums.get(name, (0.0, 0))
        sums[name] = moment + windows @ windows.T, count + windows.shape[1]
        return F.conv2d(x, weight, bias, layer.stride, layer.padding)

    with convolutions_by(record):
        for quality in qualities:
            for picture in pictures:
                network(picture, torch.tensor([quality]))
    return {
        name: LayerInputs(torch.cat(values[name], 1), *extremes[name], moment / count)
        for name, (moment, count) in sums.items()
    }


def narrow_grid(inputs: LayerInputs, bits: int, after_relu: bool, method: str) -> ActivationGrid:
    """A grid with a scale and a zero point for each channel.

    Args:
        inputs: what the convolution read.
        bits: 4, 6 or 8.
        after_relu: values are at least 0, and so is the grid.
        method: ``min-max`` spans all values seen, ``percentile`` all but the rarest, ``mse`` has
            the least squared error.

    Raises:
        InputError: there is no such method.
    """
    values = inputs.values
    levels, half = (1 << bits) - 1, 1 << (bits - 1)
    if method == "percentile":
        tail = (1 - PERCENTILE / 100) / (1 if after_relu else 2)
        low, high = (torch.quantile(values, q, dim=1) for q in (tail, 1 - tail))
    elif method in METHODS:
        low, high = inputs.low, inputs.high
    else:
        raise InputError(f"calibrate by {', '.join(METHODS)}, not {method!r}")
    # 0 is a level of every grid: it is what is around the picture.
    low = torch.zeros_like(low) if after_relu else low.clamp(max=0)
    high = high.clamp(min=0)

    def grid(share: float) -> tuple[Tensor, Tensor]:
        scale = ((high - low) * share / levels).clamp(min=_LEAST_SCALE)
        if after_relu:
            return scale, torch.zeros_like(scale)
        return scale, (-half - low * share / scale).round().clamp(-half, half - 1)

    if method != "mse":
        scale, zero = grid(1.0)
        return ActivationGrid(scale, zero.int(), bits)
    bottom = 0 if after_relu else -half
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for share in _SHARES.tolist():
        scale, zero = grid(share)
        q = ((values / scale[:, None]).round() + zero[:, None]).clamp(bottom, bottom + levels)
        error = ((q - zero[:, None]) * scale[:, None] - values).square().mean(1)
        if best is None:
            best = error, scale, zero
        better = error < best[0]
        best = tuple(torch.where(better, *p) for p in zip((error, scale, zero), best, strict=True))
    return ActivationGrid(best[1], best[2].int(), bits)


def wide_grid(inputs: LayerInputs) -> ActivationGrid:
    """A 16-bit grid with one scale for all channels."""
    peak = float(torch.maximum(inputs.high, -inputs.low).max())
    scale = torch.full_like(inputs.high, max(peak * HEADROOM / 32767, _LEAST_SCALE))
    return ActivationGrid(scale, torch.zeros_like(scale).int(), 16)


def pixel_grid(channels: int) -> ActivationGrid:
    """Of the stem, which reads pixels as they are: 127.5 of them are its zero."""
    return ActivationGrid(torch.full((channels,), 1 / 255), torch.zeros(channels).int(), 8)


def input_grids(
    network: PhotoNetwork, observed: Mapping[str, LayerInputs], method: str = "mse"
) -> dict[str, ActivationGrid]:
    """The grid of every convolution's input: 8 bits in branches, 16 where the signal goes."""
    grids = {}
    for transform in TRANSFORMS:
        module = getattr(network, transform)
        inner, branches = layers_after_relu(module), branch_layers(module)
        for path in layers_of(module):
            name = f"{transform}.{path}"
            inputs = observed[name]
            if name == "analysis.stem":
                grids[name] = pixel_grid(len(inputs.low))
            elif path in inner or path in branches or transform == "hyper_analysis":
                grids[name] = narrow_grid(inputs, 8, path in inner, method)
            else:
                grids[name] = wide_grid(inputs)
    return grids


def best_weight_scale(folded: Tensor, bits: int) -> Tensor:
    """Scale of each output channel with the least squared error of its weights, ``[Cout]``."""
    flat = folded.flatten(1)
    top = (1 << (bits - 1)) - 1
    peak = flat.abs().amax(1).clamp(min=1e-12) / top
    errors = [
        ((flat / s[:, None]).round().clamp(-top, top) * s[:, None] - flat).square().sum(1)
        for s in (peak * share for share in _SHARES)
    ]
    return peak * _SHARES[torch.stack(errors).argmin(0)]


@dataclass
class ErrorFactor:
    """How errors of weights, in units of the inputs' scales, are made up for; see round_weights.

    Attributes:
        order: of the weights of an output, those of strong inputs first.
        factor: upper triangular, of the inverse of the inputs' moments.
    """

    order: Tensor
    factor: Tensor


def error_factor(moment: Tensor, damping: float = 0.01) -> ErrorFactor:
    """From the mean products of a convolution's inputs, ``[Cin k k, Cin k k]``.

    Args:
        moment: in units of the inputs' scales.
        damping: share of the mean square that is added, against overfitting.

    Raises:
        CodecError: values are not finite.
    """
    square = moment.double()
    square = square + torch.eye(len(square), dtype=torch.float64) * (
        damping * square.diagonal().mean() + 1e-9
    )
    order = square.diagonal().argsort(descending=True)
    # With the order reversed, the Cholesky factor V of the moments is upper triangular, and that
    # of their inverse is the inverse of V.
    lower, failed = torch.linalg.cholesky_ex(square[order][:, order].flip(0, 1))
    if failed or not lower.isfinite().all():
        raise CodecError("calibration met values that are not finite")
    one = torch.eye(len(square), dtype=torch.float64)
    factor = torch.linalg.solve_triangular(lower.flip(0, 1), one, upper=True)
    return ErrorFactor(order, factor.float())


def round_weights(weight: Tensor, scale: Tensor, bits: int, errors: ErrorFactor) -> Tensor:
    """Round weights so that the error of the sums is small, for inputs like those seen.

    Weight by weight, the weights of an output that are not yet rounded make up for the error, as
    far as their inputs are correlated (GPTQ, arXiv 2210.17323).

    Args:
        weight: folded, [Cout, Cin, k, k].
        scale: of each output channel, [Cout].
        bits: of the integers: +-(2^(bits - 1) - 1).
        errors: of :func:`error_factor`.

    Returns:
        Integers as float, [Cout, Cin, k, k].
    """
    top = (1 << (bits - 1)) - 1
    left = (weight.flatten(1) / scale[:, None])[:, errors.order]
    rounded = torch.empty_like(left)
    width = left.shape[1]
    for start in range(0, width, _BLOCK):
        end = min(start + _BLOCK, width)
        factor = errors.factor[start:end]
        error = torch.empty(len(left), end - start)
        for i in range(end - start):
            column = left[:, start + i]
            rounded[:, start + i] = column.round().clamp(-top, top)
            error[:, i] = (column - rounded[:, start + i]) / factor[i, start + i]
            left[:, start + i : end] -= error[:, i : i + 1] * factor[i, start + i : end]
        left[:, end:] -= error @ factor[:, end:]
    result = torch.empty_like(rounded)
    result[:, errors.order] = rounded
    return result.view_as(weight)


def plan_layer(
    layer: nn.Conv2d, grid: ActivationGrid, inputs: LayerInputs, widths: Sequence[int]
) -> dict[int, LayerPlan]:
    """Weight scales and rounded weights of one convolution, by width."""
    folded = layer.weight.detach() * grid.scale.view(1, -1, 1, 1)
    if folded[0].numel() > _MOST_WEIGHTS:
        return {b: LayerPlan(grid, b, best_weight_scale(folded, b)) for b in widths}
    unit = grid.scale.repeat_interleave(math.prod(layer.kernel_size))
    errors = error_factor(inputs.moment / unit[:, None] / unit)
    plans = {}
    for bits in widths:
        scale = best_weight_scale(folded, bits)
        plans[bits] = LayerPlan(grid, bits, scale, round_weights(folded, scale, bits, errors))
    return plans


def calibrate(
    network: PhotoNetwork,
    observed: Mapping[str, LayerInputs],
    widths: Mapping[str, Sequence[int]],
    method: str = "mse",
) -> Plans:
    """Plans of all layers.

    Args:
        network: that was observed.
        observed: of :func:`observe`.
        widths: of each layer's variants, by its name.
        method: of the grids, see :func:`narrow_grid`.
    """
    grids = input_grids(network, observed, method)
    plans: Plans = {transform: {} for transform in TRANSFORMS}
    for name, layer in named_layers(network).items():
        transform, path = name.split(".", 1)
        plans[transform][path] = plan_layer(layer, grids[name], observed[name], widths[name])
    return plans
