"""Choosing the bits of each layer's weights for each picture (DynaQuant, arXiv 2511.07903).

A selector reads what goes into a transform and picks 4, 6 or 8 bits for each layer of its residual
branches. As in the paper the first layer is the same for all pictures and its result is what the
selector reads; unlike there (average pooling to 5 x 5 and dropout) it reads one number a channel,
which can be summed over the tiles of a picture, and the quality.

The encoder runs the selectors, in floating point, and writes what was chosen for the synthesis into
the file (``docs/quantization.md``). A decoder that had to repeat the choice, as in the paper, would
have to repeat these sums exactly; so it need not, and an encoder may choose in any other way. What
is chosen for the analysis changes latents only and is written nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pycodec.models.blocks import QUALITY_NODES, QualityTable, quality_position

WIDTHS = (4, 6, 8)
"""Bits that a layer's weights may have, ascending."""

_EIGHT_AT_START = 3.0  # logits: 8 bits for nine pictures in ten
_FARTHEST = 4.0
_LEAST = 1e-4


def channel_activity(x: Tensor) -> Tensor:
    """Mean magnitude of each channel: ``[B, C, H, W]`` to ``[B, C]``; tiles may be averaged."""
    return x.float().abs().mean(dim=(2, 3))


class BitWidthSelector(nn.Module):
    """From the activity of channels, and quality, to a choice of :data:`WIDTHS` for each layer.

    Logits are a piecewise linear function of quality, which decides most, and what a small network
    adds to it for a picture's content.

    Args:
        channels: of the tensor that it reads.
        layers: whose bits it chooses; ``allowed`` says which of them each may have.
        hidden: units of the layer between.
    """

    def __init__(self, channels: int, layers: int, hidden: int = 32) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("center", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("allowed", torch.ones(layers, len(WIDTHS), dtype=torch.bool))
        self.hidden = nn.Linear(channels + 1, hidden)
        self.choice = nn.Linear(hidden, layers * len(WIDTHS))
        nn.init.zeros_(self.choice.weight)
        nn.init.zeros_(self.choice.bias)
        self.by_quality = QualityTable(layers * len(WIDTHS))
        with torch.no_grad():
            self.by_quality.nodes.view(-1, layers, len(WIDTHS))[..., -1] = _EIGHT_AT_START

    @torch.no_grad()
    def calibrate(self, activity: Tensor) -> None:
        """Set the usual activity of each channel and how much it varies, from ``[N, C]``."""
        levels = activity.clamp(min=_LEAST).log2()
        self.center.copy_(levels.mean(0))
        self.spread.copy_(levels.std(0, correction=0).clamp(min=0.1))

    @torch.no_grad()
    def start(self, costs: Mapping[float, Tensor], unit: float) -> None:
        """Begin with the widths that cost least at each quality, whatever the content.

        Args:
            costs: at some qualities, ``[layers, widths]``; between these they are interpolated.
            unit: a difference of so much makes the cheaper choice e times as likely.
        """
        qualities = sorted(costs)
        places = np.array([float(quality_position(quality)) for quality in qualities])
        table = torch.stack([costs[quality].flatten() for quality in qualities]).double().numpy()
        nodes = np.stack([np.interp(range(QUALITY_NODES), places, column) for column in table.T], 1)
        nodes = torch.from_numpy(nodes).view(QUALITY_NODES, self.layers, len(WIDTHS))
        logits = (nodes.amin(2, keepdim=True) - nodes) / unit
        self.by_quality.nodes.copy_(logits.clamp(min=-_FARTHEST).flatten(1))

    def logits(self, activity: Tensor, quality: Tensor) -> Tensor:
        """``activity [B, C]``, ``quality [B]`` to logits ``[B, layers, widths]``."""
        levels = (activity.clamp(min=_LEAST).log2() - self.center) / self.spread
        place = quality_position(quality)[:, None] / 4 - 1
        hidden = F.relu(self.hidden(torch.cat([levels, place.to(levels)], dim=1)))
        logits = self.choice(hidden) + self.by_quality(quality).to(hidden)
        logits = logits.view(len(activity), self.layers, len(WIDTHS))
        return logits.masked_fill(~self.allowed, -1e4)

    def forward(
        self, activity: Tensor, quality: Tensor, temperature: float | Tensor = 1.0
    ) -> Tensor:
        """One-hot choices ``[B, layers, widths]``.

        In training one is drawn from the softmax of the logits over ``temperature``, with its
        gradients (straight-through Gumbel-softmax, arXiv 1611.01144); otherwise it is the
        likeliest.

        Args:
            activity: of :func:`channel_activity`, ``[B, C]``; no gradient goes into it.
            quality: ``[B]`` in [1, 100].
            temperature: near 0 the likeliest is drawn, as it is taken in the end.
        """
        logits = self.logits(activity.detach(), quality)
        if self.training:
            return F.gumbel_softmax(logits / temperature, hard=True)
        return F.one_hot(logits.argmax(2), len(WIDTHS)).to(logits)


def chosen_bits(choice: Tensor) -> list[list[int]]:
    """One-hot choices ``[B, layers, widths]`` as bits, a list for each picture."""
    return [[WIDTHS[index] for index in row] for row in choice.argmax(2).tolist()]
