"""Panoramas are known by their XMP metadata."""

from __future__ import annotations

import pytest

from pycodec.projection.metadata import is_equirectangular


def packet(*fields: str) -> bytes:
    return f"<rdf:Description {' '.join(fields)}>".encode()


@pytest.mark.parametrize(
    ("xmp", "expected"),
    [
        (None, False),
        (b"", False),
        (packet('dc:title="equirectangular"'), False),
        (packet('GPano:ProjectionType="equirectangular"'), True),
        (packet("GPano:ProjectionType = 'Equirectangular'"), True),
        (b"<GPano:ProjectionType>equirectangular</GPano:ProjectionType>", True),
        (b"<GPano:ProjectionType> equirectangular </GPano:ProjectionType>", True),
        (packet('GPano:ProjectionType="cylindrical"'), False),
        (
            packet(
                'GPano:ProjectionType="equirectangular"',
                'GPano:FullPanoWidthPixels="4096" GPano:CroppedAreaImageWidthPixels="4096"',
                'GPano:FullPanoHeightPixels="2048" GPano:CroppedAreaImageHeightPixels="2048"',
            ),
            True,
        ),
        (
            packet(
                'GPano:ProjectionType="equirectangular"',
                'GPano:FullPanoWidthPixels="4096" GPano:CroppedAreaImageWidthPixels="2000"',
            ),
            False,
        ),
        (b"\xff\xfe not text GPano:ProjectionType", False),
    ],
)
def test_detection(xmp, expected):
    assert is_equirectangular(xmp) is expected
