"""Tiles that are coded mirrored: which, and that every pixel comes back."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from pycodec.coding.container import join_streams, split_streams
from pycodec.errors import CorruptStreamError
from pycodec.models.lossless import LosslessCodec
from pycodec.models.mirroring import wants_mirror
from pycodec.models.zoo import load_model

from ..lossless_networks import random_codec


def lines(height: int, width: int, step: int) -> np.ndarray:
    """Lines like a backslash if ``step`` is 1, like a slash if it is -1."""
    rows, columns = np.indices((height, width))
    return ((columns - step * rows) % 7 * 30).astype(np.uint8)


RISING, FALLING = lines(60, 70, -1), lines(60, 70, 1)
COFFEE = data.coffee()[:150, 100:260]  # its edges run like a slash for the most part


@pytest.fixture(scope="module")
def codec() -> LosslessCodec:
    return random_codec(1)


def first_head(stream: bytes, components: int = 1) -> bytes:
    return split_streams(memoryview(stream), 2 * components)[0]


def test_lines_like_a_slash_are_mirrored():
    assert wants_mirror(RISING) and not wants_mirror(FALLING)
    assert wants_mirror(COFFEE[..., 1]) and not wants_mirror(COFFEE[:, ::-1, 1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 1)], ids=str)
def test_small_and_flat_pictures_stay(shape):
    assert not wants_mirror(np.full(shape, 200, np.uint8))


def test_the_file_is_that_of_the_mirrored_picture(codec):
    """But for the mark."""
    (rising,) = codec.compress(COFFEE[..., 1]).streams
    (falling,) = codec.compress(np.ascontiguousarray(COFFEE[:, ::-1, 1])).streams
    assert first_head(rising)[0] == first_head(falling)[0] | 0x80
    assert rising[-1000:] == falling[-1000:] and len(rising) == len(falling)
    assert first_head(codec.compress(COFFEE[..., 1], adapt=False).streams[0]) == b""


@pytest.mark.parametrize("pixels", [RISING, FALLING, COFFEE, RISING[:1], RISING[:2, :2]], ids=len)
def test_every_pixel_comes_back(codec, pixels):
    gray = pixels.ndim == 2
    streams = codec.compress(pixels).streams
    decoded = codec.decompress(streams, pixels.shape[1], pixels.shape[0], gray=gray)
    assert np.array_equal(decoded, pixels)


def test_a_mark_may_be_all_of_a_head(codec):
    (stream,) = codec.compress(RISING).streams  # too small for a head of its own
    assert first_head(stream) == b"\x80"


def test_each_tile_has_its_own_way(codec):
    pixels = np.hstack([lines(64, 64, -1), lines(64, 64, 1), lines(64, 20, -1)])
    streams = codec.compress(pixels, tile_log2=6).streams
    assert [first_head(stream) for stream in streams] == [b"\x80", b"", b"\x80"]
    assert np.array_equal(codec.decompress(streams, 148, 64, gray=True, tile_log2=6), pixels)


def test_a_damaged_mark(codec):
    (stream,) = codec.compress(RISING).streams
    symbols = split_streams(memoryview(stream), 2)[1]
    for head in (b"\x83", b"\xff\x00"):
        with pytest.raises(CorruptStreamError):
            codec.decompress([join_streams([head, symbols])], 70, 60, gray=True)


def test_trained_networks_gain_in_slope_order_alone():
    pixels = COFFEE[..., 1]
    for model, gains in (("tcae-fast", True), ("tcae-fast-plane", False)):
        codec = load_model(model)
        (stream,) = codec.compress(pixels).streams
        (mirrored,) = codec.compress(np.ascontiguousarray(pixels[:, ::-1])).streams
        if gains:
            (without,) = codec.compress(pixels, adapt=False).streams
            assert len(stream) < 0.98 * len(without)
            assert abs(len(stream) - len(mirrored)) < 2
        else:
            assert not first_head(stream)[:1] >= b"\x80"
