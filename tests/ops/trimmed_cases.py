"""Cases for the tests of the trimmed convolutions' GPU kernels."""

from __future__ import annotations

import numpy as np
import torch

SHAPES = (
    # x as [N, Cin, H, W], Cout, kernel, (groups in, groups out)
    ((1, 1, 1, 1), 1, (1, 1), (1, 1)),
    ((1, 3, 1, 9), 5, (3, 3), (3, 1)),
    ((2, 70, 5, 8), 67, (3, 3), (1, 1)),
    ((1, 40, 4, 3), 36, (5, 1), (4, 2)),
    ((2, 6, 7, 11), 12, (3, 5), (2, 3)),
    ((1, 64, 3, 30), 8, (3, 3), (8, 8)),
)

INTEGER_SHAPES = [(*case, (g, g)) for (*case, _), g in zip(SHAPES, (1, 1, 1, 4, 3, 8), strict=True)]


def integer_case(rng, shape, cout, kernel, groups, shift: int, extreme: bool) -> dict:
    """Arguments of a quantized trimmed convolution, all of them random."""
    n, cin, height, width = shape

    def draw(low, high, size, dtype):
        values = rng.integers(low, high, size, endpoint=True)
        if extreme:
            values = np.where(values > (low + high) / 2, high, low)
        return torch.from_numpy(np.asarray(values)).to(dtype)

    def int32(size):
        return torch.from_numpy(rng.integers(-(2**31), 2**31 - 1, size, np.int32, endpoint=True))

    unsigned, has_residual = rng.integers(0, 2, 2)
    return {
        "x": draw(-128, 127, (n, height, width, cin), torch.int8),
        "weight": draw(-128, 127, (cout, *kernel, cin), torch.int8),
        "mask": torch.from_numpy(rng.random((*groups[::-1], *kernel)) < 0.5),
        "bias": int32(cout) if extreme else draw(-5000, 5000, cout, torch.int32),
        "multiplier": int32(cout),
        "negative_multiplier": int32(cout),
        "shift": shift,
        "residual": draw(-128, 127, (n, height, width, cout), torch.int8) if has_residual else None,
        "residual_multiplier": int32(cout) if has_residual else None,
        "lower": 0 if unsigned else -127,
        "upper": 255 if unsigned else 127,
    }
