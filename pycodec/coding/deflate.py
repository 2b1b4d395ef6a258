"""Raw DEFLATE (RFC 1951) with an exact and bounded size, for what is stored beside the pixels."""

from __future__ import annotations

import zlib

from pycodec.errors import CorruptStreamError

# No DEFLATE stream expands further than this: a match of 258 bytes costs two bits at least.
MAX_EXPANSION = 1032


def deflate(data: bytes | memoryview) -> bytes:
    """Compress ``data`` to a raw DEFLATE stream."""
    compressor = zlib.compressobj(level=9, wbits=-15)
    return compressor.compress(data) + compressor.flush()


def inflate(data: bytes | memoryview, size: int, *, section: str) -> bytes:
    """Decompress a raw DEFLATE stream that must hold exactly ``size`` bytes.

    Never produces more than ``size`` + 1 bytes, so a hostile stream cannot fill the memory.

    Args:
        data: the stream.
        size: number of bytes that it must decompress to.
        section: name of the file section, for the error message.

    Raises:
        CorruptStreamError: the stream is damaged or holds another number of bytes.
    """
    if size > MAX_EXPANSION * len(data):
        raise CorruptStreamError(
            f"{len(data)} compressed bytes cannot hold {size} bytes", section=section
        )
    decompressor = zlib.decompressobj(wbits=-15)
    try:
        plain = decompressor.decompress(data, size + 1)
    except zlib.error as error:
        raise CorruptStreamError(f"damaged DEFLATE stream: {error}", section=section) from None
    if len(plain) != size or not decompressor.eof or decompressor.unused_data:
        raise CorruptStreamError(f"the DEFLATE stream does not hold {size} bytes", section=section)
    return plain
