"""Zeros in a pseudocylindrical representation wherever there is no tile (arXiv 2112.13227).

A convolution leaves some values beyond a tile's width. :func:`~pycodec.ops.pseudocylindrical_pad`
does not read them, but sums, means, norms and entropy models would count them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pycodec import _cpu
from pycodec.ops import pseudocylindrical_kernels as kernels
from pycodec.ops.pseudocylindrical_tiles import (
    FLOATS,
    INTEGERS,
    check_dtype,
    check_tiles,
    from_numpy,
    implementation,
    is_direct,
    to_numpy,
)

_NAME = "pseudocylindrical_mask"
DTYPES = (*FLOATS, *INTEGERS, torch.int16, torch.int32)


def pseudocylindrical_mask(
    x: Tensor,
    widths: Sequence[int],
    *,
    channels_last: bool = False,
    backend: str | None = None,
) -> Tensor:
    """x with zeros, whatever was there, from column ``widths[t]`` of each tile t on.

    Args:
        x: floats, int8, uint8, int16 or int32 [N * T, C, h, W], or [N * T, h, W, C].
        widths: of the T tiles, pixels.
        channels_last: whether x is [N * T, h, W, C].
        backend: one of ``pycodec.ops.backends.BACKENDS``; by default the fastest for x's device.

    Returns:
        x's dtype and shape, contiguous, differentiable twice.

    Raises:
        InputError: an argument does not fit the description above.
    """
    arguments = x, list(widths), channels_last
    if not is_direct(x, backend):
        return torch.ops.pycodec.pseudocylindrical_mask(*arguments, backend)
    _check(*arguments)
    return implementation(_NAME, _IMPLEMENTATIONS, x, backend)(*arguments)


def _check(x: Tensor, widths: Sequence[int], channels_last: bool) -> None:
    check_dtype(_NAME, x, DTYPES)
    check_tiles(_NAME, x, widths, channels_last)


def _reference(x: Tensor, widths: Sequence[int], channels_last: bool) -> Tensor:
    """The definition."""
    width = x.shape[2 if channels_last else 3]
    inside = torch.arange(width) < torch.tensor(widths)[:, None]
    inside = inside.to(x.device).repeat(x.shape[0] // len(widths), 1)
    inside = inside[:, None, :, None] if channels_last else inside[:, None, None]
    return torch.where(inside, x, x.new_zeros(())).contiguous()


def _native(x: Tensor, widths: Sequence[int], channels_last: bool) -> Tensor:
    threads = torch.get_num_threads()
    out = _cpu.pseudocylindrical_mask(to_numpy(x), widths, channels_last, threads)
    return from_numpy(out, x.dtype)


_IMPLEMENTATIONS = {
    "reference": _reference,
    "native": _native,
    "cuda": kernels.mask_cuda,
    "triton": kernels.mask_triton,
}


@torch.library.custom_op("pycodec::pseudocylindrical_mask", mutates_args=())
def _mask_op(x: Tensor, widths: Sequence[int], channels_last: bool, backend: str | None) -> Tensor:
    _check(x, widths, channels_last)
    return implementation(_NAME, _IMPLEMENTATIONS, x, backend)(x, widths, channels_last)


@_mask_op.register_fake
def _(x: Tensor, widths: Sequence[int], channels_last: bool, backend: str | None) -> Tensor:
    _check(x, widths, channels_last)
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.arguments = inputs[1:]


def _backward(ctx, grad: Tensor):
    return _mask_op(grad, *ctx.arguments), None, None, None


_mask_op.register_autograd(_backward, setup_context=_setup_context)
