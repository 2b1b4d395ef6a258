"""Bjontegaard delta rate: the mean saving of rate at equal quality.

G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001, with
piecewise cubic (PCHIP) instead of global cubic interpolation: the global cubic swings between
points that span as wide a range as ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pycodec.evaluation.extras import require

_UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True)
class BdRate:
    """A BD-rate and the interval of quality over which it was taken.

    Attributes:
        percent: mean difference of rate; negative means that the tested codec needs less.
        low, high: the interval, in the units of the quality metric.
    """

    percent: float
    low: float
    high: float


def _increasing(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Rates and qualities, in order, without points that cost more and give no more."""
    rates: list[float] = []
    qualities: list[float] = []
    for rate, quality in sorted(points):
        if math.isfinite(quality) and (not rates or (rate > rates[-1] and quality > qualities[-1])):
            rates.append(rate)
            qualities.append(quality)
    return rates, qualities


def bd_rate(
    anchor: Iterable[tuple[float, float]],
    test: Iterable[tuple[float, float]],
    interval: tuple[float, float] = _UNBOUNDED,
) -> BdRate | None:
    """BD-rate of one codec against another.

    Args:
        anchor, test: (rate, quality) points, in any order; rates are positive.
        interval: qualities to which the comparison is confined, besides the overlap of the curves.

    Returns:
        The BD-rate, or None if fewer than two points are left of a curve or the curves do not
        overlap within the interval.
    """
    bjontegaard = require("bjontegaard", "eval")
    anchor_rates, anchor_qualities = _increasing(anchor)
    test_rates, test_qualities = _increasing(test)
    if min(len(anchor_rates), len(test_rates)) < 2:
        return None
    low = max(anchor_qualities[0], test_qualities[0], interval[0])
    high = min(anchor_qualities[-1], test_qualities[-1], interval[1])
    if low >= high:
        return None
    # The package compares over the whole overlap; its interpolants of log10(rate) serve any part.
    _, anchor_curve, test_curve = bjontegaard.bd_rate(
        anchor_rates,
        anchor_qualities,
        test_rates,
        test_qualities,
        method="pchip",
        require_matching_points=False,
        interpolators=True,
        min_overlap=0,
    )
    area = test_curve.integrate(low, high) - anchor_curve.integrate(low, high)
    return BdRate((10 ** (float(area) / (high - low)) - 1) * 100, low, high)
