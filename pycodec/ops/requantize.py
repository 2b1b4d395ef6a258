"""Integers of one grid to those of another, channel by channel, exact on every backend.

``out = clamp((x * multiplier + offset) >> shift)`` in 64 bits, with an arithmetic shift. ``offset``
holds all that is added: half a unit for rounding (``2**(shift - 1)``: halves go up), and a zero
point or a shift of the output (times ``2**shift``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops.backends import check_backend, default_backend

INPUT_DTYPES = (torch.int16, torch.int32)
OUTPUT_DTYPES = (torch.uint8, torch.int8, torch.int16)
MAX_SHIFT = 62


def requantize(
    x: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    shift: int,
    *,
    out_dtype: torch.dtype,
    lower: int | None = None,
    upper: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Requantize; see the module for the formula.

    Sums must stay below 2**63: with int32 x and multipliers below 2**30 that leaves 2**62 for
    offsets.

    Args:
        x: int16 or int32 [..., C], contiguous.
        multiplier: int32 [C], or [N, C] for the images of x [N, ..., C].
        offset: int64, as many.
        shift: 1 to 62.
        out_dtype: uint8, int8 or int16.
        lower, upper: what results are clamped to; None for the ends of ``out_dtype``.
        backend: ``native`` (on the CPU) or ``reference`` (torch, on any device); by default native
            on the CPU and the reference elsewhere.

    Returns:
        ``out_dtype`` [..., C].

    Raises:
        InputError: an argument does not fit the description above.
    """
    if backend is None:
        backend = "native" if default_backend(x.device) == "native" else "reference"
    check_backend(backend)
    limits = torch.iinfo(out_dtype) if out_dtype in OUTPUT_DTYPES else None
    _require(limits is not None, f"out_dtype cannot be {out_dtype}")
    lower = limits.min if lower is None else lower
    upper = limits.max if upper is None else upper
    _require(
        limits.min <= lower <= upper <= limits.max,
        f"{lower} to {upper} is no range of {out_dtype}",
    )
    _require(x.dtype in INPUT_DTYPES and x.is_contiguous(), "x must be contiguous int16 or int32")
    _require(x.dim() > 0, "x needs a dimension of channels")
    shape = x.shape[-1:]
    if multiplier.dim() == 2:
        _require(x.dim() > 1, "x needs a dimension of images")
        shape = torch.Size((x.shape[0], x.shape[-1]))
    _require(
        multiplier.dtype == torch.int32 and multiplier.shape == shape,
        f"multiplier must be int32 {list(shape)}",
    )
    _require(
        offset.dtype == torch.int64 and offset.shape == shape,
        f"offset must be int64 {list(shape)}",
    )
    _require(1 <= shift <= MAX_SHIFT, f"shift must be in 1..{MAX_SHIFT}, not {shift}")
    if backend == "native":
        _require(x.device.type == "cpu", f"the native backend runs on the CPU, not on {x.device}")
        dtype = str(out_dtype).removeprefix("torch.")
        made = _cpu.requantize(
            *(x.numpy(), multiplier.numpy(), offset.numpy(), shift, lower, upper, dtype),
            torch.get_num_threads(),
        )
        return torch.from_numpy(made)
    _require(backend == "reference", f"there is no backend {backend} of requantize")
    if multiplier.dim() == 2:
        between = (len(x), *[1] * (x.dim() - 2), x.shape[-1])
        multiplier, offset = multiplier.view(between), offset.view(between)
    value = (x.long() * multiplier + offset) >> shift
    return value.clamp(lower, upper).to(out_dtype)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"requantize: {message}")
