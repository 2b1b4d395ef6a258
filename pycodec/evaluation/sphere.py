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
from pycodec.evaluation.metrics import Metric, check_shapes, psnr
from pycodec.projection.viewport import Viewport

SPHERE_POINTS = 655_362
"""As many as the published list of points of S-PSNR has."""

_WINDOW = 11
_DEVIATION = 1.5
_POINTS_AT_ONCE = 1 << 18
_ROWS_AT_ONCE = 16


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
    rows = [_ssim_rows(a, b) for a, b in channels]
    return float(np.mean([np.dot(weights, row) for row in rows]) / weights.sum())


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
    # Side by side as channels: where a view's pixels lie is worked out once for both.
    both = np.concatenate([np.atleast_3d(reference), np.atleast_3d(other)], axis=2)
    seen = [view.render(both).reshape(-1, both.shape[2]) for view in views]
    if not seen:
        raise InputError("there are no views")
    first, second = np.split(np.concatenate(seen), 2, axis=1)
    return psnr(first, second)


def _channels(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.moveaxis(np.atleast_3d(picture), -1, 0).astype(np.float32)


def _ssim_rows(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean SSIM of each row of windows, [H - 10]."""
    border, height = _WINDOW // 2, a.shape[0] - 2 * (_WINDOW // 2)
    a, b = (np.pad(x, ((0, 0), (border, border)), mode="wrap") for x in (a, b))
    means = []
    for top in range(0, height, _ROWS_AT_ONCE):
        rows = slice(top, min(top + _ROWS_AT_ONCE, height) + 2 * border)
        means.append(_ssim_map(a[rows], b[rows]).mean(axis=1))
    return np.concatenate(means)


def _ssim_map(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """SSIM of all windows, [H - 10, W - 10]."""
    stacked = np.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, square_a, square_b, product = _blur(stacked)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a**2 + square_b - mean_b**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def _blur(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gaussian means of whole windows, [N, H, W] to [N, H - 10, W - 10]."""
    taps = np.exp(-np.square(np.arange(_WINDOW) - _WINDOW // 2) / (2 * _DEVIATION**2))
    taps = (taps / taps.sum()).tolist()
    height, width = (side - _WINDOW + 1 for side in x.shape[1:])
    x = sum(tap * x[:, i : i + height] for i, tap in enumerate(taps))
    return sum(tap * x[..., i : i + width] for i, tap in enumerate(taps))


def _decibels(error: float) -> float:
    return 10 * math.log10(255**2 / error) if error else math.inf


def _ws_ssim(reference: NDArray[np.uint8], other: NDArray[np.uint8]) -> float | None:
    return ws_ssim(reference, other) if min(reference.shape[:2]) >= _WINDOW else None


SPHERE_METRICS = (
    Metric("ws_psnr", "WS-PSNR", "WS-PSNR, dB", ws_psnr),
    Metric("s_psnr", "S-PSNR", "S-PSNR, dB", s_psnr),
    Metric("viewport_psnr", "viewports", "PSNR of viewports, dB", viewport_psnr),
    Metric("ws_ssim", "WS-SSIM", "WS-SSIM", _ws_ssim, similarity=True),
)
