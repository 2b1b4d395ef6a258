"""Floats to integers of a grid, channel by channel, and back; the same on every backend.

    q = clamp(round(x * (1 / scale)) + zero_point)        x = scale * (q - zero_point)

Quotient and product are those of float32, halves round to even, and what is clamped is the rounded
value, so that zero points are exact. NaN becomes the lower end. These are the grids of
``docs/quantization.md``: what goes from float layers to integer ones, and comes back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops.backends import check_backend, default_backend, launch_cuda

DTYPES = (torch.uint8, torch.int8, torch.int16)
"""Of the integers."""

_DEVICE_TYPE = "cuda"


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    out_dtype: torch.dtype,
    lower: int | None = None,
    upper: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Round to the grid; see the module for the formula.

    Args:
        x: float32 [..., C], contiguous.
        scale: float32 [C], positive; it is not read here, so this is not checked.
        zero_point: int32 [C], of at most 16 bits.
        out_dtype: one of :data:`DTYPES`.
        lower, upper: what results are clamped to; None for the ends of ``out_dtype``.
        backend: one of ``pycodec.ops.backends.BACKENDS``; by default the fastest for x's device.

    Returns:
        ``out_dtype`` [..., C].

    Raises:
        InputError: an argument does not fit the description above.
    """
    _require("quantize", out_dtype in DTYPES, f"out_dtype cannot be {out_dtype}")
    limits = torch.iinfo(out_dtype)
    lower = limits.min if lower is None else lower
    upper = limits.max if upper is None else upper
    _require(
        "quantize",
        limits.min <= lower <= upper <= limits.max,
        f"{lower} to {upper} is no range of {out_dtype}",
    )
    _require("quantize", x.dtype == torch.float32, f"x must be float32, not {x.dtype}")
    backend = _check("quantize", x, scale, zero_point, backend)
    if backend == "native":
        made = _cpu.quantize(
            *(x.numpy(), scale.numpy(), zero_point.numpy(), lower, upper),
            str(out_dtype).removeprefix("torch."),
            torch.get_num_threads(),
        )
        return torch.from_numpy(made)
    if backend == "reference":
        low, high = (lower - zero_point).float(), (upper - zero_point).float()
        value = torch.fmin(torch.fmax(x * (1 / scale), low), high).round()
        return (value.int() + zero_point).to(out_dtype)
    out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    if backend == "triton":
        from pycodec.triton_kernels import quantize as kernels

        kernels.launch(x, out, scale, zero_point, lower, upper)
    else:
        launch_cuda(
            "quantize", x.device, **_addresses(x, out, scale, zero_point), lower=lower, upper=upper
        )
    return out


def dequantize(
    q: Tensor, scale: Tensor, zero_point: Tensor, *, backend: str | None = None
) -> Tensor:
    """The real values of integers; see the module for the formula.

    Args:
        q: one of :data:`DTYPES` [..., C], contiguous.
        scale, zero_point, backend: as in :func:`quantize`.

    Returns:
        float32 [..., C].

    Raises:
        InputError: an argument does not fit the description above.
    """
    _require("dequantize", q.dtype in DTYPES, f"q must be uint8, int8 or int16, not {q.dtype}")
    backend = _check("dequantize", q, scale, zero_point, backend)
    if backend == "native":
        made = _cpu.dequantize(
            q.numpy(), scale.numpy(), zero_point.numpy(), torch.get_num_threads()
        )
        return torch.from_numpy(made)
    if backend == "reference":
        return (q.int() - zero_point).float() * scale
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    if backend == "triton":
        from pycodec.triton_kernels import quantize as kernels

        kernels.launch_back(out, q, scale, zero_point)
    else:
        launch_cuda("dequantize", q.device, **_addresses(out, q, scale, zero_point))
    return out


def _check(name: str, x: Tensor, scale: Tensor, zero_point: Tensor, backend: str | None) -> str:
    """The backend; raises :class:`InputError` where something does not fit."""
    backend = default_backend(x.device) if backend is None else backend
    check_backend(backend)
    _require(name, x.dim() > 0 and x.is_contiguous(), "values must be contiguous, with channels")
    channels = x.shape[-1:]
    _require(
        name,
        scale.dtype == torch.float32 and scale.shape == channels and scale.is_contiguous(),
        f"scale must be float32 {list(channels)}",
    )
    _require(
        name,
        zero_point.dtype == torch.int32
        and zero_point.shape == channels
        and zero_point.is_contiguous(),
        f"zero_point must be int32 {list(channels)}",
    )
    _require(name, channels[0] > 0, "there are no channels")
    same = x.device == scale.device == zero_point.device
    _require(name, same, "tensors must be on one device")
    if backend == "native":
        _require(name, x.device.type == "cpu", f"native runs on the CPU, not on {x.device}")
    if backend == "cuda":
        _require(name, x.device.type == _DEVICE_TYPE, f"cuda runs on a GPU, not on {x.device}")
    return backend


def _addresses(
    real: Tensor, integers: Tensor, scale: Tensor, zero_point: Tensor
) -> dict[str, int | bool]:
    return {
        "real": real.data_ptr(),
        "integers": integers.data_ptr(),
        "scale": scale.data_ptr(),
        "zero_point": zero_point.data_ptr(),
        "values": real.numel(),
        "channels": len(scale),
        "bytes": integers.element_size(),
        "is_signed": integers.dtype.is_signed,
    }


def _require(name: str, condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"{name}: {message}")
