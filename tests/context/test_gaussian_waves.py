"""Autoregressive Gaussians in waves: what raster order gives, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pycodec.coding import rans
from pycodec.coding.tables import TableSet
from pycodec.context.gaussian_waves import GaussianWaves
from pycodec.errors import CodecError, CorruptStreamError, InputError
from pycodec.ops import Int16Conv2d

from ..levels import LEVELS, simd_level

SCALES = [0.11 * 1.4**i for i in range(20)]
TABLES = TableSet.gaussian(SCALES, 14)
THRESHOLDS = [int(s * 4096) for s in SCALES[:-1]]
SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (7, 10), (10, 4)]


def make_layer(rng, cout, kernel, cin, limit, *, gain, mask=None, bias=0):
    """Results are of the order of ``gain`` for inputs of the order of 1000."""
    weight = rng.integers(-1000, 1001, (cout, kernel, kernel, cin))
    if mask is not None:
        weight = weight * mask[None, :, :, None]
    seen = max(1, int((weight[0, ..., 0] != 0).sum())) * cin
    factor = gain / (1000 * 600 * np.sqrt(seen))
    shift = 40
    return Int16Conv2d(
        torch.from_numpy(weight.astype(np.int16)),
        torch.from_numpy(np.full(cout, bias / factor).astype(np.int32)),
        torch.full((cout,), round(factor * 2**shift), dtype=torch.int32),
        torch.full((cout,), round(factor * 0.2 * 2**shift), dtype=torch.int32),
        shift,
        limit,
    )


def raster_mask(kernel):
    mask = np.ones((kernel, kernel), np.int64)
    mask[kernel // 2, kernel // 2 :] = 0
    mask[kernel // 2 + 1 :] = 0
    return mask


def make_waves(rng, channels=5, side_channels=3, kernel=5, backend="native", mask=None):
    mask = raster_mask(kernel) if mask is None else mask
    context = make_layer(rng, 24, kernel, channels, 16383, gain=1500, mask=mask)
    hidden = make_layer(rng, 19, 1, side_channels + 24, 16383, gain=1500)
    head = make_layer(rng, 2 * channels, 1, 19, 1 << 26, gain=3000, bias=1000)
    return GaussianWaves(context, [hidden, head], side_channels, 1, 16383, 8, THRESHOLDS, backend)


def both_backends(**options):
    return (
        make_waves(np.random.default_rng(3), backend=backend, **options)
        for backend in ("native", "reference")
    )


def make_input(rng, waves, height, width):
    latents = np.rint(rng.normal(0, 900, (height, width, waves.channels))).astype(np.int32)
    side = rng.integers(-2000, 2000, (height, width, waves.side_channels)).astype(np.int16)
    return latents, side


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_waves_are_raster_order(rng, kernel, height, width):
    """The reference goes position by position in raster order: same tables, same symbols."""
    native, reference = both_backends(kernel=kernel)
    latents, side = make_input(rng, native, height, width)
    expected = reference.encode(latents, side)
    assert len(np.unique(expected[1])) > 1  # tables differ, or nothing is tested
    for level in LEVELS:
        for threads in (1, 2, 3):
            with simd_level(level):
                for a, b in zip(native.encode(latents, side, threads), expected, strict=True):
                    np.testing.assert_array_equal(a, b)


def test_every_wave_comes_after_what_it_sees(rng):
    waves = make_waves(rng)
    when = np.zeros((12, 17), int)
    for number, wave in enumerate(waves.waves(12, 17)):
        when[tuple(wave.T)] = number
    for h, w in np.ndindex(when.shape):
        for dy, dx in np.argwhere(raster_mask(5)) - 2:
            if 0 <= h + dy < 12 and 0 <= w + dx < 17:
                assert when[h + dy, w + dx] < when[h, w]
    assert waves.row_step == 3
    assert when.max() + 1 == 17 + 3 * 11


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_round_trip(rng, height, width):
    native, reference = both_backends()
    latents, side = make_input(rng, native, height, width)
    symbols, indexes, decoded = native.encode(latents, side, 2)
    assert np.abs(decoded.astype(int) - latents).max() <= 128  # half a step
    stream = rans.encode(symbols, indexes, TABLES, lanes=2)
    for level in LEVELS:
        for threads in (1, 2):
            with simd_level(level):
                again = native.decode(stream, TABLES, side, threads)
            np.testing.assert_array_equal(again, decoded)
    np.testing.assert_array_equal(reference.decode(stream, TABLES, side), decoded)


def test_latents_at_the_limits(rng):
    native, reference = both_backends()
    latents, side = make_input(rng, native, 4, 5)
    latents[::2] = rng.choice([-(1 << 28), 1 << 28, 1 << 20], latents[::2].shape)
    side[:] = rng.choice([-(2**15), 2**15 - 1], side.shape)
    symbols, indexes, decoded = native.encode(latents, side)
    for a, b in zip((symbols, indexes, decoded), reference.encode(latents, side), strict=True):
        np.testing.assert_array_equal(a, b)
    stream = rans.encode(symbols, indexes, TABLES)
    np.testing.assert_array_equal(native.decode(stream, TABLES, side), decoded)


def test_symbols_that_no_encoder_writes(rng):
    """Escapes reach all of int32; latents are clamped, the same way everywhere."""
    native, reference = both_backends()
    _, side = make_input(rng, native, 1, 1)
    _, indexes, _ = native.encode(np.zeros((1, 1, 5), np.int32), side)
    wild = np.array([2**31 - 1, -(2**31), 5, 2**30, -(2**25)], np.int32)
    stream = rans.encode(wild, indexes, TABLES)
    decoded = native.decode(stream, TABLES, side)
    np.testing.assert_array_equal(decoded, reference.decode(stream, TABLES, side))
    assert np.abs(decoded.astype(np.int64)).max() == 1 << 28


def test_damage(rng):
    waves = make_waves(rng)
    latents, side = make_input(rng, waves, 6, 7)
    symbols, indexes, decoded = waves.encode(latents, side)
    stream = rans.encode(symbols, indexes, TABLES, lanes=2)
    for size in range(len(stream)):
        with pytest.raises(CorruptStreamError):
            waves.decode(stream[:size], TABLES, side, 2)
    with pytest.raises(CorruptStreamError):
        waves.decode(stream + b"\0\0", TABLES, side)
    noticed = 0
    for place in range(1, len(stream)):
        damaged = bytearray(stream)
        damaged[place] ^= 1 << place % 8
        try:
            assert waves.decode(bytes(damaged), TABLES, side).shape == decoded.shape
        except CodecError:
            noticed += 1
    assert noticed > len(stream) // 2


def test_empty(rng):
    for waves in both_backends():
        for shape in [(0, 4), (4, 0)]:
            latents, side = np.zeros((*shape, 5), np.int32), np.zeros((*shape, 3), np.int16)
            symbols, indexes, decoded = waves.encode(latents, side)
            assert symbols.size == indexes.size == decoded.size == 0
            stream = rans.encode(symbols, indexes, TABLES)
            assert waves.decode(stream, TABLES, side).shape == (*shape, 5)


def test_what_is_not_decoded_yet_must_not_be_seen(rng):
    for place in [(2, 2), (2, 3), (3, 0), (4, 4)]:
        mask = raster_mask(5)
        mask[place] = 1
        with pytest.raises(InputError, match="not decoded yet"):
            make_waves(rng, mask=mask)


def test_wrong_arguments(rng):
    waves = make_waves(rng)
    latents, side = make_input(rng, waves, 3, 4)
    for wrong in [(latents[:2], side), (latents.astype(np.int64), side), (latents, side[..., :2])]:
        with pytest.raises(InputError):
            waves.encode(*wrong)
    with pytest.raises(InputError, match="within"):
        waves.encode(np.full_like(latents, 1 << 29), side)
    with pytest.raises(InputError, match="threads"):
        waves.encode(latents, side, 0)
    fields = ("context", "heads", "side_channels", "context_shift", "context_limit")
    given = {name: getattr(waves, name) for name in (*fields, "fraction_bits", "thresholds")}
    for name, value in [
        ("heads", []),
        ("heads", waves.heads[:1]),
        ("side_channels", 4),
        ("context_shift", 25),
        ("context_limit", 1 << 15),
        ("fraction_bits", 0),
        ("thresholds", [3, 2]),
        ("thresholds", list(range(256))),
        ("backend", "cuda"),
    ]:
        with pytest.raises(InputError):
            GaussianWaves(**(given | {name: value}))
