"""Latents under Gaussians that an autoregressive integer network predicts, coded wave by wave.

The entropy model of Minnen et al., "Joint Autoregressive and Hierarchical Priors for Learned Image
Compression" (NeurIPS 2018), and of Cheng et al. (CVPR 2020): a masked convolution over what is
decoded, pointwise layers over its results and the hyperprior's, and for each channel of a position
the scale and the mean of a Gaussian. Here all of it is integers::

    seen   = clamp((latent + 2**(s - 1)) >> s, -context_limit, context_limit)   s = context_shift
    scale, mean = heads([side, context(seen)])
    table  = number of thresholds below scale
    symbol = (latent - mean + 2**(f - 1)) >> f                     f = fraction_bits
    latent = clamp((symbol << f) + mean, -2**28, 2**28)            as decoded

A shift of 0 adds nothing. Positions are coded in raster order's conditioning, but in sheared
waves: all positions of one row_step * h + w together, rows in turn (``docs/waves.md``). The encoder
quantizes what it predicts from, so it goes in waves too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycodec import _cpu
from pycodec.coding import rans
from pycodec.coding.tables import TableSet
from pycodec.context.schedule import Layer, find_schedule
from pycodec.errors import InputError
from pycodec.ops.int16_conv2d import Int16Conv2d

MAX_LATENT = 1 << 28
MAX_SYMBOL = 1 << 20
"""The encoder's symbols are clamped to this."""


def table_of(scale: Tensor, thresholds: Sequence[int]) -> NDArray[np.uint8]:
    """The number of thresholds below each scale, int32 of any shape."""
    table = torch.bucketize(scale, torch.tensor(list(thresholds), dtype=torch.int32))
    return table.to(torch.uint8).numpy()


def quantize(latents: NDArray[np.int32], means: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    """The symbols of latents."""
    difference = latents.astype(np.int64) - means + (1 << (bits - 1))
    return np.clip(difference >> bits, -MAX_SYMBOL, MAX_SYMBOL).astype(np.int32)


def reconstruct(
    symbols: NDArray[np.int32], means: NDArray[np.int32], bits: int
) -> NDArray[np.int32]:
    """The latents that symbols decode to."""
    latents = symbols.astype(np.int64) * (1 << bits) + means
    return np.clip(latents, -MAX_LATENT, MAX_LATENT).astype(np.int32)


@dataclass(frozen=True)
class GaussianWaves:
    """An autoregressive model of latents [H, W, M]; immutable.

    Attributes:
        context: of M channels, k x k; it must see positions before its own in raster order only.
        heads: pointwise layers; the first sees the side channels and then the context's results,
            the last gives M scales and then M means, int32.
        side_channels: how many.
        context_shift: 0 to 24.
        context_limit: 0 to 2**15 - 1.
        fraction_bits: of latents and means, 1 to 16.
        thresholds: increasing, 255 at most.
        backend: ``native`` (C++) or ``reference`` (the definition, a position at a time in raster
            order; its streams have the order of the waves all the same).

    Raises:
        InputError: the layers do not fit together, or the context sees what is not decoded yet.
    """

    context: Int16Conv2d
    heads: Sequence[Int16Conv2d]
    side_channels: int
    context_shift: int
    context_limit: int
    fraction_bits: int
    thresholds: Sequence[int]
    backend: str = "native"
    row_step: int = field(init=False)
    _window: Int16Conv2d = field(init=False, repr=False, compare=False)
    _native: _cpu.GaussianWaves = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.backend not in ("native", "reference"):
            raise InputError(f"backend must be native or reference, not {self.backend!r}")
        object.__setattr__(self, "row_step", self._find_row_step())
        context = self.context
        window = Int16Conv2d(
            context.weight.flatten(1)[:, None, None],
            context.bias,
            context.multiplier,
            context.negative_multiplier,
            context.shift,
            context.limit,
            backend="reference",
        )
        object.__setattr__(self, "_window", window)
        native = _cpu.GaussianWaves(
            layers=[layer.native_description() for layer in (self.context, *self.heads)],
            side_channels=self.side_channels,
            context_shift=self.context_shift,
            context_limit=self.context_limit,
            fraction_bits=self.fraction_bits,
            thresholds=list(self.thresholds),
            row_step=self.row_step,
        )
        object.__setattr__(self, "_native", native)

    def _find_row_step(self) -> int:
        """Of the schedule with the fewest waves in large pictures: w + row_step * h."""
        kh, kw = self.context.weight.shape[1:3]
        mask = (self.context.weight != 0).any(3).any(0).numpy()
        down, right = (
            axis - size // 2 for axis, size in zip(np.indices((kh, kw)), (kh, kw), strict=True)
        )
        if (mask & ((down > 0) | ((down == 0) & (right >= 0)))).any():
            raise InputError("the context sees what is not decoded yet")
        # A context that sees nothing of the rows above, or of its own, still codes in this order.
        mask[kh // 2, : kw // 2] = True
        mask[: kh // 2] = True
        side = 1 << 12
        weights = find_schedule([Layer(mask[None, None], "A")], 1, side, side).weights
        return weights[1] // weights[2]

    @property
    def channels(self) -> int:
        """M."""
        return self.context.weight.shape[3]

    def waves(self, height: int, width: int) -> list[NDArray[np.int64]]:
        """Positions of each wave in the order of coding: int64 [n, 2] of (h, w); none is empty."""
        h, w = np.indices((height, width)).reshape(2, -1)
        t = self.row_step * h + w
        order = np.argsort(t, kind="stable")
        ends = np.flatnonzero(np.diff(t[order])) + 1
        return np.split(np.stack([h, w], 1)[order], ends) if h.size else []

    def encode(
        self, latents: NDArray[np.int32], side: NDArray[np.int16], threads: int = 1
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int32]]:
        """Quantizes latents.

        Args:
            latents: int32 [H, W, M], in units of 2**-fraction_bits, within 2**28.
            side: int16 [H, W, side_channels].
            threads: of the native backend.

        Returns:
            Symbols and table indexes in the order of coding, int32 and uint8 [H * W * M]; and the
            latents as they will be decoded, int32 [H, W, M].

        Raises:
            InputError: an argument does not fit the description above.
        """
        self._check(side, threads)
        if latents.dtype != np.int32 or latents.shape != (*side.shape[:2], self.channels):
            raise InputError(f"latents must be int32 [H, W, {self.channels}] with side's H and W")
        if latents.size and np.abs(latents.astype(np.int64)).max() > MAX_LATENT:
            raise InputError("latents must be within 2**28")
        if self.backend == "native":
            return self._native.encode(
                np.ascontiguousarray(latents), np.ascontiguousarray(side), threads
            )
        coded: dict[tuple[int, int], tuple] = {}

        def settle(h: int, w: int, table: NDArray, mean: NDArray) -> NDArray:
            symbols = quantize(latents[h, w], mean, self.fraction_bits)
            coded[h, w] = symbols, table
            return symbols

        decoded = self._one_by_one(side, settle)
        order = [tuple(p) for wave in self.waves(*side.shape[:2]) for p in wave.tolist()]
        if not order:
            return np.empty(0, np.int32), np.empty(0, np.uint8), decoded
        symbols, indexes = (np.concatenate([coded[p][i] for p in order]) for i in (0, 1))
        return symbols, indexes, decoded

    def decode(
        self, data: bytes, tables: TableSet, side: NDArray[np.int16], threads: int = 1
    ) -> NDArray[np.int32]:
        """The latents of a stream of :func:`pycodec.coding.rans.encode`, int32 [H, W, M].

        Raises:
            InputError: ``side`` is not that of :meth:`encode`.
            CorruptStreamError: the stream is damaged.
        """
        self._check(side, threads)
        if self.backend == "native":
            return self._native.decode(data, tables.native, np.ascontiguousarray(side), threads)
        decoder = rans.RansDecoder(data, tables)
        decoded = np.zeros((*side.shape[:2], self.channels), np.int32)
        for wave in self.waves(*side.shape[:2]):
            predictions = [self._predict(decoded, side, h, w) for h, w in wave.tolist()]
            symbols = decoder.decode(np.stack([table for table, _ in predictions]))
            for (h, w), symbol, (_, mean) in zip(wave, symbols, predictions, strict=True):
                decoded[h, w] = reconstruct(symbol, mean, self.fraction_bits)
        decoder.finish()
        return decoded

    def _check(self, side: NDArray[np.int16], threads: int) -> None:
        if side.dtype != np.int16 or side.ndim != 3 or side.shape[2] != self.side_channels:
            raise InputError(f"side must be int16 [H, W, {self.side_channels}]")
        if not 1 <= threads <= 1024:
            raise InputError(f"threads must be 1 to 1024, not {threads!r}")

    def _one_by_one(self, side: NDArray[np.int16], settle) -> NDArray[np.int32]:
        """Raster order; ``settle`` gives the symbols of a position."""
        height, width, _ = side.shape
        decoded = np.zeros((height, width, self.channels), np.int32)
        for h in range(height):
            for w in range(width):
                table, mean = self._predict(decoded, side, h, w)
                symbols = settle(h, w, table, mean)
                decoded[h, w] = reconstruct(symbols, mean, self.fraction_bits)
        return decoded

    def _predict(
        self, decoded: NDArray[np.int32], side: NDArray[np.int16], h: int, w: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Tables and means of a position, from what is decoded so far."""
        kh, kw = self.context.weight.shape[1:3]
        window = np.zeros((kh, kw, self.channels), np.int64)
        rows = slice(max(0, h - kh // 2), h + kh // 2 + 1)
        columns = slice(max(0, w - kw // 2), w + kw // 2 + 1)
        part = decoded[rows, columns]
        top, left = max(0, kh // 2 - h), max(0, kw // 2 - w)
        window[top : top + part.shape[0], left : left + part.shape[1]] = part
        half = (1 << self.context_shift) >> 1
        seen = np.clip(
            (window + half) >> self.context_shift, -self.context_limit, self.context_limit
        )
        x = self._window.reference(torch.from_numpy(seen.astype(np.int16)).view(1, 1, 1, -1))
        x = torch.cat([torch.from_numpy(side[h, w].copy()).view(1, 1, 1, -1), x], 3)
        for head in self.heads:
            x = head.reference(x)
        scale, mean = x.view(2, self.channels)
        return table_of(scale, self.thresholds), mean.numpy()
