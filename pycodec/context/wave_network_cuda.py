"""The wave engine on a GPU: the streams and symbols of :mod:`pycodec.context.wave_network`.

To encode, the layers run over the whole picture. To decode, one kernel does all waves: its blocks
meet after each layer, a warp draws a wave's symbols from the rANS stream, and nothing goes to the
host before the end. ``csrc/cuda/wave_network_grid.hpp`` has what the warps do; the tests run the
same code on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycodec.coding import rans, rans_cuda
from pycodec.coding.tables import TableSet
from pycodec.context.wave_network import SYMBOLS, IntegerLayer, WaveNetwork
from pycodec.errors import CorruptStreamError, InputError
from pycodec.ops import trimmed_kernels
from pycodec.ops.backends import check_backend, cuda_kernels

_CHANNELS = 8  # kWaveChannels in csrc/cuda/wave_network.hpp
_WORD = 4  # input channels to a multiplication of dot products
_HEADER_BYTES, _STATE_BYTES, _WORD_BYTES = 1, 4, 2  # of rANS streams, csrc/rans/rans.hpp
_NO_TABLE, _STATE_TOO_SMALL = 7, 4  # enum class Failure in csrc/rans/device.hpp


@dataclass(frozen=True)
class Launch:
    """How to decode.

    Attributes:
        persistent: one kernel for all waves, or a CUDA graph that is launched for each.
        threads: of a block, a multiple of 32 up to 512.
        blocks_per_multiprocessor: of the persistent kernel, at most. Fewer meet sooner.
    """

    persistent: bool = True
    threads: int = 256
    blocks_per_multiprocessor: int = 1


@dataclass(frozen=True)
class Pending:
    """A picture that is being decoded."""

    network: WaveNetwork
    symbols: Tensor
    state: Tensor  # int64 [3]: WaveCudaState in csrc/cuda/wave_network.hpp
    indexes: Tensor
    lanes: int
    tables: TableSet

    def wait(self) -> Tensor:
        """The symbols, int32 [G, H, W], on their device; raises what the CPU raises."""
        report, wave, _ = self.state.cpu().numpy().view(np.uint64).tolist()
        if report == 0:
            return self.symbols
        # rans::failure_report() in csrc/rans/device.hpp
        kind, lane, position = report & 0xFF, report >> 8 & 0xFF, report >> 32
        if kind == _NO_TABLE:
            count = len(self.network.waves(*self.symbols.shape[1:])[wave])
            raise InputError(rans_cuda._no_table(int(self.indexes[:count].max()), self.tables))
        offset = _HEADER_BYTES + _STATE_BYTES * self.lanes + _WORD_BYTES * position
        if kind == _STATE_TOO_SMALL:
            offset = _HEADER_BYTES + _STATE_BYTES * lane
        raise CorruptStreamError(rans_cuda._DAMAGE[kind].format(lane=lane), offset=offset)


class CudaWaveNetwork:
    """A :class:`WaveNetwork` on a GPU: the same bytes and symbols, its weights uploaded once.

    Args:
        network: its layers and order; its backend does not matter.
        device: a CUDA device; None is the current one.

    Raises:
        InputError: there is no such GPU.
    """

    def __init__(self, network: WaveNetwork, device: torch.device | str | None = None) -> None:
        self.network = network
        self.device = rans_cuda._find_device(device)
        self._layers = [_DeviceLayer(layer, self.device) for layer in network.layers]
        self._padding = max(layer.weight.shape[1] // 2 for layer in network.layers)
        self._permutation: tuple[tuple[int, int], Tensor] | None = None

    def order(self, symbols: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """All symbols in the order of coding with the table index of each; see WaveNetwork.order.

        Raises:
            InputError: ``symbols`` are not int32 [G, H, W].
        """
        symbols = np.ascontiguousarray(symbols)
        groups = self.network.groups
        if symbols.dtype != np.int32 or symbols.ndim != 3 or symbols.shape[0] != groups:
            raise InputError(f"symbols must be int32 [{groups}, H, W]")
        if symbols.size == 0:
            return np.empty(0, np.int32), np.empty(0, np.uint8)
        on_device = torch.from_numpy(symbols).to(self.device)
        frame = on_device.clamp(-128, 127).to(torch.int8).permute(1, 2, 0)[None].contiguous()
        tensors = [frame]
        for on_gpu in self._layers:
            tensors.append(on_gpu.run(tensors))
        indexes = tensors[-1][0].permute(2, 0, 1).reshape(-1).view(torch.uint8)
        permutation = self._coding_order(*symbols.shape[1:])
        ordered = on_device.view(-1)[permutation], indexes[permutation]
        return tuple(t.cpu().numpy() for t in ordered)

    def encode(
        self, symbols: NDArray[np.int32], tables: TableSet, *, lanes: int | None = None
    ) -> bytes:
        """The stream of :meth:`WaveNetwork.encode`, written by the CPU's coder."""
        ordered, indexes = self.order(symbols)
        return rans.encode(ordered, indexes, tables, lanes=lanes)

    def decode(
        self,
        data: bytes,
        tables: TableSet,
        height: int,
        width: int,
        *,
        launch: Launch | None = None,
    ) -> NDArray[np.int32]:
        """The symbols of a stream of :meth:`encode`: int32 [G, height, width].

        Raises:
            InputError: a size is negative, an index has no table, or ``launch`` does not fit.
            CorruptStreamError: the stream is damaged; the error is that of the CPU.
        """
        pending = self.queue_decode(data, tables, height, width, launch or Launch())
        return pending.wait().cpu().numpy()

    def queue_decode(
        self, data: bytes, tables: TableSet, height: int, width: int, launch: Launch
    ) -> Pending:
        """:meth:`decode`, queued on the current stream; the symbols stay on the device."""
        network, device = self.network, self.device
        if height < 0 or width < 0:
            raise InputError(f"a picture cannot have {height} x {width} pixels")
        if launch.threads % 32 or not 32 <= launch.threads <= 512:
            raise InputError(f"threads must be a multiple of 32 up to 512, not {launch.threads}")
        if launch.blocks_per_multiprocessor < 1:
            raise InputError("a multiprocessor needs a block at least")
        lanes = rans.RansDecoder(data, tables).lanes  # checks the header and the states
        body = rans_cuda._upload(np.frombuffer(data, np.uint8)[_HEADER_BYTES:].copy(), device)
        pitch = width + 2 * self._padding
        frames = [self._frame(network.groups, height, pitch)]
        frames += [
            self._frame(layer.groups * layer.out_width, height, pitch)
            for layer in network.layers[:-1]
        ]
        offsets = [on_gpu.offsets(pitch) for on_gpu in self._layers]
        rows = [
            on_gpu.row(frames, [self._address(f) for f in frames], number, offset)
            for number, (on_gpu, offset) in enumerate(zip(self._layers, offsets, strict=True))
        ]
        layers = rans_cuda._upload(np.array(rows, np.int64), device)
        longest = network.groups * _most_rows(network.steps, height, width)
        indexes = torch.empty(longest, dtype=torch.uint8, device=device)
        places, pixels = (torch.empty(longest, dtype=torch.int64, device=device) for _ in "pf")
        symbols = torch.zeros((network.groups, height, width), dtype=torch.int32, device=device)
        checkpoint = torch.empty(lanes + 2, dtype=torch.int32, device=device)
        state = torch.zeros(3, dtype=torch.int64, device=device)
        group_step, row_step, column_step = network.steps
        divisor = math.gcd(row_step, column_step)
        stride = column_step // divisor
        arguments = {
            "tables": rans_cuda._tables_on(tables, device).addresses,
            "body": body.data_ptr(),
            "body_size": len(body),
            "lanes": lanes,
            "check_indexes": network.layers[-1].upper >= tables.num_tables,
            "layers": layers.data_ptr(),
            "num_layers": len(rows),
            "groups": network.groups,
            "order": (
                *(group_step, row_step, column_step),
                *(divisor, stride, pow(row_step // divisor, -1, stride)),
            ),
            "height": height,
            "width": width,
            "pitch": pitch,
            "num_waves": network.num_waves(height, width),
            "symbol_frame": self._address(frames[SYMBOLS]),
            "symbol_bytes": frames[SYMBOLS].shape[2],
            "symbols": symbols.data_ptr(),
            "indexes": indexes.data_ptr(),
            "places": places.data_ptr(),
            "pixels": pixels.data_ptr(),
            "checkpoint": checkpoint.data_ptr(),
            "state": state.data_ptr(),
        }
        if launch.persistent:
            blocks = _resident_blocks(device, lanes, launch)
            options = {"blocks": blocks, "threads": launch.threads}
            rans_cuda._launch("wave_decode", device, arguments=arguments, **options)
        else:
            options = {"threads": launch.threads}
            rans_cuda._launch("wave_decode_graph", device, arguments=arguments, **options)
        return Pending(self.network, symbols, state, indexes, lanes, tables)

    def _frame(self, channels: int, height: int, pitch: int) -> Tensor:
        """int8 zeros [H + border, pitch, pixel], see csrc/cuda/wave_network.hpp."""
        shape = (height + 2 * self._padding, pitch, _round_up(channels, _WORD))
        return torch.zeros(shape, dtype=torch.int8, device=self.device)

    def _address(self, frame: Tensor) -> int:
        """Of the pixel at (0, 0)."""
        _, pitch, pixel = frame.shape
        return frame.data_ptr() + (self._padding * pitch + self._padding) * pixel

    def _coding_order(self, height: int, width: int) -> Tensor:
        """Places of the symbols in [G, H, W], in the order of coding; kept for the next picture."""
        if self._permutation is None or self._permutation[0] != (height, width):
            sides = (self.network.groups, height, width)
            ranges = [torch.arange(n, device=self.device) for n in sides]
            g, h, w = torch.meshgrid(*ranges, indexing="ij")
            steps = self.network.steps
            t = (steps[0] * g + steps[1] * h + steps[2] * w).view(-1)
            self._permutation = (height, width), torch.argsort(t, stable=True)
        return self._permutation[1]


class _DeviceLayer:
    """A layer's numbers in device memory, packed as csrc/cuda/wave_network.hpp says."""

    def __init__(self, layer: IntegerLayer, device: torch.device) -> None:
        self.layer, self.device = layer, device
        groups, kernel, radius = layer.groups, layer.weight.shape[1], layer.weight.shape[1] // 2
        in_channels = groups * layer.in_width
        words = -(-in_channels // _WORD)
        surplus = words * _WORD - in_channels
        seen = layer.mask.transpose(0, 2, 3, 1).reshape(groups, kernel * kernel, groups)
        seen = np.pad(seen.repeat(layer.in_width, 2), ((0, 0), (0, 0), (0, surplus)))
        seen = seen.reshape(groups, kernel * kernel, words, _WORD).any(3)
        weight = np.pad(layer.trimmed_weight(), ((0, 0), (0, 0), (0, 0), (0, surplus)))
        weight = weight.reshape(groups, layer.out_width, kernel * kernel, words, _WORD)
        chunks = -(-layer.out_width // _CHANNELS)
        packed, taps_of_words, numbers = [], [], []
        for group in range(groups):
            taps, number = np.nonzero(seen[group])
            of_group = np.zeros((chunks * _CHANNELS, len(taps), _WORD), np.int8)
            of_group[: layer.out_width] = weight[group][:, taps, number]
            by_chunk = of_group.reshape(chunks, _CHANNELS, len(taps), _WORD)
            packed.append(by_chunk.transpose(0, 2, 1, 3).reshape(-1))
            taps_of_words.append(taps)
            numbers.append(number)
        taps = np.concatenate(taps_of_words)
        self._rows, self._columns = taps // kernel - radius, taps % kernel - radius
        self._numbers = np.concatenate(numbers)
        begin = np.cumsum([0, *map(len, numbers)])
        arrays = (begin, np.concatenate(packed), *self._parameters())
        self._packed = [rans_cuda._upload(array, device) for array in arrays]
        self._mask = torch.from_numpy(layer.mask).to(device)
        self._weight = torch.from_numpy(np.ascontiguousarray(layer.weight)).to(device)

    def _parameters(self) -> tuple[NDArray[np.int32], ...]:
        return self.layer.bias, self.layer.multiplier, self.layer.negative_multiplier

    def run(self, tensors: list[Tensor]) -> Tensor:
        """The layer over a whole picture, [1, H, W, C]; bytes of int8 or uint8."""
        layer = self.layer
        return trimmed_kernels.quantized_cuda(
            tensors[layer.input],
            self._weight,
            self._mask,
            *self._packed[2:],
            layer.shift,
            None if layer.residual is None else tensors[layer.residual],
            layer.residual_multiplier,
            layer.lower,
            layer.upper,
        )

    def offsets(self, pitch: int) -> Tensor:
        """How many bytes from a position's pixel each word is, int32."""
        pixel = _round_up(self.layer.groups * self.layer.in_width, _WORD)
        offsets = (self._rows * pitch + self._columns) * pixel + self._numbers * _WORD
        if offsets.size and np.abs(offsets).max() >= 2**31:
            raise InputError("the picture is too wide")
        return rans_cuda._upload(offsets.astype(np.int32), self.device)

    def row(
        self, frames: list[Tensor], addresses: list[int], number: int, offsets: Tensor
    ) -> list[int]:
        """The members of a WaveCudaLayer."""
        layer = self.layer
        last = number + 1 == len(frames)
        begin, weights, *parameters = (tensor.data_ptr() for tensor in self._packed)
        residual = layer.residual
        return [
            addresses[layer.input],
            0 if residual is None else addresses[residual],
            0 if last else addresses[number + 1],
            frames[layer.input].shape[2],
            0 if residual is None else frames[residual].shape[2],
            0 if last else frames[number + 1].shape[2],
            begin,
            offsets.data_ptr(),
            weights,
            *parameters,
            layer.out_width,
            layer.residual_multiplier,
            layer.shift,
            layer.lower,
            layer.upper,
        ]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _most_rows(steps: tuple[int, int, int], height: int, width: int) -> int:
    """At most so many rows of a group have a symbol in one wave."""
    if height == 0 or width == 0:
        return 0
    _, row_step, column_step = steps
    return height if row_step == 0 else min(height, column_step * (width - 1) // row_step + 1)


def _resident_blocks(device: torch.device, lanes: int, launch: Launch) -> int:
    check_backend("cuda")
    with torch.cuda.device(device):
        return cuda_kernels().wave_decode_blocks(
            lanes, launch.threads, launch.blocks_per_multiprocessor
        )
