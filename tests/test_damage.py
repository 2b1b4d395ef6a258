"""Damaged files: an error, never a crash, a hang or a huge allocation."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

import pycodec
from pycodec import CodecError, CorruptStreamError, api
from pycodec.coding.container import pack, unpack
from pycodec.images import Picture

SIZE = (40, 48)


@pytest.fixture(scope="module")
def file() -> bytes:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    ramp = np.stack([2 * rows, 3 * columns, rows + columns], axis=2)
    noise = np.random.default_rng(0).integers(0, 30, (*SIZE, 3))
    alpha = (255 * (rows > columns)).astype(np.uint8)
    picture = Picture((ramp + noise).astype(np.uint8), alpha, xmp=b"<x:xmpmeta/>")
    return api.encode_picture(picture, 30)[0]


def test_every_flipped_byte_is_noticed(file):
    rng = np.random.default_rng(1)
    for position in range(len(file)):
        for pattern in (0xFF, int(rng.integers(1, 255))):
            damaged = bytearray(file)
            damaged[position] ^= pattern
            with pytest.raises(CodecError):
                pycodec.decode(bytes(damaged))


def test_every_truncation_is_noticed(file):
    for size in range(len(file)):
        with pytest.raises(CodecError):
            pycodec.decode(file[:size])
    with pytest.raises(CodecError):
        pycodec.decode(file + b"\0")


def test_damage_behind_the_checksums(file):
    """With checksums made right again, damage reaches coder and model: an error or a picture."""
    rng = np.random.default_rng(2)
    outcomes = {"error": 0, "picture": 0}
    for _ in range(150):
        container = unpack(file)
        stream = bytearray(container.streams[0])
        for _ in range(int(rng.integers(1, 4))):
            stream[int(rng.integers(len(stream)))] ^= int(rng.integers(1, 256))
        if rng.random() < 0.3:
            stream = stream[: int(rng.integers(len(stream)))]
        container.streams[0] = bytes(stream)
        try:
            decoded = pycodec.decode(pack(container))
        except CorruptStreamError:
            outcomes["error"] += 1
        else:
            assert decoded.shape == (*SIZE, 4)
            outcomes["picture"] += 1
    assert outcomes["error"] > 100


def test_a_huge_declared_size_allocates_nothing(file):
    container = unpack(file)
    fields = {**vars(container.header), "width": 1 << 15, "height": 1 << 15, "tile_log2": 12}
    container.header = container.header.__class__(**{**fields, "alpha": False})
    container.alpha = None
    container.streams *= 64
    damaged = pack(container)
    pycodec.load_model()
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(CodecError):
        pycodec.decode(damaged)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize("data", [b"", b"\x8c", b"\x89PNG\r\n\x1a\n" + bytes(50), bytes(1000)])
def test_what_is_no_file_at_all(data):
    with pytest.raises(CodecError):
        pycodec.decode(data)
