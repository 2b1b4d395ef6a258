"""Reading every kind of picture, and writing files whole or not at all."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import os
import resource
import shutil
import stat
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, features

from pycodec.errors import CodecError, InputError
from pycodec.images import (
    WRITABLE_FORMATS,
    Picture,
    atomic_write,
    format_of,
    from_any,
    load_image,
    save_image,
    write_image,
)

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def exif_data() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "pycodec"
    return exif.tobytes().removeprefix(b"Exif\0\0")


def stored(image: Image.Image, format: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def png(width: int, height: int, bit_depth: int, colour_type: int, *chunks: tuple) -> io.BytesIO:
    """A PNG file from its chunks, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body
        data += struct.pack(">I", zlib.crc32(name + body))
    return io.BytesIO(data)


def png_16_bit(samples: np.ndarray, colour_type: int, *chunks: tuple) -> io.BytesIO:
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return png(width, height, 16, colour_type, *chunks, (b"IDAT", zlib.compress(rows)))


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Without the rights of root, as which the tests may run and whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def need(format: str) -> None:
    """Skip the test where this Pillow was built without the library for ``format``."""
    if format in ("WEBP", "AVIF") and not features.check(format.lower()):
        pytest.skip(f"this Pillow has no {format}")


# Kinds of pictures


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (300, 5), (257, 3)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_plain_modes_are_exact(size, channels):
    samples = random_pixels(*size, channels)
    mode = ("L", "LA", "RGB", "RGBA")[channels - 1]
    image = Image.frombytes(mode, size[::-1], samples.tobytes())
    picture = load_image(stored(image))
    colours = 3 if channels > 2 else 1
    assert np.array_equal(picture.pixels.reshape(*size, colours), samples[..., :colours])
    assert picture.pixels.ndim == (3 if channels > 2 else 2)
    assert picture.gray == (channels <= 2)
    assert (picture.height, picture.width) == size
    if channels in (2, 4):
        assert np.array_equal(picture.alpha, samples[..., -1])
    else:
        assert picture.alpha is None
    assert picture.pixels.flags.writeable
    assert picture.warnings == []


def test_1_bit():
    image = Image.fromarray(random_pixels(5, 7) > 127)
    assert image.mode == "1"
    picture = load_image(stored(image))
    assert np.array_equal(picture.pixels, (random_pixels(5, 7) > 127) * np.uint8(255))


def test_palette():
    image = Image.fromarray(random_pixels(9, 8) % 4).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    picture = load_image(stored(image))
    expected = np.arange(10, 130, 10, np.uint8).reshape(4, 3)[random_pixels(9, 8) % 4]
    assert np.array_equal(picture.pixels, expected)
    assert picture.alpha is None


@pytest.mark.parametrize(
    ("transparency", "expected"), [(2, [255, 255, 0, 255]), (b"\x00\x80", [0, 128, 255, 255])]
)
def test_palette_with_transparency(transparency, expected):
    indexes = random_pixels(9, 8) % 4
    image = Image.fromarray(indexes).convert("P")
    image.putpalette(list(range(12)))
    picture = load_image(stored(image, transparency=transparency))
    assert np.array_equal(picture.alpha, np.array(expected, np.uint8)[indexes])
    assert np.array_equal(picture.pixels, np.arange(12, dtype=np.uint8).reshape(4, 3)[indexes])


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (1, 2, 3)), ("1", 255)])
def test_transparent_colour(mode, key):
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), key)
    picture = load_image(stored(image, transparency=key))
    assert picture.alpha.tolist() == [[255, 0]]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_rounded(format):
    samples = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    samples[-1, -1] = 65535
    picture = load_image(stored(Image.fromarray(samples), format))
    assert np.array_equal(picture.pixels, np.rint(samples / 257).astype(np.uint8))
    assert "16-bit" in picture.warnings[0] and not picture.exact


def test_16_bit_gray_big_endian_image():
    samples = np.array([[0, 128, 129, 65535]], np.uint16)
    image = Image.frombytes("I;16B", (4, 1), samples.astype(">u2").tobytes())
    assert from_any(image).pixels.tolist() == [[0, 0, 1, 255]]


def test_16_bit_gray_with_transparent_value():
    samples = np.array([[256, 257, 65535]], np.uint16)
    picture = load_image(png_16_bit(samples, 0, (b"tRNS", struct.pack(">H", 257))))
    assert picture.pixels.tolist() == [[1, 1, 255]]
    assert picture.alpha.tolist() == [[255, 0, 255]]


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_is_reduced_with_a_warning(colour_type, channels):
    samples = np.random.default_rng(0).integers(0, 65536, (5, 6, channels), np.uint16)
    picture = load_image(png_16_bit(samples, colour_type))
    colours = channels if channels == 3 else channels - 1
    exact = samples[..., :colours] / 257
    assert np.abs(picture.pixels.reshape(exact.shape) - exact).max() <= 1
    assert (picture.alpha is None) == (channels == 3)
    assert "16-bit" in picture.warnings[0] and not picture.exact


# RGB of 10 bits a sample, 4x4 pixels; Pillow writes none.
AVIF_10 = """
AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAA
AAAAAAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAALwAAAChpaW5mAAAAAAABAAAAGmluZmUC
AAAAAAEAAGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAABAAAAAQAAAAQcGl4aQAAAAADCgoKAAAA
DGF2MUOBIEAAAAAAE2NvbHJuY2x4AAIAAgAAgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAAN21kYXQSAAoIOAR/nAgIAkAy
IRAAAPYAxJMbQeq1P45QVA1C2NE0qdW+Xqx1D1hL1SO6tA==
"""


def jpeg_2000(bits: int, **options) -> io.BytesIO:
    """Of an RGB picture, whose codestream says that its samples have so many bits."""
    data = bytearray(stored(Image.new("RGB", (8, 6), "gold"), "JPEG2000", **options).getvalue())
    sizes = data.index(b"\xff\x4f\xff\x51") + 42
    for component in range(3):
        data[sizes + 3 * component] = bits - 1
    return io.BytesIO(data)


@pytest.mark.parametrize(
    ("bits", "file"),
    [
        (10, io.BytesIO(b"P6 2 1 1023\n" + bytes(12))),
        (16, io.BytesIO(b"P3 1 1 65535\n1 2 3\n")),
        (12, jpeg_2000(12)),
        (12, jpeg_2000(12, no_jp2=True)),
        (10, io.BytesIO(base64.b64decode(AVIF_10))),
    ],
    ids=["ppm", "ppm-text", "jp2", "j2k", "avif"],
)
def test_samples_that_pillow_cuts_to_8_bits_without_a_word(bits, file):
    if file.getvalue()[4:12] == b"ftypavif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    picture = load_image(file)
    assert picture.warnings == [f"{bits}-bit samples are reduced to 8 bits"] and not picture.exact


def bmp_565() -> io.BytesIO:
    sizes = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    return io.BytesIO(b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + sizes + masks + b"\0\xf8\0\0")


@pytest.mark.parametrize(
    "file",
    [
        bmp_565(),
        io.BytesIO(b"P6 1 1 31\n\x1f\0\0"),
        jpeg_2000(8),
        stored(Image.new("RGB", (4, 4), "red"), "PPM"),
    ],
    ids=["bmp", "ppm", "jp2", "ppm-8"],
)
def test_samples_of_at_most_8_bits_are_exact(file):
    picture = load_image(file)
    assert picture.warnings == [] and picture.exact


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_8_bit_avif():
    picture = load_image(stored(Image.new("RGB", (8, 8), "red"), "AVIF"))
    assert picture.warnings == []


def test_float_tiff():
    samples = np.array([[0.0, 0.5, 1.0]], np.float32)
    picture = load_image(stored(Image.fromarray(samples), "TIFF"))
    assert picture.pixels.tolist() == [[0, 128, 255]]
    assert "float" in picture.warnings[0]


@pytest.mark.parametrize("value", [1.5, -0.1, 200.0, np.nan, np.inf])
def test_float_outside_of_the_unit_interval(value):
    samples = np.array([[0.5, value]], np.float32)
    with pytest.raises(InputError, match="rescale"):
        load_image(stored(Image.fromarray(samples), "TIFF"))


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_samples_out_of_range(value):
    with pytest.raises(InputError, match="rescale"):
        load_image(stored(Image.fromarray(np.array([[0, value]], np.int32)), "TIFF"))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format):
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    picture = load_image(stored(image, format))
    assert np.abs(picture.pixels[8, 8].astype(int) - (0, 255, 255)).max() <= 2
    assert "CMYK" in picture.warnings[0]


def test_cmyk_with_a_damaged_profile():
    profile = bytearray(ICC)
    profile[16:20] = b"CMYK"
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    picture = load_image(stored(image, "TIFF", icc_profile=bytes(profile)))
    assert picture.pixels[8, 8].tolist() == [0, 255, 255]
    assert picture.icc is None
    assert "damaged" in picture.warnings[0]


def test_cmyk_goes_through_its_profile(monkeypatch):
    # littleCMS makes no CMYK profile to test with: check that it is asked, and believed.
    def convert(image, source, target, outputMode):
        assert image.mode == "CMYK" and outputMode == "RGB"
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    monkeypatch.setattr(ImageCms, "ImageCmsProfile", lambda file: file)
    image = Image.new("CMYK", (4, 4))
    image.info["icc_profile"] = bytes(16) + b"CMYK" + bytes(200)
    picture = from_any(image)
    assert picture.pixels[0, 0].tolist() == [1, 2, 3]
    assert picture.icc is None


@pytest.mark.parametrize("mode", ["RGBX", "YCbCr", "HSV", "La", "RGBa", "PA"])
def test_other_modes_are_converted(mode):
    picture = from_any(
        Image.new("RGBA", (3, 2), (51, 51, 51, 255))
        .convert("RGB")
        .convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode))
        .convert(mode)
    )
    assert picture.pixels.shape[:2] == (2, 3)
    assert np.abs(picture.pixels.astype(int) - 51).max() <= 2
    assert (picture.alpha is not None) == mode.lower().endswith("a")


def test_lab_is_refused():
    with pytest.raises(InputError, match="LAB"):
        from_any(Image.new("LAB", (2, 2)))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_first_frame_of_an_animation(format):
    need(format)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    file = stored(frames[0], format, save_all=True, append_images=frames[1:], **options)
    picture = load_image(file)
    assert np.abs(picture.pixels[4, 4].astype(int) - (255, 0, 0)).max() <= 6
    assert picture.warnings == ["the first of 3 frames is taken"]


# Metadata


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_metadata_is_carried_and_pixels_are_not_rotated(format):
    need(format)
    image = Image.fromarray(random_pixels(4, 10, 3))
    picture = load_image(stored(image, format, exif=b"Exif\0\0" + exif_data(), icc_profile=ICC))
    assert picture.pixels.shape == (4, 10, 3)
    exif = Image.Exif()
    exif.load(picture.exif)
    assert picture.exif[:2] in (b"II", b"MM")
    assert exif[ExifTags.Base.Orientation] == 6
    assert exif[ExifTags.Base.Make] == "pycodec"
    assert picture.icc == ICC


def test_tiff_orientation_is_applied_once():
    pixels = random_pixels(4, 10, 3)
    file = stored(Image.fromarray(pixels), "TIFF", tiffinfo={ExifTags.Base.Orientation: 6})
    picture = load_image(file)
    assert np.array_equal(picture.pixels, np.rot90(pixels, -1))
    assert picture.exif is None


def test_profile_of_another_colour_space_is_dropped():
    picture = load_image(stored(Image.new("L", (2, 2)), "TIFF", icc_profile=ICC))
    assert picture.icc is None
    assert "ICC" in picture.warnings[0]


# What is not a picture


def one_line(caught: pytest.ExceptionInfo, *words: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing(tmp_path):
    with pytest.raises(InputError) as caught:
        load_image(tmp_path / "none.png")
    one_line(caught, "none.png", "no such file")


def test_directory(tmp_path):
    with pytest.raises(InputError) as caught:
        load_image(tmp_path)
    one_line(caught, "is a directory")


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "empty"), (b"hello", "not a picture"), (bytes(999), "not a pic")]
)
def test_not_a_picture(tmp_path, content, word):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for source in (path, str(path), io.BytesIO(content)):
        with pytest.raises(InputError) as caught:
            load_image(source)
        one_line(caught, word)


def test_unreadable(public_folder):
    path = public_folder / "x.png"
    Image.new("L", (2, 2)).save(path)
    path.chmod(0)
    with unprivileged(), pytest.raises(InputError) as caught:
        load_image(path)
    one_line(caught, "x.png", "permission denied")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated(format):
    data = stored(Image.fromarray(random_pixels(40, 40, 3)), format).getvalue()
    for length in (len(data) // 10, len(data) // 2, len(data) - 40):
        with pytest.raises(InputError) as caught:
            load_image(io.BytesIO(data[:length]))
        one_line(caught)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_damage_never_escapes_as_another_exception(format, rng):
    data = stored(Image.fromarray(random_pixels(20, 20, 3)), format).getvalue()
    for _ in range(150):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            damaged[position] = rng.integers(256)
        with contextlib.suppress(InputError):
            load_image(io.BytesIO(bytes(damaged)))


def test_pixel_limit():
    file = stored(Image.new("1", (100, 100)))
    assert load_image(file, max_pixels=10_000).width == 100
    default = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match="100x100 pixels are more than 9999: raise the limit"):
        load_image(file, max_pixels=9_999)
    assert default == Image.MAX_IMAGE_PIXELS


def test_pixel_limits_of_threads():
    """Pillow has one limit for all of them."""
    data = stored(Image.new("1", (100, 100))).getvalue()
    default = Image.MAX_IMAGE_PIXELS

    def load(number: int) -> bool:
        limit = (9_999, 10_000, 10**9)[number % 3]
        try:
            load_image(io.BytesIO(data), max_pixels=limit)
        except InputError:
            return limit < 10_000
        return limit >= 10_000

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(load, range(120)))
    assert default == Image.MAX_IMAGE_PIXELS


def test_a_limit_above_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    file = stored(Image.new("1", (100, 100)))
    assert load_image(file, max_pixels=10_000).width == 100
    with pytest.raises(InputError, match="limit"):
        load_image(file)


def test_decompression_bomb():
    bomb = png(40_000, 40_000, 1, 0, (b"IDAT", zlib.compress(b"")))
    with pytest.raises(InputError, match="limit"):
        load_image(bomb)


# Pictures in memory


def test_from_arrays():
    gray, rgb, rgba = random_pixels(4, 5), random_pixels(4, 5, 3), random_pixels(4, 5, 4)
    assert np.array_equal(from_any(gray).pixels, gray)
    assert np.array_equal(from_any(gray[..., None]).pixels, gray)
    assert np.array_equal(from_any(rgb).pixels, rgb)
    assert np.array_equal(from_any(rgba).pixels, rgba[..., :3])
    assert np.array_equal(from_any(rgba).alpha, rgba[..., 3])
    flipped = from_any(rgb[::-1, ::2]).pixels
    assert flipped.flags.c_contiguous
    assert np.array_equal(flipped, rgb[::-1, ::2])
    picture = Picture(gray)
    assert from_any(picture) is picture


def test_from_tensors():
    rgba = random_pixels(4, 5, 4)
    tensor = torch.from_numpy(rgba).permute(2, 0, 1)
    assert np.array_equal(from_any(tensor).pixels, rgba[..., :3])
    assert np.array_equal(from_any(tensor).alpha, rgba[..., 3])
    assert np.array_equal(from_any(tensor[:1]).pixels, rgba[..., 0])
    assert np.array_equal(from_any(tensor[0]).pixels, rgba[..., 0])
    unit = (tensor / 255.0).requires_grad_()
    assert np.array_equal(from_any(unit).pixels, rgba[..., :3])
    assert np.array_equal(from_any(unit.double()).pixels, rgba[..., :3])


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((4, 4), np.float32), "uint8"),
        (np.zeros((4, 4), bool), "uint8"),
        (np.zeros((4, 4, 5), np.uint8), r"\[4, 4, 5\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\[1, 4, 4, 3\]"),
        (np.zeros(4, np.uint8), r"\[4\]"),
        (np.zeros((0, 4), np.uint8), "empty"),
        (np.zeros((4, 0, 3), np.uint8), "empty"),
        (torch.zeros(5, 4, 3), "C 1 to 4"),
        (torch.zeros(1, 3, 4, 4), r"\[1, 3, 4, 4\]"),
        (torch.full((3, 4, 4), 1.5), r"\[0, 1\]"),
        (torch.full((3, 4, 4), float("nan")), r"\[0, 1\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "uint8"),
        (torch.zeros(3, 0, 4), "empty"),
        ("photo.png", "load_image"),
        (None, "NoneType"),
    ],
)
def test_from_what_cannot_be_taken(image, word):
    with pytest.raises(InputError, match=word):
        from_any(image)


def test_from_a_broken_pil_image():
    data = stored(Image.fromarray(random_pixels(40, 40, 3))).getvalue()
    with pytest.raises(InputError, match="PIL image"):
        from_any(Image.open(io.BytesIO(data[: len(data) // 2])))


# Writing


LOSSLESS = [name for name in WRITABLE_FORMATS if name not in ("jpg", "jpeg")]


@pytest.mark.parametrize("format", LOSSLESS)
@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (1, 1)])
def test_round_trip_through_a_file(tmp_path, format, shape):
    path = tmp_path / f"x.{format}"
    assert save_image(Picture(random_pixels(*shape)), path) == []
    again = load_image(path)
    # WebP has no gray.
    pixels = again.pixels[..., 0] if format == "webp" and len(shape) == 2 else again.pixels
    assert np.array_equal(pixels, random_pixels(*shape))


@pytest.mark.parametrize("format", ["png", "tiff", "webp"])
@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3)])
def test_alpha_round_trip(tmp_path, format, shape):
    picture = Picture(random_pixels(*shape), alpha=random_pixels(5, 7).T.copy())
    picture.alpha[:3] = 0  # hidden colours must survive too
    path = tmp_path / f"x.{format}"
    save_image(picture, path)
    again = load_image(path)
    pixels = again.pixels[..., 0] if format == "webp" and len(shape) == 2 else again.pixels
    assert np.array_equal(pixels, picture.pixels)
    assert np.array_equal(again.alpha, picture.alpha)


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tiff"])
def test_metadata_round_trip(tmp_path, format):
    picture = Picture(random_pixels(9, 7, 3), icc=ICC, exif=exif_data(), xmp=XMP)
    path = tmp_path / f"x.{format}"
    lost = save_image(picture, path)
    again = load_image(path)
    assert (again.icc, again.xmp) == (ICC, XMP)
    assert again.exif == (None if format == "tiff" else picture.exif)
    assert len(lost) == (format == "tiff")


@pytest.mark.parametrize("format", ["bmp", "ppm"])
def test_lost_metadata_is_reported(tmp_path, format):
    picture = Picture(random_pixels(9, 7, 3), icc=ICC, exif=exif_data(), xmp=XMP)
    lost = save_image(picture, tmp_path / f"x.{format}")
    assert [name for line in lost for name in ("ICC", "EXIF", "XMP") if name in line] == [
        "ICC",
        "EXIF",
        "XMP",
    ]


@pytest.mark.parametrize(
    ("name", "picture", "word"),
    [
        ("x", Picture(random_pixels(2, 2)), "cannot write"),
        ("x.xyz", Picture(random_pixels(2, 2)), "cannot write"),
        ("x.jpg", Picture(random_pixels(2, 2), random_pixels(2, 2)), "transparency"),
        ("x.webp", Picture(np.zeros((1, 16384, 3), np.uint8)), "WEBP cannot hold"),
        ("x.jpg", Picture(np.zeros((1, 65536), np.uint8)), "JPEG cannot hold"),
        ("x.jpg", Picture(random_pixels(2, 2), exif=bytes(70_000)), "JPEG cannot hold"),
    ],
)
def test_what_a_format_cannot_hold(tmp_path, name, picture, word):
    with pytest.raises(InputError, match=word):
        save_image(picture, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_format_names():
    assert format_of("a/b.JPG") == "jpg"
    with pytest.raises(InputError, match="unknown picture format"):
        write_image(Picture(random_pixels(2, 2)), io.BytesIO(), "xyz")


def test_atomic_write_replaces_and_keeps_the_mode(tmp_path):
    path = tmp_path / "x"
    atomic_write(path, b"old")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["x"]


def test_atomic_write_through_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_atomic_write_to_devices_and_pipes(tmp_path):
    atomic_write("/dev/null", b"data")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(CodecError, match="no space left"):
        atomic_write("/dev/full", b"data")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    save_image(Picture(random_pixels(2, 2)), pipe, "png")
    reader.join()
    assert np.array_equal(load_image(io.BytesIO(received[0])).pixels, random_pixels(2, 2))


def test_atomic_write_faults(tmp_path):
    with pytest.raises(CodecError, match="folder does not exist"):
        atomic_write(tmp_path / "none" / "x", b"data")
    with pytest.raises(CodecError, match="is a directory"):
        atomic_write(tmp_path, b"data")
    (tmp_path / "file").touch()
    with pytest.raises(CodecError, match="not a directory"):
        atomic_write(tmp_path / "file" / "x", b"data")


def test_folder_without_write_permission(public_folder):
    public_folder.chmod(0o555)
    with unprivileged(), pytest.raises(CodecError, match="permission denied"):
        atomic_write(public_folder / "x", b"data")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure, where):
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def fail(*args):
        raise failure

    monkeypatch.setattr(os, where, fail)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else CodecError
    with pytest.raises(expected):
        save_image(Picture(random_pixels(50, 50)), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.png"]


@pytest.mark.parametrize("format", ["png", "webp", "tiff"])
def test_a_write_that_stops_half_way(tmp_path, format):
    """The system refuses to let the file grow, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CodecError):
            save_image(Picture(random_pixels(100, 100)), tmp_path / f"x.{format}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []
