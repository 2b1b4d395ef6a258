"""The integer steps between a stage's network and the entropy coder, for the quadtree order.

Fixed point: latents, means and steps count 2**-LATENT_FRACTION_BITS; log2 of scales and steps count
hundredths. Channels fall into four equal groups; a stage holds, at every position of the grid, the
group ``(2 (h mod 2) + (w mod 2)) ^ STAGE_XOR[stage]`` (why: ``pycodec.context.quadtree``), so its
arrays are [height, width, channels / 4]. Everything is exact integer arithmetic, the same on every
backend; the PyTorch functions here that begin with an underscore are the definition.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pycodec import _cpu
from pycodec.errors import InputError

STAGE_XOR = (0, 3, 1, 2)

LATENT_FRACTION_BITS = 10
LOG2_UNITS = 100
"""Units in one octave of the log2 of scales and steps."""

SCALE_LEVELS = 64
LOG2_SCALE_MIN = -364
"""Scale level i stands for sigma = 2**((LOG2_SCALE_MIN + 16 i) / 100) steps: 0.080 to 87."""

ROUNDING_ONE = 256
MAX_CONTEXT_SHIFT = 38
LATENT_LIMIT = 1 << 24
"""Reconstructed latents are clamped to +- this, so that no damaged stream can overflow anything."""


def stage_parameters(
    head: Tensor, stage: int, log2_step: Tensor, *, threads: int = 1, backend: str = "native"
) -> tuple[Tensor, Tensor]:
    """Means and table indexes of one stage from its network's output.

    Args:
        head: int32 [height, width, 2 channels]: means, then log2 scales, of all channels.
        stage: 0 to 3.
        log2_step: int32 [channels], of the quantization steps.
        threads: for the native backend.
        backend: ``native`` or ``reference``.

    Returns:
        means, int32 [height, width, channels / 4], and indexes of the scale level, uint8, as many:
        ``clamp((log2_scale - log2_step - LOG2_SCALE_MIN + 8) >> 4, 0, 63)``.
    """
    if _is_native(backend):
        mean, index = _cpu.stage_parameters(
            head.numpy(), STAGE_XOR[stage], log2_step.numpy(), LOG2_SCALE_MIN, SCALE_LEVELS, threads
        )
        return torch.from_numpy(mean), torch.from_numpy(index)
    return _stage_parameters(head, stage, log2_step)


def quantize_residuals(
    latents: Tensor,
    stage: int,
    mean: Tensor,
    index: Tensor,
    step: Tensor,
    rounding: Tensor,
    *,
    threads: int = 1,
    backend: str = "native",
) -> Tensor:
    """Symbols of one stage: latents less means in steps, rounded (encoder only).

    ``symbol = sign(d) floor(|d| / step + rounding[index] / 256)`` with d = latent - mean: 128
    rounds to nearest, less makes a dead zone (cheaper symbols for a little distortion), and a
    negative value makes every symbol 0.

    Args:
        latents: int32 [height, width, channels].
        stage: 0 to 3.
        mean, index: of :func:`stage_parameters`.
        step: int32 [channels], at least 1.
        rounding: int32 [256], by index.
        threads, backend: as there.

    Returns:
        int32 [height, width, channels / 4].
    """
    if _is_native(backend):
        return torch.from_numpy(
            _cpu.quantize_residuals(
                latents.numpy(),
                STAGE_XOR[stage],
                mean.numpy(),
                index.numpy(),
                step.numpy(),
                rounding.numpy(),
                threads,
            )
        )
    return _quantize_residuals(latents, stage, mean, index, step, rounding)


def reconstruct_stage(
    symbols: Tensor,
    stage: int,
    mean: Tensor,
    step: Tensor,
    multiplier: Tensor,
    shift: int,
    latents: Tensor,
    context: Tensor,
    *,
    threads: int = 1,
    backend: str = "native",
) -> None:
    """Write one stage's latents, and what later stages' networks see of them, in place.

    ``latent = mean + symbol step``, clamped to +-LATENT_LIMIT, and ``context = clamp((latent
    multiplier + 2**(shift - 1)) >> shift, -127, 127)``.

    Args:
        symbols, mean: int32 [height, width, channels / 4].
        stage: 0 to 3.
        step, multiplier: int32 [channels].
        shift: 1 to MAX_CONTEXT_SHIFT.
        latents: int32 [height, width, channels], written where the stage has symbols.
        context: int8, the same.
        threads, backend: as in :func:`stage_parameters`.
    """
    if _is_native(backend):
        _cpu.reconstruct_stage(
            symbols.numpy(),
            mean.numpy(),
            step.numpy(),
            STAGE_XOR[stage],
            multiplier.numpy(),
            shift,
            latents.numpy(),
            context.numpy(),
            threads,
        )
    else:
        _reconstruct_stage(symbols, stage, mean, step, multiplier, shift, latents, context)


def stage_group(stage: int, height: int, width: int) -> np.ndarray:
    """The channel group that ``stage`` holds at every position, ``int64 [height, width]``."""
    parity = 2 * (np.arange(height) % 2)[:, None] + (np.arange(width) % 2)[None, :]
    return parity ^ STAGE_XOR[stage]


def _is_native(backend: str) -> bool:
    if backend not in ("native", "reference"):
        raise InputError(f"quadtree_stage has the backends native and reference, not {backend!r}")
    return backend == "native"


def _channels_of(stage: int, height: int, width: int, channels: int) -> Tensor:
    """Channel number of every symbol of the stage, int64 [height, width, channels / 4]."""
    group = torch.from_numpy(stage_group(stage, height, width))
    return (group * (channels // 4))[..., None] + torch.arange(channels // 4)


def _stage_parameters(head: Tensor, stage: int, log2_step: Tensor) -> tuple[Tensor, Tensor]:
    height, width, channels = head.shape[0], head.shape[1], head.shape[2] // 2
    where = _channels_of(stage, height, width, channels)
    head = head.long()
    mean = head.gather(2, where).clamp(-LATENT_LIMIT, LATENT_LIMIT)
    log2_scale = head.gather(2, where + channels)
    level = (log2_scale - log2_step.long()[where] - LOG2_SCALE_MIN + 8) >> 4
    return mean.int(), level.clamp(0, SCALE_LEVELS - 1).to(torch.uint8)


def _quantize_residuals(
    latents: Tensor, stage: int, mean: Tensor, index: Tensor, step: Tensor, rounding: Tensor
) -> Tensor:
    where = _channels_of(stage, *latents.shape)
    difference = latents.long().gather(2, where) - mean.long()
    size = step.long()[where]
    offset = rounding.long()[index.long()]
    magnitude = (ROUNDING_ONE * difference.abs() + offset * size) // (ROUNDING_ONE * size)
    magnitude = torch.where(offset < 0, 0, magnitude)
    return (difference.sign() * magnitude).int()


def _reconstruct_stage(
    symbols: Tensor,
    stage: int,
    mean: Tensor,
    step: Tensor,
    multiplier: Tensor,
    shift: int,
    latents: Tensor,
    context: Tensor,
) -> None:
    where = _channels_of(stage, *latents.shape)
    value = mean.long() + symbols.long() * step.long()[where]
    value = value.clamp(-LATENT_LIMIT, LATENT_LIMIT)
    latents.scatter_(2, where, value.int())
    seen = (value * multiplier.long()[where] + (1 << (shift - 1))) >> shift
    context.scatter_(2, where, seen.clamp(-127, 127).to(torch.int8))
