"""The file container: exact bytes, round trips, and every kind of damage."""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycodec.coding.alpha import decode_alpha, encode_alpha
from pycodec.coding.container import (
    MAX_PIXELS,
    MAX_SIDE,
    Codec,
    Container,
    Header,
    pack,
    peek,
    read_metadata,
    section_sizes,
    unpack,
)
from pycodec.coding.deflate import deflate, inflate
from pycodec.errors import CodecError, CorruptStreamError, InputError, UnsupportedError

TINY = Header(
    codec=Codec.PHOTO,
    fingerprint=bytes.fromhex("0123456789ABCDEF"),
    width=1,
    height=1,
    gray=True,
    alpha=False,
    bit_depth=8,
    quality=5000,
    tile_log2=6,
)


def crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def section(tag: int, payload: bytes) -> bytes:
    assert len(payload) < 128
    body = bytes([tag, len(payload)]) + payload
    return body + crc(body)


def split(data: bytes) -> tuple[bytes, bytes]:
    """Header and sections of a packed file."""
    end = section_sizes(data)["header"]
    return data[:end], data[end:]


def full_container() -> Container:
    header = replace(TINY, width=200, height=65, gray=False, alpha=True)
    streams = [bytes([index]) * (index * 40) for index in range(header.num_tiles)]
    alpha = encode_alpha(np.arange(200 * 65, dtype=np.uint32).astype(np.uint8).reshape(65, 200))
    return Container(header, streams, icc=b"icc" * 50, exif=b"II*\0exif", xmp=b"<x/>", alpha=alpha)


def test_example_of_the_format_document():
    document = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    example = document.split("## Example")[1]
    listed = re.findall(r"^ {4}((?:[0-9A-F]{2} )*[0-9A-F]{2})\b", example, flags=re.MULTILINE)
    assert pack(Container(TINY, [b"\xaa\xbb"])) == bytes.fromhex("".join(listed))


def test_round_trip_with_everything():
    container = full_container()
    data = pack(container)
    assert unpack(data) == container
    assert unpack(bytearray(data)) == container
    assert peek(data) == container.header
    assert peek(data[: section_sizes(data)["header"]]) == container.header


def test_empty_metadata_is_kept_apart_from_none():
    container = Container(TINY, [b"x"], icc=b"", xmp=b"")
    assert unpack(pack(container)) == container


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    tile_log2=st.integers(6, 24),
    gray=st.booleans(),
    quality=st.integers(100, 10000),
    bit_depth=st.integers(1, 16),
    codec=st.sampled_from(list(Codec)),
    data=st.data(),
)
def test_round_trip(width, height, tile_log2, gray, quality, bit_depth, codec, data):
    header = Header(codec, b"\0\xff" * 4, width, height, gray, False, bit_depth, quality, tile_log2)
    count = header.num_tiles
    streams = data.draw(st.lists(st.binary(max_size=300), min_size=count, max_size=count))
    container = Container(header, streams)
    assert unpack(pack(container)) == container


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1, 1, (1, 1)), (64, 64, (1, 1)), (65, 64, (1, 2)), (64, 129, (3, 1)), (1, 200, (4, 1))],
)
def test_tile_grid(width, height, expected):
    header = replace(TINY, width=width, height=height)
    assert header.tile_grid == expected
    assert header.num_tiles == expected[0] * expected[1]


@pytest.mark.parametrize(
    ("width", "height", "stream", "overhead"),
    [(1, 1, 2, 30), (768, 512, 30_000, 34), (MAX_SIDE, 64, 3_000_000, 36), (32768, 32768, 1, 34)],
)
def test_overhead_is_at_most_40_bytes(width, height, stream, overhead):
    header = replace(TINY, width=width, height=height, gray=False, tile_log2=24)
    assert len(pack(Container(header, [bytes(stream)]))) - stream == overhead <= 40


def test_section_sizes_add_up():
    data = pack(full_container())
    sizes = section_sizes(data)
    assert list(sizes) == ["header", "icc", "exif", "xmp", "alpha", "tiles"]
    assert sum(sizes.values()) == len(data)


def test_metadata_is_compressed():
    assert len(pack(Container(TINY, [b"x"], xmp=b" " * 4000))) < 100


def test_every_flip_is_detected():
    container = full_container()
    container.streams = [stream[:5] for stream in container.streams]
    data = pack(replace(container, alpha=encode_alpha(np.full((65, 200), 7, np.uint8))))
    assert len(data) < 250
    for position in range(len(data)):
        damaged = bytearray(data)
        for flip in range(1, 256):
            damaged[position] = data[position] ^ flip
            with pytest.raises(CodecError):
                unpack(damaged)


def test_every_truncation_is_detected():
    data = pack(full_container())
    for length in range(len(data)):
        with pytest.raises(CorruptStreamError):
            unpack(data[:length])


@pytest.mark.parametrize("garbage", [b"\0", b"\n", pack(Container(TINY, [b"x"]))])
def test_trailing_garbage_is_detected(garbage):
    with pytest.raises(CorruptStreamError, match="follow the end"):
        unpack(pack(Container(TINY, [b"x"])) + garbage)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(CodecError):
        unpack(data)
    with pytest.raises(CodecError):
        unpack(pack(Container(TINY, [b"x"]))[:24] + data[:50])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "not an .lci file"),
        (b"\x8cLC", "truncated"),
    ],
)
def test_what_is_not_a_file(data, message):
    with pytest.raises(CorruptStreamError, match=message):
        peek(data)


def test_error_says_where():
    data = bytearray(pack(full_container()))
    sizes = section_sizes(data)
    data[sizes["header"] + 10] ^= 1
    with pytest.raises(CorruptStreamError) as caught:
        unpack(data)
    assert caught.value.section == "icc"
    assert sizes["header"] < caught.value.offset <= sizes["header"] + sizes["icc"]
    assert "section icc" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_newer_version_is_unsupported():
    data = bytearray(pack(Container(TINY, [b"x"])))
    data[4] = 2
    with pytest.raises(UnsupportedError, match="version 2"):
        unpack(data)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(5, 0), (5, 5), (14, 0x74), (15, 0), (16, 0xFF), (17, 5), (17, 25), (18, 0)],
)
def test_unknown_values_under_a_valid_checksum_are_unsupported(offset, value):
    header, rest = split(pack(Container(replace(TINY, quality=100), [b"x"])))
    body = bytearray(header[:-4])
    body[offset] = value
    with pytest.raises(UnsupportedError):
        unpack(bytes(body) + crc(body) + rest)


def test_unknown_ancillary_section_is_skipped_and_critical_refused():
    container = Container(TINY, [b"x"])
    header, rest = split(pack(container))
    with_ancillary = header + section(0xF0, b"from the future") + rest
    assert unpack(with_ancillary) == container
    assert list(section_sizes(with_ancillary)) == ["header", "unknown 0xf0", "tiles"]
    with pytest.raises(UnsupportedError, match="0x70"):
        unpack(header + section(0x70, b"from the future") + rest)


def test_order_of_other_sections_is_free():
    header, rest = split(pack(Container(TINY, [b"x"])))
    xmp = section(0x83, b"\x01" + deflate(b"x"))
    icc = section(0x81, b"\x01" + deflate(b"i"))
    assert unpack(header + xmp + icc + rest) == Container(TINY, [b"x"], icc=b"i", xmp=b"x")


def test_repeated_section_is_refused():
    header, rest = split(pack(Container(TINY, [b"x"])))
    icc = section(0x81, b"\x01" + deflate(b"i"))
    with pytest.raises(CorruptStreamError, match="second section"):
        unpack(header + icc + icc + rest)


def test_alpha_flag_and_section_must_agree():
    header, rest = split(pack(Container(TINY, [b"x"])))
    with pytest.raises(CorruptStreamError, match="alpha"):
        unpack(header + section(0x02, b"a") + rest)
    flagged, rest = split(pack(Container(replace(TINY, alpha=True), [b"x"], alpha=b"a")))
    with pytest.raises(CorruptStreamError, match="alpha"):
        unpack(flagged + section(0x01, b"x"))


@pytest.mark.parametrize("size", [b"\x02", b"\x00", b"\xff\xff\xff\xff\x0f"])
def test_wrong_metadata_size_is_refused(size):
    header, rest = split(pack(Container(TINY, [b"x"])))
    with pytest.raises(CorruptStreamError, match="icc"):
        unpack(header + section(0x81, size + deflate(b"i")) + rest)


@pytest.mark.parametrize("length", [b"\x81\x00", b"\xff\xff\xff\xff\x7f", b"\x80" * 5 + b"\x01"])
def test_malformed_numbers_are_refused(length):
    header, _ = split(pack(Container(TINY, [b"x"])))
    body = b"\x01" + length + b"x"
    with pytest.raises(CorruptStreamError, match="malformed"):
        unpack(header + body + crc(body))


def test_huge_sizes_need_bytes_to_back_them():
    header = replace(TINY, width=1 << 15, height=1 << 15)
    packed, _ = split(pack(Container(header, [b""] * header.num_tiles)))
    with pytest.raises(CorruptStreamError, match="cannot hold the index"):
        unpack(packed + section(0x01, b"\x00" * 100))


def test_streams_longer_than_their_section_are_refused():
    packed, _ = split(pack(Container(replace(TINY, width=65), [b"a", b"b"])))
    with pytest.raises(CorruptStreamError, match="longer than their section"):
        unpack(packed + section(0x01, b"\x05abcd"))


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": 9},
        {"fingerprint": b"short"},
        {"width": 0},
        {"height": MAX_SIDE + 1},
        {"width": 1 << 16, "height": MAX_PIXELS >> 15},
        {"bit_depth": 17},
        {"quality": 99},
        {"quality": 10001},
        {"tile_log2": 5},
    ],
)
def test_pack_refuses_bad_headers(changes):
    with pytest.raises(InputError):
        pack(Container(replace(TINY, **changes), [b"x"]))


def test_pack_refuses_inconsistent_parts():
    with pytest.raises(InputError, match="1 tile streams, got 2"):
        pack(Container(TINY, [b"x", b"y"]))
    with pytest.raises(InputError, match="alpha"):
        pack(Container(TINY, [b"x"], alpha=b"a"))
    with pytest.raises(InputError, match="alpha"):
        pack(Container(replace(TINY, alpha=True), [b"x"]))


# The alpha plane


def alpha_planes() -> list[np.ndarray]:
    rows, columns = np.mgrid[:67, :45]
    random = np.random.default_rng(0).integers(0, 256, (67, 45), np.uint8)
    return [
        np.full((1, 1), 9, np.uint8),
        random[:1],
        random[:, :1],
        random,
        random[::2, ::-1],
        (random[:, :1] + columns * (random[:, 1:2] % 4)).astype(np.uint8),
        (columns * 5).astype(np.uint8),
        (rows * 3).astype(np.uint8),
        (rows * 3 + columns * 5).astype(np.uint8),
        np.where((rows - 30) ** 2 + (columns - 20) ** 2 < 300, 255, 0).astype(np.uint8),
    ]


@pytest.mark.parametrize("plane", alpha_planes())
def test_alpha_round_trip(plane):
    height, width = plane.shape
    decoded = decode_alpha(encode_alpha(plane), width, height)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, plane)


def test_alpha_filters_are_used():
    assert {encode_alpha(plane)[0] for plane in alpha_planes()} == {0, 1, 2, 3}


def test_alpha_of_a_large_plane_is_small():
    plane = np.full((1500, 1500), 255, np.uint8)
    plane[700:] = 0
    data = encode_alpha(plane)
    assert len(data) < 3000
    assert np.array_equal(decode_alpha(data, 1500, 1500), plane)


def test_damaged_alpha():
    data = encode_alpha(alpha_planes()[-1])
    for damaged in (b"", b"\x04" + data[1:], data[:1], data[:-2], data + b"\0", b"\0\xff\xff"):
        with pytest.raises(CorruptStreamError):
            decode_alpha(damaged, 45, 67)
    for width, height in ((44, 67), (45, 68), (1 << 20, 1 << 10)):
        with pytest.raises(CorruptStreamError):
            decode_alpha(data, width, height)


@pytest.mark.parametrize(
    "plane",
    [np.zeros((2, 2), np.float32), np.zeros((2, 2, 1), np.uint8), np.zeros((0, 2), np.uint8)],
)
def test_alpha_of_the_wrong_kind(plane):
    with pytest.raises(InputError):
        encode_alpha(plane)


def test_inflate_never_exceeds_the_size():
    bomb = deflate(bytes(1_000_000))
    with pytest.raises(CorruptStreamError):
        inflate(bomb, 10, section="icc")
    assert inflate(bomb, 1_000_000, section="icc") == bytes(1_000_000)


# Metadata without the tiles


def test_metadata_is_read_without_the_tiles():
    container = full_container()
    container.icc = np.random.default_rng(0).bytes(10_000)  # beyond the first read
    data = pack(container)
    header, metadata = read_metadata(io.BytesIO(data))
    assert header == container.header
    assert metadata == {"icc": container.icc, "exif": container.exif, "xmp": container.xmp}

    start = len(data) - section_sizes(data)["tiles"]
    assert read_metadata(io.BytesIO(data[: start + 4])) == (header, metadata)
    for end in range(0, start + 1, 7):
        with pytest.raises(CorruptStreamError):
            read_metadata(io.BytesIO(data[:end]))
    for position in range(4, start, 5):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(CodecError):
            read_metadata(io.BytesIO(damaged))


def test_no_metadata_and_a_hostile_length():
    plain = pack(Container(TINY, [b"stream"]))
    assert read_metadata(io.BytesIO(plain))[1] == {"icc": None, "exif": None, "xmp": None}
    header, _ = split(plain)
    hostile = header + b"\x81\xff\xff\xff\xff\x0f" + b"abc"  # an ICC profile of 4 GiB
    with pytest.raises(CorruptStreamError, match="truncated"):
        read_metadata(io.BytesIO(hostile))
