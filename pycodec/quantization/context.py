"""From a float context network to the integer one that codes.

Quantization follows ``docs/determinism.md``: int8 weights with a scale an output channel, int8
activations with a scale a channel, int32 accumulators. :class:`QuantizedNetwork` simulates it, so
that training can go on with it (LSQ, arXiv 1902.08153); :func:`export_network` makes the integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pycodec.coding.tables import TableSet, quantize_pmf
from pycodec.context.wave_network import IntegerLayer
from pycodec.errors import InputError
from pycodec.models.lossless_network import (
    PLANES,
    LosslessNetwork,
    Step,
    group_mask,
    seen_weights,
)
from pycodec.ops import trimmed_training
from pycodec.quantization.fake_quant import round_ste

NUM_TABLES = 256
PRECISION = 14
"""Of the tables. With 16 bits, as large as the least rANS state, files are 0.2 % larger."""
MAX_LOGIT = PRECISION * math.log(2)
"""The least probable bit that the tables hold has exp(-MAX_LOGIT)."""
LOGIT_STEP = MAX_LOGIT / (NUM_TABLES / 2)
"""Table i is for a logit of (i - 128) steps."""

MAX_PEAK_RATIO = 1024
"""Of the channels' peaks in a tensor: one that does nothing must not cost the others' multipliers
their bits."""

SCALE_POSITIONS, ROUNDING_POSITIONS = 50_000, 20_000
"""How many positions of the pictures scales and weights are chosen by."""
LEAST_COST = 1.0
"""Of an error anywhere, when weights are rounded; what it costs besides has a mean of 1."""

_USUAL_SIZE = 4.0  # of the weights that make one channel, by their root of squares
_MULTIPLIER_BITS = 24
_MAX_BIAS = 1 << 29


def bit_tables() -> TableSet:
    """Tables of a bit, one for each step of the log odds of a 1: the softmax as a lookup."""
    logits = (np.arange(NUM_TABLES) - NUM_TABLES // 2) * LOGIT_STEP
    one = 1 / (1 + np.exp(-logits))
    frequencies = [quantize_pmf(np.array([1 - p, p]), PRECISION) for p in one]
    return TableSet(frequencies, [0] * NUM_TABLES, PRECISION)


class QuantizedNetwork(nn.Module):
    """A :class:`LosslessNetwork` with the rounding of its integer form.

    Each channel of a tensor has a scale of its own: those of the first layer, some of which see
    values and some bits, differ a hundredfold.

    Args:
        network: shared, not copied: training this trains it.

    Attributes:
        enabled: simulate all of it. The scales must have been set.
        rounds_first: simulate the rounding of weights of bits, without the rest. Their inputs need
            no scales, so the integers are known, and a sum of bits of 128 to 1 suffers most.
    """

    def __init__(self, network: LosslessNetwork) -> None:
        super().__init__()
        self.network = network
        self.log_scales = nn.ParameterList(
            nn.Parameter(torch.zeros(step.conv.out_channels)) for step in network.steps()[:-1]
        )
        self.enabled = False
        self.rounds_first = False

    @torch.no_grad()
    def round_first(self) -> None:
        """Make what ``rounds_first`` simulates the weights, whose export then changes nothing."""
        inputs = 1 + (self.network.side is not None)
        for step in self.network.steps():
            if step.input < inputs:
                seen, rounded = seen_weights(step.conv), _rounded(*effective_weight(step))
                step.conv.weight.copy_(torch.where(seen, rounded, step.conv.weight))
        self.rounds_first = False

    @torch.no_grad()
    def calibrate(self, bits: Tensor, side: Tensor | None = None) -> None:
        """Set the scales of the activations from a batch, so that rounding them costs few bits.

        What an error costs depends on where it is: flat regions, where values are small, suffer
        most. So squared errors count as much as the square of the code length's gradient there.
        """
        self.enabled = False
        samples = self._samples(bits, side, SCALE_POSITIONS)[:-1]
        for log_scale, (x, weight) in zip(self.log_scales, samples, strict=True):
            log_scale.copy_(_best_scales(x, weight).log())
        self.enabled = True

    def _samples(
        self, bits: Tensor, side: Tensor | None, count: int
    ) -> list[tuple[Tensor, Tensor]]:
        """The results of all steps at some positions, [channels, positions], and what errors cost
        there: the squares of the code length's gradients."""
        steps = len(self.network.steps())
        found: list[list[Tensor]] = [[] for _ in range(2 * steps)]
        for number, picture in enumerate(bits.split(1)):  # all at once take much memory
            with torch.enable_grad():
                results = self._tensors(
                    picture.clone().requires_grad_(), None if side is None else side[[number]]
                )
                loss = F.binary_cross_entropy_with_logits(results[-1], picture, reduction="sum")
                gradients = torch.autograd.grad(loss, results)
            places = _places(bits, number, count)
            for parts, tensor in zip(found, (*results, *gradients), strict=True):
                parts.append(tensor.detach()[0].flatten(1)[:, places])
        whole = [torch.cat(parts, 1) for parts in found]
        return [(x, g.square()) for x, g in zip(whole[:steps], whole[steps:], strict=True)]

    @torch.no_grad()
    def round_weights(self, bits: Tensor, side: Tensor | None = None) -> None:
        """Round all weights, so that errors cancel for inputs like these; after ``calibrate``.

        For networks that are not trained on with rounding. Layer by layer, weights first become
        those that make the least squared error of the rounded inputs, against what the float
        network has there. Then, weight by weight, those not yet rounded make up for the error, as
        far as their inputs are correlated (GPTQ, arXiv 2210.17323), and biases for its mean. Errors
        weigh as in ``calibrate``. The largest weight of an output stays, so that scales do.
        """
        tensors = [bits] if side is None else [bits, side]
        self.enabled = False
        exact = tensors + self._tensors(bits, side)
        costs = [cost for _, cost in self._samples(bits, side, ROUNDING_POSITIONS)]
        self.enabled = True
        scales = self.scales()
        for index, step in enumerate(self.network.steps()):
            in_scale = scales[step.input].view(1, -1, 1, 1)
            weight, bias = effective_weight(step)
            x, wanted = (
                _windows(t[step.input] / in_scale, weight.shape[2]) for t in (tensors, exact)
            )
            real = (weight * in_scale).flatten(1).double().cpu()
            seen = seen_weights(step.conv).flatten(1)[:: step.conv.out_channels // len(real)].cpu()
            size = len(real) // len(group_mask(step.conv))
            groups = []
            fitted, rounded = torch.zeros_like(real), torch.zeros_like(real)
            for first in range(0, len(real), size):
                group, places = slice(first, first + size), seen[first]  # its outputs see the same
                inputs = _Inputs(x[places], wanted[places], costs[index][group].mean(0).cpu())
                fitted[group, places] = inputs.fitted(real[group, places])
                groups.append((group, places, inputs))
            scale = weight_scale(fitted.view_as(weight), bias.cpu()).flatten(1)
            shift = torch.zeros_like(real[:, 0])
            for group, places, inputs in groups:
                units = inputs.rounded(fitted[group, places] / scale[group])
                rounded[group, places] = units * scale[group]
                shift[group] = real[group, places] @ inputs.wanted_mean
                shift[group] -= rounded[group, places] @ inputs.mean
            weight = rounded.to(weight).view_as(weight) / in_scale
            bias = bias + shift.to(bias)
            if step.prelu is None:  # the difference of two logits
                weight, bias = (torch.stack([t * 0, t], 1).flatten(0, 1) for t in (weight, bias))
            step.conv.weight.copy_(weight)
            step.conv.bias.copy_(bias)
            tensors.append(_result(step, tensors, scales))

    def scales(self) -> list[Tensor]:
        """Of all tensors, inputs included: [channels] each."""
        found = [self.network.head.weight.new_ones(PLANES)]
        if self.network.side is not None:
            found.append(found[0].new_ones(self.network.side.conv.in_channels))
        return found + [log_scale.exp() for log_scale in self.log_scales]

    def forward(self, bits: Tensor, side: Tensor | None = None) -> Tensor:
        """As :meth:`LosslessNetwork.forward`."""
        logits = self._tensors(bits, side)[-1]
        return logits.clamp(-MAX_LOGIT, MAX_LOGIT - LOGIT_STEP) if self.enabled else logits

    def _tensors(self, bits: Tensor, side: Tensor | None) -> list[Tensor]:
        """The results of all steps."""
        tensors = [bits] if side is None else [bits, side]
        inputs = len(tensors)
        scales = self.scales() if self.enabled else []
        for step in self.network.steps():
            rounds_weight = self.rounds_first and step.input < inputs
            tensors.append(_result(step, tensors, scales, rounds_weight))
        return tensors[inputs:]


def _result(
    step: Step, tensors: list[Tensor], scales: list[Tensor], rounds_weight: bool = False
) -> Tensor:
    """Of the step after those whose results are the last of ``tensors``; rounded if there are
    scales, which the head's result has none of."""
    weight, bias = effective_weight(step)
    if scales:
        in_scale = scales[step.input].view(1, -1, 1, 1)
        weight = _rounded(weight * in_scale, bias) / in_scale
    elif rounds_weight:
        weight = _rounded(weight, bias)
    x = trimmed_training.conv2d(tensors[step.input], weight, group_mask(step.conv), bias)
    if step.prelu is not None:
        x = trimmed_training.prelu(x, step.prelu.weight)
    residual = None if step.residual is None else tensors[step.residual]
    if len(tensors) < len(scales):
        return trimmed_training.fake_quantize(x, scales[len(tensors)], residual)
    return x if residual is None else x + residual


def effective_weight(step: Step) -> tuple[Tensor, Tensor]:
    """Weight and bias with zeros where trimmed; of the head, the difference of its two logits."""
    weight = torch.where(seen_weights(step.conv), step.conv.weight, 0.0)
    bias = step.conv.bias
    if step.prelu is None:
        weight, bias = weight[1::2] - weight[::2], bias[1::2] - bias[::2]
    return weight, bias


def _rounded(weight: Tensor, bias: Tensor) -> Tensor:
    """To whole multiples of the scale; the gradient passes straight through."""
    scale = weight_scale(weight.detach(), bias.detach())
    return round_ste(weight / scale).clamp(-127, 127) * scale


def weight_scale(weight: Tensor, bias: Tensor) -> Tensor:
    """Scale of each output channel, [Cout, 1, 1, 1]: of weights, large enough for the bias too."""
    peak = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    return peak.maximum(bias.abs().view(-1, 1, 1, 1) / _MAX_BIAS).clamp(min=1e-14)


def _places(pictures: Tensor, number: int, count: int) -> slice:
    """Positions of a picture, where some ``count`` of all [N, C, H, W] are evenly spread."""
    size = pictures.shape[2] * pictures.shape[3]
    every = max(1, len(pictures) * size // count)
    return slice(-number * size % every, None, every)


def _windows(x: Tensor, kernel: int) -> Tensor:
    """What the kernel sees at some positions: [C * kernel**2, positions]."""
    parts = []
    for number, picture in enumerate(x.split(1)):  # the windows of all take much memory
        windows = F.unfold(picture.float(), kernel, padding=kernel // 2)[0]
        parts.append(windows[:, _places(x, number, ROUNDING_POSITIONS)].cpu())
    return torch.cat(parts, 1)


class _Inputs:
    """What some outputs see, all of them the same; and weights that suit it.

    Args:
        x: inputs of the rounded network, [inputs, positions].
        wanted: those of the float one.
        cost: of errors, [positions].
    """

    def __init__(self, x: Tensor, wanted: Tensor, cost: Tensor) -> None:
        share = cost / cost.mean().clamp(min=1e-30) + LEAST_COST
        share /= share.sum()
        self.mean, self.wanted_mean = (x @ share).double(), (wanted @ share).double()
        x = x - self.mean[:, None].float()
        wanted = wanted - self.wanted_mean[:, None].float()
        self.covariance, self.cross = ((y * share @ x.T).double() for y in (x, wanted))
        # Some inputs are nearly constant, or nearly the same.
        damping = 0.01 * self.covariance.diagonal().sum() / max(1, len(x)) + 1e-9
        self.damped = self.covariance + damping * torch.eye(len(x))

    def fitted(self, rows: Tensor) -> Tensor:
        """Weights that make of the rounded inputs what ``rows`` make of the float ones."""
        change = rows @ (self.cross - self.covariance)
        return rows + torch.linalg.solve(self.damped, change.T).T

    def rounded(self, rows: Tensor) -> Tensor:
        """Integers for weights in units of their scales."""
        if not rows.numel():
            return rows
        places = self.covariance.diagonal().argsort(descending=True).numpy()
        left = rows.numpy()[:, places]
        largest = np.abs(left).argmax(1)
        kept = np.round(left[np.arange(len(left)), largest])
        inverse = torch.linalg.inv(self.damped[places][:, places])
        factor = torch.linalg.cholesky(inverse, upper=True).numpy()
        result = np.empty_like(left)
        for i in range(len(places)):
            value = np.where(largest == i, kept, np.clip(np.round(left[:, i]), -127, 127))
            left[:, i:] -= np.outer((left[:, i] - value) / factor[i, i], factor[i, i:])
            result[:, places[i]] = value
        return torch.from_numpy(result)


def _best_scales(x: Tensor, weight: Tensor) -> Tensor:
    """For each row the scale with the least weighted squared error of rounding to -127..127."""
    peak = x.abs().amax(1)
    peak = peak.clamp(min=max(1e-4, float(peak.max()) / MAX_PEAK_RATIO))
    scales = torch.stack([peak / 127 * factor for factor in np.geomspace(1, 1 / 16, 33)])
    errors = [
        (weight * (x - (x / s[:, None]).round().clamp(-127, 127) * s[:, None]).square()).mean(1)
        for s in scales
    ]
    return scales.gather(0, torch.stack(errors).argmin(0, keepdim=True))[0]


@torch.no_grad()
def export_network(quantized: QuantizedNetwork) -> list[IntegerLayer]:
    """The integer layers; tensors are numbered as in :class:`Step`.

    The last one gives an index into :func:`bit_tables`.

    Raises:
        InputError: a layer's accumulators could overflow int32, or its scales are too far apart.
    """
    steps = quantized.network.steps()
    all_scales = quantized.scales()
    inputs = len(all_scales) - len(steps) + 1
    layers = []
    for index, step in enumerate(steps):
        weight, bias = effective_weight(step)
        weight = weight * all_scales[step.input].view(1, -1, 1, 1)
        scale = weight_scale(weight, bias)
        integers = (weight / scale).round().clamp(-127, 127).to(torch.int8)
        in_scale = scale.flatten().double().numpy()
        last = index == len(steps) - 1
        channels = len(in_scale)
        out_scale = np.full(channels, LOGIT_STEP)
        if not last:
            out_scale = all_scales[inputs + index].double().numpy()
        factors = [in_scale / out_scale, in_scale / out_scale * _slopes(step.prelu, channels)]
        if step.residual is not None:
            factors.append(all_scales[step.residual].double().numpy() / out_scale)
        largest = max(np.abs(f).max() for f in factors)
        shift = _MULTIPLIER_BITS - int(np.ceil(np.log2(largest)))
        if not 1 <= shift <= 62:
            raise InputError(f"step {index}: its scales are too far apart for integers")
        multipliers = [np.round(f * 2.0**shift).astype(np.int32) for f in factors]
        real_bias = bias.double().numpy()
        if last:  # the middle table, exactly: an offset of the index
            real_bias = real_bias + NUM_TABLES // 2 * LOGIT_STEP
        integer_bias = np.round(real_bias / in_scale)
        reach = np.abs(integers.numpy().astype(np.int64)).sum((1, 2, 3)) * 128
        if (reach + np.abs(integer_bias)).max() >= 1 << 31:
            raise InputError(f"step {index}: its accumulators could overflow")
        layers.append(
            IntegerLayer(
                input=step.input,
                weight=np.ascontiguousarray(integers.permute(0, 2, 3, 1).numpy()),
                mask=group_mask(step.conv).numpy(),
                bias=integer_bias.astype(np.int32),
                multiplier=multipliers[0],
                negative_multiplier=multipliers[1],
                shift=shift,
                residual=step.residual,
                residual_multiplier=None if step.residual is None else multipliers[2],
                lower=0 if last else -127,
                upper=NUM_TABLES - 1 if last else 127,
            )
        )
    return layers


@torch.no_grad()
def restore_network(network: LosslessNetwork, layers: Sequence[IntegerLayer]) -> None:
    """Set the weights to those of an exported network, to train it further.

    Scales of activations are not kept in integers, and mean nothing without rounding: they are
    chosen so that weights are as large as those of trained networks.

    Raises:
        InputError: the layers are those of another network.
    """
    steps = network.steps()
    shapes = [tuple(effective_weight(step)[0].permute(0, 2, 3, 1).shape) for step in steps]
    if shapes != [layer.weight.shape for layer in layers]:
        raise InputError("the model's layers are those of another network")
    scales = [np.ones(PLANES)]
    if network.side is not None:
        scales.append(np.ones(network.side.conv.in_channels))
    for step, layer in zip(steps, layers, strict=True):
        factor = layer.multiplier * 2.0**-layer.shift
        weight = layer.weight.transpose(0, 3, 1, 2) * factor[:, None, None, None]
        weight = weight / scales[step.input][:, None, None]
        if step.prelu is None:
            scale = np.full(len(weight), LOGIT_STEP)
        elif step.residual is not None:
            of_residual = np.maximum(layer.residual_multiplier, 1)
            scale = scales[step.residual] * 2.0**layer.shift / of_residual
        else:
            size = np.sqrt(np.square(weight).sum((1, 2, 3)))
            # A channel without weights is a constant.
            scale = _USUAL_SIZE / np.where(size > 0, size, _USUAL_SIZE)
        bias = layer.bias * factor * scale
        real = [torch.from_numpy(a).float() for a in (weight * scale[:, None, None, None], bias)]
        if step.prelu is None:  # an index, of two logits' difference
            real[1] -= NUM_TABLES // 2 * LOGIT_STEP
            real = [torch.stack([-t / 2, t / 2], 1).flatten(0, 1) for t in real]
        else:
            slope = layer.negative_multiplier / np.maximum(layer.multiplier, 1)
            step.prelu.weight.copy_(torch.from_numpy(slope))
            scales.append(scale)
        step.conv.weight.copy_(real[0])
        step.conv.bias.copy_(real[1])


def _slopes(prelu: nn.PReLU | None, channels: int) -> np.ndarray:
    if prelu is None:
        return np.ones(channels)
    return prelu.weight.double().numpy()
