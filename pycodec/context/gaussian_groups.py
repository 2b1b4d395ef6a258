"""Latents under Gaussians that groups of channels and a checkerboard predict, in few steps.

The entropy models of He et al., "Checkerboard Context Model for Efficient Learned Image
Compression" (CVPR 2021, arXiv 2103.15306), of Minnen and Singh, "Channel-wise Autoregressive
Entropy Models" (ICIP 2020, arXiv 2007.08739), and of both together: ELIC (He et al., CVPR 2022,
arXiv 2203.10886). Groups of channels are coded one after the other, each given those before it; of
a group with a checkerboard first the anchors, one position in two, then the others given the
anchors. All of it is integers; with ``seen``, ``table``, ``symbol`` and ``latent`` as in
:mod:`pycodec.context.gaussian_waves`, for every group::

    known = [side, channel_context(seen of earlier groups)]
    scale, mean = heads([known, 0])                                   of anchors
    scale, mean = heads([known, checkerboard(seen of the anchors)])   of the others

Order of symbols: groups in turn, the anchors of a group before its others, positions in raster
order, channels innermost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycodec.coding import rans
from pycodec.coding.tables import TableSet
from pycodec.context.gaussian_waves import MAX_LATENT, quantize, reconstruct, table_of
from pycodec.errors import InputError
from pycodec.ops.int16_conv2d import Int16Conv2d

Settle = Callable[[slice, "int | None", NDArray[np.uint8], NDArray[np.int32]], NDArray[np.int32]]
"""Channels, parity, tables and means of what is coded together, to its symbols."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are coded together, and the layers that predict them.

    Attributes:
        channels: how many.
        heads: pointwise layers; the first sees the side channels, then the channel context's
            results, then the checkerboard's; the last gives the scales and then the means, int32.
        seen: channels of earlier groups in the order in which the channel context takes them.
        channel_context: layers over all positions; none for a group that sees no other.
        checkerboard: over the group itself; None if all positions are coded at once.
        odd_first: whether anchors are the positions with odd h + w, not those with even.
    """

    channels: int
    heads: Sequence[Int16Conv2d]
    seen: Sequence[int] = ()
    channel_context: Sequence[Int16Conv2d] = ()
    checkerboard: Int16Conv2d | None = None
    odd_first: bool = False

    @property
    def parities(self) -> tuple[int | None, ...]:
        """Of h + w, in the order of coding; None for all positions."""
        if self.checkerboard is None:
            return (None,)
        return (1, 0) if self.odd_first else (0, 1)


@dataclass(frozen=True)
class GaussianGroups:
    """A model of latents [H, W, M]; immutable. Runs on the backend of its layers.

    Attributes:
        groups: one after the other; their channels add up to M.
        side_channels: how many.
        context_shift: 0 to 24.
        context_limit: 0 to 2**15 - 1.
        fraction_bits: of latents and means, 1 to 16.
        thresholds: increasing, 255 at most.

    Raises:
        InputError: the layers do not fit together, or see what is not decoded yet.
    """

    groups: Sequence[ChannelGroup]
    side_channels: int
    context_shift: int
    context_limit: int
    fraction_bits: int
    thresholds: Sequence[int]

    def __post_init__(self) -> None:
        _require(len(self.groups) > 0 and self.side_channels > 0, "there is nothing to code")
        _require(0 <= self.context_shift <= 24, "the shift must be 0 to 24")
        _require(0 <= self.context_limit < 1 << 15, "the limit must be below 2**15")
        _require(1 <= self.fraction_bits <= 16, "latents have 1 to 16 fractional bits")
        steps = np.asarray(self.thresholds, np.int64)
        _require(steps.size <= 255 and bool((np.diff(steps) > 0).all()), "thresholds must increase")
        before = 0
        for group in self.groups:
            _require(group.channels > 0 and len(group.heads) > 0, "a group is empty")
            _require(all(0 <= c < before for c in group.seen), "a group sees a later one")
            inputs = self.side_channels
            if group.channel_context:
                inputs += _check_stack(group.channel_context, len(group.seen), torch.int16)
            if group.checkerboard is not None:
                inputs += _check_stack([group.checkerboard], group.channels, torch.int16)
                kh, kw = group.checkerboard.weight.shape[1:3]
                dy, dx = np.indices((kh, kw)) - np.array([kh // 2, kw // 2])[:, None, None]
                sees = (group.checkerboard.weight != 0).any(3).any(0).numpy()
                _require(
                    not (sees & ((dy + dx) % 2 == 0)).any(), "a checkerboard sees its own half"
                )
            for head in group.heads:
                _require(tuple(head.weight.shape[1:3]) == (1, 1), "heads must be pointwise")
            outputs = _check_stack(group.heads, inputs, torch.int32)
            _require(outputs == 2 * group.channels, "heads must give scales and means")
            before += group.channels

    @property
    def channels(self) -> int:
        """M."""
        return sum(group.channels for group in self.groups)

    def encode(
        self, latents: NDArray[np.int32], side: NDArray[np.int16], threads: int = 1
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int32]]:
        """Quantizes latents.

        Args:
            latents: int32 [H, W, M], in units of 2**-fraction_bits, within 2**28; with a
                checkerboard W must be even.
            side: int16 [H, W, side_channels].
            threads: of the native kernels.

        Returns:
            Symbols and table indexes in the order of coding, int32 and uint8 [H * W * M]; and the
            latents as they will be decoded, int32 [H, W, M].

        Raises:
            InputError: an argument does not fit the description above.
        """
        if latents.dtype != np.int32 or latents.shape != (*side.shape[:2], self.channels):
            raise InputError(f"latents must be int32 [H, W, {self.channels}] with side's H and W")
        if latents.size and np.abs(latents.astype(np.int64)).max() > MAX_LATENT:
            raise InputError("latents must be within 2**28")
        symbols: list[NDArray[np.int32]] = []
        indexes: list[NDArray[np.uint8]] = []

        def settle(
            own: slice, parity: int | None, table: NDArray[np.uint8], mean: NDArray[np.int32]
        ) -> NDArray[np.int32]:
            wanted = _take(torch.from_numpy(latents[None, ..., own]), parity).numpy()
            symbols.append(quantize(wanted, mean, self.fraction_bits))
            indexes.append(table)
            return symbols[-1]

        decoded = self._run(side, threads, settle)
        return (
            np.concatenate([part.ravel() for part in symbols]),
            np.concatenate([part.ravel() for part in indexes]),
            decoded,
        )

    def decode(
        self, data: bytes, tables: TableSet, side: NDArray[np.int16], threads: int = 1
    ) -> NDArray[np.int32]:
        """The latents of a stream of :func:`pycodec.coding.rans.encode`, int32 [H, W, M].

        Raises:
            InputError: ``side`` is not that of :meth:`encode`.
            CorruptStreamError: the stream is damaged.
        """
        decoder = rans.RansDecoder(data, tables)
        decoded = self._run(
            side, threads, lambda _own, _parity, table, _mean: decoder.decode(table)
        )
        decoder.finish()
        return decoded

    def _run(self, side: NDArray[np.int16], threads: int, settle: Settle) -> NDArray[np.int32]:
        if side.dtype != np.int16 or side.ndim != 3 or side.shape[2] != self.side_channels:
            raise InputError(f"side must be int16 [H, W, {self.side_channels}]")
        if side.shape[1] % 2 and any(group.checkerboard is not None for group in self.groups):
            raise InputError("latents on a checkerboard must have an even width")
        if not 1 <= threads <= 1024:
            raise InputError(f"threads must be 1 to 1024, not {threads!r}")
        known_to_all = torch.from_numpy(np.ascontiguousarray(side))[None]
        decoded = torch.zeros((1, *side.shape[:2], self.channels), dtype=torch.int32)
        start = 0
        for group in self.groups:
            own = slice(start, start + group.channels)
            start = own.stop
            known = known_to_all
            if group.channel_context:
                x = self._seen(decoded[..., list(group.seen)])
                known = torch.cat([known, _run_layers(group.channel_context, x, threads)], 3)
            for parity in group.parities:
                x = _take(known, parity)
                if group.checkerboard is not None:
                    if parity == group.parities[0]:
                        context = x.new_zeros((*x.shape[:3], len(group.checkerboard.bias)))
                    else:
                        anchors = self._seen(decoded[..., own])
                        context = _take(group.checkerboard(anchors, threads), parity)
                    x = torch.cat([x, context], 3)
                scale, mean = _run_layers(group.heads, x, threads).chunk(2, 3)
                table = table_of(scale.contiguous(), self.thresholds)
                symbols = settle(own, parity, table, mean.numpy())
                latents = reconstruct(symbols, mean.numpy(), self.fraction_bits)
                _put(decoded[..., own], parity, torch.from_numpy(latents))
        return decoded[0].numpy()

    def _seen(self, latents: Tensor) -> Tensor:
        half = (1 << self.context_shift) >> 1
        seen = (latents + half) >> self.context_shift
        return seen.clamp(-self.context_limit, self.context_limit).to(torch.int16)


def _take(x: Tensor, parity: int | None) -> Tensor:
    """The positions of one parity of h + w, [N, H, W, C] to [N, H, W / 2, C]; None for all."""
    if parity is None:
        return x
    half = x.new_empty((x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3]))
    half[:, 0::2] = x[:, 0::2, parity::2]
    half[:, 1::2] = x[:, 1::2, 1 - parity :: 2]
    return half


def _put(x: Tensor, parity: int | None, half: Tensor) -> None:
    """The inverse of :func:`_take`."""
    if parity is None:
        x.copy_(half)
    else:
        x[:, 0::2, parity::2] = half[:, 0::2]
        x[:, 1::2, 1 - parity :: 2] = half[:, 1::2]


def _run_layers(layers: Sequence[Int16Conv2d], x: Tensor, threads: int) -> Tensor:
    for layer in layers:
        x = layer(x, threads)
    return x


def _check_stack(layers: Sequence[Int16Conv2d], inputs: int, dtype: torch.dtype) -> int:
    """The number of results of a stack; hidden ones are int16."""
    for index, layer in enumerate(layers):
        _require(layer.weight.shape[3] == inputs, "layers do not fit together")
        wanted = dtype if index + 1 == len(layers) else torch.int16
        _require(layer.out_dtype == wanted, "layers do not fit together")
        inputs = len(layer.bias)
    return inputs


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"gaussian_groups: {message}")
