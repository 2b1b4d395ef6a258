"""Start the photo codec's transforms as a hierarchy of Karhunen-Loeve transforms.

Residual blocks start as the identity, so a network whose other convolutions form an
orthonormal transform *is* a classical transform codec at step 0, some 30 dB better than a random
start; training then departs from there. At each resolution the 2x2 neighbours (4x4 pixels for the
stem) of all channels are decorrelated by the eigenvectors of their covariance over a batch of
training pictures, and those of largest variance are kept.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pycodec.models.photo_network import LAMBDA_MAX, LAMBDA_MIN, PhotoNetwork

MIDDLE_LAMBDA = math.sqrt(LAMBDA_MIN * LAMBDA_MAX)
UNIT_STEP = math.sqrt(12 * 3 / (255**2 * MIDDLE_LAMBDA * 2 * math.log(2)))
"""Latents are scaled by its inverse, so that a step of 1 belongs to the middle of the range: it is
the best step of an orthonormal transform there (D = step^2 / 12 and dD/dR = -2 ln 2 D)."""


def klt(features: Tensor, keep: int) -> Tensor:
    """Leading eigenvectors, ``[keep, C]``, of the channel covariance of ``[B, C, h, w]``."""
    flat = features.transpose(0, 1).flatten(1).double()
    flat = flat - flat.mean(dim=1, keepdim=True)
    _, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
    return vectors.flip(1)[:, :keep].T.float().contiguous()


@torch.no_grad()
def start_from_klt(network: PhotoNetwork, pictures: Tensor) -> None:
    """Overwrite the transforms' convolutions in place.

    Args:
        network: freshly constructed.
        pictures: ``[B, 3, H, W]`` in [0, 1]; sides multiples of 16; a few hundred thousand pixels.
    """
    quarter, eighth, sixteenth = network.config.widths
    analysis, synthesis = network.analysis, network.synthesis

    features = F.pixel_unshuffle(pictures - 0.5, 4)
    kept = min(48, quarter)
    basis = klt(features, kept)
    analysis.stem.weight[:kept] = 0
    analysis.stem.weight[:kept, :, 1, 1] = basis
    synthesis.tail.weight.zero_()
    synthesis.tail.weight[:, :kept, 1, 1] = basis.T
    features = torch.einsum("oc,bchw->bohw", basis, features)

    for down, up, width in (
        (analysis.down8, synthesis.up4, eighth),
        (analysis.down16, synthesis.up8, sixteenth),
    ):
        channels = features.shape[1]
        features = F.pixel_unshuffle(features, 2)
        basis = klt(features, min(width, features.shape[1]))
        features = torch.einsum("oc,bchw->bohw", basis, features)
        kept = basis.shape[0]
        # Taps 1 and 2 of a 3x3 kernel of stride 2 and padding 1 are the 2x2 block itself.
        down.weight[:kept] = 0
        down.weight[:kept, :channels, 1:, 1:] = basis.view(kept, channels, 2, 2)
        up.conv.weight.mul_(0.1)
        shuffled = up.conv.weight.view(-1, 4, *up.conv.weight.shape[1:])
        shuffled[:channels, :, :kept, 0, 0] = basis.T.reshape(channels, 4, kept)

    kept = min(features.shape[1], network.config.latent_channels)
    analysis.head.weight[:kept] = 0
    analysis.head.weight[:kept, :kept, 0, 0] = torch.eye(kept) / UNIT_STEP
    synthesis.head.weight.mul_(0.1 * UNIT_STEP)
    synthesis.head.weight[:kept, :kept, 0, 0] = torch.eye(kept) * UNIT_STEP
    for layer in (
        analysis.stem,
        analysis.down8,
        analysis.down16,
        analysis.head,
        synthesis.head,
        synthesis.up8.conv,
        synthesis.up4.conv,
        synthesis.tail,
    ):
        layer.bias.zero_()
