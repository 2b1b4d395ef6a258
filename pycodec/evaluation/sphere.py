"""Distortion on the sphere, between equirectangular (ERP) pictures of 8 bits.

A pixel of the ERP covers an area in proportion to the cosine of its latitude; metrics of the plane
count the poles far too much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pycodec.errors import InputError
from pycodec.evaluation.metrics import check_shapes, psnr
from pycodec.projection.viewport import Viewport

SPHERE_POINTS = 655_362
"""As many as the published list of points of S-PSNR has."""

_WINDOW = 11
_DEVIATION = 1.5
_POINTS_AT_ONCE = 1 << 18


def row_weights(height: int) -> NDArray[np.float64]:
    """Area of each row's pixels, relative to the equator: cos((i + 1/2 - H/2) pi / H), [H]."""
    return np.cos((np.arange(height) + 0.5 - height / 2) * np.pi / height)


def ws_psnr(reference: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """PSNR with each pixel weighted by its area (Sun, Lu, Yu 2017), in dB.

    Args:
        reference, other: uint8 [H, W] or [H, W, C].

    Returns:
        Infinity for equal pictures.
    """
    check_shapes(reference, other)
    weights = row_weights(reference.shape[0])
    errors = [
        np.square(a.astype(np.int32) - b).mean() for a, b in zip(reference, other, strict=True)
    ]
    return _decibels(float(np.dot(weights, errors) / weights.sum()))


def ws_ssim(reference: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """SSIM with each window weighted by the area of its centre (Zhou et al. 2018), at most 1.

    Windows are Gaussian, 11x11; they wrap around at the sides. Mean of the channels.

    Raises:
        InputError: the pictures have fewer than 11 rows or columns.
    """
    check_shapes(reference, other)
    if min(reference.shape[:2]) < _WINDOW:
        raise InputError(f"WS-SSIM needs {_WINDOW} pixels a side, not {reference.shape[:2]}")
    border = _WINDOW // 2
    weights = row_weights(reference.shape[0])[border:-border]
    channels = zip(_channels(reference), _channels(other), strict=True)
    maps = [_ssim_map(a, b).mean(axis=1) for a, b in channels]
    return float(np.mean([np.dot(weights, rows) for rows in maps]) / weights.sum())


def s_psnr(
    reference: NDArray[np.uint8], other: NDArray[np.uint8], points: int = SPHERE_POINTS
) -> float:
    """PSNR over points spread evenly on the sphere (Yu, Lakshman, Girod 2015), in dB.

    The pixel nearest to each point counts (S-PSNR-NN). The points are a Fibonacci lattice as long
    as the published list, and not that list.
    """
    check_shapes(reference, other)
    height, width = reference.shape[:2]
    total = 0
    for first in range(0, points, _POINTS_AT_ONCE):
        number = np.arange(first, min(first + _POINTS_AT_ONCE, points)) + 0.5
        latitude = np.arcsin(1 - 2 * number / points)
        turns = number * (math.sqrt(5) - 1) / 2 % 1
        row = np.minimum((0.5 - latitude / np.pi) * height, height - 1).astype(np.int64)
        column = np.minimum(turns * width, width - 1).astype(np.int64)
        error = reference[row, column].astype(np.int32) - other[row, column]
        total += int(np.square(error).sum(dtype=np.int64))
    return _decibels(total / (points * (reference.size // (height * width))))


def viewports(width: int = 640) -> list[Viewport]:
    """Fourteen views of 90 degrees that together see the whole sphere evenly.

    Eight around the horizon at steps of 45 degrees, two at each of the latitudes of 60 degrees
    north and south, and the poles.
    """
    horizon = [(45.0 * i, 0.0) for i in range(8)]
    slanting = [(yaw, pitch) for pitch in (60.0, -60.0) for yaw in (0.0, 180.0)]
    return [
        Viewport(yaw, pitch, 90.0, width, width)
        for yaw, pitch in [*horizon, *slanting, (0.0, 90.0), (0.0, -90.0)]
    ]


def viewport_psnr(
    reference: NDArray[np.uint8],
    other: NDArray[np.uint8],
    views: Iterable[Viewport] | None = None,
) -> float:
    """PSNR of the pixels of several views, in dB.

    Args:
        reference, other: uint8 [H, W] or [H, W, C].
        views: :func:`viewports` with a quarter of the picture's width unless given.
    """
    check_shapes(reference, other)
    views = viewports(max(1, reference.shape[1] // 4)) if views is None else views
    seen = [(view.render(reference).reshape(-1), view.render(other).reshape(-1)) for view in views]
    if not seen:
        raise InputError("there are no views")
    first, second = (np.concatenate(pixels)[None] for pixels in zip(*seen, strict=True))
    return psnr(first, second)


def _channels(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.moveaxis(np.atleast_3d(picture), -1, 0).astype(np.float32)


def _ssim_map(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """SSIM of all windows, [H - 10, W]."""
    stacked = np.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, square_a, square_b, product = _blur(stacked)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a**2 + square_b - mean_b**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def _blur(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gaussian means of [N, H, W]: of whole windows along columns, around the sides along rows."""
    import torch
    from torch.nn import functional as F

    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    taps = torch.exp(-offsets.square() / (2 * _DEVIATION**2))
    taps = (taps / taps.sum()).float()
    with torch.inference_mode():
        rows = F.pad(torch.from_numpy(x)[:, None], (_WINDOW // 2,) * 2 + (0, 0), mode="circular")
        rows = F.conv2d(rows, taps.view(1, 1, 1, -1))
        return F.conv2d(rows, taps.view(1, 1, -1, 1))[:, 0].numpy()


def _decibels(error: float) -> float:
    return 10 * math.log10(255**2 / error) if error else math.inf
