"""The integer trimmed convolution of the context networks, exact on every backend.

With x zero outside of the picture, and r another tensor at the same place (``residual``)::

    acc = bias + sum of weight * x over what the mask lets an output group see          int32
    sum = acc * (multiplier if acc >= 0 else negative_multiplier) + r * residual_multiplier
    out = clamp((sum + 2**(shift - 1)) >> shift, lower, upper)                         64 bits

It is the integer form of a trimmed convolution (``pycodec.ops.trimmed_conv2d``; arXiv 1801.04662)
with one scale per output channel, as in ``pycodec.ops.quantized_conv2d``. The two multipliers are a
PReLU fused with the requantization; with equal ones there is none, with a ``negative_multiplier``
of 0 it is a ReLU. Halves round up, whatever the sign. Accumulators wrap modulo 2**32 on every
backend.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.ops.backends import default_backend
from pycodec.ops.trimmed_conv2d import (
    expand_mask,
    find_implementation,
    gpu_implementation,
    require,
    trim,
)

MAX_SHIFT = 62
MAX_KERNEL = 63
MAX_GROUPS = 1024
MAX_GROUP_WIDTH = 4096


def quantized_trimmed_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    negative_multiplier: Tensor,
    shift: int,
    *,
    residual: Tensor | None = None,
    residual_multiplier: Tensor | None = None,
    lower: int = -127,
    upper: int = 127,
    backend: str | None = None,
) -> Tensor:
    """Integer trimmed convolution, stride 1, zero padding to the same size; the module has the
    formula.

    Packs the weights in every call: a whole network is ``pycodec.context.wave_network``.

    Args:
        x: int8 [N, H, W, Cin], contiguous.
        weight: int8 [Cout, kh, kw, Cin], kh and kw odd, at most 63, contiguous.
        mask: bool [G, G, kh, kw], contiguous: whether output group g sees input group g' at a tap.
            Groups are contiguous channels, in order; G divides Cin and Cout.
        bias, multiplier, negative_multiplier: int32 [Cout], contiguous.
        shift: 1 to 62.
        residual: int8 [N, H, W, Cout], contiguous.
        residual_multiplier: int32 [Cout], contiguous, where there is a residual.
        lower, upper: the range of the output: of int8, or of uint8 where ``upper`` exceeds 127.
        backend: one of ``pycodec.ops.backends.BACKENDS``; by default the fastest for x's device.

    Returns:
        int8, or uint8 where ``upper`` exceeds 127, [N, H, W, Cout], contiguous, on x's device.

    Raises:
        InputError: an argument does not fit the description above.
    """
    arguments = (
        x,
        weight,
        mask,
        bias,
        multiplier,
        negative_multiplier,
        shift,
        residual,
        residual_multiplier,
        lower,
        upper,
    )
    if backend is None:
        return torch.ops.pycodec.quantized_trimmed_conv2d(*arguments)
    _check_arguments(*arguments)
    implementation = find_implementation("quantized_trimmed_conv2d", _IMPLEMENTATIONS, backend)
    return implementation(*arguments)


def _require(condition: bool, message: str) -> None:
    require("quantized_trimmed_conv2d", condition, message)


def _check_arguments(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    negative_multiplier: Tensor,
    shift: int,
    residual: Tensor | None,
    residual_multiplier: Tensor | None,
    lower: int,
    upper: int,
) -> None:
    def is_a(tensor: Tensor, dtype: torch.dtype, dims: int) -> bool:
        return tensor.dtype == dtype and tensor.dim() == dims and tensor.is_contiguous()

    _require(
        is_a(weight, torch.int8, 4),
        f"weight must be contiguous int8 [Cout, kh, kw, Cin], not {_describe(weight)}",
    )
    cout, kh, kw, cin = weight.shape
    _require(
        kh % 2 == 1 and kw % 2 == 1 and max(kh, kw) <= MAX_KERNEL,
        f"kernels must be odd and at most {MAX_KERNEL}, not {kh}x{kw}",
    )
    _require(
        is_a(mask, torch.bool, 4) and mask.shape == (len(mask), len(mask), kh, kw),
        f"mask must be contiguous bool [G, G, {kh}, {kw}], not {_describe(mask)}",
    )
    groups = len(mask)
    _require(
        1 <= groups <= MAX_GROUPS and cout % groups == 0 and cin % groups == 0,
        f"{cin} channels in and {cout} out cannot be split into {groups} equal groups",
    )
    _require(
        all(1 <= channels // groups <= MAX_GROUP_WIDTH for channels in (cin, cout)),
        f"a group must have 1 to {MAX_GROUP_WIDTH} channels",
    )
    _require(
        is_a(x, torch.int8, 4) and x.shape[-1] == cin,
        f"x must be contiguous int8 [N, H, W, {cin}], not {_describe(x)}",
    )
    _require(
        (residual is None) == (residual_multiplier is None),
        "residual and residual_multiplier belong together",
    )
    for name, values in (
        ("bias", bias),
        ("multiplier", multiplier),
        ("negative_multiplier", negative_multiplier),
        ("residual_multiplier", bias if residual_multiplier is None else residual_multiplier),
    ):
        _require(
            is_a(values, torch.int32, 1) and len(values) == cout,
            f"{name} must be contiguous int32 [{cout}], not {_describe(values)}",
        )
    if residual is not None:
        _require(
            is_a(residual, torch.int8, 4) and residual.shape == (*x.shape[:3], cout),
            f"residual must be contiguous int8 {[*x.shape[:3], cout]}, not {_describe(residual)}",
        )
    others = weight, mask, bias, multiplier, negative_multiplier, residual, residual_multiplier
    for tensor in others:
        _require(tensor is None or tensor.device == x.device, f"not all tensors are on {x.device}")
    _require(1 <= shift <= MAX_SHIFT, f"shift must be in 1..{MAX_SHIFT}, not {shift}")
    _require(
        (0 if upper > 127 else -128) <= lower <= upper <= 255,
        f"{lower}..{upper} is neither a range of int8 nor of uint8",
    )


def _describe(tensor: Tensor) -> str:
    order = "" if tensor.is_contiguous() else "non-contiguous "
    return f"{order}{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def output_dtype(upper: int) -> torch.dtype:
    """Of the result."""
    return torch.uint8 if upper > 127 else torch.int8


def _reference(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    negative_multiplier: Tensor,
    shift: int,
    residual: Tensor | None,
    residual_multiplier: Tensor | None,
    lower: int,
    upper: int,
) -> Tensor:
    """The definition.

    Products and sums are integers far below 2**53, so float64 matrix products are exact whatever
    the order in which a BLAS adds.
    """
    _, height, width, _ = x.shape
    _, kh, kw, _ = weight.shape
    weight = weight.permute(0, 3, 1, 2)
    weight = trim(weight, expand_mask(mask, weight)).double()
    padded = F.pad(x.double(), (0, 0, kw // 2, kw // 2, kh // 2, kh // 2))
    total = bias.double()
    for i in range(kh):
        for j in range(kw):
            total = total + padded[:, i : i + height, j : j + width] @ weight[:, :, i, j].T
    acc = total.to(torch.int64).to(torch.int32).to(torch.int64)  # wraps
    value = acc * torch.where(acc >= 0, multiplier, negative_multiplier)
    if residual is not None:
        value = value + residual.to(torch.int64) * residual_multiplier
    value = (value + (1 << (shift - 1))) >> shift
    return value.clamp(lower, upper).to(output_dtype(upper))


def _native(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    negative_multiplier: Tensor,
    shift: int,
    residual: Tensor | None,
    residual_multiplier: Tensor | None,
    lower: int,
    upper: int,
) -> Tensor:
    _require(x.device.type == "cpu", f"the native backend runs on the CPU, but x is on {x.device}")
    out = _cpu.quantized_trimmed_conv2d(
        x.numpy(),
        weight.numpy(),
        mask.view(torch.uint8).numpy(),
        bias.numpy(),
        multiplier.numpy(),
        negative_multiplier.numpy(),
        shift,
        None if residual is None else residual.numpy(),
        None if residual_multiplier is None else residual_multiplier.numpy(),
        lower,
        upper,
        torch.get_num_threads(),
    )
    return torch.from_numpy(out)


_IMPLEMENTATIONS = {
    "reference": _reference,
    "native": _native,
    "cuda": gpu_implementation("quantized_cuda"),
    "triton": gpu_implementation("quantized_triton"),
}


@torch.library.custom_op("pycodec::quantized_trimmed_conv2d", mutates_args=())
def _quantized_trimmed_conv2d_op(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    negative_multiplier: Tensor,
    shift: int,
    residual: Tensor | None,
    residual_multiplier: Tensor | None,
    lower: int,
    upper: int,
) -> Tensor:
    arguments = (
        x,
        weight,
        mask,
        bias,
        multiplier,
        negative_multiplier,
        shift,
        residual,
        residual_multiplier,
        lower,
        upper,
    )
    _check_arguments(*arguments)
    implementation = _IMPLEMENTATIONS.get(default_backend(x.device), _reference)
    return implementation(*arguments)


@_quantized_trimmed_conv2d_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    negative_multiplier: Tensor,
    shift: int,
    residual: Tensor | None,
    residual_multiplier: Tensor | None,
    lower: int,
    upper: int,
) -> Tensor:
    _check_arguments(
        x,
        weight,
        mask,
        bias,
        multiplier,
        negative_multiplier,
        shift,
        residual,
        residual_multiplier,
        lower,
        upper,
    )
    return x.new_empty((*x.shape[:3], weight.shape[0]), dtype=output_dtype(upper))
