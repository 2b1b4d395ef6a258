"""Gaussians of channel groups and checkerboards: what goes position by position, in few steps."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from pycodec.coding import rans
from pycodec.context.gaussian_groups import ChannelGroup, GaussianGroups
from pycodec.context.gaussian_waves import reconstruct
from pycodec.errors import CodecError, CorruptStreamError, InputError

from ..levels import LEVELS, simd_level
from .test_gaussian_waves import TABLES, THRESHOLDS, make_layer

SIDE, SHIFT, LIMIT, BITS = 3, 1, 16383, 8
SIZES = [(1, 2), (3, 2), (2, 6), (7, 10)]
CHECKERBOARD = np.indices((5, 5)).sum(0) % 2


def make_group(rng, channels, seen=(), *, checkerboard=True, odd_first=False):
    stack, own, inputs = [], None, SIDE
    if seen:
        stack = [
            make_layer(rng, 6, 3, len(seen), LIMIT, gain=1500),
            make_layer(rng, 7, 5, 6, LIMIT, gain=1500),
        ]
        inputs += 7
    if checkerboard:
        own = make_layer(rng, 9, 5, channels, LIMIT, gain=1500, mask=CHECKERBOARD, bias=300)
        inputs += 9
    hidden = make_layer(rng, 11, 1, inputs, LIMIT, gain=1500)
    head = make_layer(rng, 2 * channels, 1, 11, 1 << 26, gain=3000, bias=1000)
    return ChannelGroup(channels, [hidden, head], seen, stack, own, odd_first)


def make_groups(rng):
    groups = [
        make_group(rng, 2),
        make_group(rng, 3, (1, 0), odd_first=True),
        make_group(rng, 4, (0, 3), checkerboard=False),
        make_group(rng, 1, range(9)),
    ]
    return GaussianGroups(groups, SIDE, SHIFT, LIMIT, BITS, THRESHOLDS)


def make_input(rng, model, height, width):
    latents = np.rint(rng.normal(0, 900, (height, width, model.channels))).astype(np.int32)
    side = rng.integers(-2000, 2000, (height, width, SIDE)).astype(np.int16)
    return latents, side


def as_seen(latents):
    seen = np.clip((latents.astype(np.int64) + 1) >> SHIFT, -LIMIT, LIMIT)
    return torch.from_numpy(seen.astype(np.int16))[None]


def one_by_one(model, latents, side):
    """The definition: each position alone, from all that is decoded before it."""
    height, width, _ = latents.shape
    decoded = np.zeros_like(latents)
    all_symbols, all_indexes = [], []
    start = 0
    for group in model.groups:
        own = slice(start, start + group.channels)
        start = own.stop
        positions = list(np.ndindex(height, width))
        anchors = [p for p in positions if sum(p) % 2 == int(group.odd_first)]
        if group.checkerboard is not None:
            positions = anchors + [p for p in positions if p not in anchors]
        for h, w in positions:
            parts = [torch.from_numpy(side[None, None, h : h + 1, w].copy())]
            if group.channel_context:
                x = as_seen(decoded[..., list(group.seen)])
                for layer in group.channel_context:
                    x = layer.reference(x)
                parts.append(x[:, h : h + 1, w : w + 1])
            if group.checkerboard is not None:
                x = group.checkerboard.reference(as_seen(decoded[..., own]))
                x = x[:, h : h + 1, w : w + 1]
                parts.append(torch.zeros_like(x) if (h, w) in anchors else x)
            x = torch.cat([part.view(1, 1, 1, -1) for part in parts], 3)
            for head in group.heads:
                x = head.reference(x)
            scale, mean = x.numpy().reshape(2, -1)
            symbols = (latents[h, w, own].astype(np.int64) - mean + 128) >> BITS
            decoded[h, w, own] = reconstruct(symbols, mean, BITS)
            all_symbols.append(symbols)
            all_indexes.append((scale[:, None] > np.array(THRESHOLDS)).sum(1))
    return np.concatenate(all_symbols), np.concatenate(all_indexes), decoded


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_steps_are_what_goes_one_by_one(rng, height, width):
    """Same tables, same symbols, same latents, at every SIMD level and with any threads."""
    model = make_groups(rng)
    latents, side = make_input(rng, model, height, width)
    expected = one_by_one(model, latents, side)
    assert len(np.unique(expected[1])) > 1  # tables differ, or nothing is tested
    for level in LEVELS:
        for threads in (1, 2, 3):
            with simd_level(level):
                for a, b in zip(model.encode(latents, side, threads), expected, strict=True):
                    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("height", "width"), [*SIZES, (0, 0), (0, 4)])
def test_round_trip(rng, height, width):
    model = make_groups(rng)
    latents, side = make_input(rng, model, height, width)
    symbols, indexes, decoded = model.encode(latents, side, 2)
    assert symbols.dtype == np.int32
    assert indexes.dtype == np.uint8
    assert np.abs(decoded.astype(int) - latents).max(initial=0) <= 128  # half a step
    stream = rans.encode(symbols, indexes, TABLES, lanes=2)
    for level in LEVELS:
        for threads in (1, 2):
            with simd_level(level):
                np.testing.assert_array_equal(model.decode(stream, TABLES, side, threads), decoded)


def test_latents_at_the_limits(rng):
    model = make_groups(rng)
    latents, side = make_input(rng, model, 4, 6)
    latents[::2] = rng.choice([-(1 << 28), 1 << 28, 1 << 20], latents[::2].shape)
    side[:] = rng.choice([-(2**15), 2**15 - 1], side.shape)
    symbols, indexes, decoded = model.encode(latents, side)
    stream = rans.encode(symbols, indexes, TABLES)
    np.testing.assert_array_equal(model.decode(stream, TABLES, side), decoded)


def test_damaged_streams(rng):
    model = make_groups(rng)
    latents, side = make_input(rng, model, 4, 6)
    symbols, indexes, _ = model.encode(latents, side)
    stream = rans.encode(symbols, indexes, TABLES, lanes=2)
    for size in range(0, len(stream), 7):
        with pytest.raises(CorruptStreamError):
            model.decode(stream[:size], TABLES, side)
    for place in range(0, len(stream), 5):
        damaged = bytearray(stream)
        damaged[place] ^= 0x21
        with contextlib.suppress(CodecError):
            assert model.decode(bytes(damaged), TABLES, side).shape == latents.shape


def test_wrong_arguments(rng):
    model = make_groups(rng)
    latents, side = make_input(rng, model, 4, 6)
    for wrong in [
        (latents[..., 1:], side),
        (latents.astype(np.int64), side),
        (latents + (1 << 28) + 4000, side),
        (latents, side[:3]),
        (latents, side[..., :2]),
        (latents, side.astype(np.int32)),
        (latents[:, 1:], side[:, 1:]),  # of an odd width
        (latents, side, 0),
    ]:
        with pytest.raises(InputError):
            model.encode(*wrong)
    symbols, indexes, _ = model.encode(latents, side)
    with pytest.raises(InputError, match="even width"):
        model.decode(rans.encode(symbols, indexes, TABLES), TABLES, side[:, 1:])


def test_groups_that_do_not_fit(rng):
    """Wrong weight files are refused when they are loaded, not when something is coded."""
    model = make_groups(rng)
    first, second, third, _ = model.groups
    everywhere = make_layer(rng, 9, 5, 2, LIMIT, gain=1500)
    wide = make_layer(rng, 11, 3, SIDE + 9, LIMIT, gain=1500)
    for groups in [
        [],
        [second],  # sees a group that is not there
        [first, replace(second, seen=(2, 0))],
        [first, replace(second, channel_context=[])],
        [replace(first, channels=3)],
        [replace(first, heads=[])],
        [replace(first, heads=first.heads[:1])],
        [replace(first, heads=second.heads)],
        [replace(first, heads=[wide, first.heads[1]])],
        [replace(first, checkerboard=everywhere)],
        [replace(first, checkerboard=None)],
        [first, second, replace(third, checkerboard=first.checkerboard)],
    ]:
        with pytest.raises(InputError, match="gaussian_groups"):
            GaussianGroups(groups, SIDE, SHIFT, LIMIT, BITS, THRESHOLDS)
    for wrong in [
        {"context_shift": 25},
        {"context_limit": 1 << 15},
        {"fraction_bits": 0},
        {"thresholds": [3, 3]},
        {"side_channels": 2},
    ]:
        with pytest.raises(InputError, match="gaussian_groups"):
            replace(model, **wrong)
