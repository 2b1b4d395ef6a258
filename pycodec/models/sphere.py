"""The 360-degree codec: the photo codec's networks on a pseudocylindrical representation.

An equirectangular (ERP) picture has far more pixels near the poles than the sphere has area. It is
cut into tiles of 64 rows, each is resampled along its rows to a width of its own (arXiv
2112.13227), and convolutions pad across the borders of tiles as these lie on the sphere. Quality
falls with the area that a tile's positions stand for, so bits go where the sphere is.
``docs/sphere_codec.md`` defines the stream.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pycodec.coding.container import pack_number, unpack_numbers
from pycodec.context.integer_entropy_model import (
    HYPER_STRIDE,
    QUALITY_MAX,
    QUALITY_MIN,
    to_fixed_point,
)
from pycodec.errors import CorruptStreamError, InputError, UnsupportedError
from pycodec.models.blocks import on_sphere
from pycodec.models.photo import (
    INTEGER_PRECISIONS,
    CodedPicture,
    PhotoCodec,
    check_picture,
)
from pycodec.models.photo_network import quality_lambda
from pycodec.models.tiling import add_seconds, thread_count
from pycodec.models.transforms import LATENT_STRIDE
from pycodec.ops.pseudocylindrical_slice import (
    cubic_resampling,
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
        photo: the model.
    """

    def __init__(self, photo: PhotoCodec) -> None:
        if photo.precision in INTEGER_PRECISIONS:
            raise UnsupportedError(
                f"the codec for the sphere has no {photo.precision} transforms: use fp32 or bf16"
            )
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

        Raises:
            InputError: an argument is out of its range.
        """
        check_picture(pixels, quality)
        if not MIN_BAND_LOG2 <= tile_log2 <= MAX_BAND_LOG2:
            raise InputError(f"bands must have {1 << MIN_BAND_LOG2} to {1 << MAX_BAND_LOG2} rows")
        model = self.photo.entropy_model
        tiles, full = grid_size(*pixels.shape[:2])
        coded = CodedPicture([], round(quality * 100), tile_log2)
        with thread_count(threads) as count, torch.inference_mode():
            began = time.perf_counter()
            x = _to_size(_to_float(pixels), UNIT * tiles, UNIT * full)
            if widths is None:
                widths = _choose_widths(x, coded.quality_code)
            grid = _checked_grid(widths, tiles, full)
            qualities = _qualities(grid, coded.quality_code, full)
            add_seconds(coded.seconds, "analysis", time.perf_counter() - began)
            for first, last in _bands(tiles, tile_log2):
                began = time.perf_counter()
                latents, hyperlatents = self._analyse(x, grid, qualities, first, last)
                add_seconds(coded.seconds, "analysis", time.perf_counter() - began)
                band = grid.cut(first, last)
                result = model.encode_sphere(
                    latents, hyperlatents, band, qualities[first:last], count
                )
                head = b"".join(map(pack_number, band.widths))
                coded.add(result, model.tables if code_length else None, head)
        return coded

    def _analyse(
        self, x: Tensor, grid: SphereGrid, qualities: list[int], first: int, last: int
    ) -> tuple[Tensor, Tensor]:
        """Of a band: fixed-point latents [n, 4, 4 columns, M], hyperlatents [n, 1, columns, Z]."""
        top, bottom = max(0, first - HALO_TILES), min(grid.tiles, last + HALO_TILES)
        part, band = grid.cut(top, bottom), grid.cut(first, last)
        quality = self._quality(qualities[top:bottom])
        rows = x[:, :, UNIT * top : UNIT * bottom]
        tiles = pseudocylindrical_slice(rows.contiguous(), [UNIT * w for w in part.widths])
        tiles = _channels_last(tiles[..., : UNIT * part.columns]).to(self.photo.device)
        with on_sphere(part):
            y = self.photo.analysis(tiles, quality)
        own = slice(first - top, last - top)
        y = _channels_last(y[own, :, :, : HYPER_STRIDE * band.columns])
        with on_sphere(band):
            z = self.photo.hyper_analysis(y, quality[own])
        latents = to_fixed_point(y.permute(0, 2, 3, 1)).cpu()
        return latents, torch.round(z.permute(0, 2, 3, 1).float()).int().cpu()

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
    ) -> np.ndarray:
        """Decode a picture: uint8 [height, width, 3].

        Args:
            streams: one a band, from the north.
            width, height: in pixels.
            quality_code: quality in hundredths.
            tile_log2, threads: as in ``compress``.
            seconds: times are added to its items ``entropy``, ``rans`` and ``synthesis``.

        Raises:
            CorruptStreamError: the number of streams is wrong or a stream is damaged.
        """
        if not MIN_BAND_LOG2 <= tile_log2 <= MAX_BAND_LOG2:
            raise CorruptStreamError(f"bands of 2^{tile_log2} rows are out of range")
        tiles, full = grid_size(height, width)
        bands = _bands(tiles, tile_log2)
        if len(streams) != len(bands):
            raise CorruptStreamError(f"{len(bands)} bands, but {len(streams)} streams")
        seconds = {} if seconds is None else seconds
        heads = [_read_widths(s, b - a, full) for s, (a, b) in zip(streams, bands, strict=True)]
        grid = SphereGrid(tuple(w for widths, _ in heads for w in widths))
        qualities = _qualities(grid, quality_code, full)
        with thread_count(threads) as count, torch.inference_mode():
            parts = [
                self.photo.entropy_model.decode_sphere(
                    stream, grid.cut(first, last), qualities[first:last], count, seconds
                )
                for (_, stream), (first, last) in zip(heads, bands, strict=True)
            ]
            began = time.perf_counter()
            columns = HYPER_STRIDE * grid.columns
            latents = torch.cat([F.pad(p, (0, 0, 0, columns - p.shape[2])) for p in parts])
            rows = [self._synthesize(latents, grid, qualities, full, *band) for band in bands]
            x = _to_size(torch.cat(rows, 2), height, width)
            pixels = (x[0] * 255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
            add_seconds(seconds, "synthesis", time.perf_counter() - began)
        return np.ascontiguousarray(pixels.numpy())

    def _synthesize(
        self,
        latents: Tensor,
        grid: SphereGrid,
        qualities: list[int],
        full: int,
        first: int,
        last: int,
    ) -> Tensor:
        """Rows of the picture of the tiles ``first`` to ``last`` - 1: [1, 3, 64 n, 64 full]."""
        top, bottom = max(0, first - HALO_TILES), min(grid.tiles, last + HALO_TILES)
        part = grid.cut(top, bottom)
        y = latents[top:bottom, :, : HYPER_STRIDE * part.columns].permute(0, 3, 1, 2)
        y = y.to(self.photo.device).float() / (1 << LATENT_FRACTION_BITS)
        with on_sphere(part):
            x = self.photo.synthesis(y, self._quality(qualities[top:bottom]))
        x = x[first - top : last - top].float().cpu()
        x = F.pad(x, (0, UNIT * full - x.shape[3]))
        widths = [UNIT * width for width in grid.widths[first:last]]
        return pseudocylindrical_unslice(x.contiguous(), widths)


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


def _to_size(x: Tensor, height: int, width: int) -> Tensor:
    """Resampled to whole tiles, or back, by cubic kernels: rows around the sphere."""
    if width > x.shape[3]:
        x = _to_width(x, width)
    if x.shape[2] != height:
        # Torch's kernel takes pictures of one column for something else, so it sees the wider ones.
        x = F.interpolate(x, (height, x.shape[3]), mode="bicubic", antialias=True)
    return _to_width(x, width)


def _to_width(x: Tensor, width: int) -> Tensor:
    if x.shape[3] == width:
        return x
    table = cubic_resampling(x.shape[3], width)
    columns = (table.first + np.arange(len(table.weights))[:, None]) % x.shape[3]
    taps = zip(torch.from_numpy(columns), torch.from_numpy(table.weights).float(), strict=True)
    return torch.stack([x[..., column] * weight for column, weight in taps]).sum(0)


def _choose_widths(x: Tensor, quality_code: int) -> list[int]:
    """The narrowest tiles whose smoothing adds little to the error of coding.

    Near the poles any picture is smooth along its rows; elsewhere one that is may be narrowed, too.

    Args:
        x: [1, 3, 64 T, 64 full].
        quality_code: of the equator.
    """
    tiles, full = x.shape[2] // UNIT, x.shape[3] // UNIT
    multiplier = float(quality_lambda(torch.tensor(quality_code / 100))) * 255**2
    chosen = []
    for tile in range(tiles):
        rows = x[:, :, UNIT * tile : UNIT * (tile + 1) : 4].contiguous()  # one in four will do
        numerator, denominator = tile_weight(tile, tiles)
        allowed = SMOOTHING * denominator / (multiplier * numerator)
        low, high = 1, full
        while low < high:
            middle = (low + high) // 2
            pixels = [UNIT * middle]
            back = pseudocylindrical_unslice(pseudocylindrical_slice(rows, pixels), pixels)
            if (back - rows).square().mean().item() <= allowed:
                high = middle
            else:
                low = middle + 1
        chosen.append(low)
    return chosen
