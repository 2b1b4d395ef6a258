"""The public functions with the model of the package."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import pycodec
from pycodec import CodecError, InputError, UnsupportedError, _cpu, api
from pycodec.coding.container import pack, peek, unpack
from pycodec.images import Picture
from pycodec.models.photo import PhotoCodec, load_photo_model
from pycodec.models.zoo import WEIGHTS

skimage_data = pytest.importorskip("skimage.data")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def real_pictures() -> dict[str, np.ndarray]:
    """Parts of photographs that scikit-image ships."""
    names = ("astronaut", "chelsea", "coffee", "rocket", "retina")
    available = {}
    for name in names:
        try:
            available[name] = getattr(skimage_data, name)()
        except Exception:  # one that this version would have to download
            available[name] = skimage_data.astronaut()[::-1, ::-1]
    return {name: np.ascontiguousarray(p[40:250, 60:345, :3]) for name, p in available.items()}


@pytest.fixture(scope="module")
def chelsea() -> np.ndarray:
    return np.ascontiguousarray(skimage_data.chelsea()[:200, :300])


@pytest.fixture(scope="module")
def codecs() -> dict[str, PhotoCodec]:
    return {
        backend: load_photo_model(WEIGHTS / "photo", backend=backend)
        for backend in ("native", "reference")
    }


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
    between = pycodec.encode(chelsea, quality=40.25)
    assert between != files[2] and peek(between).quality == 4025


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
    decoded = pycodec.decode(pycodec.encode(chelsea[..., 1], 80))
    assert decoded.shape == (200, 300) and psnr(chelsea[..., 1], decoded) > 33


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
        {"model": "no such model"},
        {"device": "no such device"},
        {"threads": 0},
        {"lossless": True},
    ],
)
def test_unusable_arguments(chelsea, options):
    with pytest.raises(CodecError) as error:
        pycodec.encode(chelsea, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tile", [0, 63, 96, 32])
def test_unusable_tiles(chelsea, tile):
    with pytest.raises(InputError, match="tile size"):
        api.encode_picture(Picture(chelsea), 50, tile=tile)


def test_unknown_weights_are_named(chelsea):
    container = unpack(pycodec.encode(chelsea, 10))
    header = container.header.__class__(**{**vars(container.header), "fingerprint": b"\1" * 8})
    container.header = header
    with pytest.raises(UnsupportedError, match="01" * 8):
        pycodec.decode(pack(container))


@pytest.mark.parametrize("quality", [1, 10, 30, 60, 100])
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (64, 48), (200, 300)])
def test_files_are_as_short_as_the_model_allows(chelsea, quality, size):
    picture = Picture(np.ascontiguousarray(chelsea[: size[0], : size[1]]))
    data, stats = api.encode_picture(picture, quality, code_length=True)
    assert len(data) <= 1.005 * stats.code_length_bits / 8 + 64


@pytest.mark.parametrize("name", list(real_pictures()))
def test_real_pictures_decode_alike_everywhere(codecs, name):
    """Reference and native, one and two threads, any tiling, every SIMD level: equal symbols."""
    picture = real_pictures()[name]
    height, width, _ = picture.shape
    for quality, tile_log2 in ((15.0, 10), (70.5, 7)):
        options = {"tile_log2": tile_log2, "keep_symbols": True}
        made = codecs["native"].compress(picture, quality, threads=2, **options)
        same = codecs["reference"].compress(picture, quality, threads=2, **options)
        assert made.streams == same.streams
        for mine, other in zip(made.symbols, same.symbols, strict=True):
            assert np.array_equal(mine, other)
        first = made.streams[0]
        rows, columns = (-(-min(1 << tile_log2, side) // 16) for side in (height, width))
        latents = [
            codec.entropy_model.decode(first, rows, columns, made.quality_code, threads)
            for codec in codecs.values()
            for threads in (1, 2)
        ]
        before = _cpu.simd_level()
        try:
            for level in _cpu.supported_simd_levels():
                _cpu.set_simd_level(level)
                forced = load_photo_model(WEIGHTS / "photo")
                latents.append(forced.entropy_model.decode(first, rows, columns, made.quality_code))
        finally:
            _cpu.set_simd_level(before)
        for other in latents[1:]:
            assert torch.equal(latents[0], other)


def test_the_example_in_the_docstring():
    assert doctest.testmod(pycodec).failed == 0


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
