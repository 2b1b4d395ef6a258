"""The codec of the sphere: pictures of any size, poles, seams, damage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data

import pycodec
from pycodec.cli import main
from pycodec.coding.container import Codec, pack, peek, unpack
from pycodec.errors import CodecError, CorruptStreamError, InputError
from pycodec.evaluation.sphere import ws_psnr
from pycodec.images import load_image
from pycodec.models import sphere
from pycodec.models.model_folder import WEIGHTS
from pycodec.models.photo import load_photo_model
from pycodec.models.photo_network import LAMBDA_MAX, LAMBDA_MIN
from pycodec.models.sphere import UNIT, SphereCodec, tile_quality, tile_weight
from pycodec.models.zoo import load_model

from ..levels import LEVELS, simd_level


def panorama(height: int, width: int) -> np.ndarray:
    """A photograph bent around the sphere: smooth where it meets itself, and at the poles."""
    photo = data.astronaut().astype(np.float64)
    longitude = (np.arange(width) + 0.5) / width * 2 * math.pi
    latitude = (0.5 - (np.arange(height) + 0.5) / height) * math.pi
    x = 250 + 200 * np.outer(np.cos(latitude), np.sin(longitude))
    y = 250 - 200 * np.sin(latitude)[:, None] * np.ones(width)
    z = np.outer(np.cos(latitude), np.cos(longitude))
    picture = photo[y.astype(int), x.astype(int)]
    return (picture * (0.75 + 0.25 * z[..., None])).astype(np.uint8)


@pytest.fixture(scope="module")
def codec() -> SphereCodec:
    return SphereCodec(load_model("photo"))


def decode(codec: SphereCodec, coded, pixels: np.ndarray, **options) -> np.ndarray:
    height, width = pixels.shape[:2]
    return codec.decompress(
        coded.streams, width, height, coded.quality_code, tile_log2=coded.tile_log2, **options
    )


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 90), (70, 1), (64, 128), (100, 200), (130, 256), (256, 512)], ids=str
)
def test_any_size_comes_back(codec, size):
    pixels = panorama(*size)
    coded = codec.compress(pixels, 80, code_length=True)
    decoded = decode(codec, coded, pixels)
    assert decoded.shape == pixels.shape and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - pixels).mean() < 8
    bits = 8 * sum(map(len, coded.streams))
    # Widths and the coder's states.
    assert coded.code_length_bits < bits < 1.002 * coded.code_length_bits + 8 * 60


def test_bands_threads_and_quality(codec):
    pixels = panorama(256, 512)
    whole = codec.compress(pixels, 60)
    bands = codec.compress(pixels, 60, tile_log2=6, threads=1)
    assert (len(whole.streams), len(bands.streams)) == (1, 4)
    a, b = decode(codec, whole, pixels), decode(codec, bands, pixels)
    # Contexts end at bands, transforms do not.
    assert abs(ws_psnr(pixels, a) - ws_psnr(pixels, b)) < 0.2
    assert codec.compress(pixels, 60, threads=1).streams == whole.streams
    worse = codec.compress(pixels, 20)
    assert len(worse.streams[0]) < 0.6 * len(whole.streams[0])
    assert ws_psnr(pixels, decode(codec, worse, pixels)) < ws_psnr(pixels, a) - 3


def test_bands_far_apart_are_coded_alone(codec):
    pixels = panorama(320, 320)
    before = codec.compress(pixels, 50, tile_log2=6, widths=[5] * 5)
    pixels[256:] //= 2
    after = codec.compress(pixels, 50, tile_log2=6, widths=[5] * 5)
    assert before.streams[:2] == after.streams[:2]
    assert before.streams[4] != after.streams[4]


def test_half_a_turn_changes_nothing(codec):
    """Of widths that the encoder chooses, all even: the same symbols, at other places."""
    pixels = panorama(256, 640)
    pixels[:64] = pixels[:64].mean((0, 1))  # smooth, so the first tile is narrow
    pixels[64:128] = (pixels[64:128].astype(float) + np.roll(pixels[64:128], 1, 1)) / 2
    assert sphere._widths_for(pixels, 5000)[0] == 2
    turned = np.roll(pixels, 320, axis=1)
    coded = [codec.compress(p, 50, keep_symbols=True) for p in (pixels, turned)]
    widths = [c.streams[0][:4] for c in coded]
    assert widths[0] == widths[1] and not any(width % 2 for width in widths[0])
    symbols = [np.sort(c.symbols[0]) for c in coded]
    assert np.mean(symbols[0] != symbols[1]) < 1e-4  # floats may round to the other side
    a, b = (decode(codec, c, pixels) for c in coded)
    assert close(a, np.roll(b, -320, axis=1))


def test_widths_of_odd_pictures_are_even_or_whole():
    x = torch.rand(1, 3, UNIT, 5 * UNIT)
    assert sphere.choose_widths(x, 9000) == [5]
    assert sphere.choose_widths(torch.full_like(x, 0.5), 9000) == [2]
    assert sphere.choose_widths(torch.full((1, 3, UNIT, UNIT), 0.5), 9000) == [1]


def test_there_is_no_seam(codec):
    """A turned picture gives the turned decode; by whole units of all widths, here."""
    pixels = panorama(256, 512)
    turned = np.roll(pixels, 128, axis=1)
    widths = [4, 8, 8, 4]
    a = decode(codec, codec.compress(pixels, 50, widths=widths), pixels)
    b = decode(codec, codec.compress(turned, 50, widths=widths), turned)
    b = np.roll(b, -128, axis=1)
    assert abs(ws_psnr(pixels, a) - ws_psnr(pixels, b)) < 0.02
    near = [-2, -1, 0, 1]  # the former border
    errors = [np.square(d[:, near].astype(float) - pixels[:, near]).mean() for d in (a, b)]
    assert abs(10 * math.log10(errors[0] / errors[1])) < 0.1


def test_narrow_tiles_are_chosen_where_nothing_is_lost():
    rows = panorama(128, 512)
    rows[:64] = rows[:64, :1]  # the same all around
    tiles = sphere._to_float(rows)
    low, high = (sphere.choose_widths(tiles, q) for q in (500, 9500))
    assert low[0] == high[0] == 2  # the narrowest even width
    assert 2 < low[1] <= high[1] <= 8


def test_weights_are_cosines_and_qualities_follow():
    for tiles in (1, 2, 7, 16, 64):
        for tile in range(tiles):
            numerator, denominator = tile_weight(tile, tiles)
            cosine = math.sin(math.pi * (tile + 0.5) / tiles)
            assert abs(numerator / denominator - cosine) < 0.002
            # The multiplier grows 600 times over 99 of quality.
            exact = 5000 + 9900 * math.log(cosine * 32 / 20) / math.log(600)
            assert abs(tile_quality(5000, tile, tiles, 20, 32) - exact) < 1073 / 8 + 60
    octaves = math.log2(LAMBDA_MAX / LAMBDA_MIN)
    assert round(9900 / octaves) == sphere.QUALITY_AN_OCTAVE
    assert tile_quality(200, 0, 64, 32, 32) == 100
    assert tile_quality(9900, 32, 64, 1, 32) == 10000


@pytest.mark.parametrize(("source", "target"), [(64, 64), (100, 128), (128, 100), (1, 64), (90, 7)])
def test_rows_are_resampled_as_torch_does(source, target):
    x = torch.rand(1, 3, source, 5)
    expected = F.interpolate(x, (target, 5), mode="bicubic", antialias=True)
    for begin, end in ((0, target), (target // 3, target // 2 + 1), (target - 1, target)):
        low, high = sphere._rows_read(source, target, begin, end)
        rows = sphere._to_rows(x[:, :, low:high], low, source, target, begin, end)
        torch.testing.assert_close(rows, expected[:, :, begin:end], atol=1e-5, rtol=0)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal, but for floats that were rounded to the other side: convolutions of other sizes."""
    difference = np.abs(a.astype(int) - b)
    return a.shape == b.shape and difference.max() <= 1 and difference.mean() < 1e-3


@pytest.mark.parametrize("size", [(640, 256), (600, 250)], ids=str)
@pytest.mark.parametrize("rows", [(0, 1), (100, 160), (250, 390), (500, 600)], ids=str)
def test_some_rows_are_those_of_the_whole(codec, size, rows):
    pixels = panorama(*size)
    coded = codec.compress(pixels, 60, tile_log2=7)
    whole = decode(codec, coded, pixels)
    assert close(decode(codec, coded, pixels, rows=rows), whole[slice(*rows)])
    with pytest.raises(InputError, match="rows 5 to 640"):
        decode(codec, coded, pixels, rows=(5, 641))


def test_only_what_rows_need_is_decoded(codec, monkeypatch):
    pixels = panorama(1024, 128)
    coded = codec.compress(pixels, 30, tile_log2=7, widths=[2] * 16)
    bands, tiles = [], []
    model = codec.photo.entropy_model
    decode_sphere, synthesis = model.decode_sphere, codec.photo.synthesis.forward
    monkeypatch.setattr(
        model, "decode_sphere", lambda *args: bands.append(args[0]) or decode_sphere(*args)
    )
    monkeypatch.setattr(
        codec.photo.synthesis,
        "forward",
        lambda y, quality: tiles.append(len(y)) or synthesis(y, quality),
    )
    decode(codec, coded, pixels, rows=(512, 640))  # tiles 8 and 9, and two on each side
    assert (len(bands), tiles) == (3, [6])
    # A damaged band elsewhere does not matter.
    coded.streams[0] = coded.streams[0][:2] + b"?" * 40
    decode(codec, coded, pixels, rows=(512, 640))
    with pytest.raises(CorruptStreamError):
        decode(codec, coded, pixels)


@pytest.mark.parametrize("height", [1024, 1000])
def test_large_pictures_pass_in_chunks(codec, monkeypatch, height):
    pixels = panorama(height, 192)
    whole = codec.compress(pixels, 60)
    decoded = decode(codec, whole, pixels)
    monkeypatch.setattr(sphere, "CHUNK_PIXELS", 1)
    assert sphere._chunks(0, 16, 3) == [(0, 4), (4, 8), (8, 12), (12, 16)]
    assert close(decode(codec, whole, pixels), decoded)
    chunked = codec.compress(pixels, 60)
    assert sum(map(len, chunked.streams)) == pytest.approx(sum(map(len, whole.streams)), rel=1e-3)
    # A latent may have been rounded to the other side.
    assert abs(ws_psnr(pixels, decode(codec, chunked, pixels)) - ws_psnr(pixels, decoded)) < 0.01


def test_sizes_that_no_one_could_hold_are_refused(codec):
    wide = np.broadcast_to(np.uint8(0), (2, sphere.MAX_WIDTH + 1, 3))
    with pytest.raises(InputError, match="at most 32768 pixels wide, not 32769"):
        codec.compress(wide)
    with pytest.raises(CorruptStreamError, match="32768 pixels wide"):
        codec.decompress([b""], sphere.MAX_WIDTH + 1, 2, 5000)
    high = np.broadcast_to(np.uint8(0), (4096, sphere.MAX_WIDTH, 3))
    with pytest.raises(InputError, match="a band of 4096 rows"):
        codec.compress(high, tile_log2=12)
    with pytest.raises(CorruptStreamError, match="a band of 4096 rows"):
        codec.decompress([b""], sphere.MAX_WIDTH, 4096, 5000, tile_log2=12)


def test_damage(codec):
    pixels = panorama(128, 256)
    streams = codec.compress(pixels, 50).streams
    stream = streams[0]
    for damaged in (stream[:1], stream[: len(stream) // 2], stream + b"\0", b""):
        with pytest.raises(CodecError):
            codec.decompress([damaged], 256, 128, 5000)
    for width in (0, 5):
        with pytest.raises(CorruptStreamError, match="units wide"):
            codec.decompress([bytes([width]) + stream[1:]], 256, 128, 5000)
    with pytest.raises(CorruptStreamError, match="1 bands, but 2 streams"):
        codec.decompress(streams * 2, 256, 128, 5000)
    with pytest.raises(CorruptStreamError, match="out of range"):
        codec.decompress(streams, 256, 128, 5000, tile_log2=13)


def test_bad_input(codec):
    pixels = panorama(128, 256)
    for options, message in (
        ({"quality": 0}, "quality"),
        ({"tile_log2": 5}, "bands"),
        ({"widths": [4]}, "2 tiles"),
        ({"widths": [4, 5]}, "1 to 4"),
    ):
        with pytest.raises(InputError, match=message):
            codec.compress(pixels, **options)
    with pytest.raises(InputError, match="uint8"):
        codec.compress(pixels[..., 0])


@pytest.fixture(scope="module")
def integer_codec() -> SphereCodec:
    return SphereCodec(load_model("photo-sphere", precision="mixed"))


@pytest.mark.parametrize("size", [(1, 1), (70, 1), (100, 200), (130, 256), (256, 512)], ids=str)
def test_integers_code_as_floats_do(integer_codec, size):
    pixels = panorama(*size)
    floats = SphereCodec(load_model("photo-sphere", precision="fp32"))
    results = []
    for coder in (floats, integer_codec):
        coded = coder.compress(pixels, 60)
        error = np.square(decode(coder, coded, pixels).astype(float) - pixels).mean()
        results.append((sum(map(len, coded.streams)), error))
    (length, error), (integer_length, integer_error) = results
    assert integer_length == pytest.approx(length, rel=0.01, abs=8)
    assert integer_error < 1.04 * error + 0.3
    # Each reads what the other wrote.
    near = decode(floats, coded, pixels).astype(int) - decode(integer_codec, coded, pixels)
    assert np.abs(near).mean() < 0.7


@pytest.mark.parametrize("size", [(640, 256), (600, 250)], ids=str)
def test_pixels_of_integers_are_exact(integer_codec, monkeypatch, size):
    """Whole or in part, in one piece or in chunks."""
    pixels = panorama(*size)
    coded = integer_codec.compress(pixels, 60, tile_log2=7)
    whole = decode(integer_codec, coded, pixels)
    for rows in ((0, 1), (250, 390)):
        part = decode(integer_codec, coded, pixels, rows=rows, threads=1)
        assert np.array_equal(part, whole[slice(*rows)])
    monkeypatch.setattr(sphere, "CHUNK_PIXELS", 1)
    assert np.array_equal(decode(integer_codec, coded, pixels), whole)
    assert integer_codec.compress(pixels, 60, tile_log2=7).streams == coded.streams


def test_pixels_of_integers_are_those_of_every_level(integer_codec):
    pixels = panorama(70, 100)
    coded = integer_codec.compress(pixels, 60)
    expected = decode(integer_codec, coded, pixels)
    for level in LEVELS:
        with simd_level(level):
            other = SphereCodec(load_photo_model(WEIGHTS / "photo-sphere", precision="mixed"))
            assert np.array_equal(decode(other, coded, pixels), expected)


def test_integers_turn_with_the_sphere(integer_codec):
    pixels = panorama(256, 512)
    turned = np.roll(pixels, 128, axis=1)
    widths = [4, 8, 8, 4]
    coded = [integer_codec.compress(p, 50, widths=widths) for p in (pixels, turned)]
    a, b = (decode(integer_codec, c, pixels) for c in coded)
    assert np.array_equal(np.roll(a, 128, axis=1), b)


def test_exact_pixels_of_files():
    pixels = panorama(128, 256)
    asks = pycodec.encode(pixels, 40, projection="erp", exact_pixels=True)
    expected = pycodec.decode(asks, precision="int8")
    assert np.array_equal(pycodec.decode(asks), expected)
    assert not np.array_equal(pycodec.decode(asks, precision="fp32"), expected)
    container = unpack(memoryview(asks))
    assert container.precision == b"\x01"
    container.precision = b"\x01\x00\x01"  # widths of a model that has none
    with pytest.raises(CorruptStreamError, match="widths"):
        pycodec.decode(pack(container))


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
    b'GPano:ProjectionType="equirectangular" GPano:FullPanoWidthPixels="256"/></x:xmpmeta>'
)


def test_files_and_metadata(tmp_path, capsys):
    pixels = panorama(128, 256)
    source, coded, result = (str(tmp_path / name) for name in ("a.webp", "a.lci", "b.webp"))
    Image.fromarray(pixels).save(source, lossless=True, xmp=XMP)
    assert main(["encode", source, coded, "--quiet"]) == 0
    assert peek((tmp_path / "a.lci").read_bytes()).codec == Codec.SPHERE
    assert main(["info", coded]) == 0
    assert "sphere" in capsys.readouterr().out
    assert main(["decode", coded, result, "--quiet"]) == 0
    picture = load_image(result)
    assert picture.xmp == XMP
    assert ws_psnr(pixels, picture.pixels) > 28
    assert main(["encode", source, coded, "--quiet", "--force", "--projection", "none"]) == 0
    assert peek((tmp_path / "a.lci").read_bytes()).codec == Codec.PHOTO


def test_python_interface():
    pixels = panorama(64, 128)
    assert peek(pycodec.encode(pixels)).codec == Codec.PHOTO
    gray = pixels[..., 0]
    coded = pycodec.encode([pixels, gray], projection="erp")
    assert [peek(c).codec for c in coded] == [Codec.SPHERE] * 2
    decoded = pycodec.decode(coded)
    assert decoded[0].shape == pixels.shape and decoded[1].shape == gray.shape
    tuned, photo = load_model("photo-sphere"), load_model("photo")
    assert [peek(c).fingerprint for c in coded] == [tuned.fingerprint] * 2
    old = pycodec.encode(pixels, projection="erp", model="photo")  # what earlier versions wrote
    assert peek(old).fingerprint == photo.fingerprint
    assert ws_psnr(pixels, pycodec.decode(old)) > 27
    # Fine-tuned weights, on a picture unlike what they were tuned to: about as good.
    assert abs(ws_psnr(pixels, pycodec.decode(old)) - ws_psnr(pixels, decoded[0])) < 0.5
    with pytest.raises(InputError, match="projection must be one of"):
        pycodec.encode(pixels, projection="cube")
    with pytest.raises(InputError, match="knows no projection"):
        pycodec.encode(pixels, lossless=True, projection="erp")
