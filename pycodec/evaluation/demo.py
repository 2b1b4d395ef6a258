"""The demonstration: a photograph that scikit-image ships, there and back again, in pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pycodec.errors import CodecError
from pycodec.evaluation.anchors import JPEG, jpeg_of_size
from pycodec.evaluation.extras import require
from pycodec.evaluation.metrics import psnr
from pycodec.evaluation.plots import plot_side_by_side
from pycodec.images import Picture, atomic_write, save_image

DEMO_PICTURES = ("astronaut", "chelsea", "coffee", "rocket")


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found.

    Attributes:
        files: what was written.
        pixels: number of pixels of the photograph.
        size, psnr: bytes and dB of pycodec's file.
        encode_seconds, decode_seconds: with the model loaded.
        jpeg_size, jpeg_psnr, jpeg_quality: of the JPEG that is no larger, if there is one.
    """

    files: list[Path]
    pixels: int
    size: int
    psnr: float
    encode_seconds: float
    decode_seconds: float
    jpeg_size: int
    jpeg_psnr: float
    jpeg_quality: int


def run_demo(
    folder: str | os.PathLike,
    encode: Callable[[Picture], bytes],
    decode: Callable[[bytes], Picture],
    *,
    photograph: str = "astronaut",
) -> DemoResult:
    """Code a photograph; write it, the file, the decoded picture and a comparison to ``folder``.

    Args:
        folder: is made if it does not exist.
        encode, decode: the codec.
        photograph: one of ``DEMO_PICTURES``.

    Raises:
        CodecError: the extra ``demo`` is not installed, or a file cannot be written.
    """
    data = require("skimage.data", "demo")
    original = Picture(getattr(data, photograph)())
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CodecError(f"{folder}: cannot be made: {(error.strerror or '').lower()}") from error

    decode(encode(original))  # loads the model, which is no part of the times
    start = time.perf_counter()
    coded = encode(original)
    encode_seconds = time.perf_counter() - start
    start = time.perf_counter()
    decoded = decode(coded)
    decode_seconds = time.perf_counter() - start
    jpeg, jpeg_quality = jpeg_of_size(original.pixels, len(coded))
    jpeg_pixels = JPEG.decode(jpeg)

    result = DemoResult(
        files=[
            folder / name
            for name in ("original.png", "photo.lci", "decoded.png", "photo.jpg", "comparison.png")
        ],
        pixels=original.width * original.height,
        size=len(coded),
        psnr=psnr(original.pixels, decoded.pixels),
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
        jpeg_size=len(jpeg),
        jpeg_psnr=psnr(original.pixels, jpeg_pixels),
        jpeg_quality=jpeg_quality,
    )
    save_image(original, result.files[0])
    atomic_write(result.files[1], coded)
    save_image(decoded, result.files[2])
    atomic_write(result.files[3], jpeg)

    def title(name: str, size: int, quality: float) -> str:
        bpp = 8 * size / result.pixels
        return f"{name}\n{size / 1000:.1f} kB, {bpp:.3f} bpp, {quality:.2f} dB"

    rows, columns = original.height, original.width
    detail = (slice(rows // 8, rows // 2), slice(columns // 4, columns * 3 // 4))
    plot_side_by_side(
        [
            (f"original\n{3 * result.pixels / 1000:.1f} kB of pixels", original.pixels),
            (title("pycodec", result.size, result.psnr), decoded.pixels),
            (title("JPEG of this size", result.jpeg_size, result.jpeg_psnr), jpeg_pixels),
        ],
        detail,
        result.files[4],
    )
    return result
