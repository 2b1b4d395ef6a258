"""How many bits the samples of a picture file have, where Pillow reads them as 8 without a word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

_BOX_HEADER = 8
_FULL_BOX = 4  # version and flags
_CODESTREAM = b"\xff\x4f\xff\x51"  # JPEG 2000: start of codestream, then its sizes
# From the marker of the sizes to the number of components, and bytes of each; ISO/IEC 15444-1, A.5.
_SIZES_TO_COMPONENTS, _COMPONENT = 38, 3


def sample_bits(image: Image.Image) -> int:
    """Of an opened picture, before it is loaded; 8 where nothing else is known.

    PPM says it by its largest value, JPEG 2000 by the sizes of its codestream (ISO/IEC 15444-1,
    A.5), AVIF by the configuration of its items (AV1 Codec ISO Media File Format Binding, 2.3).
    """
    if image.format == "PPM":
        arguments = image.tile[0][3] if image.tile else ()
        is_scaled = isinstance(arguments, tuple) and len(arguments) > 1
        return int(arguments[1]).bit_length() if is_scaled else 8
    file = getattr(image, "fp", None)
    if image.format not in ("JPEG2000", "AVIF") or file is None or getattr(file, "closed", False):
        return 8
    place = file.tell()
    try:
        return _jpeg_2000(file) if image.format == "JPEG2000" else _avif(file)
    finally:
        file.seek(place)


def _jpeg_2000(file: BinaryIO) -> int:
    file.seek(0)
    begin = 0
    if file.read(4) != _CODESTREAM:
        begin = next((start for kind, start, _ in _boxes(file, 0, None) if kind == b"jp2c"), 0)
    file.seek(begin)
    sizes = file.read(2 + _SIZES_TO_COMPONENTS + 2)
    if not sizes.startswith(_CODESTREAM) or len(sizes) < 2 + _SIZES_TO_COMPONENTS + 2:
        return 8
    components = file.read(_COMPONENT * int.from_bytes(sizes[-2:], "big"))
    return max(((depth & 0x7F) + 1 for depth in components[::_COMPONENT]), default=8)


def _avif(file: BinaryIO) -> int:
    bits = 8
    inside = [(0, None)]
    while inside:
        for kind, start, end in _boxes(file, *inside.pop()):
            if kind in (b"meta", b"iprp", b"ipco"):
                inside.append((start + _FULL_BOX * (kind == b"meta"), end))
            elif kind == b"av1C":
                file.seek(start)
                flags = file.read(3)[2:] or b"\0"
                bits = max(bits, 8 + 2 * (flags[0] >> 6 & 1) + 2 * (flags[0] >> 5 & 1))
    return bits


def _boxes(file: BinaryIO, start: int, end: int | None) -> Iterator[tuple[bytes, int, int | None]]:
    """Boxes of the ISO base media format: kind, and where the content starts and ends."""
    while end is None or start + _BOX_HEADER <= end:
        file.seek(start)
        header = file.read(_BOX_HEADER)
        if len(header) < _BOX_HEADER:
            return
        size, content = int.from_bytes(header[:4], "big"), start + _BOX_HEADER
        if size == 1:
            size, content = int.from_bytes(file.read(8), "big"), content + 8
        stop = end if size == 0 else start + size
        if stop is not None and stop < content:
            return
        yield header[4:], content, stop
        if stop is None:
            return
        start = stop
