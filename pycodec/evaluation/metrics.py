"""Distortion metrics between 8-bit pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pycodec.errors import InputError
from pycodec.evaluation.extras import require

# Five scales, each half of the one before, and a window of 11 pixels at the last.
_MS_SSIM_MIN_SIDE = 161
_BAND_ROWS = 256


def check_shapes(reference: np.ndarray, other: np.ndarray) -> None:
    """Raise InputError if the shapes differ."""
    if reference.shape != other.shape:
        raise InputError(f"the pictures differ in shape: {reference.shape} and {other.shape}")


def psnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio over all samples of all channels (RGB), in dB.

    Args:
        reference, other: uint8 [H, W] or [H, W, C].

    Returns:
        10 log10(255^2 / MSE); infinity for equal pictures.
    """
    check_shapes(reference, other)
    total = 0
    for top in range(0, reference.shape[0], _BAND_ROWS):
        band = slice(top, top + _BAND_ROWS)
        error = reference[band].astype(np.int32) - other[band]
        total += int(np.sum(error * error, dtype=np.int64))
    return 10 * math.log10(255**2 * reference.size / total) if total else math.inf


def ms_ssim(reference: np.ndarray, other: np.ndarray) -> float | None:
    """Multi-scale structural similarity (Wang et al. 2003), mean of the channels, at most 1.

    Args:
        reference, other: uint8 [H, W] or [H, W, C].

    Returns:
        The similarity, or None for a picture with a side below 161 pixels, which has no fifth
        scale.
    """
    import torch

    check_shapes(reference, other)
    if min(reference.shape[:2]) < _MS_SSIM_MIN_SIDE:
        return None
    library = require("pytorch_msssim", "eval")

    def batch(pixels: np.ndarray) -> torch.Tensor:
        planes = np.moveaxis(np.atleast_3d(pixels), -1, 0).astype(np.float32)
        return torch.from_numpy(planes)[None]

    with torch.inference_mode():
        return float(library.ms_ssim(batch(reference), batch(other), data_range=255))


def similarity_db(similarity: float) -> float:
    """SSIM or MS-SSIM on a scale on which curves can be read: -10 log10(1 - s)."""
    return -10 * math.log10(1 - similarity) if similarity < 1 else math.inf


@dataclass(frozen=True)
class Metric:
    """What an evaluation measures.

    Attributes:
        name: of the column.
        heading: of tables.
        label: of plots, with the unit.
        measure: (original, decoded), uint8 [H, W] or [H, W, C], to a value; None where the picture
            has none.
        similarity: the value is at most 1, and drawn and compared in dB by ``similarity_db``; else
            it is a PSNR in dB.
    """

    name: str
    heading: str
    label: str
    measure: Callable[[np.ndarray, np.ndarray], float | None]
    similarity: bool = False

    @property
    def decibels(self) -> str:
        """Name of the value in dB."""
        return f"{self.name}_db" if self.similarity else self.name

    def to_decibels(self, value: float | None) -> float | None:
        """The value on the scale of plots and BD-rates."""
        return similarity_db(value) if self.similarity and value is not None else value


PLANE_METRICS = (
    Metric("psnr", "PSNR dB", "PSNR (RGB), dB", psnr),
    Metric("ms_ssim", "MS-SSIM", "MS-SSIM", ms_ssim, similarity=True),
)
