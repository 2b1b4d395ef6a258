"""From a float context network to the integer one that codes.

Quantization follows ``docs/determinism.md``: int8 weights with a scale an output channel, int8
activations with a scale a tensor, int32 accumulators. :class:`QuantizedNetwork` simulates it, so
that training can go on with it (LSQ, arXiv 1902.08153); :func:`export_network` makes the integers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pycodec.coding.tables import TableSet, quantize_pmf
from pycodec.context.wave_network import IntegerLayer
from pycodec.errors import InputError
from pycodec.models.lossless_network import LosslessNetwork, Step, group_mask, seen_weights
from pycodec.quantization.fake_quant import QuantizedActivation, round_ste

NUM_TABLES = 256
MAX_LOGIT = 11.0
"""A table's least probable bit has exp(-11), as good as the least that 16 bits hold."""
LOGIT_STEP = MAX_LOGIT / (NUM_TABLES / 2)
"""Table i is for a logit of (i - 128) steps."""
PRECISION = 16

_MULTIPLIER_BITS = 24


def bit_tables() -> TableSet:
    """Tables of a bit, one for each step of the log odds of a 1: the softmax as a lookup."""
    logits = (np.arange(NUM_TABLES) - NUM_TABLES // 2) * LOGIT_STEP
    one = 1 / (1 + np.exp(-logits))
    frequencies = [quantize_pmf(np.array([1 - p, p]), PRECISION) for p in one]
    return TableSet(frequencies, [0] * NUM_TABLES, PRECISION)


class QuantizedNetwork(nn.Module):
    """A :class:`LosslessNetwork` with the rounding of its integer form.

    Args:
        network: shared, not copied: training this trains it.
    """

    def __init__(self, network: LosslessNetwork) -> None:
        super().__init__()
        self.network = network
        self.activations = nn.ModuleList(
            QuantizedActivation(signed=True) for _ in network.steps()[:-1]
        )
        self.enabled = False

    @torch.no_grad()
    def calibrate(self, bits: Tensor, side: Tensor | None = None) -> None:
        """Set the scales of the activations from a batch, each for the least squared error."""
        self.set_enabled(False)
        for index, x in enumerate(self._tensors(bits, side)[: len(self.activations)]):
            self.activations[index].log_scale.fill_(_best_scale(x.float()).log())
        self.set_enabled(True)

    def set_enabled(self, enabled: bool) -> None:
        """Whether to round."""
        self.enabled = enabled
        for activation in self.activations:
            activation.enabled = enabled

    def forward(self, bits: Tensor, side: Tensor | None = None) -> Tensor:
        """As :meth:`LosslessNetwork.forward`."""
        logits = self._tensors(bits, side)[-1]
        return logits.clamp(-MAX_LOGIT, MAX_LOGIT - LOGIT_STEP) if self.enabled else logits

    def _tensors(self, bits: Tensor, side: Tensor | None) -> list[Tensor]:
        """The results of all steps."""
        inputs = [bits] if side is None else [bits, side]
        scales = [bits.new_ones(1, dtype=torch.float32)] * len(inputs)
        tensors = list(inputs)
        for index, step in enumerate(self.network.steps()):
            weight, bias = effective_weight(step)
            if self.enabled:
                scale = weight_scale(weight.detach())
                weight = round_ste(weight / scale).clamp(-127, 127) * scale
            x = F.conv2d(tensors[step.input], weight, bias, padding=weight.shape[2] // 2)
            if step.prelu is not None:
                x = step.prelu(x)
            if step.residual is not None:
                x = x + tensors[step.residual]
            if index < len(self.activations):
                x = self.activations[index](x)
                scales.append(self.activations[index].scale)
            tensors.append(x)
        return tensors[len(inputs) :]


def effective_weight(step: Step) -> tuple[Tensor, Tensor]:
    """Weight and bias with zeros where trimmed; of the head, the difference of its two logits."""
    weight = torch.where(seen_weights(step.conv), step.conv.weight, 0.0)
    bias = step.conv.bias
    if step.prelu is None:
        weight, bias = weight[1::2] - weight[::2], bias[1::2] - bias[::2]
    return weight, bias


def weight_scale(weight: Tensor) -> Tensor:
    """Scale of each output channel, [Cout, 1, 1, 1]."""
    return weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12) / 127


def _best_scale(x: Tensor) -> Tensor:
    peak = x.abs().max().clamp(min=1e-6)
    scales = [peak / 127 * factor for factor in np.geomspace(1, 1 / 16, 33)]
    sample = x.flatten()[:: max(1, x.numel() // 200_000)]
    errors = [(sample - (sample / s).round().clamp(-127, 127) * s).square().mean() for s in scales]
    return scales[int(torch.stack(errors).argmin())]


@torch.no_grad()
def export_network(quantized: QuantizedNetwork) -> list[IntegerLayer]:
    """The integer layers; tensors are numbered as in :class:`Step`.

    The last one gives an index into :func:`bit_tables`.

    Raises:
        InputError: a layer's accumulators could overflow int32, or its scales are too far apart.
    """
    steps = quantized.network.steps()
    inputs = 1 if quantized.network.side is None else 2
    scales = [1.0] * inputs
    layers = []
    for index, step in enumerate(steps):
        weight, bias = effective_weight(step)
        scale = weight_scale(weight)
        integers = (weight / scale).round().clamp(-127, 127).to(torch.int8)
        in_scale = scale.flatten().double().numpy() * scales[step.input]
        last = index == len(steps) - 1
        out_scale = LOGIT_STEP if last else float(quantized.activations[index].scale)
        slope = np.ones(len(in_scale)) if last else _slopes(step.prelu, len(in_scale))
        factors = [in_scale / out_scale, in_scale / out_scale * slope]
        residual_factor = 0.0 if step.residual is None else scales[step.residual] / out_scale
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
        scales.append(out_scale)
    return layers


def _slopes(prelu: nn.PReLU | None, channels: int) -> np.ndarray:
    if prelu is None:
        return np.ones(channels)
    return prelu.weight.double().numpy()
