"""The public functions with the model of the package."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import math
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import pycodec
from pycodec import CodecError, CorruptStreamError, InputError, UnsupportedError, _cpu, api
from pycodec.coding.container import Codec, pack, peek, unpack
from pycodec.images import Picture
from pycodec.models.photo import PhotoCodec, load_photo_model
from pycodec.models.tiling import cut_tiles, thread_count
from pycodec.models.zoo import WEIGHTS

from .levels import simd_level
from .networks import random_codec

skimage_data = pytest.importorskip("skimage.data")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


REAL_PICTURES = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry")
"""Photographs that scikit-image ships."""


@pytest.fixture(scope="module")
def chelsea() -> np.ndarray:
    return np.ascontiguousarray(skimage_data.chelsea()[:200, :300])


@pytest.fixture(scope="module")
def codecs() -> dict[str, PhotoCodec]:
    """The model on each backend, and on each SIMD level of this processor."""
    backends = ("native", "reference")
    codecs = {name: load_photo_model(WEIGHTS / "photo", backend=name) for name in backends}
    for level in _cpu.supported_simd_levels():
        with simd_level(level):  # weights are packed for the level at hand
            codecs[level] = load_photo_model(WEIGHTS / "photo")
    return codecs


def test_a_photograph_survives(chelsea):
    data = pycodec.encode(chelsea, quality=80)
    decoded = pycodec.decode(data)
    assert decoded.shape == chelsea.shape and decoded.dtype == np.uint8
    assert psnr(chelsea, decoded) > 33
    assert len(data) < chelsea.size / 6


def test_quality_is_continuous_and_monotone(chelsea):
    files = [pycodec.encode(chelsea, quality=q) for q in (1, 20, 40, 60, 80, 100)]
    sizes = [len(f) for f in files]
    errors = [psnr(chelsea, pycodec.decode(f)) for f in files]
    assert sizes == sorted(sizes) and errors == sorted(errors)
    assert errors[-1] - errors[0] > 8
    for quality in (40.25, 40.5, 41.5):  # each between its neighbours, though not by its size
        between = pycodec.encode(chelsea, quality=quality)
        assert between != files[2] and peek(between).quality == round(100 * quality)
        assert abs(len(between) - sizes[2]) < 0.2 * sizes[2]
        assert errors[1] < psnr(chelsea, pycodec.decode(between)) < errors[3]


@pytest.mark.parametrize("kind", ["pil", "tensor", "float tensor", "gray tensor"])
def test_other_kinds_of_pictures(chelsea, kind):
    tensor = torch.from_numpy(chelsea).permute(2, 0, 1)
    image, expected = {
        "pil": (Image.fromarray(chelsea), chelsea),
        "tensor": (tensor, chelsea),
        "float tensor": (tensor.float() / 255, chelsea),
        "gray tensor": (tensor[1], np.ascontiguousarray(chelsea[..., 1])),
    }[kind]
    assert pycodec.encode(image, 30) == pycodec.encode(expected, 30)


def test_lists(chelsea):
    pictures = [chelsea, chelsea[:50, :70], chelsea[..., 0]]
    files = pycodec.encode(pictures, 30)
    assert files == [pycodec.encode(p, 30) for p in pictures]
    assert [d.shape for d in pycodec.decode(files)] == [p.shape for p in pictures]
    assert pycodec.encode([]) == [] and pycodec.decode([]) == []


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1, 3), (1, 200, 3), (200, 1), (17, 33, 3), (63, 65), (40, 50, 4)]
)
def test_any_shape(shape):
    picture = np.random.default_rng(0).integers(90, 160, shape, dtype=np.uint8)
    decoded = pycodec.decode(pycodec.encode(picture, 90))
    assert decoded.shape == shape
    if len(shape) == 3 and shape[2] == 4:  # alpha is kept without loss
        assert np.array_equal(decoded[..., 3], picture[..., 3])
    assert psnr(picture, decoded) > 22


def test_gray_stays_gray(chelsea):
    gray = chelsea[..., 1]
    data = pycodec.encode(gray, 80)
    decoded = pycodec.decode(data)
    assert decoded.shape == (200, 300) and psnr(gray, decoded) > 33
    # It is coded as three equal channels, and the rounded mean of three is decoded.
    streams = unpack(data).streams
    assert streams == unpack(pycodec.encode(np.stack([gray] * 3, axis=2), 80)).streams
    channels = pycodec.load_model().decompress(streams, 300, 200, 8000)
    assert np.array_equal(decoded, np.rint(channels.mean(axis=2)))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_of_a_pil_image(chelsea, mode):
    image = Image.fromarray(chelsea).convert(mode)
    image.putalpha(Image.fromarray(chelsea[..., 0]))
    expected = np.asarray(image)
    decoded = pycodec.decode(pycodec.encode(image, 80))
    assert decoded.shape == expected.shape
    assert np.array_equal(decoded[..., -1], expected[..., -1])
    assert psnr(expected[..., :-1], decoded[..., :-1]) > 33


def test_any_buffer_of_bytes(chelsea):
    data = pycodec.encode(chelsea[:40, :50], 30)
    expected = pycodec.decode(data)
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert np.array_equal(pycodec.decode(buffer), expected)


@pytest.mark.parametrize("data", ["a name.lci", None, 5, (b"",)])
def test_no_bytes(data):
    with pytest.raises(InputError, match="expected the bytes of a file"):
        pycodec.decode(data)


def test_metadata_are_kept(chelsea):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Picture(chelsea, icc=icc, exif=exif.tobytes()[6:], xmp=b"<x:xmpmeta/>")
    data, _ = api.encode_picture(picture, 40)
    decoded, _ = api.decode_picture(data)
    assert (decoded.icc, decoded.exif, decoded.xmp) == (icc, picture.exif, picture.xmp)
    assert decoded.pixels.shape == chelsea.shape  # not rotated


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 0},
        {"quality": 100.5},
        {"quality": float("nan")},
        {"quality": "50"},
        {"model": "no such model"},
        {"model": 5},
        {"device": "no such device"},
        {"device": "hpu"},
        {"device": "meta"},
        {"threads": True},
        {"threads": 0},
        {"threads": 1.5},
        {"threads": 10**9},  # which would end the process, not raise
        {"lossless": True, "model": "photo"},
        {"model": "tcae-fast"},
    ],
)
def test_unusable_arguments(chelsea, options):
    with pytest.raises(CodecError) as error:
        pycodec.encode(chelsea, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"threads": 0}, {"device": "no such device"}])
def test_unusable_arguments_of_decode(chelsea, options):
    data = pycodec.encode(chelsea[:20, :20])
    with pytest.raises(InputError):
        pycodec.decode(data, **options)


@pytest.mark.parametrize("device", ["cuda", "cpu:1", "banana"])
def test_a_model_is_on_its_own_device(chelsea, device):
    model = pycodec.load_model("tcae-fast")
    small = chelsea[:8, :8]
    assert pycodec.encode(small, model=model, device="cpu", lossless=True)
    with pytest.raises(InputError, match="on cpu"):
        pycodec.encode(small, model=model, device=device, lossless=True)


@pytest.mark.parametrize("name", ["photo", "tcae-fast"])
def test_models_can_be_sent_to_other_processes(chelsea, name):
    model = pycodec.load_model(name)
    small, lossless = chelsea[:40, :30], name != "photo"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        options = {"model": model, "lossless": lossless}
        data = pool.apply(pycodec.encode, (small,), options)
    assert data == pycodec.encode(small, **options)
    assert copy.deepcopy(model).fingerprint == model.fingerprint
    with pytest.raises(pickle.PicklingError, match="load_model"):
        pickle.dumps(load_photo_model(WEIGHTS / "photo"))


@pytest.mark.parametrize("name", ["photo", "tcae-fast"])
def test_negative_strides(chelsea, name):
    model = pycodec.load_model(name)
    turned = chelsea[:40, 29::-1, ::-1]
    assert turned.strides[1] < 0 and turned.strides[2] < 0
    assert model.compress(turned).streams == model.compress(turned.copy()).streams


@pytest.mark.parametrize("name", ["photo", "tcae-fast"])
def test_streams_are_counted_before_tiles_are_made(name):
    model = pycodec.load_model(name)
    options = {"gray": True} if name != "photo" else {"quality_code": 5000}
    with pytest.raises(CorruptStreamError, match="tiles, but 1 streams"):
        model.decompress([b""], 1 << 40, 1 << 40, **options)


@pytest.mark.parametrize("tile", [0, -64, 63, 96, 32, 128.0, "128"])
def test_unusable_tiles(chelsea, tile):
    with pytest.raises(InputError, match="tile size"):
        api.encode_picture(Picture(chelsea), 50, tile=tile)


def test_unknown_weights_are_named(chelsea):
    data = repacked(pycodec.encode(chelsea, 10), fingerprint=b"\1" * 8)
    with pytest.raises(UnsupportedError, match="01" * 8):
        pycodec.decode(data)


def repacked(data: bytes, **fields) -> bytes:
    """The same file with another header."""
    container = unpack(data)
    container.header = dataclasses.replace(container.header, **fields)
    return pack(container)


def test_files_of_later_versions(chelsea):
    data = repacked(pycodec.encode(chelsea[:40, :50], 10), bit_depth=10)
    with pytest.raises(UnsupportedError, match="update pycodec"):
        pycodec.decode(data)


def test_a_codec_that_is_not_its_models(chelsea):
    data = repacked(pycodec.encode(chelsea[:40, :50], 10), codec=Codec.LOSSLESS)
    with pytest.raises(CorruptStreamError, match="another codec"):
        pycodec.decode(data)


def test_a_model_of_ones_own(chelsea):
    codec = random_codec(0)
    data = pycodec.encode(chelsea[:40, :50], 10, model=codec)
    assert peek(data).fingerprint == codec.fingerprint
    assert api.decode_picture(data, model=codec)[0].pixels.shape == (40, 50, 3)
    with pytest.raises(UnsupportedError, match=codec.fingerprint.hex()):
        pycodec.decode(data)
    with pytest.raises(UnsupportedError, match=f"{codec.fingerprint.hex()}, not with photo"):
        api.decode_picture(data, model="photo")


@pytest.mark.parametrize("quality", [1, 10, 30, 60, 100])
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (64, 48), (200, 300)])
def test_files_are_as_short_as_the_model_allows(chelsea, quality, size):
    picture = Picture(np.ascontiguousarray(chelsea[: size[0], : size[1]]))
    data, stats = api.encode_picture(picture, quality, code_length=True)
    assert stats.code_length_bits / 8 < len(data) <= 1.005 * stats.code_length_bits / 8 + 64


@pytest.mark.parametrize("tile", [None, 256])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket"])
def test_files_of_photographs_are_short(name, tile):
    picture = Picture(getattr(skimage_data, name)())
    for quality in (5, 50, 95):
        data, stats = api.encode_picture(picture, quality, tile=tile, code_length=True)
        assert stats.code_length_bits / 8 < len(data) <= 1.005 * stats.code_length_bits / 8 + 64


@pytest.mark.parametrize("name", REAL_PICTURES)
def test_real_pictures_decode_alike_everywhere(codecs, name):
    """Reference and native, one and two threads, any tiling, every SIMD level: equal symbols."""
    picture = np.ascontiguousarray(getattr(skimage_data, name)()[100:250, 100:300])
    height, width, _ = picture.shape
    for quality, tile_log2 in ((15.0, 10), (40.25, 7), (70.5, 6)):
        coded = [
            codecs[backend].compress(
                picture, quality, tile_log2=tile_log2, threads=1, keep_symbols=True
            )
            for backend in ("native", "reference")
        ]
        assert coded[0].streams == coded[1].streams
        for symbols in zip(coded[0].symbols, coded[1].symbols, strict=True):
            assert np.array_equal(*symbols)

        # Analysis is float, and may round otherwise with other threads: from here on its latents
        # are the same for all.
        code, side = coded[0].quality_code, 1 << tile_log2
        for tile, stream in zip(cut_tiles(height, width, side), coded[0].streams, strict=True):
            with thread_count(1):
                latents, hyperlatents = codecs["native"]._analyse(picture, tile, code)
            made = codecs["native"].entropy_model.encode(latents, hyperlatents, code)
            assert made.stream == stream
            for kind, codec in codecs.items():
                model = codec.entropy_model
                level = kind if kind in _cpu.supported_simd_levels() else _cpu.simd_level()
                for threads in (1, 2):
                    with simd_level(level):
                        again = model.encode(latents, hyperlatents, code, threads)
                        decoded = model.decode(stream, *latents.shape[:2], code, threads)
                    assert again.stream == stream
                    assert np.array_equal(again.symbols, made.symbols)
                    assert torch.equal(decoded, made.latents)


def test_the_example_in_the_docstring():
    results = doctest.testmod(pycodec)
    assert results.attempted and not results.failed


def test_decoding_needs_no_training_code():
    script = (
        "import sys, numpy, pycodec;"
        "pycodec.decode(pycodec.encode(numpy.zeros((8, 8, 3), 'uint8')));"
        "assert not [m for m in sys.modules if m.startswith('pycodec.training')]"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True)


def test_import_is_light():
    script = "import sys, pycodec; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", script], check=True)
