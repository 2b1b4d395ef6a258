"""Fine-tuning of a photo model for the sphere: tiles of panoramas, and photographs bent into some.

Networks act on the pieces of ``pycodec.training.pieces`` as they do in the codec: padded as their
tiles lie on the sphere.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
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
from pycodec.models.sphere import SphereCodec
from pycodec.ops.backends import check_backend
from pycodec.projection.grid import TABLES
from pycodec.training.data import Sampler, split_pictures
from pycodec.training.finalize import finalize
from pycodec.training.graphs import CapturedPass
from pycodec.training.pieces import PieceBatch, PieceSampler
from pycodec.training.refit import refit_heads
from pycodec.training.train import (
    VALIDATION_QUALITIES,
    Trainer,
    TrainingOptions,
    checked_device,
    find_pictures,
    log,
)

PARTS = ("analysis", "hyper_analysis", "synthesis", "entropy_model")

VALIDATION_PIECES = 3
"""Of each kind, at each quality."""


class SphereTrainer(Trainer):
    """Trains on pieces of the sphere.

    Args:
        folder: equirectangular pictures; the third of each five is held out for validation.
        out, options, start, config: see ``Trainer``; a run must start from weights. Of the options
            ``batch`` counts pieces and ``crop`` is a multiple of 64.
        photos: folder of ordinary pictures, of which some of the pieces are; None for panoramas
            alone.
        panorama_share: of the pieces, where there are photographs.
        tilt: largest angle, degrees, by which every other panorama is tilted.
        padding: what pads floats, see ``GridBatch``; None for the operation's own kernels on the
            CPU, and for tables elsewhere.
        freeze: parts of the network, of ``PARTS``, that stay as they are and need not be stored.
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
        panorama_share: float = 0.5,
        tilt: float = 0.0,
        padding: str | None = None,
        freeze: Sequence[str] = (),
    ) -> None:
        self._photo_folder, self.rate_only = photos, rate_only
        self._panorama_share, self._tilt = panorama_share, tilt
        self._padding = padding or default_padding(checked_device(options.device))
        if self._padding != TABLES:
            check_backend(self._padding)
        self._base = None
        self._captured: CapturedPass | None = None
        if start is not None and start.resolve().parent == WEIGHTS.resolve():
            self._base = start.resolve().name
        super().__init__(folder, out, options, start, config)
        for name in freeze:
            if name not in PARTS:
                raise InputError(f"the network has no part {name!r}, only {', '.join(PARTS)}")
            getattr(self.network, name).requires_grad_(False)
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
        self.held_out = {}
        if held_out or held_photos:
            self.held_out = _validation_batches(
                held_out, held_photos, self.options.crop, self._padding
            )

    def _pieces(self, seed: int) -> PieceSampler:
        return PieceSampler(
            self.training, self._photos, self.options.crop, self._panorama_share, seed, self._tilt
        )

    def _sampler(self, seed: int) -> Sampler:
        return _BatchSampler(self._pieces(seed), self._padding, self.device)

    def _load_weights(self, path: Path) -> None:
        super()._load_weights(path)
        if path.is_file() and torch.load(path, map_location="cpu", weights_only=True)["quantized"]:
            self._enable_quantization(resumed=True)

    def _start(self, sampler: PieceSampler) -> None:
        raise InputError("training for the sphere starts from the weights of a photo model")

    def _loss(self, batch: PieceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of pieces, and what is logged of them.

        Of a piece it is ``bits + sum over tiles of lambda 255^2 times squared error``, a pixel,
        over the root of the picture's lambda: as in ``rate_distortion_loss``. The lambda of a tile
        grows with the area of its pixels. What lies beyond a tile's width counts nowhere.
        """
        quality = batch.qualities
        with on_sphere(batch.grid):
            if self.rate_only:
                y_bits, z_bits = self._rates(batch.x, quality)
                x_hat = None
            else:
                x_hat, y_bits, z_bits = self.network(
                    batch.x, quality, autocast=self.options.bfloat16
                )

        def of_pieces(tiles: Tensor) -> Tensor:
            total = tiles.new_zeros(len(batch.quality_codes))
            return total.index_add(0, batch.piece, tiles)

        pixels = of_pieces(batch.areas)
        loss = bpp = of_pieces(y_bits + z_bits) / pixels
        values = {"bpp": bpp, "hyper_share": of_pieces(z_bits) / of_pieces(y_bits + z_bits)}
        if x_hat is not None:
            x_hat = x_hat if self.network.training else x_hat.clamp(0, 1)
            errors = ((x_hat - batch.x) * batch.grid.own(x_hat)).square().sum((1, 2, 3)) / 3
            multiplier = quality_lambda(quality)
            weighted = of_pieces(multiplier * errors)
            loss = bpp + 255**2 * weighted / pixels
            mse = weighted / of_pieces(multiplier * batch.areas)
            values["psnr"] = -10 * mse.log10()
        middle = quality_lambda(batch.quality_codes / 100)
        loss = (loss * (middle / math.sqrt(LAMBDA_MIN * LAMBDA_MAX)).rsqrt()).mean()
        return loss, {"loss": loss.detach(), **{k: v.detach().mean() for k, v in values.items()}}

    def _rates(self, x: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        set_branch_dtype(network, torch.bfloat16 if self.options.bfloat16 else torch.float32)
        with torch.no_grad():
            y = network.analysis(x, quality)
        return network.entropy_model(y, network.hyperlatents(y, quality), quality)[1:]

    def _backward(self, batch: PieceBatch) -> dict[str, float]:
        batch = batch.to(self.device)
        # Kernels are called with the widths of tiles. And as long as peaks are observed or the
        # arithmetic changes, no two passes are alike.
        by_tables = self.device.type == "cuda" and self._padding == TABLES
        if by_tables and self.network.entropy_model.quantized:
            if self._captured is None:
                self._captured = CapturedPass(self._loss, self.network, batch)
            if self._captured.fits(batch):
                return _floats(self._captured(batch))
        loss, values = self._loss(batch)
        loss.backward()
        return _floats(values)

    def refit(self, pieces: int, passes: int = 2) -> None:
        """Fit the last layers of the entropy model: see ``pycodec.training.refit``.

        Args:
            pieces: of a pass, rounded up to whole batches.
            passes: each counts as a step, sees other pieces, and is validated and saved.

        Raises:
            InputError: the entropy model is not quantized yet.
        """
        model = self.network.entropy_model
        if not model.quantized:
            raise InputError("only a quantized model can be refitted: train it to its end before")
        set_branch_dtype(self.network, torch.bfloat16 if self.options.bfloat16 else torch.float32)
        batch = self.options.batch
        for _ in range(passes):
            sampler = self._pieces(seed=self.options.seed + 7919 * (self.step + 1))
            batches = (sampler.batch(batch) for _ in range(-(-pieces // batch)))
            began = time.monotonic()
            refit_heads(self.network, itertools.chain.from_iterable(batches))
            self.seconds += time.monotonic() - began
            self.step += 1
            self._record(self.validate())
            self.save()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss, bpp and PSNR (weighted by area) of the held-out pieces, at a few qualities.

        Of pieces of panoramas and of photographs, each by itself; ``validation_loss`` is of both.
        """
        if not self.held_out:
            return {}
        self.network.eval()
        self._set_observing(False)
        result: dict[str, float] = {}
        losses = []
        for kind, batches in self.held_out.items():
            found = [_floats(self._loss(batch.to(self.device))[1]) for batch in batches]
            losses.append([v["loss"] for v in found])
            result[f"loss_{kind}"] = float(np.mean(losses[-1]))
            for value, values in zip(VALIDATION_QUALITIES, found, strict=True):
                for name in {"bpp", "psnr"} & values.keys():
                    result[f"{name}_{kind}_q{value:g}"] = values[name]
        return {"validation_loss": float(np.mean(losses)), **result}

    def export(self, folder: Path, report: Callable[[str], None] = log.info) -> Path:
        """Write the model folder; tables and dead zones are fitted to the training panoramas."""
        self.batches.close()
        pictures = []
        for path in self.training:
            with Image.open(path) as image:
                pictures.append(np.asarray(image.convert("RGB")))
        with self.averaged():
            finalize(
                self.network.cpu(),
                pictures,
                folder,
                report,
                coder=SphereCodec,
                error=_sphere_error,
                base=self._base,
            )
        self.network.to(self.device)
        return folder


def _sphere_error(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared error of uint8 [H, W, C], by area."""
    weights = row_weights(len(a))
    rows = np.square(a.astype(np.float32) - b).mean((1, 2))
    return float(np.dot(weights, rows) / weights.sum())


def _validation_batches(
    panoramas: list[Path], photos: list[Path], crop: int, padding: str
) -> dict[str, list[PieceBatch]]:
    """Of each kind of picture a batch for each of the ``VALIDATION_QUALITIES``."""
    sampler = PieceSampler(panoramas, photos, crop, seed=1)
    kinds = {}
    if sampler.panoramas:
        kinds["panorama"] = sampler.panorama
    if sampler.photos:
        kinds["photo"] = sampler.photo
    codes = [round(100 * value) for value in VALIDATION_QUALITIES]
    return {
        name: [PieceBatch.of([kind(c) for _ in range(VALIDATION_PIECES)], padding) for c in codes]
        for name, kind in kinds.items()
    }


def default_padding(device: torch.device) -> str:
    """Of the CPU its kernels; of others tables, which need none."""
    return "native" if device.type == "cpu" else TABLES


def _floats(values: dict[str, Tensor]) -> dict[str, float]:
    """All at once, for which a GPU has to be waited for."""
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


class _BatchSampler:
    """Joins pieces of a sampler; for other devices than the CPU, half as large."""

    def __init__(self, pieces: PieceSampler, padding: str, device: torch.device) -> None:
        self.pieces, self.padding = pieces, padding
        self.dtype = torch.float32 if device.type == "cpu" else torch.float16

    @property
    def random(self) -> np.random.Generator:
        return self.pieces.random

    @random.setter
    def random(self, generator: np.random.Generator) -> None:
        self.pieces.random = generator

    def batch(self, size: int) -> PieceBatch:
        return PieceBatch.of(self.pieces.batch(size), self.padding, self.dtype)
