"""The Pillow plugin: opening, verifying, loading, saving, as Pillow tests its own."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageSequence, UnidentifiedImageError

import pycodec
from pycodec import CodecError, CorruptStreamError, UnsupportedError, _cpu, api
from pycodec.coding.container import peek
from pycodec.integrations import pillow
from pycodec.models.lossless import load_lossless_model
from pycodec.models.photo import load_photo_model
from pycodec.models.zoo import DEFAULT_LOSSLESS_MODEL, WEIGHTS

from ..levels import LEVELS, simd_level

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def image(photograph) -> Image.Image:
    return Image.fromarray(photograph[100:164, 100:196])


@pytest.fixture
def path(stand_in_codec, image, tmp_path):
    path = tmp_path / "a.lci"
    image.save(path, quality=90)
    return path


def saved(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "LCI", **options)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# Opening


def test_open_is_lazy(path, monkeypatch):
    data = path.read_bytes()
    monkeypatch.setattr(api, "decode_picture", None)  # not called
    with opened(data[:60]) as image:  # nor are the tiles read
        assert isinstance(image, pillow.LciImageFile)
        assert (image.format, image.mode, image.size) == ("LCI", "RGB", (96, 64))
        assert image.get_format_mimetype() == "image/x-lci"
        assert image.info == {}


def test_load(path, image):
    with Image.open(path) as decoded:
        pixels = decoded.load()
        assert pixels[5, 5] == decoded.getpixel((5, 5))
        assert decoded.fp is None  # the file is closed as soon as it is not needed
        assert np.abs(np.asarray(decoded).astype(int) - np.asarray(image)).mean() < 5
        assert decoded.load() is not None  # once more


def test_known_to_pillow(path):
    assert Image.registered_extensions()[".lci"] == "LCI"
    assert "LCI" in Image.OPEN and "LCI" in Image.SAVE
    assert Image.open(path, formats=["LCI"]).size == (96, 64)
    assert Image.open(str(path).encode()).size == (96, 64)
    with pytest.raises(UnidentifiedImageError):
        Image.open(path, formats=["PNG"])


def test_only_importing_registers(path):
    code = (
        "import sys; from PIL import Image\n"
        f"path = {str(path)!r}\n"
        "try: Image.open(path)\n"
        "except OSError: pass\n"
        "else: raise SystemExit('known without an import')\n"
        "import pycodec.integrations.pillow\n"
        "Image.open(path)\n"
        "assert 'torch' not in sys.modules, 'opening needs no codec'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_not_a_picture():
    for junk in (b"", b"\x8cLC", b"\x8cLCI", b"\x8cLCI\x01\x01 and no more", b"not a picture" * 9):
        with pytest.raises(UnidentifiedImageError):
            opened(junk)
        with pytest.raises(SyntaxError):
            pillow.LciImageFile(io.BytesIO(junk))


def test_newer_file(path):
    data = bytearray(path.read_bytes())
    data[4] = 9  # format version
    with pytest.raises(OSError, match="update pycodec") as error:
        opened(data)
    assert isinstance(error.value.__cause__, UnsupportedError)


def test_seek_and_tell(path):
    with Image.open(path) as image:
        image.seek(0)
        assert image.tell() == 0 and getattr(image, "n_frames", 1) == 1
        assert len(list(ImageSequence.Iterator(image))) == 1
        with pytest.raises(EOFError):
            image.seek(1)


def test_files_are_closed(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with Image.open(path):
            pass
        Image.open(path).load()
        image = Image.open(path)
        image.close()
        with pytest.raises((ValueError, AttributeError)):
            image.load()
        with open(path, "rb") as file:
            Image.open(file).load()
            assert not file.closed  # it is the caller's


def test_verify(path):
    data = path.read_bytes()
    image = Image.open(path)
    image.verify()
    with pytest.raises(RuntimeError):
        image.verify()
    for damaged in (data[:-1], data[:-30], data + b"!", data[:-9] + b"\xff" + data[-8:]):
        assert damaged != data
        with pytest.raises(OSError):
            opened(damaged).verify()


@pytest.mark.parametrize("tolerant", [False, True])
def test_truncated(path, monkeypatch, tolerant):
    """There are no half pictures, whatever LOAD_TRUNCATED_IMAGES says: the checksum is missing."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = path.read_bytes()
    with pytest.raises(OSError) as error:
        opened(data[: len(data) // 2]).load()
    assert isinstance(error.value.__cause__, CorruptStreamError)
    for end in range(0, 60):
        with pytest.raises(OSError):
            opened(data[:end]).load()


def test_unknown_weights(path):
    data = path.read_bytes()
    image = opened(data)
    sys.modules.pop("pycodec.api")
    pycodec.api = api  # the real one, which does not have the stand-in's weights
    with pytest.raises(OSError, match="fingerprint") as error:
        image.load()
    assert isinstance(error.value.__cause__, CodecError)


def test_file_that_changes(path, image):
    opened_before = Image.open(path)
    other = saved(image.resize((50, 40)))
    with open(path, "r+b") as file:
        file.write(other)
        file.truncate()
    with pytest.raises(OSError, match="changed"):
        opened_before.load()


def test_decompression_bomb(path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)


def test_incremental_parser(path, image):
    data = path.read_bytes()
    parser = ImageFile.Parser()
    for start in range(0, len(data), 100):
        parser.feed(data[start : start + 100])
    assert np.array_equal(parser.close(), Image.open(path))
    parser = ImageFile.Parser()
    parser.feed(data[:-1])
    with pytest.raises(OSError):
        parser.close()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(path, protocol):
    with Image.open(path) as image:
        again = pickle.loads(pickle.dumps(image, protocol))
        assert again == image and again.info == image.info


def test_usual_operations(path):
    with Image.open(path) as image:
        assert image.convert("L").mode == "L"
    with Image.open(path) as image:
        image.thumbnail((48, 48))
        assert image.size == (48, 32)
    with Image.open(path) as image:
        assert image.copy().crop((0, 0, 8, 8)).size == (8, 8)


# Saving


@pytest.mark.usefixtures("stand_in_codec")
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes_that_are_kept(image, mode):
    image = image.convert("RGB").convert(mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    decoded = opened(saved(image, quality=100))
    assert decoded.mode == mode
    if "A" in mode:
        assert decoded.getchannel("A") == image.getchannel("A")
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(image)).mean() < 4


@pytest.mark.usefixtures("stand_in_codec")
def test_modes_that_are_converted(image):
    assert opened(saved(image.convert("1"))).mode == "L"
    assert opened(saved(image.quantize(16))).mode == "RGB"
    assert opened(saved(image.convert("YCbCr"))).mode == "RGB"
    with pytest.warns(UserWarning, match="16-bit"):
        assert opened(saved(image.convert("L").convert("I;16"))).mode == "L"
    with pytest.warns(UserWarning, match="CMYK"):
        assert opened(saved(image.convert("CMYK"))).mode == "RGB"
    with pytest.raises(ValueError, match="LAB"):
        saved(Image.new("LAB", (4, 4)))


@pytest.mark.usefixtures("stand_in_codec")
def test_metadata(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(image, icc_profile=ICC, exif=exif, xmp="<x/>")
    decoded = opened(data)
    assert decoded.info == {
        "icc_profile": ICC,
        "exif": exif.tobytes(),
        "xmp": b"<x/>",
    }
    assert decoded.getexif()[0x0112] == 6
    # What is not mentioned stays, as with pycodec.encode; what is empty goes.
    assert opened(saved(decoded)).info == decoded.info
    assert opened(saved(decoded, icc_profile=None, exif=b"", xmp="")).info == {}
    # Pillow's JPEG writer takes EXIF data with their prefix.
    file = io.BytesIO()
    decoded.save(file, "JPEG", exif=decoded.info["exif"], icc_profile=decoded.info["icc_profile"])
    assert Image.open(file).getexif()[0x0112] == 6


def test_options_reach_the_codec(image, stand_in_codec):
    saved(image)
    saved(image, quality=12.5, threads=3, device="cpu", tile=256)
    first, second = stand_in_codec.calls
    assert first["quality"] == 50
    given = {"quality": 12.5, "model": None, "device": "cpu", "threads": 3, "tile": 256}
    rest = {"projection": "auto", "precision": None, "exact_pixels": False}
    assert second == given | rest


def test_decoder_settings(path, monkeypatch, stand_in_codec):
    seen = {}
    decode = stand_in_codec.decode_picture
    monkeypatch.setattr(
        stand_in_codec, "decode_picture", lambda data, **o: (seen.update(o), decode(data))[1]
    )
    monkeypatch.setattr(pillow, "THREADS", 2)
    monkeypatch.setattr(pillow, "DEVICE", "cpu")
    Image.open(path).load()
    assert seen == {"device": "cpu", "threads": 2}


def test_animations(image, stand_in_codec, tmp_path):
    file = tmp_path / "two.gif"
    image.save(file, save_all=True, append_images=[Image.new("RGB", image.size)])
    with Image.open(file) as animation:
        animation.seek(1)
        with pytest.warns(UserWarning, match="number 2 of 2 frames"):
            data = saved(animation)
    assert max(opened(data).convert("L").getextrema()) < 10


def test_a_failure_leaves_no_file(image, tmp_path):
    path = tmp_path / "a.lci"
    for quality in (0, 101, "keep", None):
        with pytest.raises(ValueError, match="quality"):
            image.save(path, quality=quality)
    with pytest.raises(ValueError, match="no model"):
        image.save(path, model="no such model")
    with pytest.raises(ValueError, match="empty"):
        Image.new("RGB", (0, 5)).save(path)
    assert os.listdir(tmp_path) == []


def test_saving_over_itself(path, image):
    with Image.open(path) as opened_image:
        opened_image.save(path, quality=80)
    assert peek(path.read_bytes()).quality == 8000
    assert Image.open(path).size == image.size


def test_streams_that_cannot_seek(stand_in_codec, image):
    class Pipe(io.RawIOBase):
        data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    image.save(pipe, "LCI")
    assert pipe.data == saved(image)


# With the codec


def test_there_and_back(image):
    data = saved(image, quality=80)
    assert data == pycodec.encode(np.asarray(image), 80)
    assert np.array_equal(opened(data), pycodec.decode(data))
    transparent = image.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    exact = opened(saved(transparent, lossless=True))
    assert np.array_equal(exact, transparent)


def test_threads(image):
    data = [saved(image.rotate(90 * i), quality=40 + i) for i in range(4)]
    expected = [np.asarray(opened(d)) for d in data]
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(lambda d: np.asarray(opened(d)), data * 4))
        again = list(pool.map(lambda i: saved(image.rotate(90 * i), quality=40 + i), range(4)))
    assert all(map(np.array_equal, decoded, expected * 4))
    assert again == data


@pytest.mark.skipif(len(LEVELS) < 2, reason="this processor has scalar code only")
@pytest.mark.parametrize("lossless", [False, True])
def test_files_are_equal_however_they_are_made(photograph, lossless):
    """Threads and SIMD levels: the same bytes, and each decodes with each."""
    image = Image.fromarray(photograph[100:160, 100:180])
    name = DEFAULT_LOSSLESS_MODEL if lossless else "photo"
    load = load_lossless_model if lossless else load_photo_model
    files, models = set(), {}
    for level in _cpu.supported_simd_levels():
        with simd_level(level):  # weights are packed for the level at hand
            models[level] = load(WEIGHTS / name)
            for threads in (1, 2):
                options = {"quality": 50, "lossless": lossless, "threads": threads}
                files.add(saved(image, model=models[level], **options))
    assert len(files) == 1
    data = files.pop()
    expected = opened(data)
    if lossless:
        assert np.array_equal(expected, image)
    for level, model in models.items():
        with simd_level(level):
            for threads in (1, 2):
                picture, _ = api.decode_picture(data, model=model, threads=threads)
                assert np.array_equal(picture.pixels, expected), (level, threads)
