"""Pieces of the sphere for training: tiles of panoramas, and photographs bent into some.

A piece is a run of tiles as ``pycodec.models.sphere`` codes them, with the widths and qualities
that its encoder chooses. Pieces are sectors, whose ends are faded into each other, so that they go
around like the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pycodec.errors import InputError
from pycodec.models.sphere import UNIT, choose_widths, tile_quality
from pycodec.ops.pseudocylindrical_slice import pseudocylindrical_slice
from pycodec.projection.grid import SphereGrid

FADE = 32
"""Pixels over which the two ends of a sector are faded into each other."""

MIN_COSINE = 0.2
"""Photographs are stretched along their rows like a panorama, but by no more than 1 / this."""


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


class PieceSampler:
    """Endless random pieces, scaled down and mirrored.

    Args:
        panoramas: equirectangular picture files; kept decoded in memory, as are ``photos``.
        photos: files of ordinary pictures; pieces of them are stretched like the rows of a panorama
            at some latitude.
        crop: rows and columns of a piece, a multiple of 64.
        panorama_share: of pieces that are of panoramas.
        seed: of the random stream.

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
    ) -> None:
        if crop % UNIT or crop < UNIT:
            raise InputError(f"crops of a sphere are multiples of {UNIT} pixels, not {crop}")
        self.crop, self.random = crop, np.random.default_rng(seed)
        self.panoramas = _read_large(panoramas, crop, crop + FADE)
        self.photos = _read_large(photos, math.ceil((crop + FADE) / 0.85))
        if not self.panoramas and not self.photos:
            raise InputError(f"no training picture is large enough for pieces of {crop} pixels")
        self.share = panorama_share if self.photos else 1.0
        self.share = self.share if self.panoramas else 0.0
        area = np.array([p.width * p.height for p in self.photos], dtype=np.float64)
        self.weights = area / area.sum() if self.photos else area

    def panorama(self, quality_code: int) -> Piece:
        """A sector of a panorama, turned, at 0.6 to 1 of its size."""
        picture = self.panoramas[self.random.integers(len(self.panoramas))]
        count = self.crop // UNIT
        scale = math.exp(self.random.uniform(math.log(0.6), 0.0))
        total = max(count, round(picture.height * scale / UNIT))
        scale = UNIT * total / picture.height
        first = int(self.random.integers(total - count + 1))
        width = min((self.crop + FADE) / scale, picture.width)
        turned = np.roll(np.asarray(picture), self.random.integers(picture.width), 1)
        top = UNIT * first / scale
        box = (0, top, width, min(top + self.crop / scale, picture.height))
        x = self._sector(Image.fromarray(turned), box)
        return cut_piece(x, quality_code, first, total)

    def photo(self, quality_code: int) -> Piece:
        """A part of a photograph, as if it were one of a panorama of 4 to 32 tiles."""
        picture = self.photos[self.random.choice(len(self.photos), p=self.weights)]
        count = self.crop // UNIT
        total = int(self.random.integers(count, max(count, 32) + 1))
        first = int(self.random.integers(total - count + 1))
        stretch = max(MIN_COSINE, math.sin(math.pi * (first + count / 2) / total))
        low = max(0.6, (self.crop + FADE) / min(picture.size))
        scale = math.exp(self.random.uniform(math.log(low), math.log(0.85)))
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


def _read_large(paths: list[Path], height: int, width: int | None = None) -> list[Image.Image]:
    """RGB pictures of at least this size, ``height`` on both sides unless ``width`` is given."""
    pictures = []
    for path in paths:
        with Image.open(path) as image:
            if image.height >= height and image.width >= (width or height):
                pictures.append(image.convert("RGB"))
    return pictures
