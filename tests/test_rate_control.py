"""Targets are met with real files, as closely as hundredths of quality allow."""

from __future__ import annotations

import numpy as np
import pytest

from pycodec.errors import InputError
from pycodec.evaluation.metrics import psnr
from pycodec.images import Picture
from pycodec.rate_control import encode_to_bpp, encode_to_psnr

PICTURE = Picture(np.zeros((10, 100), np.uint8))


class SizeCodec:
    """Files of 10 bytes a unit of quality."""

    def __init__(self) -> None:
        self.qualities: list[float] = []

    def __call__(self, quality: float) -> bytes:
        self.qualities.append(quality)
        return bytes(round(10 * quality))


def test_highest_quality_within_the_rate():
    codec = SizeCodec()
    found = encode_to_bpp(PICTURE, 8 * 437 / 1000, codec)
    # 43.75 already rounds to 438 bytes, half to even.
    assert (found.quality, len(found.data)) == (43.74, 437)
    assert found.reached == 8 * 437 / 1000
    assert len(codec.qualities) <= 16
    assert all(quality == round(quality, 2) for quality in codec.qualities)


def test_rate_out_of_reach_below():
    with pytest.raises(InputError, match=r"0\.079 bpp is out of reach.*0\.0800"):
        encode_to_bpp(PICTURE, 0.079, SizeCodec())


def test_rate_above_what_the_codec_can_use_gives_the_best_quality():
    codec = SizeCodec()
    assert encode_to_bpp(PICTURE, 100, codec).quality == 100
    assert len(codec.qualities) == 2


def test_rate_with_ripples_never_exceeds_the_target():
    def encode(quality: float) -> bytes:
        return bytes(round(10 * quality + 30 * np.sin(20 * quality) + 30))

    for target in np.linspace(0.9, 8, 20):
        found = encode_to_bpp(PICTURE, target, encode)
        assert found.reached <= target
        assert found.data == encode(found.quality)


def noise_codec(quality: float) -> bytes:
    """An error of 102 - quality in one sample of ten."""
    return bytes([102 - round(quality)])


def noise_decode(data: bytes) -> Picture:
    pixels = np.zeros((10, 100), np.uint8)
    pixels[:, ::10] = data[0]
    return Picture(pixels)


def test_lowest_quality_that_reaches_the_psnr():
    target = 30.0
    found = encode_to_psnr(PICTURE, target, noise_codec, noise_decode)
    assert found.reached == psnr(PICTURE.pixels, noise_decode(found.data).pixels) >= target
    below = noise_decode(noise_codec(found.quality - 0.01))
    assert psnr(PICTURE.pixels, below.pixels) < target


def test_psnr_out_of_reach_above():
    with pytest.raises(InputError, match=r"60 dB is out of reach: quality 100 gives 52\.11 dB"):
        encode_to_psnr(PICTURE, 60, noise_codec, noise_decode)


def test_psnr_below_what_the_codec_can_give():
    assert encode_to_psnr(PICTURE, 5, noise_codec, noise_decode).quality == 1
