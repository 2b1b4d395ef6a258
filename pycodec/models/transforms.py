"""Analysis and synthesis of the photo codec: convolutions at 1/4, 1/8 and 1/16 resolution.

The stream is wide enough to carry what a high rate needs: 64 channels for 48 values at 1/4, 192 for
192 at 1/8. ``docs/photo_codec.md`` counts the multiply-accumulates.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pycodec.models.blocks import BottleneckBlock, Conv2d, QualityAffine, ResidualBlock, Upsample

LATENT_STRIDE = 16
"""Pixels a latent position stands for, in each direction."""

HYPER_STRIDE = 4
"""Latent positions a hyperlatent position stands for, in each direction."""


class Analysis(nn.Module):
    """Picture ``[B, 3, H, W]`` in [0, 1], sides multiples of 16, to latents ``[B, M, h, w]``."""

    def __init__(self, widths: tuple[int, int, int], latent_channels: int) -> None:
        super().__init__()
        quarter, eighth, sixteenth = widths
        self.stem = Conv2d(48, quarter, 3, padding=1)
        self.block4 = ResidualBlock(quarter)
        self.affine4 = QualityAffine(quarter)
        self.down8 = Conv2d(quarter, eighth, 3, stride=2, padding=1)
        self.blocks8 = nn.Sequential(BottleneckBlock(eighth), BottleneckBlock(eighth))
        self.affine8 = QualityAffine(eighth)
        self.down16 = Conv2d(eighth, sixteenth, 3, stride=2, padding=1)
        self.blocks16 = nn.Sequential(BottleneckBlock(sixteenth), BottleneckBlock(sixteenth))
        self.affine16 = QualityAffine(sixteenth)
        self.head = Conv2d(sixteenth, latent_channels, 1)

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        x = self.stem(F.pixel_unshuffle(x - 0.5, 4))
        x = self.affine4(self.block4(x), quality)
        x = self.affine8(self.blocks8(self.down8(x)), quality)
        x = self.affine16(self.blocks16(self.down16(x)), quality)
        return self.head(x)


class Synthesis(nn.Module):
    """Latents ``[B, M, h, w]`` to a picture ``[B, 3, 16 h, 16 w]``, nominally in [0, 1]."""

    def __init__(self, widths: tuple[int, int, int], latent_channels: int) -> None:
        super().__init__()
        quarter, eighth, sixteenth = widths
        self.affine_latent = QualityAffine(latent_channels)
        self.head = Conv2d(latent_channels, sixteenth, 1)
        self.blocks16 = nn.Sequential(BottleneckBlock(sixteenth), BottleneckBlock(sixteenth))
        self.affine16 = QualityAffine(sixteenth)
        self.up8 = Upsample(sixteenth, eighth)
        self.blocks8 = nn.Sequential(*(BottleneckBlock(eighth) for _ in range(3)))
        self.affine8 = QualityAffine(eighth)
        self.up4 = Upsample(eighth, quarter)
        self.block4 = ResidualBlock(quarter)
        self.affine4 = QualityAffine(quarter)
        self.tail = Conv2d(quarter, 48, 3, padding=1)

    def forward(self, y: Tensor, quality: Tensor) -> Tensor:
        x = self.head(self.affine_latent(y, quality))
        x = self.affine16(self.blocks16(x), quality)
        x = self.affine8(self.blocks8(self.up8(x)), quality)
        x = self.affine4(self.block4(self.up4(x)), quality)
        return F.pixel_shuffle(self.tail(x), 4) + 0.5


class HyperAnalysis(nn.Module):
    """Latents ``[B, M, h, w]`` (h, w multiples of 4) to hyperlatents ``[B, Z, h/4, w/4]``."""

    def __init__(self, latent_channels: int, hidden: int, hyper_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(latent_channels, hidden, 3, stride=2, padding=1)
        self.affine = QualityAffine(hidden)
        self.conv2 = Conv2d(hidden, hidden, 3, stride=2, padding=1)
        self.conv3 = Conv2d(hidden, hyper_channels, 1)

    def forward(self, y: Tensor, quality: Tensor) -> Tensor:
        x = F.relu(self.affine(self.conv1(y), quality))
        return self.conv3(F.relu(self.conv2(x)))
