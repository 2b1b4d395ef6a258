"""Rectilinear views of equirectangular (ERP) pictures: what a viewer of the sphere sees.

Longitude grows to the right, from -180 degrees at the left border of the picture; latitude grows
upwards, 90 degrees at its top. Pixel centres are at half integers. A camera looks along +z with x
to the right and y up; pitch turns it upwards, then yaw to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycodec.errors import InputError

MAX_SIDE = 16384

_PIXELS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Viewport:
    """A pinhole camera in the middle of the sphere.

    Attributes:
        yaw, pitch: direction of its axis, degrees; pitch -90 to 90.
        fov: horizontal field of view, degrees, above 0 and below 180.
        width, height: of the view, pixels.

    Raises:
        InputError: an angle or a size is out of range.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    fov: float = 90.0
    width: int = 640
    height: int = 640

    def __post_init__(self) -> None:
        if not np.isfinite([self.yaw, self.pitch, self.fov]).all():
            raise InputError("the angles of a viewport must be finite")
        if not -90 <= self.pitch <= 90:
            raise InputError(f"pitch must be -90 to 90 degrees, not {self.pitch}")
        if not 0 < self.fov < 180:
            raise InputError(f"the field of view must be above 0 and below 180, not {self.fov}")
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise InputError(
                f"a viewport has 1 to {MAX_SIDE} pixels a side, not {self.width} x {self.height}"
            )

    def directions(
        self, first: int = 0, last: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitude and latitude of each pixel's centre, degrees, [rows, width] each.

        Of the view's rows from ``first`` to ``last`` - 1; of all by default.
        """
        x, y = self._axes()
        x, y = np.meshgrid(x, y[first:last])
        up, forward = self._pitched(y)
        longitude = np.degrees(np.arctan2(x, forward)) + self.yaw
        return (longitude + 180) % 360 - 180, _latitude(x, up, forward)

    def rows(self, height: int) -> tuple[int, int]:
        """The first row and the one after the last that :meth:`render` reads of a picture."""
        x, y = self._axes()
        # The extremes of what a convex region of the sphere sees are at its border, or at poles.
        border_x = np.concatenate([x, x, np.full_like(y, x[0]), np.full_like(y, x[-1])])
        border_y = np.concatenate([np.full_like(x, y[0]), np.full_like(x, y[-1]), y, y])
        latitude = _latitude(border_x, *self._pitched(border_y))
        south, north = latitude.min(), latitude.max()
        if self.pitch:
            pole = self._focal / np.tan(np.radians(self.pitch))
            if abs(pole) <= self.height / 2:
                south, north = (-90.0, north) if self.pitch < 0 else (south, 90.0)
        top, bottom = (int(np.floor(_row(latitude, height))) for latitude in (north, south))
        return max(0, top), min(height, bottom + 2)

    @property
    def _focal(self) -> float:
        return self.width / 2 / np.tan(np.radians(self.fov) / 2)

    def _axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the camera's plane, to the right and upwards: x [width], y [height]."""
        x = np.arange(self.width) + 0.5 - self.width / 2
        return x, self.height / 2 - 0.5 - np.arange(self.height)

    def _pitched(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Up and forward, of points of the camera's plane."""
        pitch, focal = np.radians(self.pitch), self._focal
        return (
            y * np.cos(pitch) + focal * np.sin(pitch),
            focal * np.cos(pitch) - y * np.sin(pitch),
        )

    def render(self, picture: NDArray, *, first_row: int = 0, height: int | None = None) -> NDArray:
        """The view, by bilinear interpolation on the sphere.

        Args:
            picture: uint8 or floats [rows, W] or [rows, W, C].
            first_row: of the whole picture, where ``picture`` begins.
            height: of the whole picture; that of ``picture`` if it is whole.

        Returns:
            [self.height, self.width] or [..., C], of the picture's type.

        Raises:
            InputError: a row that the view needs is missing.
        """
        rows = len(picture)
        height = rows if height is None else height
        low, high = self.rows(height)
        if first_row > low or first_row + rows < high:
            raise InputError(
                f"the view needs rows {low} to {high - 1}, not only {first_row} to "
                f"{first_row + rows - 1}"
            )
        view = np.empty((self.height, self.width, *picture.shape[2:]), picture.dtype)
        for first, last in self._blocks():
            directions = self.directions(first, last)
            value = sample(picture, *directions, first_row=first_row, height=height)
            if np.issubdtype(picture.dtype, np.integer):
                value = np.rint(value)
            view[first:last] = value
        return view

    def _blocks(self) -> list[tuple[int, int]]:
        """Rows of the view that are worked on at once."""
        size = max(1, _PIXELS_AT_ONCE // self.width)
        return [(row, min(row + size, self.height)) for row in range(0, self.height, size)]


def sample(
    picture: NDArray,
    longitude: NDArray[np.float64],
    latitude: NDArray[np.float64],
    *,
    first_row: int = 0,
    height: int | None = None,
) -> NDArray:
    """Values at directions, degrees, by bilinear interpolation: [..., C].

    They are float64, of integers float32. Rows wrap around; beyond a pole lies the same row, half
    a turn further.
    """
    rows, width = picture.shape[:2]
    height = rows if height is None else height
    x = (longitude / 360 + 0.5) * width - 0.5
    y = _row(latitude, height)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    channels = (1,) * (picture.ndim - 2)
    across = (x - left).reshape(x.shape + channels)
    down = (y - top).reshape(y.shape + channels)
    if np.issubdtype(picture.dtype, np.integer):
        across, down = across.astype(np.float32), down.astype(np.float32)
    result: NDArray | float = 0.0
    flat = picture.reshape(rows * width, *picture.shape[2:])
    for row, row_weight in ((top, 1 - down), (top + 1, down)):
        beyond = (row < 0) | (row >= height)
        inside = np.where(row < 0, -1 - row, np.where(row >= height, 2 * height - 1 - row, row))
        first = np.clip(inside - first_row, 0, rows - 1) * width
        # Half a turn is no whole number of pixels where the width is odd.
        turned = left + np.where(beyond, width // 2, 0)
        for column, weight in ((turned, 1 - across), (turned + 1, across)):
            pixels = flat.take(first + column % width, axis=0)
            result = result + row_weight * weight * pixels
    return result


def _latitude(
    x: NDArray[np.float64], up: NDArray[np.float64], forward: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.degrees(np.arctan2(up, np.hypot(x, forward)))


def _row(latitude: Any, height: int) -> Any:
    return (0.5 - latitude / 180) * height - 0.5
