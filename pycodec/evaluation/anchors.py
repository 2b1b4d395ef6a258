"""JPEG, WebP, AVIF and JPEG XL, set as they are commonly compared against."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features

from pycodec.errors import CodecError, InputError
from pycodec.evaluation.extras import require


@dataclass(frozen=True)
class TestedCodec:
    """A codec and the points of its rate-distortion curve.

    Attributes:
        name: for tables and plots.
        settings: the quality parameters to measure, in the codec's own units.
        encode: (pixels uint8 [H, W] or [H, W, 3], setting) to the bytes of a file.
        decode: the bytes of a file to pixels, RGB even where gray went in.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    name: str
    settings: tuple[float, ...]
    encode: Callable[[np.ndarray, float], bytes]
    decode: Callable[[bytes], np.ndarray]


def _pillow_codec(
    name: str, format: str, settings: tuple[float, ...], **options: Any
) -> TestedCodec:
    def encode(pixels: np.ndarray, setting: float) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format, quality=int(setting), **options)
        return file.getvalue()

    def decode(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)

    return TestedCodec(name, settings, encode, decode)


def _jpeg_xl() -> TestedCodec:
    codecs = require("imagecodecs", "jxl")
    return TestedCodec(
        "jxl",
        (15, 10, 8, 6, 4, 3, 2, 1.5, 1, 0.5),
        # Effort 7 is the default of cjxl.
        lambda pixels, distance: codecs.jpegxl_encode(pixels, distance=distance, effort=7),
        codecs.jpegxl_decode,
    )


JPEG = _pillow_codec(
    "jpeg",
    "JPEG",
    (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95),
    subsampling="4:2:0",
    optimize=True,
    progressive=True,
)
WEBP = _pillow_codec("webp", "WEBP", (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95), method=6)
AVIF = _pillow_codec("avif", "AVIF", (10, 20, 30, 40, 50, 60, 70, 80, 90), speed=6)

ANCHOR_NAMES = ("jpeg", "webp", "avif", "jxl")


def available_anchors() -> tuple[str, ...]:
    """Names of the anchors that this installation can run."""
    present = {
        "jpeg": features.check("jpg"),
        "webp": features.check("webp"),
        "avif": features.check("avif"),
        "jxl": importlib.util.find_spec("imagecodecs") is not None,
    }
    return tuple(name for name in ANCHOR_NAMES if present[name])


def anchor(name: str) -> TestedCodec:
    """An anchor by its name: one of ``ANCHOR_NAMES``.

    Raises:
        InputError: no such anchor.
        CodecError: this installation cannot run it.
    """
    if name not in ANCHOR_NAMES:
        raise InputError(f"unknown anchor {name!r}, use some of {', '.join(ANCHOR_NAMES)}")
    if name == "jxl":
        return _jpeg_xl()
    if name not in available_anchors():
        raise CodecError(f"this Pillow was built without {name}: leave the anchor out")
    return {"jpeg": JPEG, "webp": WEBP, "avif": AVIF}[name]


def jpeg_of_size(pixels: np.ndarray, size: int) -> tuple[bytes, int]:
    """The best JPEG of at most ``size`` bytes.

    Returns:
        The file and its quality, 1 to 95; the smallest JPEG if even that is larger than ``size``.
    """
    low, high = 1, 95
    best = JPEG.encode(pixels, low)
    while low < high:
        middle = (low + high + 1) // 2
        data = JPEG.encode(pixels, middle)
        if len(data) <= size:
            low, best = middle, data
        else:
            high = middle - 1
    return best, low
