"""The wave engine on a GPU: the streams and symbols of :mod:`pycodec.context.wave_network`.

To encode, the layers run over the whole picture. To decode, one kernel does all waves: its blocks
meet after each stage of layers, a warp draws a wave's symbols from the rANS stream, and nothing
goes to the host before the end. ``csrc/cuda/wave_network_grid.hpp`` has what the warps do; the
tests run the same code on the host.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycodec.coding import rans, rans_cuda
from pycodec.coding.tables import TableSet
from pycodec.context.wave_network import SYMBOLS, IntegerLayer, WaveNetwork, head_input
from pycodec.errors import CorruptStreamError, InputError
from pycodec.ops import trimmed_kernels
from pycodec.ops.backends import check_backend, cuda_kernels

_CHANNELS = 8  # kWaveChannels in csrc/cuda/wave_network.hpp
_WORD = 4  # input channels to a multiplication of dot products
_SLICES, _WORDS = 8, 16  # threads that share a position's words; kWaveWords
_GROUP_LAYER_BYTES, _TABLE_BYTES = 128, 16  # sizeof(WaveGroupLayer), sizeof(TableOfTwo)
_MOST_STAGED_TABLES = 256
_MAX_THREADS = 256  # kMaxThreads in csrc/cuda/wave_network.cu
_HEADER_BYTES, _STATE_BYTES, _WORD_BYTES = 1, 4, 2  # of rANS streams, csrc/rans/rans.hpp
_SIDE_BITS = 27  # kWaveSideBits
_NO_TABLE, _STATE_TOO_SMALL = 7, 4  # enum class Failure in csrc/rans/device.hpp
_MAX_ORDERS = 4  # 16 bytes a symbol each


@dataclass(frozen=True)
class Launch:
    """How to decode.

    Attributes:
        persistent: one kernel for all waves, or a CUDA graph that is launched for each.
        threads: of a block, a multiple of 32 up to 256.
        blocks_per_multiprocessor: of the persistent kernel, at most. Fewer meet sooner.
    """

    persistent: bool = True
    threads: int = 256
    blocks_per_multiprocessor: int = 1


@dataclass(frozen=True)
class Pending:
    """A picture that is being decoded."""

    order: _Order
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
            groups = self.order.groups
            first, end = self.order.begin[[wave * groups, (wave + 1) * groups]].tolist()
            raise InputError(
                rans_cuda._no_table(int(self.indexes[: end - first].max()), self.tables)
            )
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
        self._first = 1 + len(network.side_widths)  # number of the first layer's tensor
        known = set(range(1, self._first))  # tensors that do not depend on symbols
        self._side_layers = []
        for number, layer in enumerate(network.layers[:-1]):
            if layer.input in known and (layer.residual is None or layer.residual in known):
                known.add(self._first + number)
                self._side_layers.append(number)
        # Layers of a wave that a warp may run one after the other, before all meet again: what one
        # makes that the next one sees must be its own work, as with one chunk of channels it is.
        self.stages: list[list[int]] = []
        for stage in network._native.wave_stages:
            is_narrow = all(network.layers[n].out_width <= _CHANNELS for n in stage)
            self.stages += [stage] if is_narrow else [[n] for n in stage]
        self._orders: dict[tuple[int, int], _Order] = {}

    def order(
        self, symbols: NDArray[np.int32], *, side: Sequence[NDArray[np.int8]] = ()
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """All symbols in the order of coding with the table index of each; see WaveNetwork.order.

        Raises:
            InputError: ``symbols`` are not int32 [G, H, W], or ``side`` does not fit.
        """
        symbols, side = self.network._checked_symbols(symbols, 1, side)
        if symbols.size == 0:
            return np.empty(0, np.int32), np.empty(0, np.uint8)
        return self.begin(symbols, side=side).order()

    def begin(
        self,
        symbols: NDArray[np.int32] | Tensor,
        threads: int = 1,
        *,
        side: Sequence[NDArray[np.int8]] = (),
    ) -> CudaEncodingPass:
        """As :meth:`WaveNetwork.begin`; ``threads`` do not matter, and symbols may be a tensor of
        the device."""
        if isinstance(symbols, Tensor):
            groups = self.network.groups
            if symbols.dtype != torch.int32 or symbols.dim() != 3 or len(symbols) != groups:
                raise InputError(f"symbols must be int32 [{groups}, H, W]")
            if symbols.device != self.device:
                raise InputError(f"symbols must be on {self.device}, not on {symbols.device}")
            side = self.network._checked(side, *symbols.shape[1:])
        else:
            symbols, side = self.network._checked_symbols(symbols, threads, side)
            symbols = torch.from_numpy(symbols).to(self.device)
        if symbols.numel() == 0:
            raise InputError("there are no symbols")
        return CudaEncodingPass(self, symbols, side)

    def with_head(self, network: WaveNetwork) -> CudaWaveNetwork:
        """``network`` on the GPU, which differs from this one's in the last layer's weights."""
        changed = copy.copy(self)
        changed.network = network
        changed._layers = [*self._layers[:-1], _DeviceLayer(network.layers[-1], self.device)]
        return changed

    def encode(
        self,
        symbols: NDArray[np.int32],
        tables: TableSet,
        *,
        side: Sequence[NDArray[np.int8]] = (),
        lanes: int | None = None,
    ) -> bytes:
        """The stream of :meth:`WaveNetwork.encode`, written by the CPU's coder."""
        ordered, indexes = self.order(symbols, side=side)
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
        launch: Launch | None = None,
    ) -> NDArray[np.int32]:
        """The symbols of a stream of :meth:`encode`: int32 [G, height, width].

        ``threads`` are those of :meth:`WaveNetwork.decode` and do not matter.

        Raises:
            InputError: a size is negative, an index has no table, or ``side`` or ``launch`` does
                not fit.
            CorruptStreamError: the stream is damaged; the error is that of the CPU.
        """
        pending = self.queue_decode(data, tables, height, width, side=side, launch=launch)
        return pending.wait().cpu().numpy()

    def queue_decode(
        self,
        data: bytes,
        tables: TableSet,
        height: int,
        width: int,
        *,
        side: Sequence[NDArray[np.int8]] = (),
        launch: Launch | None = None,
    ) -> Pending:
        """:meth:`decode`, queued on the current stream; the symbols stay on the device."""
        network, device, launch = self.network, self.device, launch or Launch()
        if height < 0 or width < 0:
            raise InputError(f"a picture cannot have {height} x {width} pixels")
        if max(height, width) >= 1 << _SIDE_BITS:
            raise InputError(f"{height} x {width} pixels are too many for a GPU")
        if launch.threads % 32 or not 32 <= launch.threads <= _MAX_THREADS:
            raise InputError(
                f"threads must be a multiple of 32 up to {_MAX_THREADS}, not {launch.threads}"
            )
        if launch.blocks_per_multiprocessor < 1:
            raise InputError("a multiprocessor needs a block at least")
        side = network._checked(side, height, width)
        lanes = rans.RansDecoder(data, tables).lanes  # checks the header and the states
        body = rans_cuda._upload(np.frombuffer(data, np.uint8)[_HEADER_BYTES:].copy(), device)
        order = self._coding_order(height, width)
        pitch = width + 2 * self._padding
        frames = self._frames(side, height, width)
        waves = [n for stage in self.stages for n in stage]
        offsets = {n: self._layers[n].offsets(pitch) for n in waves}
        addresses = [self._address(frame) for frame in frames]
        rows = [self._layers[n].row(frames, addresses, self._first + n, offsets[n]) for n in waves]
        layers = rans_cuda._upload(np.array(rows, np.int64), device)
        ends = np.cumsum([0, *map(len, self.stages)], dtype=np.int32)
        stages = rans_cuda._upload(ends, device)
        indexes = torch.empty(order.longest, dtype=torch.uint8, device=device)
        drawn = torch.empty(len(order.permutation), dtype=torch.int32, device=device)
        checkpoint = torch.empty(lanes + 2, dtype=torch.int32, device=device)
        state = torch.zeros(3, dtype=torch.int64, device=device)
        arguments = {
            "tables": rans_cuda._tables_on(tables, device).addresses,
            "body": body.data_ptr(),
            "body_size": len(body),
            "lanes": lanes,
            "check_indexes": network.layers[-1].upper >= tables.num_tables,
            "stages_tables": _stages(tables, device),
            "layers": layers.data_ptr(),
            "stages": stages.data_ptr(),
            "num_stages": len(self.stages),
            "groups": network.groups,
            "places": order.places.data_ptr(),
            "begin": order.begin.data_ptr(),
            "pitch": pitch,
            "num_waves": order.num_waves,
            "phase_height": network.phase.shape[0],
            "phase_width": network.phase.shape[1],
            "symbol_frame": addresses[SYMBOLS],
            "symbol_bytes": frames[SYMBOLS].shape[2],
            "symbols": drawn.data_ptr(),
            "indexes": indexes.data_ptr(),
            "checkpoint": checkpoint.data_ptr(),
            "state": state.data_ptr(),
        }
        options = {"threads": launch.threads}
        if launch.persistent:
            options["blocks"], options["staged_bytes"] = self.grid(launch, lanes, tables)
            rans_cuda._launch("wave_decode", device, arguments=arguments, **options)
        else:
            rans_cuda._launch("wave_decode_graph", device, arguments=arguments, **options)
        symbols = torch.empty_like(drawn)
        symbols[order.permutation] = drawn
        # What the kernel reads may be freed here: its memory is used again on the same stream only.
        shaped = symbols.view(network.groups, height, width)
        return Pending(order, shaped, state, indexes, lanes, tables)

    def grid(self, launch: Launch, lanes: int, tables: TableSet) -> tuple[int, int]:
        """Blocks of the persistent kernel, and bytes of the weights and tables that each keeps in
        its memory; 0 if they do not fit, or there are fewer blocks than groups."""
        waves = [self._layers[n] for stage in self.stages for n in stage]
        staged = max(map(sum, zip(*(layer._staged_bytes for layer in waves), strict=True)))
        staged += _round_up(4 * (len(self.stages) + 1), 16)
        if _stages(tables, self.device):
            staged += _TABLE_BYTES * tables.num_tables
        blocks = _resident_blocks(self.device, lanes, launch, staged)
        if blocks < self.network.groups:
            staged = 0
            blocks = _resident_blocks(self.device, lanes, launch, staged)
        return blocks, staged

    def _frames(self, side: Sequence[NDArray[np.int8]], height: int, width: int) -> list[Tensor]:
        """All tensors but the last with their borders, those that are known filled in."""
        layers = self.network.layers
        widths = [1, *self.network.side_widths, *(layer.out_width for layer in layers[:-1])]
        pitch = width + 2 * self._padding
        frames = [
            torch.zeros(
                (height + 2 * self._padding, pitch, _round_up(self.network.groups * n, _WORD)),
                dtype=torch.int8,
                device=self.device,
            )
            for n in widths
        ]
        known = {
            1 + n: _channels_last(torch.from_numpy(s).to(self.device)) for n, s in enumerate(side)
        }
        for number in self._side_layers if height and width else ():
            known[self._first + number] = self._layers[number].run(known)
        begin = self._padding
        for number, tensor in known.items():
            inside = frames[number][begin : begin + height, begin : begin + width]
            inside[:, :, : tensor.shape[3]] = tensor[0]
        return frames

    def _address(self, frame: Tensor) -> int:
        """Of the pixel at (0, 0)."""
        _, pitch, pixel = frame.shape
        return frame.data_ptr() + (self._padding * pitch + self._padding) * pixel

    def _coding_order(self, height: int, width: int) -> _Order:
        """Kept for the next tiles of this size: a picture's have four sizes at most."""
        order = self._orders.pop((height, width), None)
        if order is None:
            order = _Order.of(self.network, height, width, self.device)
            if len(self._orders) >= _MAX_ORDERS:
                del self._orders[next(iter(self._orders))]
        self._orders[height, width] = order  # the latest is the last
        return order


class CudaEncodingPass:
    """An :class:`~pycodec.context.wave_network.EncodingPass` on a GPU: all layers but the last."""

    def __init__(
        self, on_gpu: CudaWaveNetwork, symbols: Tensor, side: list[NDArray[np.int8]]
    ) -> None:
        self.network = on_gpu.network
        self._on_gpu, self._symbols = on_gpu, symbols
        self._tensors = [_channels_last(symbols.clamp(-128, 127).to(torch.int8))]
        self._tensors += [_channels_last(torch.from_numpy(s).to(on_gpu.device)) for s in side]
        for layer in on_gpu._layers[:-1]:
            self._tensors.append(layer.run(self._tensors))

    @functools.cached_property
    def symbols(self) -> NDArray[np.int32]:
        """[G, H, W], on the host."""
        return self._symbols.cpu().numpy()

    def head_input(self, rows: Sequence[int]) -> tuple[NDArray[np.int8], NDArray[np.floating]]:
        """As of :class:`~pycodec.context.wave_network.EncodingPass`."""
        head = self.network.layers[-1]
        seen = self._tensors[head.input][0]
        kernel = head.weight.shape[1]
        radius = kernel // 2
        padded = torch.nn.functional.pad(seen, (0, 0, radius, radius, radius, radius))
        places = torch.tensor(rows)[:, None] + torch.arange(kernel)
        return head_input(head, padded[places.to(seen.device)].cpu(), seen.shape[1])

    def order(
        self, network: WaveNetwork | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """As of :class:`~pycodec.context.wave_network.EncodingPass`."""
        return tuple(tensor.cpu().numpy() for tensor in self.order_on_device(network))

    def order_on_device(self, network: WaveNetwork | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`order`, queued; symbols and indexes stay on the device."""
        on_gpu = self._on_gpu
        if network is not None and network is not self.network:
            on_gpu = on_gpu.with_head(network)
        indexes = on_gpu._layers[-1].run(self._tensors)[0].permute(2, 0, 1).reshape(-1)
        permutation = on_gpu._coding_order(*self._symbols.shape[1:]).permutation
        return self._symbols.reshape(-1)[permutation], indexes.view(torch.uint8)[permutation]


@dataclass(frozen=True)
class _Order:
    """The symbols of a picture in the order of coding."""

    permutation: Tensor  # int64 [n]: places in [G, H, W]
    places: Tensor  # int64 [n]: group << 54 | row << 27 | column
    begin: Tensor  # int64 [waves * G + 1]: of each group of each wave that is not empty
    num_waves: int
    longest: int
    groups: int

    @classmethod
    def of(cls, network: WaveNetwork, height: int, width: int, device: torch.device) -> _Order:
        groups = network.groups
        ranges = [torch.arange(n, device=device) for n in (groups, height, width)]
        g, h, w = (x.reshape(-1) for x in torch.meshgrid(*ranges, indexing="ij"))
        phase = torch.from_numpy(np.asarray(network.phase, np.int64)).to(device)
        t = network.steps[0] * g + network.steps[1] * h + network.steps[2] * w
        t += phase[h % phase.shape[0], w % phase.shape[1]]
        permutation = torch.argsort(t, stable=True)
        numbers, wave = torch.unique(t, return_inverse=True)
        counts = torch.bincount(wave * groups + g, minlength=len(numbers) * groups)
        begin = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        places = (g << 2 * _SIDE_BITS | h << _SIDE_BITS | w)[permutation]
        lengths = counts.view(len(numbers), groups).sum(1)
        longest = int(lengths.max()) if len(numbers) else 0
        return cls(permutation, places, begin, len(numbers), longest, groups)


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
        weight = np.pad(_trimmed(layer), ((0, 0), (0, 0), (0, 0), (0, surplus)))
        weight = weight.reshape(groups, layer.out_width, kernel * kernel, words, _WORD)
        chunks = -(-layer.out_width // _CHANNELS)
        packed, taps_of_words, numbers = [], [], []
        for group in range(groups):
            taps, number = np.nonzero(seen[group])
            count = _round_up(len(taps), _WORDS)
            of_group = np.zeros((chunks * _CHANNELS, count, _WORD), np.int8)
            of_group[: layer.out_width, : len(taps)] = weight[group][:, taps, number]
            halves = chunks, 2, _CHANNELS // 2, count // _SLICES, _SLICES, _WORD
            packed.append(of_group.reshape(halves).transpose(0, 3, 1, 4, 2, 5).reshape(-1))
            # What is added sees the position's own pixel, with weights of zero.
            surplus = (0, count - len(taps))
            taps_of_words.append(np.pad(taps, surplus, constant_values=radius * kernel + radius))
            numbers.append(np.pad(number, surplus))
        self._staged_bytes = [self._bytes_of(len(number), chunks) for number in numbers]
        taps = np.concatenate(taps_of_words)
        self._rows, self._columns = taps // kernel - radius, taps % kernel - radius
        self._numbers = np.concatenate(numbers)
        begin = np.cumsum([0, *map(len, numbers)])
        weights = np.concatenate(packed)
        self._begin, self._packed = (rans_cuda._upload(x, device) for x in (begin, weights))
        parameters = layer.bias, layer.multiplier, layer.negative_multiplier
        self._parameters = [rans_cuda._upload(array, device) for array in parameters]
        self._of_residual = None
        if layer.residual_multiplier is not None:
            self._of_residual = rans_cuda._upload(layer.residual_multiplier, device)
        active = np.zeros(0, np.uint8) if layer.active is None else layer.active.astype(np.uint8)
        self._active = rans_cuda._upload(active, device)
        mask = torch.from_numpy(layer.mask).to(device)
        weight = rans_cuda._upload(layer.weight, device)
        self._weights = trimmed_kernels.pack_quantized_cuda(weight, mask)
        if layer.active is not None:
            self._no_weights = trimmed_kernels.pack_quantized_cuda(weight, torch.zeros_like(mask))

    def _bytes_of(self, words: int, chunks: int) -> int:
        """What a block keeps of the layer for a group, see WaveGroupLayer."""
        arrays = 3 if self.layer.residual is None else 4
        parts = words * chunks * _CHANNELS * _WORD, 4 * words, *[4 * self.layer.out_width] * arrays
        return _GROUP_LAYER_BYTES + sum(_round_up(part, 16) for part in parts)

    def run(self, tensors: Mapping[int, Tensor] | Sequence[Tensor]) -> Tensor:
        """The layer over a whole picture, [1, H, W, C]; int8, or uint8 for a last layer's range."""
        out = self._run(tensors, self._weights)
        if self.layer.active is None:
            return out
        height, width = out.shape[1:3]
        ph, pw = self.layer.active.shape
        active = torch.from_numpy(self.layer.active).to(self.device)
        active = active.repeat(-(-height // ph), -(-width // pw))[:height, :width]
        nothing = self._run(tensors, self._no_weights)
        return torch.where(active[None, :, :, None], out, nothing)

    def _run(
        self,
        tensors: Mapping[int, Tensor] | Sequence[Tensor],
        weights: trimmed_kernels.QuantizedWeights,
    ) -> Tensor:
        layer = self.layer
        return trimmed_kernels.run_quantized_cuda(
            tensors[layer.input],
            weights,
            *self._parameters,
            layer.shift,
            None if layer.residual is None else tensors[layer.residual],
            self._of_residual,
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
        self, frames: list[Tensor], addresses: list[int], output: int, offsets: Tensor
    ) -> list[int]:
        """The members of a WaveCudaLayer; ``output`` is the number of its tensor."""
        layer, residual = self.layer, self.layer.residual
        last = output == len(frames)
        return [
            addresses[layer.input],
            0 if residual is None else addresses[residual],
            0 if last else addresses[output],
            frames[layer.input].shape[2],
            0 if residual is None else frames[residual].shape[2],
            0 if last else frames[output].shape[2],
            self._begin.data_ptr(),
            offsets.data_ptr(),
            self._packed.data_ptr(),
            *(tensor.data_ptr() for tensor in self._parameters),
            0 if self._of_residual is None else self._of_residual.data_ptr(),
            0 if layer.active is None else self._active.data_ptr(),
            layer.out_width,
            layer.shift,
            layer.lower,
            layer.upper,
        ]


def _stages(tables: TableSet, device: torch.device) -> bool:
    """Whether blocks that keep weights in their memory keep the tables there."""
    of_two = rans_cuda._tables_on(tables, device).are_of_two
    return of_two and tables.num_tables <= _MOST_STAGED_TABLES


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _trimmed(layer: IntegerLayer) -> NDArray[np.int8]:
    """The weight with zeros where the mask cuts: int8 [G * out_width, k, k, G * in_width]."""
    mask = layer.mask.transpose(0, 2, 3, 1)
    return layer.weight * mask.repeat(layer.out_width, 0).repeat(layer.in_width, 3)


def _channels_last(planes: Tensor) -> Tensor:
    """[C, H, W] to [1, H, W, C]."""
    return planes.permute(1, 2, 0)[None].contiguous()


def _resident_blocks(device: torch.device, lanes: int, launch: Launch, staged_bytes: int) -> int:
    check_backend("cuda")
    with torch.cuda.device(device):
        return cuda_kernels().wave_decode_blocks(
            lanes, launch.threads, launch.blocks_per_multiprocessor, staged_bytes
        )
