"""Metrics against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pycodec.errors import InputError
from pycodec.evaluation.metrics import ms_ssim, psnr, similarity_db


def test_psnr_of_a_known_error():
    reference = np.full((3, 5, 3), 100, np.uint8)
    assert psnr(reference, reference + 10) == pytest.approx(10 * math.log10(255**2 / 100))
    assert psnr(reference, reference - 10) == psnr(reference, reference + 10)
    one = reference.copy()
    one[2, 4, 1] += 30
    assert psnr(reference, one) == pytest.approx(10 * math.log10(255**2 / (900 / 45)))


def test_psnr_extremes():
    black, white = np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)
    assert psnr(black, white) == psnr(white, black) == 0
    assert psnr(white, white) == math.inf


@pytest.mark.parametrize("shape", [(600, 7), (256, 4, 3), (1, 1)])
def test_psnr_of_any_height(rng, shape):
    first, second = rng.integers(0, 256, (2, *shape), np.uint8)
    expected = 10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2))
    assert psnr(first, second) == pytest.approx(expected)


def test_psnr_agrees_with_scikit_image(photograph, rng):
    metrics = pytest.importorskip("skimage.metrics")
    noisy = np.clip(photograph + rng.normal(0, 9, photograph.shape), 0, 255).astype(np.uint8)
    expected = metrics.peak_signal_noise_ratio(photograph, noisy)
    assert psnr(photograph, noisy) == pytest.approx(expected)


def test_shapes_must_agree():
    for metric in (psnr, ms_ssim):
        with pytest.raises(InputError, match="shape"):
            metric(np.zeros((200, 200), np.uint8), np.zeros((200, 200, 3), np.uint8))


def test_ms_ssim(photograph, rng):
    pytest.importorskip("pytorch_msssim")
    values = [
        ms_ssim(
            photograph,
            np.clip(photograph + rng.normal(0, sigma, photograph.shape), 0, 255).astype(np.uint8),
        )
        for sigma in (0, 5, 20, 60)
    ]
    assert values[0] == pytest.approx(1)
    assert values == sorted(values, reverse=True)
    assert 0.5 < values[3] < 0.95


@pytest.mark.parametrize("channels", [(), (3,)])
def test_ms_ssim_needs_161_pixels(channels):
    pytest.importorskip("pytorch_msssim")
    assert ms_ssim(*2 * [np.zeros((161, 161, *channels), np.uint8)]) == pytest.approx(1)
    assert ms_ssim(*2 * [np.zeros((160, 999, *channels), np.uint8)]) is None


def test_ms_ssim_in_decibels():
    assert similarity_db(0.9) == pytest.approx(10)
    assert similarity_db(0.99) == pytest.approx(20)
    assert similarity_db(1.0) == math.inf
