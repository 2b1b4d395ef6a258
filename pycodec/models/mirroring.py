"""Which way round a picture is coded in slope order.

Bits of one slope, c + h + w, are decoded together and see nothing of each other: of the pixels
above to the right and below to the left, on a diagonal like that of ``/``, a network sees higher
planes only. So it predicts lines that run like ``\\`` better than lines like ``/``, and a picture
with more of the latter is coded mirrored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROWS = 4
"""One row in so many is looked at."""
_BITS = np.log2(1 + np.arange(256, dtype=np.float32))
"""About what a difference costs."""


def wants_mirror(component: NDArray[np.uint8]) -> bool:
    r"""Whether neighbours on diagonals like ``/`` are more alike than those on ``\``.

    Args:
        component: uint8 [H, W].
    """
    upper = component[:-1:ROWS].astype(np.int16)
    lower = component[1::ROWS].astype(np.int16)
    falling = _BITS[np.abs(lower[:, 1:] - upper[:, :-1])].sum(dtype=np.float64)
    rising = _BITS[np.abs(lower[:, :-1] - upper[:, 1:])].sum(dtype=np.float64)
    return bool(rising < falling)
