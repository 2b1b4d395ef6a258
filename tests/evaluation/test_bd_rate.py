"""BD-rates of curves whose difference is known."""

from __future__ import annotations

import math
import random

import pytest

from pycodec.evaluation.bd_rate import bd_rate

bjontegaard = pytest.importorskip("bjontegaard")

ANCHOR = [(0.1, 26.0), (0.25, 29.5), (0.5, 32.0), (1.0, 35.5), (2.0, 39.0)]


def scaled(factor: float) -> list[tuple[float, float]]:
    return [(rate * factor, quality) for rate, quality in ANCHOR]


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.3])
def test_constant_saving(factor):
    result = bd_rate(ANCHOR, scaled(factor))
    assert result.percent == pytest.approx((factor - 1) * 100)
    assert (result.low, result.high) == (26, 39)


def test_agrees_with_the_package():
    test = [(0.12, 27.0), (0.2, 30.0), (0.6, 33.0), (1.4, 38.0)]
    expected = bjontegaard.bd_rate(
        *zip(*ANCHOR, strict=True),
        *zip(*test, strict=True),
        method="pchip",
        require_matching_points=False,
        min_overlap=0,
    )
    assert bd_rate(ANCHOR, test).percent == pytest.approx(expected)


def test_interval_confines_the_comparison():
    # Half the rate below 32 dB, the same above.
    test = [(rate / 2 if quality < 32 else rate, quality) for rate, quality in ANCHOR]
    low = bd_rate(ANCHOR, test, (26, 29.5))
    high = bd_rate(ANCHOR, test, (35.5, 60))
    assert low.percent < -45
    assert high.percent == pytest.approx(0, abs=1e-9)
    assert (high.low, high.high) == (35.5, 39)
    assert low.percent < bd_rate(ANCHOR, test).percent < high.percent


def test_order_of_points_does_not_matter():
    shuffled = random.Random(0).sample(ANCHOR, len(ANCHOR))
    assert bd_rate(shuffled, scaled(0.7)) == bd_rate(ANCHOR, scaled(0.7))


def test_points_without_gain_and_perfect_copies_are_left_out():
    extra = [*ANCHOR, (1.5, 35.5), (1.7, 34.0), (9.0, math.inf), (2.0, 39.0)]
    assert bd_rate(ANCHOR, extra).percent == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("test", "interval"),
    [
        ([], (0, 99)),
        ([(0.5, 30.0)], (0, 99)),
        ([(0.5, 50.0), (1.0, 60.0)], (0, 99)),
        (ANCHOR, (40, 50)),
        (ANCHOR, (30, 30)),
    ],
)
def test_nothing_to_compare(test, interval):
    assert bd_rate(ANCHOR, test, interval) is None
