"""The lossless codec: bit planes under a trimmed context network, decoded in waves.

A gray picture is coded as its 8 bit planes. Of a colour picture green comes first, then
red - green and blue - green, modulo 256: each is a picture of 8 planes too, coded by a second
network which sees those before it in full. All arithmetic between file and pixels is on integers
(``docs/determinism.md``), so the pixels are the same on every machine.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.numpy
import torch

from pycodec.coding import rans
from pycodec.coding.container import join_streams, split_streams
from pycodec.coding.tables import TableSet
from pycodec.context.wave_network import IntegerLayer, WaveNetwork
from pycodec.errors import InputError
from pycodec.models.head_adaptation import fit_head, with_head
from pycodec.models.lossless_network import PLANES, bit_planes, join_planes
from pycodec.models.mirroring import wants_mirror
from pycodec.models.model_folder import read_model_folder, write_model_folder
from pycodec.models.tiling import Tile, cut_tiles, end_stage, thread_count, tiles_of

if TYPE_CHECKING:
    from pycodec.context.wave_network_cuda import CudaWaveNetwork

KIND = "lossless"
SIDES = 2
"""Pictures that the network of red and blue sees: green, and red - green (or nothing yet)."""
MIN_TILE_LOG2, DEFAULT_TILE_LOG2, MAX_TILE_LOG2 = 6, 10, 10
"""The largest tile bounds what a decoder must hold at once, whatever a file says."""
QUALITY_CODE = 10000
_MIRRORED = 0x80  # in the first byte of a tile's first head
_MIDDLE = 128
_MOST_WAITING = 1 << 26
_ARRAYS = ("weight", "mask", "bias", "multiplier", "negative_multiplier")


@dataclass(frozen=True)
class Component:
    """An integer network with the steps of its order of coding, see :class:`WaveNetwork`."""

    layers: list[IntegerLayer]
    steps: tuple[int, int, int]


@dataclass
class CodedPicture:
    """What :meth:`LosslessCodec.compress` returns.

    Attributes:
        streams: one a tile, in raster order.
        tile_log2: log2 of the tiles' side in pixels.
        quality_code: as the file stores it.
        num_symbols: bits coded.
        code_length_bits: what an ideal coder would need for them; None unless asked for.
        seconds: time by stage: ``adaptation``, ``context``, ``rans``. A GPU's work is waited for
            in the stage that needs it.
    """

    streams: list[bytes]
    tile_log2: int
    quality_code: int
    num_symbols: int
    code_length_bits: float | None
    seconds: dict[str, float]


@dataclass
class _Part:
    """A component of a tile: changes of the head, symbols in the order of coding with the table
    index of each until they are coded, and then their stream."""

    head: bytes
    symbols: np.ndarray | torch.Tensor
    indexes: np.ndarray | torch.Tensor
    lanes: int = 1
    stream: bytes = b""


class LosslessCodec:
    """A codec that returns every pixel as it was.

    Args:
        gray: network of gray pictures, and of green.
        chroma: network of red and blue, with ``SIDES`` earlier pictures; None: gray pictures only.
        tables: of a bit; the networks' outputs are indexes into them.
        fingerprint: 8 bytes that name these weights in files.
        name: of the model.
        backend: of the networks, see :class:`WaveNetwork`.
        device: of the networks; a GPU writes and reads the same files.

    Raises:
        InputError: a network does not fit, or the device can run none.
    """

    def __init__(
        self,
        gray: Component,
        chroma: Component | None,
        tables: TableSet,
        fingerprint: bytes,
        *,
        name: str = KIND,
        backend: str = "native",
        device: str | torch.device | None = None,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.tables = tables
        # Rows and columns are alike in the order of coding: that is what mirroring is good for.
        self._is_symmetric = gray.steps[1] == gray.steps[2]
        self.gray = WaveNetwork(gray.layers, gray.steps, backend=backend)
        self.chroma = None
        if chroma is not None:
            self.chroma = WaveNetwork(
                chroma.layers, chroma.steps, side_widths=(SIDES,), backend=backend
            )
        for network in (self.gray, self.chroma):
            if network is not None and network.groups != PLANES:
                raise InputError(f"a lossless model needs networks of {PLANES} groups")
        self.device = torch.device(device or "cpu")
        if self.device.type != "cpu":
            # Imports what the CPU needs not.
            from pycodec.context.wave_network_cuda import CudaWaveNetwork

            self.gray = CudaWaveNetwork(self.gray, self.device)
            if self.chroma is not None:
                self.chroma = CudaWaveNetwork(self.chroma, self.device)

    def compress(
        self,
        pixels: np.ndarray,
        *,
        tile_log2: int = DEFAULT_TILE_LOG2,
        threads: int | None = None,
        code_length: bool = False,
        adapt: bool = True,
        lanes: int | None = None,
    ) -> CodedPicture:
        """Encode a picture.

        Args:
            pixels: uint8 [H, W] or [H, W, 3].
            tile_log2: tiles have a side of 2**tile_log2 pixels, 64 to 1024, and are coded alone.
            threads: None for all.
            code_length: sum up ``CodedPicture.code_length_bits``.
            adapt: mirror tiles that gain from it (:mod:`pycodec.models.mirroring`), and fit the
                last layer to each (:mod:`pycodec.models.head_adaptation`).
            lanes: of each tile's rANS stream, a power of two up to 64; None: as many as cost
                little. On a GPU a tile is a warp's work, a turn of all lanes at a time.

        Raises:
            InputError: an argument is out of its range, or the model knows no colour.
        """
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size:
            raise InputError(
                f"expected uint8 [H, W] or [H, W, 3], got {pixels.dtype} {list(pixels.shape)}"
            )
        if pixels.ndim == 3 and pixels.shape[2] != 3:
            raise InputError(f"expected 3 channels, got {pixels.shape[2]}")
        if not MIN_TILE_LOG2 <= tile_log2 <= MAX_TILE_LOG2:
            raise InputError(
                f"tiles must have a side of {1 << MIN_TILE_LOG2} to {1 << MAX_TILE_LOG2} pixels"
            )
        self._require_colour(pixels.ndim == 3)
        coded = CodedPicture([], tile_log2, QUALITY_CODE, 0, 0.0 if code_length else None, {})
        tiles: list[list[_Part]] = []
        waiting: list[_Part] = []
        with thread_count(threads) as count:
            for tile in cut_tiles(*pixels.shape[:2], 1 << tile_log2):
                planes = to_components(pixels[tile.slices])
                mirrored = adapt and self._is_symmetric and wants_mirror(planes[0])
                if mirrored:
                    planes = [np.ascontiguousarray(plane[:, ::-1]) for plane in planes]
                parts: list[_Part] = []
                for i, (network, side) in enumerate(self._networks(planes, len(planes))):
                    part = self._order(network, planes[i], side, count, coded, adapt)
                    part.lanes = _lanes(planes[i].size) if lanes is None else lanes
                    parts.append(part)
                    waiting.append(part)
                    if sum(len(part.symbols) for part in waiting) >= self._most_waiting:
                        self._code(waiting, coded)
                        waiting = []
                if mirrored:
                    parts[0].head = _mark_mirrored(parts[0].head)
                tiles.append(parts)
        self._code(waiting, coded)
        coded.streams += [
            join_streams([piece for part in parts for piece in (part.head, part.stream)])
            for parts in tiles
        ]
        return coded

    @property
    def _is_on_gpu(self) -> bool:
        return not isinstance(self.gray, WaveNetwork)

    @property
    def _most_waiting(self) -> int:
        """Symbols that wait to be coded: parts are coded in turn, but by a GPU side by side."""
        return _MOST_WAITING if self._is_on_gpu else 0

    def _order(
        self,
        network: WaveNetwork | CudaWaveNetwork,
        component: np.ndarray,
        side: list[np.ndarray],
        threads: int,
        coded: CodedPicture,
        adapt: bool,
    ) -> _Part:
        """A part that is still to be coded."""
        began = time.perf_counter()
        head = b""
        if self._is_on_gpu:
            bits = bit_planes(torch.from_numpy(component).to(network.device)[None])[0].int()
        else:
            bits = to_bits(component).astype(np.int32)
        encoding = network.begin(bits, threads, side=side)
        if adapt:
            end_stage(coded.seconds, "context", began)
            began = time.perf_counter()
            head = fit_head(encoding, self.tables)
            end_stage(coded.seconds, "adaptation", began)
            began = time.perf_counter()
        order = encoding.order_on_device if self._is_on_gpu else encoding.order
        part = _Part(head, *order(with_head(encoding.network, head)))
        end_stage(coded.seconds, "context", began)
        coded.num_symbols += len(part.symbols)
        return part

    def _code(self, parts: list[_Part], coded: CodedPicture) -> None:
        """Make streams of symbols."""
        if not parts:
            return
        began = time.perf_counter()
        if self._is_on_gpu:
            from pycodec.coding.rans_cuda import encode_streams

            streams = encode_streams(
                torch.cat([part.symbols for part in parts]),
                torch.cat([part.indexes for part in parts]),
                self.tables,
                counts=[len(part.symbols) for part in parts],
                lanes=[part.lanes for part in parts],
            )
        else:
            streams = [
                rans.encode(part.symbols, part.indexes, self.tables, lanes=part.lanes)
                for part in parts
            ]
        end_stage(coded.seconds, "rans", began)
        for part, stream in zip(parts, streams, strict=True):
            if coded.code_length_bits is not None:
                symbols, indexes = part.symbols, part.indexes
                if self._is_on_gpu:
                    symbols, indexes = symbols.cpu().numpy(), indexes.cpu().numpy()
                coded.code_length_bits += self.tables.cost_bits(symbols, indexes)
            part.stream = stream
            del part.symbols, part.indexes

    def decompress(
        self,
        streams: list[bytes],
        width: int,
        height: int,
        *,
        gray: bool,
        tile_log2: int = DEFAULT_TILE_LOG2,
        threads: int | None = None,
        seconds: dict[str, float] | None = None,
    ) -> np.ndarray:
        """Decode a picture: uint8 [height, width], or [height, width, 3] unless ``gray``.

        Args:
            streams: one a tile, in raster order.
            width, height: in pixels.
            gray: one component instead of three.
            tile_log2, threads: as in :meth:`compress`.
            seconds: the time is added to its item ``waves``.

        Raises:
            CorruptStreamError: the number of streams is wrong or a stream is damaged.
        """
        sides = range(MIN_TILE_LOG2, MAX_TILE_LOG2 + 1)
        tiles = tiles_of(streams, height, width, tile_log2, sides)
        self._require_colour(not gray)
        seconds = {} if seconds is None else seconds
        pixels = None
        began = time.perf_counter()
        with thread_count(threads) as count:
            for tile, stream in zip(tiles, streams, strict=True):
                part = self._decode_tile(tile, stream, 1 if gray else 3, count)
                if pixels is None:  # not before a stream has made sense
                    pixels = np.empty((height, width, *part.shape[2:]), np.uint8)
                pixels[tile.slices] = part
        end_stage(seconds, "waves", began)
        return pixels

    def _decode_tile(self, tile: Tile, stream: bytes, count: int, threads: int) -> np.ndarray:
        planes: list[np.ndarray] = []
        parts = split_streams(memoryview(stream), 2 * count)
        parts[0], mirrored = _split_mark(parts[0])
        networks = self._networks(planes, count)
        for head, symbols, (network, side) in zip(parts[::2], parts[1::2], networks, strict=True):
            network = _with_head(network, head)
            arguments = symbols, self.tables, tile.height, tile.width
            options = {"side": side} if side else {}
            if self._is_on_gpu:
                bits = network.queue_decode(*arguments, **options).wait()
                planes.append(join_planes(bits[None])[0].cpu().numpy())
            else:
                bits = network.decode(*arguments, threads=threads, **options)
                planes.append(from_bits(bits))
        pixels = from_components(planes)
        return pixels[:, ::-1] if mirrored else pixels

    def _networks(self, planes: list[np.ndarray], count: int):
        """For each component its network and side input; ``planes`` may grow meanwhile."""
        yield self.gray, []
        for i in range(1, count):
            side = np.zeros((PLANES, SIDES, *planes[0].shape), np.int8)
            for j in range(i):
                side[:, j] = to_bits(planes[j])
            yield self.chroma, [side.reshape(-1, *planes[0].shape)]

    def _require_colour(self, needed: bool) -> None:
        if needed and self.chroma is None:
            raise InputError(f"the model {self.name} codes gray pictures only")


def _with_head(network: WaveNetwork | CudaWaveNetwork, head: bytes):
    """The network on its device with a changed last layer."""
    if isinstance(network, WaveNetwork):
        return with_head(network, head)
    return network.with_head(with_head(network.network, head)) if head else network


def _mark_mirrored(head: bytes) -> bytes:
    """The first head of a mirrored tile: what says so may be all there is of it."""
    return bytes([head[0] | _MIRRORED]) + head[1:] if head else bytes([_MIRRORED])


def _split_mark(head: bytes) -> tuple[bytes, bool]:
    """Inverse of :func:`_mark_mirrored`: the head, and whether the tile is mirrored."""
    if not head or head[0] < _MIRRORED:
        return head, False
    if len(head) == 1 and head[0] == _MIRRORED:
        return b"", True
    return bytes([head[0] ^ _MIRRORED]) + head[1:], True


def _lanes(pixels: int) -> int:
    """Of a tile's stream: 3 bytes each, less than 0.1 % of 4 bits a pixel.

    Fewer than a coder alone would have, since here the network takes nearly all of the time; 32
    are a warp on a GPU.
    """
    return 1 << min(5, max(1, pixels // 8192).bit_length() - 1)


def to_bits(component: np.ndarray) -> np.ndarray:
    """Planes of uint8 [H, W], most significant first: uint8 [8, H, W] of 0 and 1."""
    shifts = np.arange(PLANES - 1, -1, -1, dtype=np.uint8)
    return (component >> shifts[:, None, None]) & 1


def from_bits(bits: np.ndarray) -> np.ndarray:
    """Inverse of :func:`to_bits`, of any type."""
    pixels = bits[0].astype(np.uint8)
    for plane in bits[1:]:  # four times as fast as np.packbits along the first axis
        pixels <<= 1
        pixels |= plane.astype(np.uint8)
    return pixels


def to_components(pixels: np.ndarray) -> list[np.ndarray]:
    """Gray, or green, red - green, blue - green (modulo 256, 128 stands for 0): uint8 [H, W]."""
    if pixels.ndim == 2:
        return [pixels]
    red, green, blue = (pixels[..., i] for i in range(3))
    return [green, red - green + np.uint8(_MIDDLE), blue - green + np.uint8(_MIDDLE)]


def from_components(components: list[np.ndarray]) -> np.ndarray:
    """Inverse of :func:`to_components`."""
    if len(components) == 1:
        return components[0]
    green, red, blue = components
    middle = np.uint8(_MIDDLE)
    return np.stack([red + green - middle, green, blue + green - middle], axis=2)


def save_lossless_model(
    folder: Path, gray: Component, chroma: Component | None, tables: TableSet, config: dict
) -> None:
    """Write a model folder.

    Args:
        config: what the networks were made from, for readers; decoding needs the weights only.
    """
    arrays = {f"tables.{name}": array for name, array in tables.to_arrays().items()}
    for name, component in (("gray", gray), ("chroma", chroma)):
        if component is None:
            continue
        arrays[f"{name}.steps"] = np.array(component.steps, np.int32)
        for i, layer in enumerate(component.layers):
            for item in _ARRAYS:
                array = np.asarray(getattr(layer, item))
                arrays[f"{name}.{i}.{item}"] = array.astype(np.uint8) if item == "mask" else array
            if layer.residual is not None:
                arrays[f"{name}.{i}.residual_multiplier"] = layer.residual_multiplier
            residual = -1 if layer.residual is None else layer.residual
            numbers = [layer.input, layer.shift, residual, layer.lower, layer.upper]
            arrays[f"{name}.{i}.numbers"] = np.array(numbers, np.int32)
    weights = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    write_model_folder(folder, KIND, weights, config)


def load_lossless_model(
    folder: Path, *, backend: str = "native", device: str | torch.device | None = None
) -> LosslessCodec:
    """Load a model folder; ``backend`` and ``device`` as of :class:`LosslessCodec`.

    Raises:
        InputError: the folder holds no model, its weights are not those that were saved, or the
            device can run none.
        UnsupportedError: it holds a model of another kind.
    """
    _, weights = read_model_folder(folder, KIND)
    try:
        arrays = safetensors.numpy.load(weights)
        tables = TableSet.from_arrays(
            {k.removeprefix("tables."): v for k, v in arrays.items() if k.startswith("tables.")}
        )
        gray = _component(arrays, "gray")
        chroma = _component(arrays, "chroma") if "chroma.steps" in arrays else None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder} holds no valid model: {error}") from error
    fingerprint = hashlib.sha256(weights).digest()[:8]
    return LosslessCodec(
        gray, chroma, tables, fingerprint, name=folder.name, backend=backend, device=device
    )


def _component(arrays: Mapping[str, np.ndarray], name: str) -> Component:
    layers = []
    while f"{name}.{len(layers)}.weight" in arrays:
        prefix = f"{name}.{len(layers)}."
        source, shift, residual, *of_all, lower, upper = map(int, arrays[prefix + "numbers"])
        items = {item: arrays[prefix + item] for item in _ARRAYS}
        items["mask"] = items["mask"].astype(bool)
        if residual >= 0:
            if of_all:  # in models of before, one for all channels
                multiplier = np.full(len(items["bias"]), *of_all, np.int32)
            else:
                multiplier = arrays[prefix + "residual_multiplier"]
            items |= {"residual": residual, "residual_multiplier": multiplier}
        layers.append(IntegerLayer(source, shift=shift, lower=lower, upper=upper, **items))
    steps = tuple(map(int, arrays[f"{name}.steps"]))
    return Component(layers, steps)
