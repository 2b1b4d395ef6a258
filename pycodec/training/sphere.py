"""Fine-tuning of a photo model for the sphere: tiles of panoramas, and photographs bent into some.

A piece is a run of tiles as ``pycodec.models.sphere`` codes them: padded as they lie on the sphere,
with the widths and qualities that its encoder chooses. Pieces are sectors, whose ends are faded
into each other, so that they go around like the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pycodec.errors import InputError
from pycodec.evaluation.sphere import row_weights
from pycodec.models.blocks import on_sphere, set_branch_dtype
from pycodec.models.model_folder import WEIGHTS
from pycodec.models.photo_network import LAMBDA_MAX, LAMBDA_MIN, PhotoConfig, quality_lambda
from pycodec.models.sphere import UNIT, SphereCodec, choose_widths, tile_quality
from pycodec.ops.pseudocylindrical_slice import pseudocylindrical_slice
from pycodec.projection.grid import SphereGrid
from pycodec.training.data import split_pictures
from pycodec.training.finalize import finalize
from pycodec.training.train import (
    VALIDATION_QUALITIES,
    Trainer,
    TrainingOptions,
    find_pictures,
    log,
)

FADE = 32
"""Pixels over which the two ends of a sector are faded into each other."""

MIN_COSINE = 0.2
"""Photographs are stretched along their rows like a panorama, but by no more than 1 / this."""

VALIDATION_PIECES = 3
"""Of each kind, at each quality."""


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


class SphereTrainer(Trainer):
    """Trains on pieces of the sphere.

    Args:
        folder: equirectangular pictures; the third of each five is held out for validation.
        out, options, start, config: see ``Trainer``; a run must start from weights. Of the options
            ``batch`` counts pieces and ``crop`` is a multiple of 64.
        photos: folder of ordinary pictures, of which half of the pieces are; None for panoramas
            alone.
        rate_only: train only what predicts the latents, for fewer bits of the same latents; the
            transforms and the quantization steps stay as they are. A step is far cheaper.

    Raises:
        CodecError: the folder holds no picture, or none that is large enough.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        options: TrainingOptions,
        start: Path | None = None,
        config: PhotoConfig | None = None,
        *,
        photos: Path | None = None,
        rate_only: bool = False,
    ) -> None:
        self._photo_folder, self.rate_only = photos, rate_only
        self._base = None
        if start is not None and start.resolve().parent == WEIGHTS.resolve():
            self._base = start.resolve().name
        super().__init__(folder, out, options, start, config)
        if rate_only:
            network = self.network
            for part in (network.analysis, network.synthesis, network.entropy_model.log2_step):
                part.requires_grad_(False)

    def _find_pictures(self, folder: Path) -> None:
        self.training, held_out = split_pictures(find_pictures(folder), every=5)
        self._photos: list[Path] = []
        held_photos: list[Path] = []
        if self._photo_folder is not None:
            self._photos, held_photos = split_pictures(find_pictures(self._photo_folder))
        self.held_out = []
        if held_out or held_photos:
            self.held_out = _validation_pieces(held_out, held_photos, self.options.crop)

    def _sampler(self, seed: int) -> PieceSampler:
        return PieceSampler(self.training, self._photos, self.options.crop, seed=seed)

    def _start(self, sampler: PieceSampler) -> None:
        raise InputError("training for the sphere starts from the weights of a photo model")

    def _loss(self, piece: Piece) -> tuple[Tensor, dict[str, float]]:
        """Loss of a piece, and what is logged of it.

        ``bits + sum over tiles of lambda 255^2 times squared error``, a pixel, over the root of the
        picture's lambda: as in ``rate_distortion_loss``. The lambda of a tile grows with the area
        of its pixels. What lies beyond a tile's width counts nowhere.
        """
        quality = torch.tensor(piece.qualities) / 100
        with on_sphere(piece.grid):
            if self.rate_only:
                y_bits, z_bits = self._rates(piece.x, quality)
                x_hat = None
            else:
                x_hat, y_bits, z_bits = self.network(
                    piece.x, quality, autocast=self.options.bfloat16
                )
        pixels = UNIT**2 * sum(piece.grid.widths)
        middle = quality_lambda(torch.tensor(piece.quality_code / 100))
        loss = bpp = (y_bits + z_bits).sum() / pixels
        values = {"hyper_share": (z_bits.sum() / (y_bits + z_bits).sum()).item()}
        if x_hat is not None:
            own = torch.from_numpy(piece.grid.mask(UNIT)[:, None])
            x_hat = x_hat if self.network.training else x_hat.clamp(0, 1)
            errors = ((x_hat - piece.x) * own).square().sum((1, 2, 3)) / 3
            multiplier = quality_lambda(quality)
            loss = bpp + 255**2 * (multiplier * errors).sum() / pixels
            counts = UNIT**2 * torch.tensor(piece.grid.widths)
            mse = (multiplier * errors).sum() / (multiplier * counts).sum()
            values["psnr"] = -10 * math.log10(mse.item())
        loss = loss * (middle / math.sqrt(LAMBDA_MIN * LAMBDA_MAX)).rsqrt()
        return loss, {"loss": loss.item(), "bpp": bpp.item(), **values}

    def _rates(self, x: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        set_branch_dtype(network, torch.bfloat16 if self.options.bfloat16 else torch.float32)
        with torch.no_grad():
            y = network.analysis(x, quality)
        return network.entropy_model(y, network.hyperlatents(y, quality), quality)[1:]

    def _backward(self, batch: list[Piece]) -> dict[str, float]:
        found = []
        for piece in batch:
            loss, values = self._loss(piece)
            (loss / len(batch)).backward()
            found.append(values)
        return {name: float(np.mean([v[name] for v in found])) for name in found[0]}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss, bpp and PSNR (weighted by area) of the held-out pieces, at a few qualities."""
        if not self.held_out:
            return {}
        self.network.eval()
        self._set_observing(False)
        result: dict[str, float] = {}
        losses = []
        for value in VALIDATION_QUALITIES:
            pieces = [p for p in self.held_out if p.quality_code == round(100 * value)]
            found = [self._loss(piece)[1] for piece in pieces]
            losses += [v["loss"] for v in found]
            for name in ("bpp", "psnr"):
                if name in found[0]:
                    result[f"{name}_q{value:g}"] = float(np.mean([v[name] for v in found]))
        return {"validation_loss": float(np.mean(losses)), **result}

    def export(self, folder: Path, report: Callable[[str], None] = log.info) -> Path:
        """Write the model folder; tables and dead zones are fitted to the training panoramas."""
        self.batches.close()
        pictures = []
        for path in self.training:
            with Image.open(path) as image:
                pictures.append(np.asarray(image.convert("RGB")))
        finalize(
            self.network,
            pictures,
            folder,
            report,
            coder=SphereCodec,
            error=_sphere_error,
            base=self._base,
        )
        return folder


def _sphere_error(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared error of uint8 [H, W, C], by area."""
    weights = row_weights(len(a))
    rows = np.square(a.astype(np.float32) - b).mean((1, 2))
    return float(np.dot(weights, rows) / weights.sum())


def _validation_pieces(panoramas: list[Path], photos: list[Path], crop: int) -> list[Piece]:
    sampler = PieceSampler(panoramas, photos, crop, seed=1)
    kinds = [sampler.panorama] * bool(sampler.panoramas) + [sampler.photo] * bool(sampler.photos)
    codes = [round(100 * value) for value in VALIDATION_QUALITIES]
    return [kind(code) for code in codes for kind in kinds for _ in range(VALIDATION_PIECES)]


def _read_large(paths: list[Path], height: int, width: int | None = None) -> list[Image.Image]:
    """RGB pictures of at least this size, ``height`` on both sides unless ``width`` is given."""
    pictures = []
    for path in paths:
        with Image.open(path) as image:
            if image.height >= height and image.width >= (width or height):
                pictures.append(image.convert("RGB"))
    return pictures
