"""Integer context networks: one pass over all symbols to encode, wave by wave to decode.

A context network maps a volume of symbols [G, H, W] (G groups: bit planes, or channels) to the
index of a probability table for each symbol. Its convolutions are trimmed by masks, so that no
index depends on its own symbol or a later one; ``docs/waves.md`` has the orders and schedules.

A layer has a group of ``in_width`` input and ``out_width`` output channels for each group of
symbols; ``pycodec.ops.quantized_trimmed_conv2d`` has its arithmetic.

Tensors have numbers: 0 is the symbols; then come *side tensors*, which are known in full before
decoding (features of a hyperprior, colour planes that were coded before); then the output of each
layer but the last, which makes the table indexes.
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
from pycodec.ops.quantized_trimmed_conv2d import quantized_trimmed_conv2d
from pycodec.ops.trimmed_conv2d import expand_mask

SYMBOLS = 0
"""The tensor that holds the symbols, clamped to int8."""
NO_PHASE = np.zeros((1, 1), np.int64)
BACKENDS = ("native", "reference")


@dataclass(frozen=True)
class IntegerLayer:
    """One layer; its output is the next tensor, or the indexes.

    Attributes:
        input: number of its input tensor: :data:`SYMBOLS`, a side tensor, or an earlier layer's.
        weight: int8 [G * out_width, k, k, G * in_width].
        mask: bool [G, G, k, k]: whether output group g sees input group g' at a tap.
        bias, multiplier, negative_multiplier: int32 [G * out_width].
        shift: 1 to 62.
        residual: number of an earlier tensor of the same width, but not the symbols; or None.
        residual_multiplier: int32 [G * out_width], where there is a residual.
        lower, upper: the range of the output: of int8, or of uint8 for the last layer.
        active: where the layer sees anything at all, bool [ph, pw] as the network's ``phase``; None
            is everywhere. Elsewhere its accumulator is its bias.
    """

    input: int
    weight: NDArray[np.int8]
    mask: NDArray[np.bool_]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.int32]
    negative_multiplier: NDArray[np.int32]
    shift: int
    residual: int | None = None
    residual_multiplier: NDArray[np.int32] | None = None
    lower: int = -127
    upper: int = 127
    active: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        weight, mask = np.asarray(self.weight), np.asarray(self.mask)
        if weight.ndim != 4 or weight.dtype != np.int8 or weight.shape[1] != weight.shape[2]:
            raise InputError("weight must be int8 [G * out_width, k, k, G * in_width]")
        if mask.ndim != 4 or mask.dtype != np.bool_ or mask.shape[2:] != weight.shape[1:3]:
            raise InputError("mask must be bool [G, G, k, k] with the weight's k")
        groups = mask.shape[0]
        if mask.shape[1] != groups or weight.shape[0] % groups or weight.shape[3] % groups:
            raise InputError(f"{groups} groups do not fit a weight of {list(weight.shape)}")
        names = ["bias", "multiplier", "negative_multiplier"]
        if (self.residual is None) != (self.residual_multiplier is None):
            raise InputError("residual and residual_multiplier belong together")
        if self.residual is not None:
            names.append("residual_multiplier")
        for name in names:
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


@dataclass(frozen=True)
class WaveNetwork:
    """An integer context network with its order of coding; immutable.

    Symbol (g, h, w) belongs to wave ``a * g + b * h + c * w + phase[h mod ph, w mod pw]``, steps =
    (a, b, c); waves are coded in turn, and within a wave groups, then rows, then columns.

    What a layer sees must belong to an earlier wave, or, unless its input is the symbols, to its
    own. Side tensors, and what is made of them alone, may be seen everywhere, later positions too:
    such layers run once, before the waves.

    Attributes:
        layers: the last one makes the table indexes, uint8, one for each symbol.
        steps: of the order: 0 to 2**20.
        backend: ``native`` (C++; it keeps no SIMD level, each call takes the one in force), or
            ``reference`` (PyTorch; decodes by running the whole network for every wave).
        side_widths: channels in a group of each side tensor.
        phase: int64 [ph, pw], 0 to 2**20; as ``pycodec.context.orders.Order.phase``.

    Raises:
        InputError: the layers do not fit together, or one sees what is not decoded yet.
    """

    layers: Sequence[IntegerLayer]
    steps: tuple[int, int, int]
    backend: str = "native"
    side_widths: Sequence[int] = ()
    phase: NDArray[np.int64] = field(default_factory=NO_PHASE.copy)
    _native: _cpu.WaveNetwork = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        if not self.layers or any(layer.groups != self.groups for layer in self.layers):
            raise InputError("a network needs layers, all with the same groups")
        phase = np.asarray(self.phase)
        if phase.ndim != 2 or phase.dtype.kind not in "iu":
            raise InputError("phase must be int64 [ph, pw]")
        for layer in self.layers:
            if layer.active is not None and (
                layer.active.dtype != np.bool_ or layer.active.shape != phase.shape
            ):
                raise InputError(f"active must be bool {list(phase.shape)}, as phase")
        descriptions = [
            {
                "input": layer.input,
                "residual": -1 if layer.residual is None else layer.residual,
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
                "active": None if layer.active is None else layer.active.astype(np.uint8),
            }
            for layer in self.layers
        ]
        native = _cpu.WaveNetwork(
            self.groups,
            list(self.side_widths),
            descriptions,
            list(self.steps),
            phase.astype(np.int64),
        )
        object.__setattr__(self, "_native", native)

    @property
    def groups(self) -> int:
        """G."""
        return self.layers[0].groups

    def num_waves(self, height: int, width: int) -> int:
        """Waves of a picture of this size, empty ones included."""
        return self._native.num_waves(height, width)

    def table_indexes(
        self,
        symbols: NDArray[np.int32],
        side: Sequence[NDArray[np.int8]] = (),
        backend: str = "reference",
    ) -> NDArray[np.uint8]:
        """The definition: the table of each symbol, [G, H, W].

        Args:
            symbols, side: as of :meth:`order`.
            backend: of :func:`pycodec.ops.quantized_trimmed_conv2d`, which runs layer by layer.
        """
        tensors = self._tensors(symbols, side, backend)
        return tensors[-1][0].permute(2, 0, 1).to(torch.uint8).numpy()

    def _tensors(
        self,
        symbols: NDArray[np.int32],
        side: Sequence[NDArray[np.int8]],
        backend: str,
    ) -> list[torch.Tensor]:
        """Inputs and the outputs of all layers, [1, H, W, C]."""
        _, height, width = symbols.shape
        planes = [np.clip(symbols, -128, 127).astype(np.int8), *self._checked(side, height, width)]
        tensors = [torch.from_numpy(p).permute(1, 2, 0)[None].contiguous() for p in planes]
        for layer in self.layers:
            out = self._run(layer, tensors, layer.mask, backend)
            if layer.active is not None:
                ph, pw = layer.active.shape
                active = np.tile(layer.active, (-(-height // ph), -(-width // pw)))
                active = torch.from_numpy(active[:height, :width])[None, :, :, None]
                out = torch.where(
                    active, out, self._run(layer, tensors, layer.mask & False, backend)
                )
            tensors.append(out)
        return tensors

    @staticmethod
    def _run(
        layer: IntegerLayer,
        tensors: Sequence[torch.Tensor],
        mask: NDArray[np.bool_],
        backend: str,
    ) -> torch.Tensor:
        arrays = (layer.weight, mask, layer.bias, layer.multiplier, layer.negative_multiplier)
        options = {}
        if layer.residual is not None:
            options["residual"] = tensors[layer.residual]
            options["residual_multiplier"] = _tensor(layer.residual_multiplier)
        return quantized_trimmed_conv2d(
            tensors[layer.input],
            *map(_tensor, arrays),
            layer.shift,
            **options,
            lower=layer.lower,
            upper=layer.upper,
            backend=backend,
        )

    def _checked_symbols(
        self, symbols: NDArray[np.int32], threads: int, side: Sequence[NDArray[np.int8]]
    ) -> tuple[NDArray[np.int32], list[NDArray[np.int8]]]:
        _check_threads(threads)
        symbols = np.ascontiguousarray(symbols)
        if symbols.dtype != np.int32 or symbols.ndim != 3 or symbols.shape[0] != self.groups:
            raise InputError(f"symbols must be int32 [{self.groups}, H, W]")
        return symbols, self._checked(side, *symbols.shape[1:])

    def _checked(
        self, side: Sequence[NDArray[np.int8]], height: int, width: int
    ) -> list[NDArray[np.int8]]:
        shapes = [(self.groups * w, height, width) for w in self.side_widths]
        side = [np.ascontiguousarray(tensor) for tensor in side]
        if [(s.dtype, s.shape) for s in side] != [(np.dtype(np.int8), shape) for shape in shapes]:
            wanted = ", ".join(str(list(shape)) for shape in shapes) or "none"
            raise InputError(
                f"side tensors must be int8 {wanted}, "
                f"not {', '.join(f'{s.dtype} {list(s.shape)}' for s in side) or 'none'}"
            )
        return side

    def waves(self, height: int, width: int) -> list[NDArray[np.int64]]:
        """Positions of each wave in the order of coding: int64 [n, 3] of (g, h, w)."""
        g, h, w = np.indices((self.groups, height, width)).reshape(3, -1)
        t = self.steps[0] * g + self.steps[1] * h + self.steps[2] * w
        t += self.phase[h % self.phase.shape[0], w % self.phase.shape[1]]
        order = np.argsort(t, kind="stable")  # raster order: groups, rows, columns
        positions = np.stack([g, h, w], axis=1)[order]
        ends = np.cumsum(np.bincount(t, minlength=self.num_waves(height, width)))
        return np.split(positions, ends[:-1]) if len(ends) else []

    def order(
        self,
        symbols: NDArray[np.int32],
        threads: int = 1,
        *,
        side: Sequence[NDArray[np.int8]] = (),
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """All symbols in the order of coding with the index of the table of each, in one pass.

        Args:
            symbols: int32 [G, H, W].
            threads: of the native backend.
            side: int8 [G * width, H, W] for each of ``side_widths``.

        Returns:
            int32 and uint8, [G * H * W].

        Raises:
            InputError: an argument does not fit the description above.
        """
        symbols, side = self._checked_symbols(symbols, threads, side)
        if self.backend == "native":
            return self._native.encode(symbols, side, threads)
        if symbols.size == 0:
            return np.empty(0, np.int32), np.empty(0, np.uint8)
        indexes = self.table_indexes(symbols, side)
        at = tuple(np.concatenate(self.waves(*symbols.shape[1:])).T)
        return symbols[at], indexes[at]

    def begin(
        self,
        symbols: NDArray[np.int32],
        threads: int = 1,
        *,
        side: Sequence[NDArray[np.int8]] = (),
    ) -> EncodingPass:
        """What :meth:`order` does, but the last layer may be chosen by what it will see.

        Arguments and errors as of :meth:`order`. There must be a symbol.
        """
        symbols, side = self._checked_symbols(symbols, threads, side)
        if symbols.size == 0:
            raise InputError("there are no symbols")
        return EncodingPass(self, symbols, side, threads)

    def encode(
        self,
        symbols: NDArray[np.int32],
        tables: TableSet,
        *,
        side: Sequence[NDArray[np.int8]] = (),
        lanes: int | None = None,
        threads: int = 1,
    ) -> bytes:
        """A rANS stream of symbols, int32 [G, H, W].

        Arguments as of :meth:`order` and :func:`pycodec.coding.rans.encode`.
        """
        ordered, indexes = self.order(symbols, threads, side=side)
        return rans.encode(ordered, indexes, tables, lanes=lanes)

    def decode(
        self,
        data: bytes,
        tables: TableSet,
        height: int,
        width: int,
        *,
        side: Sequence[NDArray[np.int8]] = (),
        threads: int = 1,
    ) -> NDArray[np.int32]:
        """The symbols of a stream of :meth:`encode`: int32 [G, height, width].

        Raises:
            InputError: a size is negative, or side tensors are not those of :meth:`order`.
            CorruptStreamError: the stream is damaged.
        """
        if height < 0 or width < 0:
            raise InputError(f"a picture cannot have {height} x {width} pixels")
        _check_threads(threads)
        side = self._checked(side, height, width)
        if self.backend == "native":
            return self._native.decode(data, tables.native, side, height, width, threads)
        symbols = np.zeros((self.groups, height, width), np.int32)
        decoder = rans.RansDecoder(data, tables)
        for wave in self.waves(height, width) if symbols.size else []:
            at = tuple(wave.T)
            symbols[at] = decoder.decode(self.table_indexes(symbols, side)[at])
        decoder.finish()
        return symbols


class EncodingPass:
    """All layers but the last have run, in native code; see :meth:`WaveNetwork.begin`."""

    def __init__(
        self,
        network: WaveNetwork,
        symbols: NDArray[np.int32],
        side: list[NDArray[np.int8]],
        threads: int,
    ) -> None:
        self.network = network
        self.symbols = symbols
        self._side, self._threads = side, threads
        self._native = _cpu.WavePass(network._native, symbols, side, threads)

    def head_input(self, rows: Sequence[int]) -> tuple[NDArray[np.int8], NDArray[np.floating]]:
        """What the last layer sees in some rows.

        Args:
            rows: n of the H.

        Returns:
            Activations int8 [n, W, G * in_width], and accumulators [n, W, G], whole numbers.
        """
        windows = torch.from_numpy(self._native.head_input(list(rows)))
        return head_input(self.network.layers[-1], windows, self.symbols.shape[2])

    def order(
        self, network: WaveNetwork | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """:meth:`WaveNetwork.order` of ``network``, which differs in the last layer's weights."""
        network = network or self.network
        if network.backend != "native":
            return network.order(self.symbols, self._threads, side=self._side)
        return self._native.finish(network._native, self._threads)


def head_input(
    head: IntegerLayer, windows: torch.Tensor, width: int
) -> tuple[NDArray[np.int8], NDArray[np.floating]]:
    """What the last layer sees in n rows, and its accumulators; see ``EncodingPass.head_input``.

    Args:
        head: the layer, with a kernel of 2r + 1.
        windows: its input with a border, int8 [n, 2r + 1, width + 2r, G * in_width].
        width: of the picture.
    """
    weight = torch.from_numpy(head.weight).permute(0, 3, 1, 2)
    weight = weight * expand_mask(torch.from_numpy(head.mask), weight)
    bias = torch.from_numpy(head.bias)
    bound = int((128 * weight.long().abs().sum((1, 2, 3)) + bias.long().abs()).max())
    # Either way all sums of products of bytes are exact.
    dtype = torch.float32 if bound < 1 << 24 else torch.float64
    sums = F.conv2d(windows.permute(0, 3, 1, 2).to(dtype), weight.to(dtype), bias.to(dtype))
    radius = weight.shape[2] // 2
    features = windows[:, radius, radius : radius + width]
    return features.numpy(), sums[:, :, 0].permute(0, 2, 1).numpy()


def _tensor(array: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _check_threads(threads: int) -> None:
    if not 1 <= threads <= 1024:
        raise InputError(f"threads must be 1 to 1024, not {threads!r}")
