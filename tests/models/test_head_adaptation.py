"""A head fitted to a picture: smaller files, the same pixels, and damage is noticed."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from pycodec.coding.container import split_streams
from pycodec.errors import CorruptStreamError
from pycodec.models import head_adaptation
from pycodec.models.head_adaptation import fit_head, with_head
from pycodec.models.lossless import to_bits
from pycodec.models.zoo import load_model
from pycodec.quantization.context import LOGIT_STEP, bit_tables

from ..lossless_networks import random_codec

GRAY = data.camera()[100:260, 120:260]


@pytest.fixture(scope="module")
def codec():
    return random_codec(1)


def bits_of(pixels: np.ndarray) -> np.ndarray:
    return to_bits(pixels).astype(np.int32)


@pytest.mark.parametrize("colour", [False, True], ids=["gray", "colour"])
def test_files_are_smaller_and_pixels_come_back(codec, colour):
    pixels = data.astronaut()[:150, :140] if colour else GRAY
    height, width = pixels.shape[:2]
    plain, adapted = (codec.compress(pixels, adapt=adapt).streams for adapt in (False, True))
    assert len(adapted[0]) < 0.98 * len(plain[0])  # of a network that was never trained
    for streams in (plain, adapted):
        decoded = codec.decompress(streams, width, height, gray=not colour)
        assert np.array_equal(decoded, pixels)
    heads = split_streams(memoryview(plain[0]), 6 if colour else 2)[::2]
    assert not any(heads)
    heads = split_streams(memoryview(adapted[0]), 6 if colour else 2)[::2]
    assert all(heads)


def test_a_trained_network_gains_too():
    codec = load_model("tcae-fast")
    pixels = data.camera()
    plain, adapted = (len(codec.compress(pixels, adapt=a).streams[0]) for a in (False, True))
    assert adapted < plain


def test_small_pictures_keep_the_head(codec):
    assert fit_head(codec.gray.begin(bits_of(GRAY[:100, :100])), codec.tables) == b""
    assert with_head(codec.gray, b"") is codec.gray


def test_a_head_that_saves_nothing_is_left_out():
    """On one gray level a trained network has next to nothing to gain."""
    codec = load_model("tcae-fast")
    flat = np.full((160, 140), 128, np.uint8)
    assert fit_head(codec.gray.begin(bits_of(flat)), codec.tables) == b""


def test_every_backend_and_thread_count_takes_the_changed_head(codec):
    bits = bits_of(GRAY)
    encoding = codec.gray.begin(bits)
    blob = fit_head(encoding, codec.tables)
    assert blob
    native = with_head(codec.gray, blob)
    reference = with_head(replace(codec.gray, backend="reference"), blob)
    expected = reference.order(bits)
    orders = [native.order(bits, 1), native.order(bits, 3)]
    orders += [encoding.order(native), encoding.order(reference)]
    for order in orders:
        for a, b in zip(order, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(expected[1], codec.gray.order(bits)[1])


def test_examples_are_what_the_network_computes(codec):
    bits = bits_of(GRAY)
    features, seen, sums = head_adaptation._examples(codec.gray.begin(bits))
    head = codec.gray.layers[-1]
    index = np.clip((sums * head.multiplier + (1 << (head.shift - 1))) // 2.0**head.shift, 0, 255)
    rows = slice(head_adaptation._SHARE // 2, None, head_adaptation._SHARE)
    expected = codec.gray.table_indexes(bits)[:, rows]
    np.testing.assert_array_equal(index, expected.reshape(8, -1).T)
    np.testing.assert_array_equal(seen, bits[:, rows].reshape(8, -1).T)
    assert features.shape == (len(sums), head.in_width * 8 + 1)
    assert (features[:, -1] == head_adaptation.BIAS_UNIT).all()


def test_log_odds_of_the_tables():
    assert head_adaptation._logit_step(bit_tables()) == pytest.approx(LOGIT_STEP, rel=2e-3)


def test_newton_finds_the_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (60_000, 3)).astype(np.float32)
    seen = np.array([[True, True, True], [True, False, True]])
    units = np.array([1.0, 0.5])  # of a change, in log odds
    true = np.array([[0.8, -0.5, 0.2], [0.4, 0.0, -0.6]])
    odds = x @ (units[:, None] * true).T
    bits = (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    zeros = np.zeros_like(bits)
    change, curvature = head_adaptation._newton(x, bits, zeros, seen, units, iterations=4)
    pull = 60_000 / (60_000 + 4.4 * head_adaptation._PRIOR)  # of the prior, to zero
    np.testing.assert_allclose(change, true * pull, atol=0.05)
    assert change[1, 1] == 0
    # At even odds the curvature is that of p (1 - p) = 1 / 4 of each example, and the prior's.
    expected = units**2 * (60_000 / 4 + head_adaptation._PRIOR)
    np.testing.assert_allclose(curvature[:, 0, 0], expected, rtol=0.03)


@given(
    st.lists(st.integers(-500, 500), min_size=8, max_size=60),
    st.integers(0, head_adaptation.MAX_SHIFT),
)
def test_changes_are_written_and_read(values, shift):
    changes = [np.array(values[:5]), np.array(values[5:])]
    blob = head_adaptation._pack(changes, shift)
    read = head_adaptation._unpack(blob, [5, len(values) - 5])
    for a, b in zip(read, changes, strict=True):
        np.testing.assert_array_equal(a, b << shift)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=80))
def test_any_bytes_are_a_head_or_an_error(blob):
    network = random_codec(1).gray
    with contextlib.suppress(CorruptStreamError):
        with_head(network, blob)


def test_damage(codec):
    blob = fit_head(codec.gray.begin(bits_of(GRAY)), codec.tables)
    for damaged, message in (
        (blob[:-2], "too soon"),
        (blob + b"\0", "bytes after"),
        (bytes([blob[0] | 0x80]) + blob[1:], "shift"),
        (blob[:1], "too soon"),
        (blob[:1] + bytes(1 << 20), "too long"),
    ):
        with pytest.raises(CorruptStreamError, match=message):
            with_head(codec.gray, damaged)
    counts = head_adaptation._seen(codec.gray.layers[-1]).sum(1) + 1
    zeros = [np.zeros(count, np.int64) for count in counts]
    zeros[2][0] = 300
    with pytest.raises(CorruptStreamError, match="exceeds 127"):
        with_head(codec.gray, head_adaptation._pack(zeros, 0))
    zeros[2][0] = 5000
    with pytest.raises(CorruptStreamError, match="out of range"):
        with_head(codec.gray, head_adaptation._pack(zeros, 0))
