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
    values and some bits, differ a hundredfold. Where a tensor is added to another one, the two
    have the same scales but for one factor, so that one multiplier serves all channels.

    Args:
        network: shared, not copied: training this trains it.
    """

    def __init__(self, network: LosslessNetwork) -> None:
        super().__init__()
        self.network = network
        self.log_scales = nn.ParameterList(
            nn.Parameter(torch.zeros(step.conv.out_channels if step.residual is None else 1))
            for step in network.steps()[:-1]
        )
        self.enabled = False

    @torch.no_grad()
    def calibrate(self, bits: Tensor, side: Tensor | None = None) -> None:
        """Set the scales of the activations from a batch, for little squared error of each."""
        self.enabled = False
        results = [r.float().transpose(0, 1).flatten(1) for r in self._tensors(bits, side)[:-1]]
        best = [_best_scales(x).log() for x in results]
        # What is added up has channels in one proportion to each other: that of all the sums, less
        # what no convolution reads.
        read = {step.input for step in self.network.steps()}
        chains: dict[int, list[int]] = {}
        roots: list[int] = []
        inputs = 1 if side is None else 2
        for index, step in enumerate(self.network.steps()[:-1]):
            roots.append(index if step.residual is None else roots[step.residual - inputs])
            chains.setdefault(roots[-1], []).append(index)
        for root, chain in chains.items():
            seen = [best[i] - best[i].mean() for i in chain if inputs + i in read]
            proportion = torch.stack(seen).mean(0)
            self.log_scales[root].copy_(proportion + best[root].mean())
            for index in chain[1:]:
                scale = self.scales()[self.network.steps()[index].residual]
                whole = (results[index] / scale[:, None]).reshape(1, -1)
                self.log_scales[index].copy_(_best_scales(whole).log())
        self.enabled = True

    @torch.no_grad()
    def round_weights(self, bits: Tensor, side: Tensor | None = None) -> None:
        """Round all weights, so that errors cancel for inputs like these; after ``calibrate``.

        For networks that are not trained on with rounding. Layer by layer and weight by weight, the
        weights not yet rounded make up for the error, as far as their inputs are correlated
        (GPTQ, arXiv 2210.17323), and biases for its mean. Largest weights stay, so that scales do.
        """
        for step in self.network.steps():
            tensors = [bits] if side is None else [bits, side]
            tensors += self._tensors(bits, side)
            in_scale = self.scales()[step.input].view(1, -1, 1, 1)
            weight, bias = effective_weight(step)
            scale = weight_scale(weight * in_scale, bias)
            x = _windows(tensors[step.input] / in_scale, weight.shape[2])
            mean = x.mean(1)
            x -= mean[:, None]
            covariance = (x @ x.T / x.shape[1]).double().cpu().numpy()
            real = (weight * in_scale / scale).flatten(1)
            rounded = torch.empty_like(real)
            seen = seen_weights(step.conv).flatten(1)[:: step.conv.out_channels // len(real)]
            seen = seen.cpu().numpy()
            for out, row in enumerate(real.double().cpu().numpy()):
                rounded[out] = torch.from_numpy(_rounded(row, seen[out], covariance))
            bias = bias + ((real - rounded) @ mean) * scale.flatten()
            weight = rounded.view_as(weight) * scale / in_scale
            if step.prelu is None:  # the difference of two logits
                weight, bias = (torch.stack([t * 0, t], 1).flatten(0, 1) for t in (weight, bias))
            step.conv.weight.copy_(weight)
            step.conv.bias.copy_(bias)

    def scales(self) -> list[Tensor]:
        """Of all tensors, inputs included: [channels] each."""
        steps = self.network.steps()
        found = [self.network.head.weight.new_ones(PLANES)]
        if self.network.side is not None:
            found.append(found[0].new_ones(self.network.side.conv.in_channels))
        for step, log_scale in zip(steps, self.log_scales, strict=False):
            scale = log_scale.exp()
            found.append(scale if step.residual is None else scale * found[step.residual])
        return found

    def forward(self, bits: Tensor, side: Tensor | None = None) -> Tensor:
        """As :meth:`LosslessNetwork.forward`."""
        logits = self._tensors(bits, side)[-1]
        return logits.clamp(-MAX_LOGIT, MAX_LOGIT - LOGIT_STEP) if self.enabled else logits

    def _tensors(self, bits: Tensor, side: Tensor | None) -> list[Tensor]:
        """The results of all steps."""
        tensors = [bits] if side is None else [bits, side]
        inputs = len(tensors)
        scales = self.scales() if self.enabled else []
        for index, step in enumerate(self.network.steps()):
            weight, bias = effective_weight(step)
            if self.enabled:
                in_scale = scales[step.input].view(1, -1, 1, 1)
                weight = weight * in_scale
                scale = weight_scale(weight.detach(), bias.detach())
                weight = round_ste(weight / scale).clamp(-127, 127) * scale / in_scale
            x = trimmed_training.conv2d(tensors[step.input], weight, group_mask(step.conv), bias)
            if step.prelu is not None:
                x = trimmed_training.prelu(x, step.prelu.weight)
            residual = None if step.residual is None else tensors[step.residual]
            if self.enabled and index < len(self.log_scales):
                x = trimmed_training.fake_quantize(x, scales[inputs + index], residual)
            elif residual is not None:
                x = x + residual
            tensors.append(x)
        return tensors[inputs:]


def effective_weight(step: Step) -> tuple[Tensor, Tensor]:
    """Weight and bias with zeros where trimmed; of the head, the difference of its two logits."""
    weight = torch.where(seen_weights(step.conv), step.conv.weight, 0.0)
    bias = step.conv.bias
    if step.prelu is None:
        weight, bias = weight[1::2] - weight[::2], bias[1::2] - bias[::2]
    return weight, bias


def weight_scale(weight: Tensor, bias: Tensor) -> Tensor:
    """Scale of each output channel, [Cout, 1, 1, 1]: of weights, large enough for the bias too."""
    peak = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    return peak.maximum(bias.abs().view(-1, 1, 1, 1) / _MAX_BIAS).clamp(min=1e-14)


def _windows(x: Tensor, kernel: int) -> Tensor:
    """What the kernel sees at up to 20,000 positions: [C * kernel**2, positions]."""
    windows = F.unfold(x.float(), kernel, padding=kernel // 2).transpose(0, 1).flatten(1)
    return windows[:, :: max(1, windows.shape[1] // 20_000)]


def _rounded(row: np.ndarray, seen: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Integers for the weights of one output, in units of its scale."""
    result = np.zeros_like(row)
    largest = np.abs(row * seen).argmax()
    result[largest] = np.round(row[largest])
    free = np.flatnonzero(seen)
    free = free[free != largest]
    free = free[np.argsort(-covariance[free, free])]
    left = row[free]
    square = covariance[np.ix_(free, free)]
    square += np.eye(len(free)) * (0.01 * np.trace(square) / max(1, len(free)) + 1e-9)
    factor = np.linalg.cholesky(np.linalg.inv(square)).T
    for i, place in enumerate(free):
        result[place] = np.clip(np.round(left[i]), -127, 127)
        error = (left[i] - result[place]) / factor[i, i]
        left[i:] -= error * factor[i, i:]
    return result


def _best_scales(x: Tensor) -> Tensor:
    """For each row the scale with the least squared error of rounding to -127..127."""
    x = x[:, :: max(1, x.shape[1] // 50_000)]
    peak = x.abs().amax(1).clamp(min=1e-4)
    scales = torch.stack([peak / 127 * factor for factor in np.geomspace(1, 1 / 16, 33)])
    errors = torch.stack(
        [
            (x - (x / s[:, None]).round().clamp(-127, 127) * s[:, None]).square().mean(1)
            for s in scales
        ]
    )
    return scales.gather(0, errors.argmin(0, keepdim=True))[0]


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
        residual_factor = 0.0
        if step.residual is not None:
            residual_factor = 1.0 / float(quantized.log_scales[index].exp())
        largest = max(*(np.abs(f).max() for f in factors), residual_factor)
        shift = _MULTIPLIER_BITS - int(np.ceil(np.log2(largest)))
        if not 1 <= shift <= 62:
            raise InputError(f"step {index}: its scales are too far apart for integers")
        positive, negative = (np.round(f * 2.0**shift).astype(np.int64) for f in factors)
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
                multiplier=positive.astype(np.int32),
                negative_multiplier=negative.astype(np.int32),
                shift=shift,
                residual=step.residual,
                residual_multiplier=round(residual_factor * 2.0**shift),
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
            scale = scales[step.residual] * 2.0**layer.shift / layer.residual_multiplier
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
