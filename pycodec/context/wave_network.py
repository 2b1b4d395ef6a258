"""Integer context networks: one pass over all symbols to encode, wave by wave to decode.

A context network maps a volume of symbols [G, H, W] (G groups: bit planes, or channels) to the
index of a probability table for each symbol. Its convolutions are trimmed by masks, so that no
index depends on its own symbol or a later one; ``docs/waves.md`` has the orders and schedules.

A layer has a group of ``in_width`` input and ``out_width`` output channels for each group of
symbols. With x its input, int8, zero outside of the picture, and r another tensor at the same
place::

    acc = bias + sum of weight * x over what the mask lets an output group see          int32
    sum = acc * (multiplier if acc >= 0 else negative_multiplier) + r * residual_multiplier
    out = clamp((sum + 2**(shift - 1)) >> shift, lower, upper)                         64 bits

The two multipliers are a PReLU fused with the requantization; with equal ones there is none, with a
``negative_multiplier`` of 0 it is a ReLU. Accumulators wrap modulo 2**32 on every backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.coding import rans
from pycodec.coding.tables import TableSet
from pycodec.errors import InputError

SYMBOLS = 0
"""The tensor that holds the symbols, clamped to int8."""
BACKENDS = ("native", "reference")


@dataclass(frozen=True)
class IntegerLayer:
    """One layer; its output is the next tensor (the first layer makes tensor 1), or the indexes.

    Attributes:
        input: number of its input tensor, :data:`SYMBOLS` or an earlier layer's.
        weight: int8 [G * out_width, k, k, G * in_width].
        mask: bool [G, G, k, k]: whether output group g sees input group g' at a tap.
        bias, multiplier, negative_multiplier: int32 [G * out_width].
        shift: 1 to 62.
        residual: number of an earlier layer's tensor of the same width, or None.
        residual_multiplier: int32.
        lower, upper: the range of the output: of int8, or of uint8 for the last layer.
    """

    input: int
    weight: NDArray[np.int8]
    mask: NDArray[np.bool_]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.int32]
    negative_multiplier: NDArray[np.int32]
    shift: int
    residual: int | None = None
    residual_multiplier: int = 0
    lower: int = -127
    upper: int = 127

    def __post_init__(self) -> None:
        weight, mask = np.asarray(self.weight), np.asarray(self.mask)
        if weight.ndim != 4 or weight.dtype != np.int8 or weight.shape[1] != weight.shape[2]:
            raise InputError("weight must be int8 [G * out_width, k, k, G * in_width]")
        if mask.ndim != 4 or mask.dtype != np.bool_ or mask.shape[2:] != weight.shape[1:3]:
            raise InputError("mask must be bool [G, G, k, k] with the weight's k")
        groups = mask.shape[0]
        if mask.shape[1] != groups or weight.shape[0] % groups or weight.shape[3] % groups:
            raise InputError(f"{groups} groups do not fit a weight of {list(weight.shape)}")
        for name in ("bias", "multiplier", "negative_multiplier"):
            values = np.asarray(getattr(self, name))
            if values.dtype != np.int32 or values.shape != weight.shape[:1]:
                raise InputError(f"{name} must be int32 [{weight.shape[0]}]")

    @property
    def groups(self) -> int:
        """G."""
        return self.mask.shape[0]

    @property
    def in_width(self) -> int:
        """Input channels of a group."""
        return self.weight.shape[3] // self.groups

    @property
    def out_width(self) -> int:
        """Output channels of a group."""
        return self.weight.shape[0] // self.groups

    def trimmed_weight(self) -> NDArray[np.int8]:
        """The weight with zeros where the mask cuts: int8 [G * out_width, k, k, G * in_width]."""
        mask = self.mask.transpose(0, 2, 3, 1)
        return self.weight * mask.repeat(self.out_width, 0).repeat(self.in_width, 3)


@dataclass(frozen=True)
class WaveNetwork:
    """An integer context network with its order of coding; immutable.

    Symbol (g, h, w) belongs to wave ``a * g + b * h + c * w``, steps = (a, b, c); waves are coded
    in turn, and within a wave groups, then rows.

    Attributes:
        layers: the last one makes the table indexes, uint8, one for each symbol.
        steps: of the order: non-negative, the last at least 1.
        backend: ``native`` (C++; it keeps no SIMD level, each call takes the one in force), or
            ``reference`` (PyTorch; decodes by running the whole network for every wave).

    Raises:
        InputError: the layers do not fit together, or one sees what is not decoded yet.
    """

    layers: Sequence[IntegerLayer]
    steps: tuple[int, int, int]
    backend: str = "native"
    _native: _cpu.WaveNetwork = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        if not self.layers or any(layer.groups != self.groups for layer in self.layers):
            raise InputError("a network needs layers, all with the same groups")
        last = len(self.layers) - 1
        descriptions = [
            {
                "input": layer.input,
                "residual": -1 if layer.residual is None else layer.residual,
                "output": -1 if number == last else number + 1,
                "in_width": layer.in_width,
                "out_width": layer.out_width,
                "kernel": layer.weight.shape[1],
                "weight": layer.weight,
                "mask": layer.mask.astype(np.uint8),
                "bias": layer.bias,
                "multiplier": layer.multiplier,
                "negative_multiplier": layer.negative_multiplier,
                "residual_multiplier": layer.residual_multiplier,
                "shift": layer.shift,
                "lower": layer.lower,
                "upper": layer.upper,
            }
            for number, layer in enumerate(self.layers)
        ]
        native = _cpu.WaveNetwork(self.groups, descriptions, list(self.steps))
        object.__setattr__(self, "_native", native)

    @property
    def groups(self) -> int:
        """G."""
        return self.layers[0].groups

    def num_waves(self, height: int, width: int) -> int:
        """Waves of a picture of this size."""
        return self._native.num_waves(height, width)

    def table_indexes(self, symbols: NDArray[np.int32]) -> NDArray[np.uint8]:
        """The definition: the table of each symbol, [G, H, W], of int32 [G, H, W]."""
        tensors = [torch.from_numpy(np.clip(symbols, -128, 127)).double()[None]]
        out = tensors[0]
        for layer in self.layers:
            weight = torch.from_numpy(layer.trimmed_weight()).permute(0, 3, 1, 2).double()
            x = tensors[layer.input]
            acc = F.conv2d(x, weight, padding=weight.shape[2] // 2)[0].long()
            acc += torch.from_numpy(layer.bias).long()[:, None, None]
            acc = acc.int().long()  # wraps
            positive, negative = (
                torch.from_numpy(m).long()[:, None, None]
                for m in (layer.multiplier, layer.negative_multiplier)
            )
            total = acc * torch.where(acc >= 0, positive, negative)
            if layer.residual is not None:
                total += tensors[layer.residual][0].long() * layer.residual_multiplier
            out = (total + (1 << (layer.shift - 1))) >> layer.shift
            out = out.clamp(layer.lower, layer.upper)
            tensors.append(out[None].double())
        return out.numpy().astype(np.uint8)

    def waves(self, height: int, width: int) -> list[NDArray[np.int64]]:
        """Positions of each wave in the order of coding: int64 [n, 3] of (g, h, w)."""
        g, h, w = np.indices((self.groups, height, width)).reshape(3, -1)
        t = self.steps[0] * g + self.steps[1] * h + self.steps[2] * w
        order = np.argsort(t, kind="stable")  # raster order: groups, rows, columns
        positions = np.stack([g, h, w], axis=1)[order]
        ends = np.cumsum(np.bincount(t, minlength=self.num_waves(height, width)))
        return np.split(positions, ends[:-1]) if len(ends) else []

    def order(
        self, symbols: NDArray[np.int32], threads: int = 1
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """All symbols in the order of coding with the index of the table of each, in one pass.

        Args:
            symbols: int32 [G, H, W].
            threads: of the native backend.

        Returns:
            int32 and uint8, [G * H * W].
        """
        symbols = np.ascontiguousarray(symbols)
        if symbols.dtype != np.int32 or symbols.ndim != 3 or symbols.shape[0] != self.groups:
            raise InputError(f"symbols must be int32 [{self.groups}, H, W]")
        if self.backend == "native":
            return self._native.encode(symbols, threads)
        if symbols.size == 0:
            return np.empty(0, np.int32), np.empty(0, np.uint8)
        indexes = self.table_indexes(symbols)
        at = tuple(np.concatenate(self.waves(*symbols.shape[1:])).T)
        return symbols[at], indexes[at]

    def encode(
        self,
        symbols: NDArray[np.int32],
        tables: TableSet,
        *,
        lanes: int | None = None,
        threads: int = 1,
    ) -> bytes:
        """A rANS stream of int32 [G, H, W]; arguments as of :func:`pycodec.coding.rans.encode`."""
        ordered, indexes = self.order(symbols, threads)
        return rans.encode(ordered, indexes, tables, lanes=lanes)

    def decode(
        self, data: bytes, tables: TableSet, height: int, width: int, *, threads: int = 1
    ) -> NDArray[np.int32]:
        """The symbols of a stream of :meth:`encode`: int32 [G, height, width].

        Raises:
            InputError: a size is negative.
            CorruptStreamError: the stream is damaged.
        """
        if height < 0 or width < 0:
            raise InputError(f"a picture cannot have {height} x {width} pixels")
        if not 1 <= threads <= 1024:
            raise InputError(f"threads must be 1 to 1024, not {threads!r}")
        if self.backend == "native":
            return self._native.decode(data, tables.native, height, width, threads)
        symbols = np.zeros((self.groups, height, width), np.int32)
        decoder = rans.RansDecoder(data, tables)
        for wave in self.waves(height, width) if symbols.size else []:
            at = tuple(wave.T)
            symbols[at] = decoder.decode(self.table_indexes(symbols)[at])
        decoder.finish()
        return symbols
