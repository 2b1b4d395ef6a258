"""The photo codec's entropy model in float, for training; its integer form is what codes files.

A hyperprior gives features at latent resolution; four stages of the quadtree order follow, each
with a small network that sees the features and all latents of earlier stages, and predicts mean and
scale of its own. All quantities live in the latents' native units; the quantization step of a
channel is a function of quality, so one set of weights serves every quality.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pycodec.context.quadtree import STAGES, stage_mask
from pycodec.models.blocks import QualityTable, current_grid
from pycodec.ops.quadtree_stage import LOG2_SCALE_MIN, LOG2_UNITS, SCALE_LEVELS
from pycodec.quantization.fake_quant import QuantizedActivation, QuantizedConv2d, round_ste

MIN_LOG2_SCALE = LOG2_SCALE_MIN / LOG2_UNITS
MAX_LOG2_SCALE = (LOG2_SCALE_MIN + 16 * (SCALE_LEVELS - 1)) / LOG2_UNITS
"""Range of the scale tables, in octaves of a quantization step: sigma 0.080 to 87."""


def gaussian_bits(x: Tensor, scale: Tensor) -> Tensor:
    """Bits of a zero-mean Gaussian integrated over [x - 1/2, x + 1/2]."""
    x = x.abs()
    inv = math.sqrt(0.5) / scale
    upper = torch.erfc((x - 0.5) * inv)
    lower = torch.erfc((x + 0.5) * inv)
    return -torch.log2((0.5 * (upper - lower)).clamp(min=2e-9))


class LowerBound(torch.autograd.Function):
    """max(x, bound), passing gradients that would move x upwards (Balle et al. 2018)."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


class HyperSynthesis(nn.Module):
    """Hyperlatents ``[B, Z, h, w]`` to features ``[B, F, 4 h, 4 w]``."""

    def __init__(self, hyper_channels: int, hidden: tuple[int, int], features: int) -> None:
        super().__init__()
        wide, narrow = hidden
        self.input = QuantizedActivation(1, signed=True)
        self.conv1 = QuantizedConv2d(hyper_channels, wide, 3)
        self.act1 = QuantizedActivation()
        self.conv2 = QuantizedConv2d(wide, 4 * narrow, 1)
        self.act2 = QuantizedActivation()
        self.conv3 = QuantizedConv2d(narrow, narrow, 3)
        self.act3 = QuantizedActivation()
        self.conv4 = QuantizedConv2d(narrow, 4 * features, 1)
        self.quality_bias = QualityTable(4 * features)
        self.act4 = QuantizedActivation()

    def forward(self, z: Tensor, quality: Tensor) -> Tensor:
        x = self.act1(F.relu(self.conv1(self.input(z), self.input.scale)))
        x = self.act2(F.relu(self.conv2(x, self.act1.scale)))
        x = self.act3(F.relu(self.conv3(F.pixel_shuffle(x, 2), self.act2.scale)))
        x = self.conv4(x, self.act3.scale) + self.quality_bias(quality)[:, :, None, None]
        return F.pixel_shuffle(self.act4(F.relu(x)), 2)


class StageNetwork(nn.Module):
    """Features and the latents decoded so far to mean and log2 scale of every channel.

    The first stage has no latents to look at and no context convolution.
    """

    def __init__(self, latents: int, context: int, features: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.context = None if first else QuantizedConv2d(latents, context, 3)
        self.act_context = None if first else QuantizedActivation()
        self.mix = QuantizedConv2d(features + (0 if first else context), hidden, 1)
        self.quality_bias = QualityTable(hidden)
        self.act_mix = QuantizedActivation()
        self.hidden = QuantizedConv2d(hidden, hidden, 1)
        self.act_hidden = QuantizedActivation()
        self.head = QuantizedConv2d(hidden, 2 * latents, 1, gain=0.1)

    def forward(
        self,
        features: Tensor,
        feature_scale: Tensor,
        latents: Tensor,
        latent_scale: Tensor,
        quality: Tensor,
    ) -> tuple[Tensor, ...]:
        scale = feature_scale.expand(features.shape[1])
        x = features
        if self.context is not None:
            seen = self.act_context(F.relu(self.context(latents, latent_scale)))
            x = torch.cat([features, seen], dim=1)
            scale = torch.cat([scale, self.act_context.scale.expand(seen.shape[1])])
        x = self.mix(x, scale) + self.quality_bias(quality)[:, :, None, None]
        x = self.act_mix(F.relu(x))
        x = self.act_hidden(F.relu(self.hidden(x, self.act_mix.scale)))
        with torch.autocast(x.device.type, enabled=False):  # means need more than 8 bits
            return self.head(x.float(), self.act_hidden.scale).chunk(2, dim=1)


class EntropyModel(nn.Module):
    """Hyperprior and staged context; ``forward`` quantizes and prices the latents.

    Args:
        latent_channels: M, a multiple of 4.
        hyper_channels: Z.
        log2_step: ``[QUALITY_NODES]`` start of the quantization steps.
    """

    def __init__(
        self,
        latent_channels: int,
        hyper_channels: int,
        context: int,
        features: int,
        hidden: int,
        log2_step: Tensor,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.quantized = False
        self.log2_step = QualityTable(latent_channels, log2_step)
        self.hyper_log2_scale = QualityTable(hyper_channels, 0.0)
        self.hyper_synthesis = HyperSynthesis(hyper_channels, (128, 96), features)
        self.latent_input = QuantizedActivation(latent_channels, signed=True)
        self.stages = nn.ModuleList(
            StageNetwork(latent_channels, context, features, hidden, first=stage == 0)
            for stage in range(STAGES)
        )

    def set_quantization(self, enabled: bool) -> None:
        """Switch simulated integer arithmetic on (scales start from observed peaks) or off."""
        self.quantized = enabled
        for module in self.modules():
            if isinstance(module, QuantizedActivation):
                if enabled and not module.enabled:
                    module.start()
                module.enabled = enabled
            elif isinstance(module, QuantizedConv2d):
                module.enabled = enabled
        with torch.no_grad():  # Hyperlatents are integers already: their grid is exactly 1.
            self.hyper_synthesis.input.log_scale.zero_()
        self.hyper_synthesis.input.log_scale.requires_grad_(False)

    def forward(self, y: Tensor, z: Tensor, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents ``y [B, M, h, w]``, hyperlatents ``z [B, Z, ceil(h/4), ceil(w/4)]``.

        Returns quantized latents (as ``y``), and bits of latents and hyperlatents ``[B]`` each:
        rounding with straight-through gradients for the first, uniform noise for the bits
        in training and rounding for both otherwise (Minnen and Singh 2020, arXiv 2007.08739).

        On the sphere (``pycodec.models.blocks.on_sphere``) contexts cross the borders of tiles as
        those of ``IntegerEntropyModel.encode_sphere`` do; bits are those within tiles' widths.
        """
        _, channels, height, width = y.shape
        z_noisy = z + torch.rand_like(z) - 0.5 if self.training else torch.round(z)
        z_log2 = LowerBound.apply(self.hyper_log2_scale(quality), MIN_LOG2_SCALE)
        z_bits = gaussian_bits(z_noisy, torch.exp2(z_log2)[:, :, None, None])
        features = self.hyper_synthesis(round_ste(z), quality)[:, :, :height, :width]

        log2_step = self.log2_step(quality)[:, :, None, None]
        step = torch.exp2(log2_step)
        decoded = torch.zeros_like(y)
        mean = torch.zeros_like(y)
        log2_scale = torch.zeros_like(y)
        masks = _stage_masks(channels, height, width, y.device, y.dtype)
        for stage, network in enumerate(self.stages):
            mask = masks[stage]
            seen = self.latent_input(decoded) if stage else decoded
            stage_mean, stage_log2 = network(
                features, self.hyper_synthesis.act4.scale, seen, self.latent_input.scale, quality
            )
            mean = mean + mask * stage_mean
            log2_scale = log2_scale + mask * stage_log2
            symbols = round_ste((y - stage_mean) / step)
            decoded = decoded + mask * (symbols * step + stage_mean)
        normalized = (y - mean) / step
        noisy = normalized + torch.rand_like(y) - 0.5 if self.training else torch.round(normalized)
        log2_scale = LowerBound.apply(log2_scale - log2_step, MIN_LOG2_SCALE)
        bits = gaussian_bits(noisy, torch.exp2(log2_scale.clamp(max=MAX_LOG2_SCALE)))
        grid = current_grid()
        if grid is not None:
            bits, z_bits = bits * grid.own(bits), z_bits * grid.own(z_bits)
        return decoded, bits.sum(dim=(1, 2, 3)), z_bits.sum(dim=(1, 2, 3))


@functools.lru_cache(maxsize=8)
def _stage_masks(
    channels: int, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Ones where each stage has its symbols: ``[STAGES, channels, height, width]``."""
    masks = np.stack([stage_mask(stage, channels, height, width) for stage in range(STAGES)])
    with torch.inference_mode(False):  # whoever comes first: training may come next
        return torch.from_numpy(masks).to(device, dtype)
