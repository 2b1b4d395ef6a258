"""What a file's metadata say about its projection."""

from __future__ import annotations

import re

PROJECTIONS = ("auto", "none", "erp")
"""What a picture may be said to be; ``auto``: what its metadata say."""

# As an attribute (GPano:Name="value") or as an element (<GPano:Name>value<).
_FIELD = rb"""GPano:%s\s*(?:=\s*["']|>)\s*([^"'<\s]+)"""


def is_equirectangular(xmp: bytes | None) -> bool:
    """Whether an XMP packet says that the picture is a whole equirectangular panorama.

    By the GPano properties of Google's Photo Sphere XMP metadata: the projection, and a cropped
    area that is the full one, if it is given at all. The packet is searched, not parsed: XML from
    anywhere can do harm to a parser.
    """
    if not xmp:
        return False
    kind = _field(xmp, b"ProjectionType")
    if kind is None or kind.lower() != b"equirectangular":
        return False
    return all(
        _field(xmp, b"CroppedAreaImage%sPixels" % side)
        in (None, _field(xmp, b"FullPano%sPixels" % side))
        for side in (b"Width", b"Height")
    )


def _field(xmp: bytes, name: bytes) -> bytes | None:
    found = re.search(_FIELD % name, xmp)
    return found.group(1) if found else None
