"""Fine-tuning of a photo model for the sphere: tiles of panoramas, and photographs bent into some.

Networks act on the pieces of ``pycodec.training.pieces`` as they do in the codec: padded as their
tiles lie on the sphere.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
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
from pycodec.models.sphere import UNIT, SphereCodec
from pycodec.training.data import split_pictures
from pycodec.training.finalize import finalize
from pycodec.training.pieces import Piece, PieceSampler
from pycodec.training.refit import refit_heads
from pycodec.training.train import (
    VALIDATION_QUALITIES,
    Trainer,
    TrainingOptions,
    find_pictures,
    log,
)

VALIDATION_PIECES = 3
"""Of each kind, at each quality."""


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
            sampler = self._sampler(seed=self.options.seed + 7919 * (self.step + 1))
            batches = (sampler.batch(batch) for _ in range(-(-pieces // batch)))
            began = time.monotonic()
            refit_heads(self.network, itertools.chain.from_iterable(batches))
            self.seconds += time.monotonic() - began
            self.step += 1
            self._record(self.validate())
            self.save()

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
