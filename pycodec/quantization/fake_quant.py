"""Layers that train in float with the rounding of their integer form simulated.

The integer form (``docs/determinism.md``) has int8 weights with one scale an output channel, uint8
activations after a ReLU with one scale a tensor, int8 inputs with one scale a channel, and int32
accumulators. Here the same grids are applied to float values; gradients pass straight through the
rounding and reach the scales (LSQ, arXiv 1902.08153).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pycodec.models.blocks import current_grid


def round_ste(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient is that of the identity."""
    return x + (torch.round(x) - x).detach()


class QuantizedActivation(nn.Module):
    """Rounds activations to an unsigned (0..255) or signed (-127..127) 8-bit grid.

    Args:
        channels: 1 for one scale a tensor, else one scale a channel.
        signed: int8 instead of uint8.

    While ``observing``, values pass unchanged and their running peak is recorded; ``start`` turns
    it into the first scale, which is trained from then on.
    """

    def __init__(self, channels: int = 1, signed: bool = False) -> None:
        super().__init__()
        self.low, self.high = (-127, 127) if signed else (0, 255)
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("peak", torch.zeros(channels))
        self.observing = False
        self.enabled = False

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def start(self) -> None:
        """Set the scales from what was observed and begin to quantize."""
        with torch.no_grad():
            self.log_scale.copy_((self.peak.clamp(min=1e-3) / self.high).log())
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        if self.enabled:
            scale = self.scale.view(1, -1, 1, 1)
            return round_ste((x / scale).clamp(self.low, self.high)) * scale
        if self.observing:
            with torch.no_grad():
                # 99.9 % of the mass: a lone outlier must not cost everybody else resolution.
                flat = x.abs().transpose(0, 1).reshape(x.shape[1], -1)
                if self.peak.numel() == 1:
                    flat = flat.reshape(1, -1)
                k = max(1, flat.shape[1] // 1000)
                peak = flat.topk(k, dim=1).values[:, -1].float()
                self.peak.lerp_(peak, 1.0 if not self.peak.any() else 0.02)
        return x


class QuantizedConv2d(nn.Module):
    """A stride-1, zero-padded convolution whose weights round to int8 when quantization is on.

    On the sphere (``pycodec.models.blocks.on_sphere``) it pads as integers are padded there.
    ``forward`` takes real-valued activations and the scales of their grids, one an input channel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, gain: float = 2.0) -> None:
        super().__init__()
        std = (gain / (in_channels * kernel * kernel)) ** 0.5
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel) * std)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.enabled = False

    def weight_grid(self, in_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Weights on integer inputs and their scales: ``[O, I, k, k]`` and ``[O, 1, 1, 1]``.

        The input's scale is folded into the weight first, so that inputs of different scales
        (concatenated tensors, per-channel grids) meet in one integer convolution.
        """
        folded = self.weight * in_scale.view(1, -1, 1, 1)
        scale = folded.detach().abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12) / 127
        return folded, scale

    def forward(self, x: Tensor, in_scale: Tensor) -> Tensor:
        weight = self.weight
        if self.enabled:
            folded, scale = self.weight_grid(in_scale)
            weight = round_ste(folded / scale) * scale / in_scale.view(1, -1, 1, 1)
        grid, padding = current_grid(), weight.shape[-1] // 2
        if grid is not None and padding:
            x, padding = grid.pad(x, padding, nearest=True), 0
        return F.conv2d(x, weight, self.bias, padding=padding)
