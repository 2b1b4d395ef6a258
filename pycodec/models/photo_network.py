"""The photo codec's trainable network: transforms and entropy model under one roof."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pycodec.models.blocks import QUALITY_NODES, set_branch_dtype
from pycodec.models.entropy_model import EntropyModel
from pycodec.models.transforms import HYPER_STRIDE, Analysis, HyperAnalysis, Synthesis

LAMBDA_MIN, LAMBDA_MAX = 0.0005, 0.3
"""Rate-distortion multipliers at quality 1 and 100, for bits a pixel + lambda 255^2 MSE."""


def quality_lambda(quality: Tensor) -> Tensor:
    """The multiplier that ``quality`` in [1, 100] stands for; log-linear."""
    return LAMBDA_MIN * (LAMBDA_MAX / LAMBDA_MIN) ** ((quality - 1.0) / 99.0)


@dataclass(frozen=True)
class PhotoConfig:
    """Widths of the network. The defaults are the published ``photo`` model."""

    widths: tuple[int, int, int] = (64, 192, 320)
    latent_channels: int = 320
    hyper_hidden: int = 128
    hyper_channels: int = 64
    context_channels: int = 96
    feature_channels: int = 128
    stage_hidden: int = 128


class PhotoNetwork(nn.Module):
    """Everything that is trained. ``forward`` is the training pass."""

    def __init__(self, config: PhotoConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PhotoConfig()
        self.analysis = Analysis(config.widths, config.latent_channels)
        self.synthesis = Synthesis(config.widths, config.latent_channels)
        self.hyper_analysis = HyperAnalysis(
            config.latent_channels, config.hyper_hidden, config.hyper_channels
        )
        # At high rate the optimal step falls with the square root of lambda.
        node_lambda = quality_lambda(torch.linspace(1.0, 100.0, QUALITY_NODES))
        self.entropy_model = EntropyModel(
            config.latent_channels,
            config.hyper_channels,
            config.context_channels,
            config.feature_channels,
            config.stage_hidden,
            log2_step=-0.5 * torch.log2(node_lambda / math.sqrt(LAMBDA_MIN * LAMBDA_MAX)),
        )

    def hyperlatents(self, y: Tensor, quality: Tensor) -> Tensor:
        """Hyperlatents of latents of any size: edges are repeated to a multiple of 4."""
        bottom, right = -y.shape[2] % HYPER_STRIDE, -y.shape[3] % HYPER_STRIDE
        return self.hyper_analysis(F.pad(y, (0, right, 0, bottom), mode="replicate"), quality)

    def forward(
        self, x: Tensor, quality: Tensor, autocast: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``x [B, 3, H, W]`` in [0, 1], sides multiples of 16; ``quality [B]`` in [1, 100].

        Returns the reconstruction and the bits of latents and hyperlatents, ``[B]`` each.
        ``autocast`` runs the residual branches of the transforms in bfloat16, and the entropy model
        too, except where latents are predicted, until its integer arithmetic is simulated.
        """
        dtype = torch.bfloat16 if autocast else torch.float32
        set_branch_dtype(self, dtype)
        y = self.analysis(x, quality)
        z = self.hyperlatents(y, quality)
        low = autocast and not self.entropy_model.quantized
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            y_hat, y_bits, z_bits = self.entropy_model(y, z, quality)
        return self.synthesis(y_hat, quality), y_bits, z_bits
