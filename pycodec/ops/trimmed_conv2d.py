"""The trimmed convolution of context networks: a mask over groups of channels cuts the kernel.

Channels fall into contiguous groups of equal width, and ``mask[o, i]`` says at which offsets of
the kernel output group o sees input group i (arXiv 1801.04662, 1906.10057; orders and their masks
are in ``pycodec.context.orders``). For groups of other widths give a mask for single channels::

    y[n, o, h, w] = bias[o] + sum of weight[o, c, i, j] x[n, c, h + i - kh // 2, w + j - kw // 2]
                              over all (c, i, j) with mask[group of o, group of c, i, j]

Trimmed weights take no part, whatever their value, and their gradient is zero.

The native backend is for float32. On the CPU the other dtypes take the reference by default, and
asking for the native backend is an error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops.backends import check_backend, default_backend

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def trimmed_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolution with a trimmed kernel, stride 1, zero padding to the same size.

    Under autocast everything is computed in its dtype.

    Args:
        x: float32, float64, float16 or bfloat16 [N, Cin, H, W].
        weight: x's dtype [Cout, Cin, kh, kw], kh and kw odd.
        mask: bool [Gout, Gin, kh, kw], where Gout divides Cout and Gin divides Cin.
        bias: x's dtype [Cout].
        backend: one of ``pycodec.ops.backends.BACKENDS``; by default the fastest for x's device.

    Returns:
        x's dtype [N, Cout, H, W], contiguous, differentiable in x, weight and bias.

    Raises:
        InputError: an argument does not fit the description above.
    """
    x, weight, bias = autocast(x, weight, bias)
    if backend == "native":
        require_native("trimmed_conv2d", x)
        backend = None  # it is the default there, and the registered operation has the gradients
    if backend is None:
        return torch.ops.pycodec.trimmed_conv2d(x, weight, mask, bias)
    _check_arguments(x, weight, mask, bias)
    return find_implementation("trimmed_conv2d", _IMPLEMENTATIONS, backend)(x, weight, mask, bias)


def expand_mask(mask: Tensor, weight: Tensor) -> Tensor:
    """The mask of a weight: bool [Gout, Gin, kh, kw] to [Cout, Cin, kh, kw]."""
    wide = mask.repeat_interleave(weight.shape[0] // mask.shape[0], 0)
    return wide.repeat_interleave(weight.shape[1] // mask.shape[1], 1)


def trim(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight with zeros where the mask for weights is False, even for infinities and NaN."""
    return torch.where(mask, weight, weight.new_zeros(()))


def same_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``conv2d`` to the same size; contiguous."""
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    return F.conv2d(x, weight, bias, padding=padding).contiguous()


def same_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`same_conv2d` in x, weight and bias, as far as they are wanted."""
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [weight.shape[0]],
        [1, 1],
        [weight.shape[2] // 2, weight.shape[3] // 2],
        [1, 1],
        False,
        [0, 0],
        1,
        list(wanted),
    )


def runs_native(x: Tensor) -> bool:
    """Whether the native float kernels can run x."""
    return x.dtype == torch.float32 and x.device.type == "cpu"


def require_native(name: str, x: Tensor) -> None:
    """Raises :class:`InputError` unless the native float kernels can run x."""
    message = f"the native backend runs float32 on the CPU, not {x.dtype} on {x.device}"
    require(name, runs_native(x), message)


def native_trimmed_conv2d(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """The native kernel for float32 on the CPU; contiguous, and not differentiable."""
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    arguments = [t.detach().contiguous().numpy() for t in (x, weight, mask, bias)]
    return torch.from_numpy(_cpu.float_trimmed_conv2d(*arguments, torch.get_num_threads()))


def transposed(weight: Tensor) -> Tensor:
    """The weight, or mask, whose convolution gives the gradient in x: sides swapped, flipped."""
    return weight.transpose(0, 1).flip(2, 3)


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Tensors in autocast's dtype where that is on: registered operations do not cast."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t is not None and t.dtype != torch.float64 else t for t in tensors)


def check_convolution(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises :class:`InputError` unless x, weight and bias fit together; ``name`` is the caller."""
    require(name, x.dim() == 4, f"x must be [N, Cin, H, W], not {list(x.shape)}")
    require(name, x.dtype in DTYPES, f"x cannot be {x.dtype}")
    require(
        name,
        weight.dim() == 4 and weight.shape[1] == x.shape[1],
        f"weight must be [Cout, {x.shape[1]}, kh, kw], not {list(weight.shape)}",
    )
    kh, kw = weight.shape[2:]
    require(name, kh % 2 == 1 and kw % 2 == 1, f"kernels must be odd, not {kh}x{kw}")
    require(name, weight.shape[0] > 0 and weight.shape[1] > 0, "weight has no channels")
    if bias is not None:
        require(
            name,
            bias.shape == (weight.shape[0],),
            f"bias must be [{weight.shape[0]}], not {list(bias.shape)}",
        )
    for label, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            require(
                name,
                tensor.dtype == x.dtype and tensor.device == x.device,
                f"{label} is {tensor.dtype} on {tensor.device}, but x {x.dtype} on {x.device}",
            )


def require(name: str, condition: bool, message: str) -> None:
    """Raises :class:`InputError` with the operation's name unless the condition holds."""
    if not condition:
        raise InputError(f"{name}: {message}")


def find_implementation(name: str, implementations: dict, backend: str):
    """The operation's implementation; raises :class:`InputError` if the backend has none."""
    check_backend(backend)
    require(name, backend in implementations, f"there is no {backend} kernel, use reference")
    return implementations[backend]


def default_implementation(implementations: dict, x: Tensor):
    """The fastest implementation for x, the reference where there is no kernel for it."""
    backend = default_backend(x.device)
    # On a GPU cuDNN, unless benchmarks/ops/trimmed_conv2d_cuda.py finds it slower.
    if x.is_cuda or (backend == "native" and not runs_native(x)):
        backend = "reference"
    return implementations.get(backend, implementations["reference"])


def _check_arguments(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
    check_convolution("trimmed_conv2d", x, weight, bias)
    require(
        "trimmed_conv2d",
        mask.dtype == torch.bool
        and mask.dim() == 4
        and mask.device == x.device
        and mask.shape[2:] == weight.shape[2:],
        f"mask must be bool [Gout, Gin, {weight.shape[2]}, {weight.shape[3]}] on {x.device}, "
        f"not {mask.dtype} {list(mask.shape)} on {mask.device}",
    )
    for side, channels, groups in zip(("out", "in"), weight.shape[:2], mask.shape[:2], strict=True):
        require(
            "trimmed_conv2d",
            groups > 0 and channels % groups == 0,
            f"{channels} channels {side} cannot be split into {groups} equal groups",
        )


def _reference(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """The definition."""
    return same_conv2d(x, trim(weight, expand_mask(mask, weight)), bias)


def gpu_implementation(name: str) -> Callable[..., Tensor]:
    """The function ``name`` of ``trimmed_kernels``, which needs this module: imported late."""

    def run(*arguments) -> Tensor:
        from pycodec.ops import trimmed_kernels

        return getattr(trimmed_kernels, name)(*arguments)

    return run


_IMPLEMENTATIONS = {
    "reference": _reference,
    "native": native_trimmed_conv2d,
    "cuda": gpu_implementation("cuda"),
    "triton": gpu_implementation("triton"),
}


@torch.library.custom_op("pycodec::trimmed_conv2d", mutates_args=())
def _trimmed_conv2d_op(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    _check_arguments(x, weight, mask, bias)
    return default_implementation(_IMPLEMENTATIONS, x)(x, weight, mask, bias)


@_trimmed_conv2d_op.register_fake
def _(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    _check_arguments(x, weight, mask, bias)
    return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))


def _setup_context(ctx, inputs, output) -> None:
    x, weight, mask, _ = inputs
    ctx.save_for_backward(x, weight, mask)


def _backward(ctx, grad: Tensor):
    x, weight, mask = ctx.saved_tensors
    wants_x, wants_weight, _, wants_bias = ctx.needs_input_grad
    native_grad_x = None
    if wants_x and runs_native(x):
        native_grad_x = _trimmed_conv2d_op(grad, transposed(weight), transposed(mask), None)
        wants_x = False
    wide = expand_mask(mask, weight)
    grad_x, grad_weight, grad_bias = same_conv2d_backward(
        grad, x, trim(weight, wide) if wants_x else weight, (wants_x, wants_weight, wants_bias)
    )
    if wants_weight:
        grad_weight = trim(grad_weight, wide)
    return grad_x if wants_x else native_grad_x, grad_weight, None, grad_bias


_trimmed_conv2d_op.register_autograd(_backward, setup_context=_setup_context)
