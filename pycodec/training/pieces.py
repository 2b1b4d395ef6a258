"""Pieces of the sphere for training: tiles of panoramas, and photographs bent into some.

A piece is a run of tiles as ``pycodec.models.sphere`` codes them, with the widths and qualities
that its encoder chooses. Pieces are sectors, whose ends are faded into each other, so that they go
around like the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pycodec.errors import InputError
from pycodec.models.sphere import UNIT, choose_widths, tile_quality
from pycodec.ops.pseudocylindrical_slice import pseudocylindrical_slice
from pycodec.projection.grid import TABLES, GridBatch, Padding, SphereGrid

FADE = 32
"""Pixels over which the two ends of a sector are faded into each other."""

MIN_COSINE = 0.2
"""Photographs are stretched along their rows like a panorama, but by no more than 1 / this."""

TILTED_PIECES = 48
"""So many come from a panorama whose horizon was tilted, before another is."""

PADDINGS: tuple[Padding, ...] = (
    *((rows, 1, False) for rows in (16, 8, 4, 2)),
    *((rows, 1, True) for rows in (1, 2, 4)),
)
"""All that the networks ask for: of the transforms, and of the entropy model."""


@dataclass(frozen=True)
class Piece:
    """Some tiles of a sphere.

    Attributes:
        x: float [T, 3, 64, 64 grid.columns], in [0, 1].
        grid: their widths, and whether they end at poles.
        quality_code: of the picture, hundredths.
        qualities: of the tiles, hundredths.
    """

    x: Tensor
    grid: SphereGrid
    quality_code: int
    qualities: list[int]


def cut_piece(x: Tensor, quality_code: int, first: int, total: int, poles: bool = True) -> Piece:
    """Tiles ``first``, ``first`` + 1, ... of the ``total`` tiles of a sphere.

    Args:
        x: float [1, 3, 64 T, 64 U], their rows all around.
        quality_code: of the picture.
        poles: whether the first and the last tile of all end at poles; else nothing lies beyond.
    """
    widths = choose_widths(x, quality_code, first, total)
    full, last = x.shape[3] // UNIT, first + len(widths)
    grid = SphereGrid(tuple(widths), poles and first == 0, poles and last == total)
    tiles = pseudocylindrical_slice(x, [UNIT * w for w in widths])[..., : UNIT * grid.columns]
    qualities = [
        tile_quality(quality_code, first + tile, total, width, full)
        for tile, width in enumerate(widths)
    ]
    x = tiles.contiguous(memory_format=torch.channels_last)
    return Piece(x, grid, quality_code, qualities)


@dataclass(frozen=True)
class PieceBatch:
    """Pieces that the networks see at once.

    Attributes:
        x: float [T, 3, 64, 64 grid.columns], the tiles of all pieces.
        grid: of all.
        quality_codes: of the pictures, hundredths: float32 [N].
        qualities: of the tiles, 1 to 100: float32 [T].
        areas: of the tiles, as many pixels as they have of their own: float32 [T].
        piece: the number of the piece that a tile is of: int64 [T].
    """

    x: Tensor
    grid: GridBatch
    quality_codes: Tensor
    qualities: Tensor
    areas: Tensor
    piece: Tensor

    @classmethod
    def of(
        cls, pieces: Sequence[Piece], backend: str = TABLES, dtype: torch.dtype = torch.float32
    ) -> PieceBatch:
        """Join pieces.

        Args:
            pieces: of any widths and numbers of tiles.
            backend: what pads them, see ``GridBatch``.
            dtype: of the pixels; with float16 they are up to an eighth of a grey level off.
        """
        grid = GridBatch([p.grid for p in pieces], backend)
        if backend == TABLES:
            grid.prepare(PADDINGS)
        else:
            grid.prepare([padding for padding in PADDINGS if padding[2]])
        shape = grid.tiles, 3, UNIT, UNIT * grid.columns
        x = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last).zero_()
        parts = x.split([p.grid.tiles for p in pieces])
        for part, p in zip(parts, pieces, strict=True):
            part[..., : p.x.shape[3]] = p.x
        return cls(
            x,
            grid,
            torch.tensor([float(p.quality_code) for p in pieces]),
            torch.tensor([q for p in pieces for q in p.qualities]) / 100,
            UNIT**2 * torch.tensor([float(w) for p in pieces for w in p.grid.widths]),
            torch.tensor([i for i, p in enumerate(pieces) for _ in p.qualities]),
        )

    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        own = [self.x, self.quality_codes, self.qualities, self.areas, self.piece]
        return own + self.grid.tensors()

    def to(self, device: torch.device | str) -> PieceBatch:
        """The same on a device, in float32."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if name != "x"
        }
        x = self.x.to(device, non_blocking=True).float()
        return PieceBatch(x=x.contiguous(memory_format=torch.channels_last), **moved)


class PieceSampler:
    """Endless random pieces, scaled down and mirrored.

    Args:
        panoramas: equirectangular picture files; kept decoded in memory, as are ``photos``.
        photos: files of ordinary pictures; pieces of them are stretched like the rows of a panorama
            at some latitude.
        crop: rows and columns of a piece, a multiple of 64.
        panorama_share: of pieces that are of panoramas.
        seed: of the random stream.
        tilt: largest angle, degrees, by which the horizon of every other panorama is tilted.

    Raises:
        InputError: no picture is large enough, or the crop is no multiple of 64.
    """

    def __init__(
        self,
        panoramas: list[Path],
        photos: list[Path],
        crop: int,
        panorama_share: float = 0.5,
        seed: int = 0,
        tilt: float = 0.0,
    ) -> None:
        if crop % UNIT or crop < UNIT:
            raise InputError(f"crops of a sphere are multiples of {UNIT} pixels, not {crop}")
        self.crop, self.random = crop, np.random.default_rng(seed)
        self.panoramas = _read_large(panoramas, crop, crop + FADE)
        self.photos = _read_large(photos, math.ceil(crop / 0.85))
        if not self.panoramas and not self.photos:
            raise InputError(f"no training picture is large enough for pieces of {crop} pixels")
        self.share = panorama_share if self.photos else 1.0
        self.share = self.share if self.panoramas else 0.0
        area = np.array([p.width * p.height for p in self.photos], dtype=np.float64)
        self.weights = area / area.sum() if self.photos else area
        self.tilt = tilt
        self._tilted: Image.Image | None = None
        self._tilted_left = 0

    def _next_tilted(self) -> Image.Image:
        if self._tilted is None or self._tilted_left == 0:
            picture = self.panoramas[self.random.integers(len(self.panoramas))]
            tilt, axis = self.random.uniform(0, self.tilt), self.random.uniform(0, 360)
            pixels = tilt_panorama(np.asarray(picture), tilt, axis)
            self._tilted, self._tilted_left = Image.fromarray(pixels), TILTED_PIECES
        self._tilted_left -= 1
        return self._tilted

    def panorama(self, quality_code: int) -> Piece:
        """A sector of a panorama, turned, perhaps tilted, at 0.6 to 1 of its size."""
        if self.tilt and self.random.random() < 0.5:
            picture = self._next_tilted()
        else:
            picture = self.panoramas[self.random.integers(len(self.panoramas))]
        count = self.crop // UNIT
        scale = math.exp(self.random.uniform(math.log(0.6), 0.0))
        total = max(count, round(picture.height * scale / UNIT))
        scale = UNIT * total / picture.height
        first = int(self.random.integers(total - count + 1))
        width = min((self.crop + FADE) / scale, picture.width)
        top = UNIT * first / scale
        bottom = min(top + self.crop / scale, picture.height)
        # Rows and columns around the sector are read by the resampling.
        above, below = max(0, math.floor(top) - 8), min(picture.height, math.ceil(bottom) + 8)
        left = self.random.integers(picture.width)
        columns = (left + np.arange(min(math.ceil(width) + 8, picture.width))) % picture.width
        turned = np.asarray(picture)[above:below].take(columns, axis=1)
        x = self._sector(Image.fromarray(turned), (0, top - above, width, bottom - above))
        return cut_piece(x, quality_code, first, total)

    def photo(self, quality_code: int) -> Piece:
        """A part of a photograph, as if it were one of a panorama of 4 to 32 tiles.

        At 0.6 to 0.85 of its size, or at what its width asks for: up to 0.96.
        """
        picture = self.photos[self.random.choice(len(self.photos), p=self.weights)]
        count = self.crop // UNIT
        total = int(self.random.integers(count, max(count, 32) + 1))
        first = int(self.random.integers(total - count + 1))
        stretch = max(MIN_COSINE, math.sin(math.pi * (first + count / 2) / total))
        needed = (self.crop + FADE) * stretch / picture.width
        low = max(0.6, needed, self.crop / picture.height)
        scale = math.exp(self.random.uniform(math.log(low), math.log(max(low, 0.85))))
        width, height = (self.crop + FADE) * stretch / scale, self.crop / scale
        left = self.random.uniform(0, picture.width - width)
        top = self.random.uniform(0, picture.height - height)
        x = self._sector(picture, (left, top, left + width, top + height))
        return cut_piece(x, quality_code, first, total, poles=False)

    def _sector(self, picture: Image.Image, box: tuple[float, float, float, float]) -> Tensor:
        """A box of a picture, resampled, perhaps mirrored, and closed to a ring: [1, 3, H, W]."""
        size = (self.crop + FADE, self.crop)
        pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS, box=box))
        if self.random.random() < 0.5:
            pixels = pixels[:, ::-1]
        x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
        ring, end = x[..., : self.crop].clone(), x[..., self.crop :]
        ramp = (torch.arange(FADE) + 0.5) / FADE
        ring[..., :FADE] = torch.lerp(end, ring[..., :FADE], ramp)
        return ring

    def draw(self, quality_code: int) -> Piece:
        """One piece, for this quality of its picture."""
        is_panorama = self.random.random() < self.share
        return (self.panorama if is_panorama else self.photo)(quality_code)

    def batch(self, size: int) -> list[Piece]:
        """Pieces at stratified qualities: every batch spans the whole range."""
        place = (self.random.permutation(size) + self.random.random(size)) / size
        return [self.draw(int(code)) for code in 100 + np.rint(9900 * place)]


def tilt_panorama(pixels: NDArray[np.uint8], tilt: float, axis: float) -> NDArray[np.uint8]:
    """An equirectangular picture whose horizon is tilted, by cubic interpolation.

    Args:
        pixels: uint8 [H, W, 3].
        tilt: degrees.
        axis: longitude of the horizontal axis around which it is, degrees.
    """
    height, width = pixels.shape[:2]
    longitude = (np.arange(width, dtype=np.float32) + 0.5) * (2 * math.pi / width)
    latitude = (0.5 - (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height) * math.pi
    sine, cosine = math.sin(math.radians(tilt)), math.cos(math.radians(tilt))
    # Along the axis, across it, and upwards.
    along = np.cos(latitude) * np.cos(longitude)
    across = np.cos(latitude) * np.sin(longitude)
    up = np.sin(latitude)
    across, up = cosine * across - sine * up, sine * across + cosine * up
    turned = np.arctan2(across, along) + math.radians(axis)
    x = (turned / (2 * math.pi) % 1) * width - 0.5
    y = (0.5 - np.arcsin(up.clip(-1, 1)) / math.pi) * height - 0.5
    # Two pixels around it, of the other side of a pole beyond it.
    whole = np.concatenate([_beyond(pixels[:2]), pixels, _beyond(pixels[-2:])])
    whole = np.pad(whole, ((0, 0), (2, 2), (0, 0)), mode="wrap")
    source = torch.from_numpy(whole).permute(2, 0, 1)[None].float()
    places = np.stack([2 * (x + 2.5) / (width + 4) - 1, 2 * (y + 2.5) / (height + 4) - 1], -1)
    grid = torch.from_numpy(places.astype(np.float32))[None]
    value = F.grid_sample(source, grid, mode="bicubic", align_corners=False)[0]
    return value.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _beyond(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What lies beyond a pole: its last rows, backwards, half a turn away."""
    return np.roll(rows[::-1], rows.shape[1] // 2, 1)


def _read_large(paths: list[Path], height: int, width: int | None = None) -> list[Image.Image]:
    """RGB pictures of at least this size, ``height`` on both sides unless ``width`` is given."""

    def read(path: Path) -> Image.Image | None:
        with Image.open(path) as image:
            if image.height < height or image.width < (width or height):
                return None
            return image.convert("RGB")

    with ThreadPoolExecutor() as pool:
        return [picture for picture in pool.map(read, paths) if picture is not None]
