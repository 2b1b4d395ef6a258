"""Building blocks shared by the codecs' float transforms."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pycodec.projection.grid import GridBatch, SphereGrid

QUALITY_NODES = 9
"""Nodes of every piecewise linear function of quality."""


Grid = SphereGrid | GridBatch

_GRID: contextvars.ContextVar[Grid | None] = contextvars.ContextVar("grid", default=None)


@contextlib.contextmanager
def on_sphere(grid: Grid) -> Iterator[None]:
    """Within, batches are the tiles of ``grid``; convolutions pad as these lie on the sphere."""
    token = _GRID.set(grid)
    try:
        yield
    finally:
        _GRID.reset(token)


def current_grid() -> Grid | None:
    """The tiles that batches are at present: see :func:`on_sphere`."""
    return _GRID.get()


Convolution = Callable[[nn.Conv2d, Tensor, Tensor, Tensor], Tensor]
"""Of a layer, its input, its weight and its bias."""

_CONVOLUTION: contextvars.ContextVar[Convolution | None] = contextvars.ContextVar(
    "convolution", default=None
)


@contextlib.contextmanager
def convolutions_by(function: Convolution) -> Iterator[None]:
    """Within, ``function`` computes all convolutions of transforms, as a quantizer may want to."""
    token = _CONVOLUTION.set(function)
    try:
        yield
    finally:
        _CONVOLUTION.reset(token)


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A layer's convolution with weights of another type; padding is zero, or see on_sphere."""
    function = _CONVOLUTION.get()
    if function is not None:
        return function(layer, x, weight, bias)
    grid, padding = current_grid(), layer.padding
    if grid is not None and layer.kernel_size != (1, 1):
        x, padding = grid.pad(x, layer.kernel_size[0] // 2), 0
    return F.conv2d(x, weight, bias, layer.stride, padding)


class Conv2d(nn.Conv2d):
    """A convolution that may act on the sphere: see :func:`on_sphere`."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self, x, self.weight, self.bias)


def quality_position(quality: Tensor | float) -> Tensor:
    """Map quality in [1, 100] to a position in [0, QUALITY_NODES - 1] on the node axis."""
    quality = torch.as_tensor(quality, dtype=torch.float32)
    return (quality.clamp(1.0, 100.0) - 1.0) * ((QUALITY_NODES - 1) / 99.0)


class QualityTable(nn.Module):
    """A vector that is a piecewise linear function of quality.

    Args:
        channels: length of the vector.
        initial: ``[QUALITY_NODES]`` or scalar start value, the same for every channel.
    """

    def __init__(self, channels: int, initial: Tensor | float = 0.0) -> None:
        super().__init__()
        start = torch.as_tensor(initial, dtype=torch.float32).expand(QUALITY_NODES)
        self.nodes = nn.Parameter(start[:, None].repeat(1, channels))

    def forward(self, quality: Tensor) -> Tensor:
        """``quality [B]`` in [1, 100] to values ``[B, channels]``."""
        position = quality_position(quality)
        low = position.floor().clamp(max=QUALITY_NODES - 2)
        fraction = (position - low)[:, None]
        index = low.long()  # index_select's gradient needs no sorting
        below, above = (self.nodes.index_select(0, i) for i in (index, index + 1))
        return torch.lerp(below, above, fraction)


class QualityAffine(nn.Module):
    """Scale and shift of feature channels by quality (gain units, arXiv 2003.02012, with shift)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = QualityTable(channels)
        self.shift = QualityTable(channels)

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        scale = self.log_scale(quality).exp()[:, :, None, None].to(x.dtype)
        shift = self.shift(quality)[:, :, None, None].to(x.dtype)
        return torch.addcmul(shift, x, scale)


class Branch(nn.Module):
    """Base of residual blocks: a sum of the input and a branch that may compute in less precision.

    ``dtype`` is what the branch's convolutions compute in. The sum stays in the input's precision:
    rounding the stream itself to bfloat16 at every block costs half a decibel at high quality,
    rounding what is added to it almost nothing.
    """

    dtype = torch.float32

    def convolve(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        weight, bias = layer.weight.to(self.dtype), layer.bias.to(self.dtype)
        return convolve(layer, x.to(self.dtype), weight, bias)


class ResidualBlock(Branch):
    """``x + conv3x3(relu(conv3x3(x)))``, the identity at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv1.bias)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolve(self.conv2, F.relu(self.convolve(self.conv1, x)))


class BottleneckBlock(Branch):
    """``x + conv1x1(relu(conv3x3(relu(conv1x1(x)))))`` with half the channels inside.

    A wide stream carries the signal, a narrow branch corrects it: at equal cost this keeps far more
    of the picture than a narrow stream of plain residual blocks, which caps the PSNR at high rates.
    It starts as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1)
        self.expand = nn.Conv2d(inner, channels, 1)
        for layer in (self.reduce, self.conv):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.convolve(self.reduce, x))
        return x + self.convolve(self.expand, F.relu(self.convolve(self.conv, inner)))


def set_branch_dtype(module: nn.Module, dtype: torch.dtype, cast_weights: bool = False) -> None:
    """Let all residual branches of ``module`` compute in ``dtype``.

    ``cast_weights`` converts their weights once, for inference; training keeps float32 weights.
    """
    for block in module.modules():
        if isinstance(block, Branch):
            block.dtype = dtype
            if cast_weights:
                block.to(dtype)


class Upsample(nn.Module):
    """A pointwise convolution to 4 times the channels, then a pixel shuffle by 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)
