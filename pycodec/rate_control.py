"""Finding the quality that meets a target, by bisection with real files and real decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pycodec.errors import InputError
from pycodec.evaluation.metrics import psnr
from pycodec.images import Picture

# Quality in hundredths, as the file stores it.
_LOWEST, _HIGHEST = 100, 10000


@dataclass(frozen=True)
class Found:
    """The best file that meets the target.

    Attributes:
        data: the file.
        quality: 1 to 100.
        reached: bits a pixel or dB, in the units of the target.
    """

    data: bytes
    quality: float
    reached: float


def encode_to_bpp(picture: Picture, target: float, encode: Callable[[float], bytes]) -> Found:
    """The highest quality whose whole file takes at most ``target`` bits a pixel.

    Args:
        picture: what ``encode`` encodes.
        target: bits a pixel, metadata and alpha included.
        encode: quality, 1 to 100, to the bytes of a file.

    Raises:
        InputError: even the lowest quality takes more.
    """
    pixels = picture.width * picture.height

    def attempt(quality: float) -> Found:
        data = encode(quality)
        return Found(data, quality, 8 * len(data) / pixels)

    lowest = attempt(_LOWEST / 100)
    if lowest.reached > target:
        raise InputError(
            f"{target:g} bpp is out of reach: quality 1 already takes {lowest.reached:.4f} bpp"
        )
    highest = attempt(_HIGHEST / 100)
    if highest.reached <= target:
        return highest
    return _bisect(attempt, lowest, highest, lambda found: found.reached <= target)[0]


def encode_to_psnr(
    picture: Picture,
    target: float,
    encode: Callable[[float], bytes],
    decode: Callable[[bytes], Picture],
) -> Found:
    """The lowest quality whose decoded picture has a PSNR of at least ``target`` dB.

    Args:
        picture: what ``encode`` encodes.
        target: dB, over all colour channels; alpha does not count.
        encode: quality, 1 to 100, to the bytes of a file.
        decode: its inverse.

    Raises:
        InputError: even the highest quality does not reach it.
    """

    def attempt(quality: float) -> Found:
        data = encode(quality)
        return Found(data, quality, psnr(picture.pixels, decode(data).pixels))

    highest = attempt(_HIGHEST / 100)
    if highest.reached < target:
        raise InputError(
            f"{target:g} dB is out of reach: quality 100 gives {highest.reached:.2f} dB"
        )
    lowest = attempt(_LOWEST / 100)
    if lowest.reached >= target:
        return lowest
    return _bisect(attempt, lowest, highest, lambda found: found.reached < target)[1]


def _bisect(
    attempt: Callable[[float], Found],
    low: Found,
    high: Found,
    is_low: Callable[[Found], bool],
) -> tuple[Found, Found]:
    """Narrow (low, high] to neighbouring hundredths, on the two sides of the target.

    Rate and PSNR rise with quality but for ripples of a fraction of a percent: whatever the
    ripples, the results are files that were made and measured.
    """
    lower, upper = round(low.quality * 100), round(high.quality * 100)
    while upper - lower > 1:
        middle = (lower + upper) // 2
        found = attempt(middle / 100)
        if is_low(found):
            low, lower = found, middle
        else:
            high, upper = found, middle
    return low, high
