"""Which way round a picture is coded in slope order.

Bits of one slope, c + h + w, are decoded together and see nothing of each other: of the pixels
above to the right and below to the left, on a diagonal like that of ``/``, a network sees higher
planes only. So it predicts lines that run like ``\\`` better than lines like ``/``, and a picture
with more of the latter is coded mirrored.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROWS = 4
"""One row in so many is looked at."""
_BITS = np.log2(1 + np.arange(256, dtype=np.float32))
"""About what a difference costs."""


def wants_mirror(component: NDArray[np.uint8]) -> bool:
    r"""Whether neighbours on diagonals like ``/`` are more alike than those on ``\``.

    Args:
        component: uint8 [H, W].
    """
    upper = component[:-1:_ROWS].astype(np.int16)
    lower = component[1::_ROWS].astype(np.int16)
    falling = _BITS[np.abs(lower[:, 1:] - upper[:, :-1])].sum(dtype=np.float64)
    rising = _BITS[np.abs(lower[:, :-1] - upper[:, 1:])].sum(dtype=np.float64)
    return bool(rising < falling)


def want_mirror(components: Tensor) -> Tensor:
    """:func:`wants_mirror` of each picture of a batch, on its device: for training.

    Args:
        components: uint8 [N, H, W].

    Returns:
        bool [N].
    """
    upper, lower = components[:, :-1:_ROWS].int(), components[:, 1::_ROWS].int()
    differences = lower[:, :, 1:] - upper[:, :, :-1], lower[:, :, :-1] - upper[:, :, 1:]
    costs = ((1.0 + d.abs()).log2() for d in differences)
    falling, rising = (cost.sum((1, 2), dtype=torch.float64) for cost in costs)
    return rising < falling
