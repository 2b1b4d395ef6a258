"""The 360-degree codec: the photo codec's networks on a pseudocylindrical representation.

An equirectangular (ERP) picture has far more pixels near the poles than the sphere has area. It is
cut into tiles of 64 rows, each is resampled along its rows to a width of its own (arXiv
2112.13227), and convolutions pad across the borders of tiles as these lie on the sphere. Quality
falls with the area that a tile's positions stand for, so bits go where the sphere is.
``docs/sphere_codec.md`` defines the stream.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pycodec.coding.container import pack_number, unpack_numbers
from pycodec.context.integer_entropy_model import (
    HYPER_STRIDE,
    QUALITY_MAX,
    QUALITY_MIN,
    IntegerEntropyModel,
    to_fixed_point,
)
from pycodec.errors import CorruptStreamError, InputError
from pycodec.models.blocks import on_sphere
from pycodec.models.integer_variants import Bits
from pycodec.models.photo import (
    CodedPicture,
    PhotoCodec,
    check_picture,
)
from pycodec.models.photo_network import quality_lambda
from pycodec.models.tiling import end_stage, thread_count
from pycodec.models.transforms import LATENT_STRIDE
from pycodec.ops.backends import default_backend
from pycodec.ops.pseudocylindrical_slice import (
    cubic_resampling,
    cubic_taps,
    normalized,
    pseudocylindrical_slice,
    pseudocylindrical_unslice,
)
from pycodec.ops.quadtree_stage import LATENT_FRACTION_BITS
from pycodec.projection.grid import SphereGrid

UNIT = LATENT_STRIDE * HYPER_STRIDE
"""Rows of a tile in pixels, and what its width is a multiple of."""

HALO_TILES = 2
"""Tiles around a band that its latents (96 rows) or its pixels (6 latents) may depend on."""

MIN_BAND_LOG2, DEFAULT_BAND_LOG2, MAX_BAND_LOG2 = 6, 9, 12
"""Of the rows of a band, which is coded alone."""

MAX_WIDTH = 1 << 15
"""Of a picture: at twice its height, as large as the container allows, and a few more."""

MAX_BAND_PIXELS = 1 << 26
"""Bounds, with the width, what a decoder must hold at once, whatever a file says."""

CHUNK_PIXELS, MIN_CHUNK_TILES = 1 << 22, 4
"""The transforms see so many pixels at once, with the halo, or so many tiles, without."""

SMOOTHING = 0.006
"""How much squared error a narrower tile may add, in units of 1 / (multiplier of that error)."""

QUALITY_AN_OCTAVE = 1073
"""Hundredths of quality that double the rate-distortion multiplier; part of the format."""


def grid_size(height: int, width: int) -> tuple[int, int]:
    """Tiles of a picture, and the width of the widest ones in units."""
    return -(-height // UNIT), -(-width // UNIT)


def tile_weight(tile: int, tiles: int) -> tuple[int, int]:
    """Cosine of the latitude of a tile's middle, off by 0.002 at most, as a fraction of integers.

    By Bhaskara's formula, of the 7th century: a machine's cosine must not decide what is decoded.
    """
    north = 2 * tile + 1
    product = north * (2 * tiles - north)
    return 16 * product, 5 * (2 * tiles) ** 2 - 4 * product


def tile_quality(quality_code: int, tile: int, tiles: int, width: int, full: int) -> int:
    """Quality of a tile, in hundredths.

    The multiplier of its distortion is in proportion to the area on the sphere that one of its
    positions stands for, that of the equator's at full width being 1.

    Args:
        quality_code: of the picture, 100 to 10000.
        tile, tiles: its number and how many there are.
        width, full: its width, and that of a tile that is as wide as the picture.
    """
    numerator, denominator = tile_weight(tile, tiles)
    sixteenths = _log2_sixteenths(numerator * full) - _log2_sixteenths(denominator * width)
    quality = quality_code + QUALITY_AN_OCTAVE * sixteenths // 16
    return min(max(quality, QUALITY_MIN), QUALITY_MAX)


def _log2_sixteenths(value: int) -> int:
    """floor(16 log2(value)), exactly."""
    return (value**16).bit_length() - 1


class SphereCodec:
    """Codes equirectangular pictures with the weights of a photo model.

    Args:
        photo: the model. Transforms have its precision: in integers they give the same pixels on
            every machine.
    """

    def __init__(self, photo: PhotoCodec) -> None:
        self.photo = photo
        self.name, self.fingerprint = photo.name, photo.fingerprint

    def compress(
        self,
        pixels: np.ndarray,
        quality: float = 50.0,
        *,
        widths: Sequence[int] | None = None,
        tile_log2: int = DEFAULT_BAND_LOG2,
        threads: int | None = None,
        code_length: bool = False,
        keep_symbols: bool = False,
    ) -> CodedPicture:
        """Encode a picture of the whole sphere.

        Args:
            pixels: uint8 [H, W, 3], equirectangular.
            quality: 1 to 100, in steps of a hundredth; of the equator.
            widths: of the ceil(H / 64) tiles, in units of 64 pixels, at most ceil(W / 64); None for
                the narrowest that lose little of the picture at this quality.
            tile_log2: bands have 2**tile_log2 rows, 64 to 4096, and can be decoded alone.
            threads: of the CPU; None for all.
            code_length: sum up ``CodedPicture.code_length_bits``.
            keep_symbols: return ``CodedPicture.symbols`` and ``indexes``.

        Raises:
            InputError: an argument is out of its range.
        """
        pixels = check_picture(pixels, quality)
        if not MIN_BAND_LOG2 <= tile_log2 <= MAX_BAND_LOG2:
            raise InputError(f"bands must have {1 << MIN_BAND_LOG2} to {1 << MAX_BAND_LOG2} rows")
        if fault := _size_fault(*pixels.shape[:2], tile_log2):
            raise InputError(fault)
        model = self.photo.entropy_model
        tiles, full = grid_size(*pixels.shape[:2])
        coded = CodedPicture([], round(quality * 100), tile_log2)
        with thread_count(threads) as count, torch.inference_mode():
            began = time.perf_counter()
            if widths is None:
                widths = _widths_for(pixels, coded.quality_code)
            grid = _checked_grid(widths, tiles, full)
            qualities = _qualities(grid, coded.quality_code, full)
            chunks = self._analysed(pixels, grid, qualities)
            y = next(chunks)
            for first, last in _bands(tiles, tile_log2):
                size = last - first
                while len(y) < size:
                    y = torch.cat([y, next(chunks)])
                band = grid.cut(first, last)
                latents, hyperlatents = self._to_be_coded(y[:size], band, qualities[first:last])
                y = y[size:]
                end_stage(coded.seconds, "analysis", began)
                result = model.encode_sphere(
                    latents, hyperlatents, band, qualities[first:last], count
                )
                head = b"".join(map(pack_number, band.widths))
                coded.add(result, model.tables if code_length else None, head)
                if keep_symbols:
                    coded.symbols.append(result.symbols)
                    coded.indexes.append(result.indexes)
                began = time.perf_counter()
        return coded

    def _analysed(
        self, pixels: np.ndarray, grid: SphereGrid, qualities: list[int]
    ) -> Iterator[Tensor]:
        """Latents of all tiles in turn, a few at a time: [n, 4, 4 grid.columns, M].

        They are floats, or of integer transforms int32 in fixed point.
        """
        _, full = grid_size(*pixels.shape[:2])
        for first, last in _chunks(0, grid.tiles, full):
            top, bottom = _with_halo(first, last, grid.tiles)
            part = grid.cut(top, bottom)
            rows = _tile_rows(pixels, top, bottom)
            tiles = pseudocylindrical_slice(rows, [UNIT * w for w in part.widths])
            tiles = _channels_last(tiles[..., : UNIT * part.columns]).to(self.photo.device)
            y = self._analyse(tiles, part, qualities[top:bottom])
            y = y[first - top : last - top]
            yield F.pad(y, (0, 0, 0, HYPER_STRIDE * grid.columns - y.shape[2]))

    def _analyse(self, tiles: Tensor, part: SphereGrid, qualities: list[int]) -> Tensor:
        """Latents [n, 4, 4 part.columns, M] of float tiles [n, 3, 64, 64 part.columns]."""
        if self.photo.integers is not None:
            x = _to_bytes(tiles.permute(0, 2, 3, 1) * 255)
            return self.photo.integers["analysis"].on_sphere(x, qualities, part)
        with on_sphere(part):
            return self.photo.analysis(tiles, self._quality(qualities)).permute(0, 2, 3, 1)

    def _to_be_coded(
        self, y: Tensor, band: SphereGrid, qualities: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Of a band: fixed-point latents [n, 4, 4 columns, M], hyperlatents [n, 1, columns, Z]."""
        y = y[:, :, : HYPER_STRIDE * band.columns].contiguous()
        if self.photo.integers is not None:
            z = self.photo.integers["hyper_analysis"].on_sphere(y, qualities, band)
            return y.cpu(), z.int().cpu()
        with on_sphere(band):
            z = self.photo.hyper_analysis(y.permute(0, 3, 1, 2), self._quality(qualities))
        z = torch.round(z.permute(0, 2, 3, 1).float()).int()
        return to_fixed_point(y).cpu(), z.cpu()

    def _quality(self, qualities: list[int]) -> Tensor:
        """For the transforms, [n]."""
        return torch.tensor(qualities, device=self.photo.device) / 100

    def decompress(
        self,
        streams: list[bytes],
        width: int,
        height: int,
        quality_code: int,
        *,
        tile_log2: int = DEFAULT_BAND_LOG2,
        threads: int | None = None,
        seconds: dict[str, float] | None = None,
        rows: tuple[int, int] | None = None,
        widths: bytes = b"",
    ) -> np.ndarray:
        """Decode a picture, or some of its rows: uint8 [rows, width, 3].

        Of the bands that the rows depend on all latents are decoded, as their contexts reach around
        the sphere; the synthesis runs on the tiles around the rows only.

        Args:
            streams: one a band, from the north.
            width, height: in pixels.
            quality_code: quality in hundredths.
            tile_log2, threads: as in ``compress``.
            seconds: times are added to its items ``entropy``, ``rans`` and ``synthesis``.
            rows: the first and the one after the last; None for all.
            widths: of the synthesis' weights, of dynamic integers; 8 bits everywhere if empty, as
                this encoder has them.

        Raises:
            CorruptStreamError: the number of streams is wrong or a stream is damaged.
            InputError: there are no such rows.
        """
        if not MIN_BAND_LOG2 <= tile_log2 <= MAX_BAND_LOG2:
            raise CorruptStreamError(f"bands of 2^{tile_log2} rows are out of range")
        if fault := _size_fault(height, width, tile_log2):
            raise CorruptStreamError(fault)
        tiles, full = grid_size(height, width)
        bands = _bands(tiles, tile_log2)
        if len(streams) != len(bands):
            raise CorruptStreamError(f"{len(bands)} bands, but {len(streams)} streams")
        begin, end = (0, height) if rows is None else rows
        if not 0 <= begin < end <= height:
            raise InputError(f"rows {begin} to {end - 1} of {height} cannot be decoded")
        seconds = {} if seconds is None else seconds
        integers = self.photo.integers
        bits = None if integers is None else integers["synthesis"].unpack(widths)
        heads = [_read_widths(s, b - a, full) for s, (a, b) in zip(streams, bands, strict=True)]
        grid = SphereGrid(tuple(w for widths, _ in heads for w in widths))
        qualities = _qualities(grid, quality_code, full)
        pixels: np.ndarray | None = None
        exact = integers is not None
        with thread_count(threads) as count, torch.inference_mode():
            latents = _BandDecoder(
                self.photo.entropy_model, heads, bands, grid, qualities, count, seconds
            )
            for top, bottom in _row_chunks(begin, end, height, full):
                low, high = _rows_read(UNIT * tiles, height, top, bottom)
                first, last = low // UNIT, -(-high // UNIT)
                y = latents.tiles(*_with_halo(first, last, tiles))
                began = time.perf_counter()
                x = self._synthesize(y, grid, qualities, full, first, last, bits)
                x = _to_width(x, width, exact)
                x = _to_rows(x, UNIT * first, UNIT * tiles, height, top, bottom, exact)
                x = _to_bytes(x[0].permute(1, 2, 0))
                if pixels is None:  # not before a stream has made sense
                    pixels = np.empty((end - begin, width, 3), np.uint8)
                pixels[top - begin : bottom - begin] = x.numpy()
                end_stage(seconds, "synthesis", began)
        assert pixels is not None
        return pixels

    def _synthesize(
        self,
        latents: Tensor,
        grid: SphereGrid,
        qualities: list[int],
        full: int,
        first: int,
        last: int,
        bits: Bits | None,
    ) -> Tensor:
        """Rows of the picture of the tiles ``first`` to ``last`` - 1: [1, 3, 64 n, 64 full].

        ``latents`` are those of the tiles and of the halo; values are 0 to 255, nominally.
        """
        top, bottom = _with_halo(first, last, grid.tiles)
        part, qualities = grid.cut(top, bottom), qualities[top:bottom]
        y = latents[:, :, : HYPER_STRIDE * part.columns].to(self.photo.device)
        if self.photo.integers is not None:
            x = self.photo.integers["synthesis"].on_sphere(y, qualities, part, bits=bits)
            x = x[first - top : last - top].permute(0, 3, 1, 2).float().cpu()
        else:
            y = y.permute(0, 3, 1, 2).float() / (1 << LATENT_FRACTION_BITS)
            with on_sphere(part):
                x = self.photo.synthesis(y, self._quality(qualities))
            x = x[first - top : last - top].float().cpu() * 255
        x = F.pad(x, (0, UNIT * full - x.shape[3])).contiguous()
        widths = [UNIT * width for width in grid.widths[first:last]]
        return pseudocylindrical_unslice(x, widths, exact=self.photo.integers is not None)


@dataclass
class _BandDecoder:
    """Decodes bands when their tiles are asked for, and forgets those in the north of them.

    Attributes:
        model: the entropy model.
        heads: of each band the widths of its tiles, and the rANS stream.
        bands: first tile of each, and the one after its last.
        grid: of all tiles.
        qualities: of each tile, in hundredths.
        threads: of the entropy model.
        seconds: its times are added there.
    """

    model: IntegerEntropyModel
    heads: list[tuple[list[int], bytes]]
    bands: list[tuple[int, int]]
    grid: SphereGrid
    qualities: list[int]
    threads: int
    seconds: dict[str, float]
    _held: dict[int, Tensor] = field(default_factory=dict)

    def tiles(self, first: int, last: int) -> Tensor:
        """Latents of some tiles, never further north than before: int32 [n, 4, 4 columns, M]."""
        parts = []
        for band, (top, bottom) in enumerate(self.bands):
            if bottom <= first:
                self._held.pop(band, None)
            elif top < last:
                if band not in self._held:
                    self._held[band] = self.model.decode_sphere(
                        self.heads[band][1],
                        self.grid.cut(top, bottom),
                        self.qualities[top:bottom],
                        self.threads,
                        self.seconds,
                    )
                parts.append(self._held[band][max(first - top, 0) : last - top])
        columns = max(part.shape[2] for part in parts)
        return torch.cat([F.pad(p, (0, 0, 0, columns - p.shape[2])) for p in parts])


def _size_fault(height: int, width: int, tile_log2: int) -> str | None:
    """What is wrong with a size: pictures and bands that no one could hold in memory."""
    if width > MAX_WIDTH:
        return f"a picture of the sphere is at most {MAX_WIDTH} pixels wide, not {width}"
    rows = min(1 << tile_log2, UNIT * grid_size(height, width)[0])
    if rows * width > MAX_BAND_PIXELS:
        return (
            f"a band of {rows} rows of {width} pixels is too large: at most {MAX_BAND_PIXELS} "
            "pixels are coded together"
        )
    return None


def _with_halo(first: int, last: int, tiles: int) -> tuple[int, int]:
    """The first tile and the one after the last that these tiles depend on."""
    return max(0, first - HALO_TILES), min(tiles, last + HALO_TILES)


def _chunks(first: int, last: int, full: int) -> list[tuple[int, int]]:
    """Tiles that the transforms see at once."""
    size = max(CHUNK_PIXELS // (UNIT * UNIT * full) - 2 * HALO_TILES, MIN_CHUNK_TILES)
    if (last - first) * UNIT * UNIT * full <= CHUNK_PIXELS:
        size = last - first
    return [(tile, min(tile + size, last)) for tile in range(first, last, size)]


def _row_chunks(begin: int, end: int, height: int, full: int) -> list[tuple[int, int]]:
    """Rows of a picture whose tiles are synthesized at once."""
    tiles = -(-height // UNIT)
    low, high = _rows_read(UNIT * tiles, height, begin, end)
    inner = [
        last * height // tiles for _, last in _chunks(low // UNIT, -(-high // UNIT), full)[:-1]
    ]
    borders = [begin, *(row for row in inner if begin < row < end), end]
    return list(itertools.pairwise(borders))


def _bands(tiles: int, tile_log2: int) -> list[tuple[int, int]]:
    size = (1 << tile_log2) // UNIT
    return [(first, min(first + size, tiles)) for first in range(0, tiles, size)]


def _qualities(grid: SphereGrid, quality_code: int, full: int) -> list[int]:
    return [
        tile_quality(quality_code, tile, grid.tiles, width, full)
        for tile, width in enumerate(grid.widths)
    ]


def _checked_grid(widths: Sequence[int], tiles: int, full: int) -> SphereGrid:
    widths = tuple(widths)
    if len(widths) != tiles or not all(1 <= width <= full for width in widths):
        raise InputError(f"expected the widths of {tiles} tiles, each 1 to {full}: {list(widths)}")
    return SphereGrid(widths)


def _read_widths(stream: bytes, tiles: int, full: int) -> tuple[list[int], bytes]:
    """Widths of a band's tiles, and the rest of its stream."""
    widths, rest = unpack_numbers(stream, tiles)
    for width in widths:
        if not 1 <= width <= full:
            raise CorruptStreamError(f"a tile is {width} of {full} units wide", section="tiles")
    return widths, rest


def _to_float(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] to float [1, 3, H, W] in [0, 1]."""
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _to_bytes(x: Tensor) -> Tensor:
    """Floats of 0 to 255, rounded: uint8, contiguous."""
    return x.round().clamp_(0, 255).to(torch.uint8).contiguous()


def _tile_rows(pixels: np.ndarray, first: int, last: int) -> Tensor:
    """Tiles at full width, the picture resampled to whole ones: [1, 3, 64 n, 64 full]."""
    tiles, full = grid_size(*pixels.shape[:2])
    source, target = pixels.shape[0], UNIT * tiles
    begin, end = UNIT * first, UNIT * last
    low, high = _rows_read(source, target, begin, end)
    x = _to_rows(_to_float(pixels[low:high]), low, source, target, begin, end)
    return _to_width(x, UNIT * full).contiguous()


def resize(pixels: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 [H, W, 3] as floats [1, 3, height, width], by cubic kernels around the sphere."""
    x = _to_rows(_to_float(pixels), 0, pixels.shape[0], height, 0, height)
    return _to_width(x, width).contiguous()


def _rows_read(source: int, target: int, begin: int, end: int) -> tuple[int, int]:
    """The first row of ``source`` and the one after the last that rows of ``target`` read."""
    if source == target:
        return begin, end
    rows, _ = _row_taps(source, target, begin, end)
    return int(rows.min()), int(rows.max()) + 1


def _row_taps(
    source: int, target: int, begin: int, end: int, exact: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and weights, [taps, rows]; beyond the poles there is nothing to read."""
    rows, weights = cubic_taps(source, target, np.arange(begin, end), exact)
    weights = np.where((rows >= 0) & (rows < source), weights, 0)
    return rows.clip(0, source - 1), normalized(weights)


def _to_rows(
    x: Tensor, low: int, source: int, target: int, begin: int, end: int, exact: bool = False
) -> Tensor:
    """Resampled to ``target`` rows, by cubic kernels: those from ``begin`` to ``end`` - 1.

    ``x`` is [1, C, rows, W], of ``source`` rows those from ``low`` on. ``exact``: as in
    :func:`_to_width`.
    """
    if source == target:
        return x[:, :, begin - low : end - low]
    rows, weights = _row_taps(source, target, begin, end, exact)
    return _weighted(_to_eighths(x) if exact else x, 2, rows - low, weights[:, :, None])


def _to_eighths(x: Tensor) -> Tensor:
    """Rounded so that the next resampling is exact: see ``pseudocylindrical_unslice``."""
    return (x * 8).round_().clamp_(0, 8 * 255) / 8


def _to_width(x: Tensor, width: int, exact: bool = False) -> Tensor:
    """Resampled to ``width`` columns, by cubic kernels, around the sphere.

    ``exact``: so that no sum of values of 0 to 255 is rounded, but they are, to eighths, before.
    """
    if x.shape[3] == width:
        return x
    if exact:
        x = _to_eighths(x)
    table = cubic_resampling(x.shape[3], width, exact=exact)
    columns = (table.first + np.arange(len(table.weights))[:, None]) % x.shape[3]
    return _weighted(x, 3, columns, table.weights)


def _weighted(x: Tensor, dim: int, positions: np.ndarray, weights: np.ndarray) -> Tensor:
    """The sum of ``x`` at each tap's positions along ``dim``, times its weights."""
    total: Tensor | None = None
    taps = zip(torch.from_numpy(positions), torch.from_numpy(weights).float(), strict=True)
    for position, weight in taps:
        term = x.index_select(dim, position).mul_(weight)
        total = term if total is None else total.add_(term)
    assert total is not None
    return total


def _widths_for(pixels: np.ndarray, quality_code: int) -> list[int]:
    """What :func:`choose_widths` chooses for a picture, without holding all of it as floats."""
    tiles, _ = grid_size(*pixels.shape[:2])
    return [
        choose_widths(_tile_rows(pixels, tile, tile + 1), quality_code, tile, tiles)[0]
        for tile in range(tiles)
    ]


def choose_widths(
    x: Tensor, quality_code: int, first: int = 0, total: int | None = None
) -> list[int]:
    """The narrowest tiles whose smoothing adds little to the error of coding.

    Near the poles any picture is smooth along its rows; elsewhere one that is may be narrowed, too.
    Widths are even, unless the picture's own is odd: then tiles of a picture that is turned by half
    are turned by whole hyperlatents, and the same is coded as before.

    Args:
        x: [1, 3, 64 T, 64 full].
        quality_code: of the equator.
        first, total: the number of the first of these T tiles, and how many the sphere has; T by
            default.
    """
    tiles, full = x.shape[2] // UNIT, x.shape[3] // UNIT
    multiplier = float(quality_lambda(torch.tensor(quality_code / 100))) * 255**2
    chosen = []
    backend = default_backend(x.device)  # said once more, calls take 0.1 ms less
    for tile in range(tiles):
        rows = x[:, :, UNIT * tile : UNIT * (tile + 1) : 4].contiguous()  # one in four will do
        numerator, denominator = tile_weight(first + tile, total or tiles)
        allowed = SMOOTHING * denominator / (multiplier * numerator)
        low, high = 1, (full + 1) // 2
        while low < high:
            middle = (low + high) // 2
            pixels = [UNIT * 2 * middle]
            part = pseudocylindrical_slice(rows, pixels, backend=backend)
            back = pseudocylindrical_unslice(part, pixels, backend=backend)
            if (back - rows).square().mean().item() <= allowed:
                high = middle
            else:
                low = middle + 1
        chosen.append(min(2 * low, full))
    return chosen
