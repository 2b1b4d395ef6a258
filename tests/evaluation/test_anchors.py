"""The anchors code what they are given, as they are said to."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pycodec.errors import CodecError, InputError
from pycodec.evaluation import anchors
from pycodec.evaluation.extras import require
from pycodec.evaluation.metrics import psnr


@pytest.mark.parametrize("name", anchors.available_anchors())
@pytest.mark.parametrize("gray", [False, True])
def test_rate_and_quality_rise_along_the_settings(photograph, name, gray):
    codec = anchors.anchor(name)
    pixels = np.ascontiguousarray(photograph[60:188, 100:292, 1] if gray else photograph[60:188])
    points = []
    for setting in codec.settings:
        data = codec.encode(pixels, setting)
        decoded = codec.decode(data)
        if gray and decoded.ndim == 3:
            assert np.ptp(decoded.astype(int), axis=2).max() <= 2
            decoded = decoded[..., 0]
        points.append((len(data), psnr(pixels, decoded)))
    assert points == sorted(points)
    assert points[0][1] < 33 < 37 < points[-1][1]


def test_jpeg_is_progressive_and_subsampled(photograph):
    data = anchors.JPEG.encode(photograph, 75)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["progressive"]
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
    plain = io.BytesIO()
    Image.fromarray(photograph).save(plain, "JPEG", quality=75)
    assert len(data) < len(plain.getvalue())


def test_jpeg_of_size(photograph):
    data, quality = anchors.jpeg_of_size(photograph, 15_000)
    assert len(data) <= 15_000 < len(anchors.JPEG.encode(photograph, quality + 1))
    assert data == anchors.JPEG.encode(photograph, quality)
    assert anchors.jpeg_of_size(photograph, 10)[1] == 1
    assert anchors.jpeg_of_size(photograph, 10**9)[1] == 95


def test_unknown_and_missing_anchors(monkeypatch):
    with pytest.raises(InputError, match="mp3"):
        anchors.anchor("mp3")
    monkeypatch.setattr(anchors.features, "check", lambda name: False)
    with pytest.raises(CodecError, match="without avif"):
        anchors.anchor("avif")


def test_missing_package_names_the_extra():
    with pytest.raises(CodecError, match=r"no_such_package: pip install 'pycodec\[eval\]'"):
        require("no_such_package.module", "eval")
