"""Cases and the definition of the integer trimmed convolution, for the tests of its GPU kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SHAPES = (
    # x as [N, Cin, H, W], Cout, kernel, (groups in, groups out)
    ((1, 1, 1, 1), 1, (1, 1), (1, 1)),
    ((1, 3, 1, 9), 5, (3, 3), (3, 1)),
    ((2, 70, 5, 8), 67, (3, 3), (1, 1)),
    ((1, 40, 4, 3), 36, (5, 1), (4, 2)),
    ((2, 6, 7, 11), 12, (3, 5), (2, 3)),
    ((1, 64, 3, 30), 8, (3, 3), (8, 8)),
)


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
        "residual_multiplier": int(int32(1)) if has_residual else 0,
        "lower": 0 if unsigned else -127,
        "upper": 255 if unsigned else 127,
    }


def reference(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    negative_multiplier: Tensor,
    shift: int,
    residual: Tensor | None,
    residual_multiplier: int,
    lower: int,
    upper: int,
) -> Tensor:
    """The arithmetic of pycodec/context/wave_network.py, for a batch and any groups."""
    wide = mask.repeat_interleave(len(weight) // len(mask), 0)
    wide = wide.repeat_interleave(x.shape[3] // mask.shape[1], 1)
    kernel = weight.permute(0, 3, 1, 2).double() * wide
    padding = kernel.shape[2] // 2, kernel.shape[3] // 2
    acc = F.conv2d(x.permute(0, 3, 1, 2).double(), kernel, padding=padding).long()
    acc = (acc.permute(0, 2, 3, 1) + bias.long()).int().long()
    total = acc * torch.where(acc >= 0, multiplier.long(), negative_multiplier.long())
    if residual is not None:
        total += residual.long() * residual_multiplier
    out = (total + (1 << (shift - 1))) >> shift
    return out.clamp(lower, upper).to(torch.uint8 if upper > 127 else torch.int8)
