"""Lossless coding of the alpha plane: differences of neighbours, then DEFLATE.

Alpha planes are masks: large constant areas and narrow soft edges. Byte differences modulo 256 to
the left and to the upper neighbour turn both into runs of zeros, and DEFLATE does the rest.
"""

from __future__ import annotations

import numpy as np

from pycodec.coding.deflate import deflate, inflate
from pycodec.errors import CorruptStreamError, InputError

_LEFT, _UP = 1, 2
_FILTERS = (0, _LEFT, _UP, _LEFT | _UP)
# The filter is chosen on a band of about this many samples: enough to tell them apart, and the
# plane of a large picture is then compressed once instead of four times.
_TRIAL_SAMPLES = 1 << 20


def _differences(plane: np.ndarray, filters: int) -> np.ndarray:
    """Differences modulo 256; the first column (row) is kept as it is."""
    if filters & _LEFT:
        plane = np.diff(plane, axis=1, prepend=np.uint8(0))
    if filters & _UP:
        plane = np.diff(plane, axis=0, prepend=np.uint8(0))
    return np.ascontiguousarray(plane)


def encode_alpha(alpha: np.ndarray) -> bytes:
    """Code an alpha plane without loss: one byte that names the filter, then raw DEFLATE.

    Args:
        alpha: uint8 [H, W].
    """
    if alpha.ndim != 2 or alpha.dtype != np.uint8 or alpha.size == 0:
        raise InputError(
            f"the alpha plane must be uint8 [H, W], not {alpha.dtype} {list(alpha.shape)}"
        )
    height, width = alpha.shape
    rows = max(1, min(height, _TRIAL_SAMPLES // width))
    band = alpha[(height - rows) // 2 :][:rows]
    best = min(_FILTERS, key=lambda filters: len(deflate(_differences(band, filters).data)))
    return bytes([best]) + deflate(_differences(alpha, best).data)


def decode_alpha(data: bytes, width: int, height: int) -> np.ndarray:
    """Inverse of :func:`encode_alpha`.

    Returns:
        uint8 [height, width].

    Raises:
        CorruptStreamError: the data are damaged, or hold a plane of another size.
    """
    if not data or data[0] not in _FILTERS:
        raise CorruptStreamError("unknown alpha filter", section="alpha")
    plain = inflate(memoryview(data)[1:], width * height, section="alpha")
    plane = np.frombuffer(bytearray(plain), np.uint8).reshape(height, width)
    for bit, axis in ((_UP, 0), (_LEFT, 1)):
        if data[0] & bit:
            np.add.accumulate(plane, axis=axis, dtype=np.uint8, out=plane)
    return plane
