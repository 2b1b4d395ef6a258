"""The masked convolution of PixelCNN: each position sees those before it in raster order.

All channels of a position are coded together, so the mask is the same for all of them (van den Oord
et al., "Pixel Recurrent Neural Networks", ICML 2016; Minnen et al., arXiv 1809.02736). Type A sees
all rows above and what is to the left in its own row; type B also the position itself::

    y[n, o, h, w] = bias[o] + sum of weight[o, c, i, j] x[n, c, h + i - kh // 2, w + j - kw // 2]
                              over all c and (i, j) < (kh // 2, kw // 2), for type B <=

where pairs compare as tuples do. Other weights take no part, whatever their value, and their
gradient is zero.

The native backend is for float32. On the CPU the other dtypes take the reference by default, and
asking for the native backend is an error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pycodec.ops.trimmed_conv2d import (
    autocast,
    check_convolution,
    default_implementation,
    find_implementation,
    gpu_implementation,
    native_trimmed_conv2d,
    require,
    require_native,
    runs_native,
    same_conv2d,
    same_conv2d_backward,
    transposed,
    trim,
)


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, kind: str, backend: str | None = None
) -> Tensor:
    """Convolution that sees what is before it in raster order, stride 1, zero padding to same size.

    Under autocast everything is computed in its dtype.

    Args:
        x: float32, float64, float16 or bfloat16 [N, Cin, H, W].
        weight: x's dtype [Cout, Cin, kh, kw], kh and kw odd.
        bias: x's dtype [Cout].
        kind: "A" for the first layer, "B" for the others.
        backend: one of ``pycodec.ops.backends.BACKENDS``; by default the fastest for x's device.

    Returns:
        x's dtype [N, Cout, H, W], contiguous, differentiable in x, weight and bias.

    Raises:
        InputError: an argument does not fit the description above.
    """
    x, weight, bias = autocast(x, weight, bias)
    if backend == "native":
        require_native("masked_conv2d", x)
        backend = None  # it is the default there, and the registered operation has the gradients
    if backend is None:
        return torch.ops.pycodec.masked_conv2d(x, weight, bias, kind)
    _check_arguments(x, weight, bias, kind)
    return find_implementation("masked_conv2d", _IMPLEMENTATIONS, backend)(x, weight, bias, kind)


def raster_mask(kind: str, kh: int, kw: int, device: torch.device | None = None) -> Tensor:
    """What the kernel sees, bool [kh, kw]."""
    seen = torch.arange(kh * kw, device=device) < kh * kw // 2 + (kind == "B")
    return seen.view(kh, kw)


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor | None, kind: str) -> None:
    check_convolution("masked_conv2d", x, weight, bias)
    require("masked_conv2d", kind in ("A", "B"), f"kind must be A or B, not {kind!r}")


def _mask_of(weight: Tensor, kind: str) -> Tensor:
    return raster_mask(kind, weight.shape[2], weight.shape[3], weight.device)


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    """The definition."""
    return same_conv2d(x, trim(weight, _mask_of(weight, kind)), bias)


def _trimmed(implementation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An implementation of the trimmed convolution with the raster mask."""

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, kind: str) -> Tensor:
        return implementation(x, weight, _mask_of(weight, kind)[None, None], bias)

    return run


_IMPLEMENTATIONS = {
    "reference": _reference,
    "native": _trimmed(native_trimmed_conv2d),
    "cuda": _trimmed(gpu_implementation("cuda")),
    "triton": _trimmed(gpu_implementation("triton")),
}


@torch.library.custom_op("pycodec::masked_conv2d", mutates_args=())
def _masked_conv2d_op(x: Tensor, weight: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    _check_arguments(x, weight, bias, kind)
    return default_implementation(_IMPLEMENTATIONS, x)(x, weight, bias, kind)


@_masked_conv2d_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    _check_arguments(x, weight, bias, kind)
    return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, ctx.kind = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    mask = _mask_of(weight, ctx.kind)
    wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
    native_grad_x = None
    if wants_x and runs_native(x):
        seen = transposed(mask[None, None])
        native_grad_x = torch.ops.pycodec.trimmed_conv2d(grad, transposed(weight), seen, None)
        wants_x = False
    grad_x, grad_weight, grad_bias = same_conv2d_backward(
        grad, x, trim(weight, mask) if wants_x else weight, (wants_x, wants_weight, wants_bias)
    )
    if wants_weight:
        grad_weight = trim(grad_weight, mask)
    return grad_x if wants_x else native_grad_x, grad_weight, grad_bias, None


_masked_conv2d_op.register_autograd(_backward, setup_context=_setup_context)
