"""The context network of the lossless codec: bit planes in, one logit a bit out.

The planes of an 8-bit picture, most significant first, are the 8 groups of a trimmed network
(TCAE, arXiv 1801.04662; slope order: arXiv 1906.10057). One pass gives the probability of every
bit; a decoder gets the same numbers wave by wave (``docs/waves.md``).

    first    trimmed k x k, type A, 8 -> 8 * width, PReLU
    hidden   trimmed k x k, type B, PReLU, any number of them
    blocks   y = x + PReLU(conv(PReLU(conv(x)))), type B, any number of them
    head     trimmed k x k, type B, two logits a plane: of 0 and of 1

In colour pictures a network with ``side`` sees earlier channels too: PReLU(conv(their bits)), with
a whole kernel, is added to the output of the first layer.

Channels of a plane are contiguous, planes in order: channel ``plane * width + i``. The state dict
has, in PyTorch's layout [out, in, row, column]: ``first.conv.weight`` [8 w, 8, k, k],
``first.conv.bias`` [8 w], ``first.prelu.weight`` [8 w], the same for ``hidden.N`` and for
``blocks.N.0`` and ``blocks.N.1``, and ``head.weight`` [16, 8 w, k, k], ``head.bias`` [16].
Trimmed weights may have any value. A network without an activation there has a slope of 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pycodec.context.layers import TrimmedConv2d
from pycodec.context.schedule import Layer, Residual
from pycodec.errors import InputError
from pycodec.ops.trimmed_conv2d import expand_mask

PLANES = 8
ORDERS = ("plane", "slope")


@dataclass(frozen=True)
class LosslessConfig:
    """Shape of a :class:`LosslessNetwork`.

    Attributes:
        order: ``plane`` or ``slope``.
        width: channels of a plane in hidden layers.
        first, hidden, blocks, head: kernel sizes; of each hidden layer, of both layers of each
            block.
        side: how many earlier channels of a colour picture are seen.
    """

    order: str = "slope"
    width: int = 8
    first: int = 5
    hidden: tuple[int, ...] = (5,)
    blocks: tuple[tuple[int, int], ...] = ((5, 5),) * 4
    head: int = 3
    side: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise InputError(f"order must be one of {', '.join(ORDERS)}, not {self.order!r}")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "blocks", tuple(tuple(block) for block in self.blocks))

    def to_dict(self) -> dict:
        return asdict(self)


SIZES = {
    "tcae": LosslessConfig(),
    "tcae-fast": LosslessConfig(width=8, hidden=(3,), blocks=((3, 1), (1, 1)), head=1),
}
"""The published shape, and a small one."""


class SideLayer(nn.Module):
    """Convolution over earlier channels, known in full, and PReLU."""

    def __init__(self, config: LosslessConfig) -> None:
        super().__init__()
        channels = PLANES * config.width
        self.conv = nn.Conv2d(PLANES * config.side, channels, config.first, padding="same")
        self.prelu = nn.PReLU(channels)


class TrimmedLayer(nn.Module):
    """Trimmed convolution and PReLU with a slope a channel."""

    def __init__(self, config: LosslessConfig, kind: str, channels_in: int, kernel: int) -> None:
        super().__init__()
        channels = PLANES * config.width
        self.conv = TrimmedConv2d(
            channels_in, channels, kernel, order=config.order, kind=kind, groups_in=PLANES
        )
        self.prelu = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.conv(x))


@dataclass(frozen=True)
class Step:
    """One convolution of a network: what is read, and what is added to its activation.

    Attributes:
        conv: a :class:`TrimmedConv2d`, or a plain convolution of side information.
        prelu: follows it, or None.
        input, residual: numbers of tensors: 0 the bits, then side information if the network has
            some, then the results of earlier steps.
    """

    conv: nn.Conv2d
    prelu: nn.PReLU | None
    input: int
    residual: int | None = None


class LosslessNetwork(nn.Module):
    """The float network, for training and as the source of the integer one."""

    def __init__(self, config: LosslessConfig) -> None:
        super().__init__()
        self.config = config
        channels = PLANES * config.width
        self.side = SideLayer(config) if config.side else None
        self.first = TrimmedLayer(config, "A", PLANES, config.first)
        self.hidden = nn.ModuleList(TrimmedLayer(config, "B", channels, k) for k in config.hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(TrimmedLayer(config, "B", channels, k) for k in block))
            for block in config.blocks
        )
        self.head = TrimmedConv2d(
            channels, 2 * PLANES, config.head, order=config.order, kind="B", groups_in=PLANES
        )

    def steps(self) -> list[Step]:
        """All convolutions in turn; the last one is the head."""
        steps = []
        tensors = 1  # the bits
        side = None
        if self.side is not None:
            steps.append(Step(self.side.conv, self.side.prelu, 1))
            side = tensors + 1
            tensors += 2
        steps.append(Step(self.first.conv, self.first.prelu, 0, side))
        for layer in self.hidden:
            steps.append(Step(layer.conv, layer.prelu, tensors))
            tensors += 1
        for first, second in self.blocks:
            steps.append(Step(first.conv, first.prelu, tensors))
            steps.append(Step(second.conv, second.prelu, tensors + 1, tensors))
            tensors += 2
        steps.append(Step(self.head, None, tensors))
        return steps

    def forward(self, bits: Tensor, side: Tensor | None = None) -> Tensor:
        """Log odds of a 1, [N, 8, H, W].

        Args:
            bits: 0 or 1, [N, 8, H, W].
            side: bits of the ``config.side`` earlier channels of a colour picture,
                [N, 8 * side, H, W]; channel ``plane * side + i`` is a plane of picture i.
        """
        if (side is None) != (self.side is None):
            raise InputError("this network has no side input" if side is not None else "no side")
        tensors = [bits] if side is None else [bits, side]
        for step in self.steps():
            x = step.conv(tensors[step.input])
            if step.prelu is not None:
                x = step.prelu(x)
            tensors.append(x if step.residual is None else x + tensors[step.residual])
        return tensors[-1][:, 1::2] - tensors[-1][:, ::2]

    def masks(self) -> list[Layer | Residual]:
        """What ``find_schedule`` and ``check_causality`` take."""
        return [
            self.first.conv.layer,
            *(layer.conv.layer for layer in self.hidden),
            *(Residual([layer.conv.layer for layer in block]) for block in self.blocks),
            self.head.layer,
        ]

    def multiplications(self) -> tuple[int, int]:
        """Products a pixel: of the trimmed kernels, and of the whole ones."""
        convs = [step.conv for step in self.steps()]
        return sum(int(seen_weights(c).sum()) for c in convs), sum(c.weight.numel() for c in convs)

    @torch.no_grad()
    def start_from_differences(self) -> None:
        """Initialize the first layer to see values, not only bits; for training from scratch.

        Half of a plane's channels start as random differences between neighbours' values, as far
        as planes are known, in units of the plane: a bit of plane c weighs 2**(plane - c).
        """
        width = self.config.width
        conv = self.first.conv
        for plane in range(PLANES):
            mask = conv.group_mask[plane].float()
            for i in range(0, width, 2):
                taps = torch.randn(mask.shape[1:]) / mask.shape[-1]
                weight = (
                    torch.stack([taps * 2.0 ** min(plane - c, 6) for c in range(PLANES)]) * mask
                )
                centre = tuple(s // 2 for s in mask.shape[1:])
                for c in range(plane):  # differences: each plane's taps sum to zero
                    weight[c][centre] -= weight[c].sum()
                conv.weight[plane * width + i] = weight * 0.25


@torch.no_grad()
def grow(network: LosslessNetwork, source: LosslessNetwork) -> None:
    """Make ``network`` compute what the smaller ``source`` does.

    Kernels are set in the middle of larger ones; blocks and side input that ``source`` lacks add
    nothing until they are trained. Both may have any order: what a mask cuts is lost.

    Raises:
        InputError: ``source`` is no part of ``network``.
    """
    small, large = source.config, network.config
    fits = (
        (small.width, len(small.hidden)) == (large.width, len(large.hidden))
        and small.side in (0, large.side)
        and len(small.blocks) <= len(large.blocks)
    )
    if not fits:
        raise InputError("a network grows from one of its width and number of hidden layers")
    tensors = dict(source.state_dict())
    for name, target in network.state_dict().items():
        value = tensors.get(name)
        if value is None:
            if name.endswith((".1.conv.weight", ".1.conv.bias")) or name.startswith("side.conv."):
                target.zero_()
            continue
        if value.dim() == 4:
            border = (target.shape[2] - value.shape[2]) // 2
            if border < 0:
                raise InputError(f"{name} has a larger kernel in the smaller network")
            value = F.pad(value, (border,) * 4)
        target.copy_(value)


def group_mask(conv: nn.Conv2d) -> Tensor:
    """What each plane sees of each other: bool [8, 8, k, k]."""
    if isinstance(conv, TrimmedConv2d):
        return conv.group_mask
    shape = PLANES, PLANES, *conv.weight.shape[2:]
    return torch.ones(shape, dtype=torch.bool, device=conv.weight.device)


def seen_weights(conv: nn.Conv2d) -> Tensor:
    """Which weights take part: bool [Cout, Cin, k, k]."""
    return expand_mask(group_mask(conv), conv.weight)


def bit_planes(picture: Tensor) -> Tensor:
    """Planes of uint8 [N, H, W], most significant first: uint8 [N, 8, H, W] of 0 and 1."""
    shifts = torch.arange(PLANES - 1, -1, -1, device=picture.device, dtype=torch.uint8)
    return (picture[:, None] >> shifts[:, None, None]) & 1


def join_planes(bits: Tensor) -> Tensor:
    """Inverse of :func:`bit_planes`, of any type: uint8 [N, H, W] of [N, 8, H, W]."""
    shifts = torch.arange(PLANES - 1, -1, -1, device=bits.device, dtype=torch.uint8)
    return (bits.to(torch.uint8) << shifts[:, None, None]).sum(1, dtype=torch.uint8)


def bits_per_pixel(logits: Tensor, bits: Tensor) -> Tensor:
    """Mean code length of a pixel, a scalar."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), bits.float(), reduction="mean")
    return loss * (PLANES / math.log(2))
