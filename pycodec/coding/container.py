"""The ``.lci`` file: a checked header and checked sections around the tile streams.

``docs/format.md`` describes every byte. In short: a header with its own CRC-32, then sections of
(tag, length, payload, CRC-32), the last of which holds the coded tiles. Nothing here knows how a
tile is coded.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import SEEK_END
from itertools import pairwise
from typing import BinaryIO, NamedTuple

from pycodec.coding.deflate import deflate, inflate
from pycodec.errors import CodecError, CorruptStreamError, InputError, UnsupportedError

# The first byte can start neither ASCII nor UTF-8 text, so the file is never taken for text.
MAGIC = b"\x8cLCI"
FORMAT_VERSION = 1
SUFFIX = ".lci"

MAX_SIDE = 1 << 24
MAX_PIXELS = 1 << 30
MIN_TILE_LOG2, MAX_TILE_LOG2 = 6, 24
MIN_QUALITY, MAX_QUALITY = 100, 10000  # hundredths

_FINGERPRINT_BYTES = 8
_CRC_BYTES = 4
_MAX_LENGTH = (1 << 32) - 1
_MAX_SECTION_START = 1 + 5  # tag and length
_FIRST_READ = 4096  # the header and, mostly, all metadata

_RGB_FLAG, _ALPHA_FLAG, _RESERVED_FLAGS = 0x01, 0x02, 0x0C


class Codec(enum.IntEnum):
    """Which codec made the tile streams."""

    PHOTO = 1
    LOSSLESS = 2
    SPHERE = 3
    HYPERPRIOR = 4


class _Tag(enum.IntEnum):
    """Section tags. Bit 7 marks an ancillary section: a reader that does not know it skips it."""

    TILES = 0x01
    ALPHA = 0x02
    ICC = 0x81
    EXIF = 0x82
    XMP = 0x83
    PRECISION = 0x84


_ANCILLARY = 0x80
_METADATA = {_Tag.ICC: "icc", _Tag.EXIF: "exif", _Tag.XMP: "xmp"}


@dataclass(frozen=True)
class Header:
    """What a decoder must know before it reads the first tile.

    Attributes:
        codec: a :class:`Codec`.
        fingerprint: 8 bytes that identify the weights.
        width, height: size of the picture in pixels.
        gray: one channel instead of three (RGB).
        alpha: an alpha plane is stored too.
        bit_depth: bits a sample, 1 to 16; pictures of today are 8.
        quality: hundredths, 100 to 10000; lossless codecs store 10000.
        tile_log2: binary logarithm of the side of a tile in pixels, 6 to 24.
    """

    codec: int
    fingerprint: bytes
    width: int
    height: int
    gray: bool
    alpha: bool
    bit_depth: int
    quality: int
    tile_log2: int

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels; tiles at the right and lower border may be smaller."""
        return 1 << self.tile_log2

    @property
    def tile_grid(self) -> tuple[int, int]:
        """(rows, columns) of tiles; streams are stored row by row. A sphere is cut in rows only."""
        size = self.tile_size
        columns = 1 if self.codec == Codec.SPHERE else -(-self.width // size)
        return -(-self.height // size), columns

    @property
    def num_tiles(self) -> int:
        rows, columns = self.tile_grid
        return rows * columns


@dataclass
class Container:
    """A whole file.

    Attributes:
        header: the :class:`Header`.
        streams: one coded stream a tile, row by row.
        icc: ICC profile.
        exif: EXIF data, starting with the TIFF header (``II*\\0`` or ``MM\\0*``).
        xmp: XMP packet, UTF-8.
        alpha: coded alpha plane (see :mod:`pycodec.coding.alpha`).
        precision: what the encoder expects the synthesis to compute in, for exact pixels: see
            ``docs/format.md``.
    """

    header: Header
    streams: list[bytes]
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    alpha: bytes | None = None
    precision: bytes | None = None


def pack(container: Container) -> bytes:
    """Write a file.

    Raises:
        InputError: a header field is out of range, or streams or alpha do not fit the header.
    """
    header = container.header
    fault = _header_fault(header)
    if fault:
        raise InputError(fault, section="header")
    if len(container.streams) != header.num_tiles:
        raise InputError(
            f"the header asks for {header.num_tiles} tile streams, got {len(container.streams)}"
        )
    if header.alpha != (container.alpha is not None):
        raise InputError("the header's alpha flag and the alpha plane do not agree")

    parts = [_pack_header(header)]
    for tag, name in _METADATA.items():
        data = getattr(container, name)
        if data is not None:
            parts += _pack_section(tag, [pack_number(len(data)), deflate(data)])
    if container.precision is not None:
        parts += _pack_section(_Tag.PRECISION, [container.precision])
    if container.alpha is not None:
        parts += _pack_section(_Tag.ALPHA, [container.alpha])
    parts += _pack_section(_Tag.TILES, _join(container.streams))
    return b"".join(parts)


def unpack(data: bytes) -> Container:
    """Read a file and check every byte of it.

    Raises:
        CorruptStreamError: the file is damaged, truncated, or continues after its end.
        UnsupportedError: the file needs a newer version of pycodec.
    """
    view = memoryview(data).cast("B")
    header, end = _read_header(view)
    payloads: dict[int, memoryview] = {}
    for section in _sections(view, end):
        if section.tag in _Tag.__members__.values():
            payloads[section.tag] = section.payload
        elif not section.tag & _ANCILLARY:
            raise UnsupportedError(
                f"the file has a critical section 0x{section.tag:02x} that this version does not "
                "know: update pycodec",
                offset=section.start,
            )
    if header.alpha != (_Tag.ALPHA in payloads):
        raise CorruptStreamError(
            "the header's alpha flag and the sections do not agree", section="alpha"
        )
    metadata = {
        name: _unpack_metadata(payloads[tag], name) if tag in payloads else None
        for tag, name in _METADATA.items()
    }
    return Container(
        header,
        split_streams(payloads[_Tag.TILES], header.num_tiles),
        alpha=bytes(payloads[_Tag.ALPHA]) if header.alpha else None,
        precision=bytes(payloads[_Tag.PRECISION]) if _Tag.PRECISION in payloads else None,
        **metadata,
    )


def peek(data: bytes) -> Header:
    """Read and check the header alone; ``data`` may end anywhere after it."""
    return _read_header(memoryview(data).cast("B"))[0]


def refuse_more_pixels(width: int, height: int, max_pixels: int) -> None:
    """Guard against decompression bombs.

    Raises:
        InputError: ``width * height`` is above ``max_pixels``.
    """
    if width * height > max_pixels:
        raise InputError(
            f"{width}x{height} pixels are more than {max_pixels}: raise the limit "
            "(--max-pixels, max_pixels) if you trust the file"
        )


def refuse_large(header: Header, max_pixels: int) -> None:
    """Guard against decompression bombs.

    Raises:
        InputError: the picture has more than ``max_pixels``.
    """
    refuse_more_pixels(header.width, header.height, max_pixels)


def read_metadata(file: BinaryIO) -> tuple[Header, dict[str, bytes | None]]:
    """Read and check what comes before the tiles of an open, seekable file.

    Returns:
        The header, and ``icc``, ``exif`` and ``xmp`` as in :class:`Container`.

    Raises:
        CorruptStreamError, UnsupportedError: as :func:`unpack`, of the part that is read.
    """
    size = file.seek(0, SEEK_END)
    file.seek(0)
    data = file.read(_FIRST_READ)
    header, offset = _read_header(memoryview(data))
    metadata = dict.fromkeys(_METADATA.values())
    while True:
        data += file.read(max(0, offset + _MAX_SECTION_START - len(data)))
        reader = _Reader(memoryview(data), "section header", offset)
        tag, length = reader.byte(), reader.varint()
        if tag == _Tag.TILES:
            return header, metadata
        # No further than the file goes: a damaged length must not ask for 4 GiB.
        end = min(size, reader.offset + length + _CRC_BYTES)
        data += file.read(max(0, end - len(data)))
        section = next(_sections(memoryview(data), offset))
        if tag in _METADATA:
            metadata[_METADATA[tag]] = _unpack_metadata(section.payload, section.name)
        offset = section.end


def section_sizes(data: bytes) -> dict[str, int]:
    """Bytes of each section with its framing, in file order; they add up to ``len(data)``."""
    view = memoryview(data).cast("B")
    _, end = _read_header(view)
    sizes = {"header": end}
    for section in _sections(view, end):
        sizes[section.name] = section.end - section.start
    return sizes


# Header


def _header_fault(header: Header) -> str | None:
    """What is out of range, or None."""
    checks = (
        (header.codec in Codec.__members__.values(), f"unknown codec {header.codec}"),
        (len(header.fingerprint) == _FINGERPRINT_BYTES, "the fingerprint must have 8 bytes"),
        (
            1 <= header.width <= MAX_SIDE
            and 1 <= header.height <= MAX_SIDE
            and header.width * header.height <= MAX_PIXELS,
            f"a size of {header.width}x{header.height} pixels is not possible: sides are limited "
            f"to {MAX_SIDE}, pixels to {MAX_PIXELS}",
        ),
        (1 <= header.bit_depth <= 16, f"bit depth {header.bit_depth} is not in 1..16"),
        (
            MIN_QUALITY <= header.quality <= MAX_QUALITY,
            f"quality {header.quality} is not in {MIN_QUALITY}..{MAX_QUALITY} hundredths",
        ),
        (
            MIN_TILE_LOG2 <= header.tile_log2 <= MAX_TILE_LOG2,
            f"tile size 2^{header.tile_log2} is not in 2^{MIN_TILE_LOG2}..2^{MAX_TILE_LOG2}",
        ),
    )
    return next((message for passed, message in checks if not passed), None)


def _pack_header(header: Header) -> bytes:
    flags = (
        (0 if header.gray else _RGB_FLAG)
        | (_ALPHA_FLAG if header.alpha else 0)
        | (header.bit_depth - 1) << 4
    )
    body = b"".join(
        (
            MAGIC,
            bytes([FORMAT_VERSION, header.codec]),
            header.fingerprint,
            bytes([flags]),
            header.quality.to_bytes(2, "little"),
            bytes([header.tile_log2]),
            pack_number(header.width),
            pack_number(header.height),
        )
    )
    return body + _crc(body)


def _read_header(view: memoryview) -> tuple[Header, int]:
    """The header and the offset of its end."""
    if not view:
        raise CorruptStreamError("the file is empty", offset=0)
    if view[: len(MAGIC)] != MAGIC[: len(view)]:
        raise CorruptStreamError("not an .lci file (wrong first bytes)", section="header", offset=0)
    reader = _Reader(view, "header")
    reader.take(len(MAGIC))
    version = reader.byte()
    if version != FORMAT_VERSION:
        raise UnsupportedError(
            f"format version {version} is not known to this version: update pycodec",
            section="header",
            offset=len(MAGIC),
        )
    codec = reader.byte()
    fingerprint = bytes(reader.take(_FINGERPRINT_BYTES))
    flags = reader.byte()
    quality = int.from_bytes(reader.take(2), "little")
    tile_log2 = reader.byte()
    header = Header(
        codec=codec,
        fingerprint=fingerprint,
        width=reader.varint(),
        height=reader.varint(),
        gray=not flags & _RGB_FLAG,
        alpha=bool(flags & _ALPHA_FLAG),
        bit_depth=(flags >> 4) + 1,
        quality=quality,
        tile_log2=tile_log2,
    )
    reader.check_crc(start=0)
    # Only now are the values what the writer wrote: what is wrong with them is not damage.
    fault = _header_fault(header)
    if flags & _RESERVED_FLAGS:
        fault = "reserved flags are set"
    if fault:
        raise UnsupportedError(
            f"{fault}: update pycodec, or do not trust the file", section="header"
        )
    return header, reader.offset


# Sections


class _Section(NamedTuple):
    tag: int
    payload: memoryview
    start: int
    end: int

    @property
    def name(self) -> str:
        known = self.tag in _Tag.__members__.values()
        return _Tag(self.tag).name.lower() if known else f"unknown 0x{self.tag:02x}"


def _pack_section(tag: int, payload: list[bytes]) -> list[bytes]:
    length = sum(map(len, payload))
    if length > _MAX_LENGTH:
        raise InputError(f"section 0x{tag:02x} is longer than 4 GiB: use a lower quality")
    parts = [bytes([tag]), pack_number(length), *payload]
    return [*parts, _crc(*parts)]


def _sections(view: memoryview, offset: int) -> Iterator[_Section]:
    """All sections, checked; the tiles are the last one, and the file ends with them."""
    seen = set()
    while _Tag.TILES not in seen:
        if offset == len(view):
            raise CorruptStreamError(
                "the file is truncated: its tiles are missing", section="tiles", offset=offset
            )
        reader = _Reader(view, "section header", offset)
        tag = reader.byte()
        reader.section = _Section(tag, view[:0], offset, offset).name
        payload = reader.take(reader.varint())
        reader.check_crc(start=offset)
        if tag in seen:
            raise CorruptStreamError(
                "a second section of this kind", section=reader.section, offset=offset
            )
        seen.add(tag)
        yield _Section(tag, payload, offset, reader.offset)
        offset = reader.offset
    if offset != len(view):
        raise CorruptStreamError(
            f"{len(view) - offset} bytes follow the end of the file", offset=offset
        )


def _unpack_metadata(payload: memoryview, section: str) -> bytes:
    reader = _Reader(payload, section)
    size = reader.varint()
    return inflate(payload[reader.offset :], size, section=section)


def join_streams(streams: list[bytes]) -> bytes:
    """Several streams as one: the lengths of all but the last as numbers, then the streams."""
    return b"".join(_join(streams))


def unpack_numbers(data: bytes, count: int) -> tuple[list[int], bytes]:
    """``count`` times what :func:`pack_number` made, and what follows.

    Raises:
        CorruptStreamError: there are not as many numbers.
    """
    reader = _Reader(memoryview(data), "tiles")
    return [reader.varint() for _ in range(count)], data[reader.offset :]


def _join(streams: list[bytes]) -> list[bytes]:
    # The last stream ends where the whole ends, so a single one needs no index.
    return [pack_number(len(stream)) for stream in streams[:-1]] + streams


def split_streams(payload: memoryview, count: int) -> list[bytes]:
    """Inverse of :func:`join_streams`, of ``count`` streams.

    Raises:
        CorruptStreamError: the lengths do not fit the payload.
    """
    # Each length takes a byte at least: no list longer than the payload is ever built.
    if count - 1 > len(payload):
        raise CorruptStreamError(
            f"{len(payload)} bytes cannot hold the index of {count} streams", section="tiles"
        )
    reader = _Reader(payload, "tiles")
    ends = [0]
    for _ in range(count - 1):
        ends.append(ends[-1] + reader.varint())
    body = payload[reader.offset :]
    if ends[-1] > len(body):
        raise CorruptStreamError("the streams are longer than their section", section="tiles")
    ends.append(len(body))
    return [bytes(body[start:end]) for start, end in pairwise(ends)]


# Bytes


def _crc(*parts: bytes) -> bytes:
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value.to_bytes(_CRC_BYTES, "little")


def pack_number(value: int) -> bytes:
    """A number below 2^32 as the file stores it.

    Unsigned LEB128: seven bits a byte, lowest first, bit 7 set on all but the last.
    """
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class _Reader:
    """Reads forward through a buffer and never past its end."""

    def __init__(self, view: memoryview, section: str, offset: int = 0) -> None:
        self.view = view
        self.section = section
        self.offset = offset

    def _fail(self, message: str) -> CodecError:
        return CorruptStreamError(message, section=self.section, offset=self.offset)

    def take(self, size: int) -> memoryview:
        left = len(self.view) - self.offset
        if size > left:
            raise self._fail(f"truncated: {size} bytes are needed, {left} are left")
        self.offset += size
        return self.view[self.offset - size : self.offset]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        """An unsigned LEB128 number below 2^32, in its shortest form."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > _MAX_LENGTH or (byte == 0 and shift > 0):
                    break
                return value
        raise self._fail("malformed number")

    def check_crc(self, start: int) -> None:
        """Compare the next four bytes with the checksum of all bytes from ``start``."""
        expected = _crc(self.view[start : self.offset])
        if self.take(_CRC_BYTES) != expected:
            raise self._fail("damaged: the checksum does not match")
