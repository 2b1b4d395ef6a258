"""Damaged files: an error, never a crash, a hang or a huge allocation."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pycodec
from pycodec import CodecError, CorruptStreamError, api
from pycodec.coding import container as container_module
from pycodec.coding import rans
from pycodec.coding.container import Container, pack, peek, section_sizes, unpack
from pycodec.context.integer_entropy_model import IntegerEntropyModel
from pycodec.images import Picture
from pycodec.models.photo import load_photo_model
from pycodec.models.zoo import DEFAULT_MODEL, WEIGHTS

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


def test_damage_behind_the_checksums_is_the_same_everywhere(file):
    """Values that no encoder makes, too, give the same latents on every backend."""
    models = [
        load_photo_model(WEIGHTS / DEFAULT_MODEL, backend=backend).entropy_model
        for backend in ("native", "reference")
    ]
    container = unpack(file)
    rng = np.random.default_rng(3)
    decoded = 0
    for _ in range(40):
        stream = bytearray(container.streams[0])
        stream[int(rng.integers(len(stream)))] ^= int(rng.integers(1, 256))
        results = [latents_or_error(model, bytes(stream), 3, 3) for model in models]
        assert torch.equal(*results)
        decoded += results[0].ndim == 3
    assert decoded  # not all of them stopped early


def latents_or_error(model: IntegerEntropyModel, stream: bytes, height: int, width: int):
    """The latents, even where only the end of the stream tells that they are wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans.RansDecoder, "finish", lambda self: None)
        try:
            return model.decode(stream, height, width, 3000)
        except CorruptStreamError:
            return torch.zeros(())


def with_header(file: bytes, **fields) -> bytes:
    """The file with another header, whose checksum is right."""
    header = dataclasses.replace(peek(file), **fields)
    return container_module._pack_header(header) + file[section_sizes(file)["header"] :]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_huge_declared_size_allocates_nothing(file, tmp_path):
    """Measured in a process of its own: its peak must be that of a good small file."""
    plain = api.encode_picture(Picture(np.zeros((*SIZE, 3), np.uint8)), 30)[0]
    streams = unpack(plain).streams
    header = dataclasses.replace(peek(plain), width=1 << 15, height=1 << 15, tile_log2=12)
    hostile = [
        with_header(plain, width=1 << 24, height=1 << 24),
        with_header(plain, width=1 << 24, height=1 << 24, tile_log2=24),
        with_header(plain, width=1 << 15, height=1 << 15, tile_log2=24),
        with_header(plain, width=1 << 24, height=64, tile_log2=6),
        with_header(plain, width=1 << 15, height=1 << 15, tile_log2=12),
        with_header(plain, width=1 << 12, height=1 << 12, tile_log2=12),
        with_header(file, width=1 << 12, height=1 << 12, tile_log2=12),
        pack(Container(header, streams * 64)),
    ]
    for number, data in enumerate([plain, *hostile]):
        (tmp_path / f"{number}.lci").write_bytes(data)
    script = """
import sys, pathlib, pycodec
def peak():  # KiB; not ru_maxrss, which counts the process before it was this program too
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
small, *hostile = [pathlib.Path(name).read_bytes() for name in sys.argv[1:]]
pycodec.decode(small, threads=1)
before = peak()
for data in hostile:
    try:
        pycodec.decode(data, threads=1)
    except pycodec.CodecError:
        continue
    sys.exit("decoded")
print(peak() - before)
"""
    names = [str(tmp_path / f"{number}.lci") for number in range(1 + len(hostile))]
    command = [sys.executable, "-I", "-c", script, *names]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(result.stdout) < 16 << 10


@pytest.mark.parametrize("data", [b"", b"\x8c", b"\x89PNG\r\n\x1a\n" + bytes(50), bytes(1000)])
def test_what_is_no_file_at_all(data):
    with pytest.raises(CodecError):
        pycodec.decode(data)
