"""Trimmed layers in bfloat16 on processors that multiply it (AVX-512 BF16, AMX): for training.

The same functions as :func:`pycodec.ops.trimmed_conv2d` and ``torch.nn.functional.prelu``, and the
rounding of integer activations, with gradients, in channels-last memory. The convolution leaves out
what the mask cuts in units of 16 outputs by 32 inputs with AMX, by 8 without; the gradients of
PReLU and all of the rounding take one pass over the memory each. All fall back to PyTorch wherever
the kernels (``csrc/cpu/trimmed_training.hpp``) cannot run: the caller need not ask.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.ops.trimmed_conv2d import autocast, expand_mask, transposed, trim

CHANNELS = 32
"""The kernels' channels are multiples of it."""
LARGEST = 127
"""Of the integers that activations round to; the least is its negative."""


def conv2d(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    """:func:`trimmed_conv2d`, in whatever memory format suits; under autocast in its dtype.

    Args:
        x: float [N, Cin, H, W]; the kernel takes bfloat16 on the CPU.
        weight: [Cout, Cin, kh, kw], kh and kw odd.
        mask: bool [Gout, Gin, kh, kw], as of :func:`trimmed_conv2d`.
        bias: [Cout].

    Returns:
        [N, Cout, H, W], differentiable in x, weight and bias.
    """
    x, weight, bias = autocast(x, weight, bias)
    if _runs(x) and weight.shape[0] % CHANNELS == 0:
        return _Convolution.apply(x, weight, mask, bias)
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    return F.conv2d(x, trim(weight, expand_mask(mask, weight)), bias, padding=padding)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """``torch.nn.functional.prelu`` with a slope a channel.

    Args:
        x: float [N, C, H, W]; the kernel takes bfloat16 on the CPU.
        slope: [C].
    """
    if _runs(x) and slope.numel() == x.shape[1]:
        return _Prelu.apply(x, slope)
    return F.prelu(x, slope.to(x.dtype))


def fake_quantize(x: Tensor, scale: Tensor, residual: Tensor | None = None) -> Tensor:
    """The sum on the grid of int8 activations, with a scale a channel.

    ``round(clamp((x + residual) / scale, -127, 127)) * scale``; the gradient passes straight
    through the rounding, and reaches the scale (LSQ, arXiv 1902.08153).

    Args:
        x: float [N, C, H, W]; the kernel takes bfloat16 on the CPU.
        scale: [C], positive.
        residual: like x.
    """
    if _runs(x) and scale.numel() == x.shape[1] and (residual is None or _runs(residual)):
        return _FakeQuantize.apply(x, scale, residual)
    return fake_quantize_reference(x, scale, residual)


def fake_quantize_reference(x: Tensor, scale: Tensor, residual: Tensor | None = None) -> Tensor:
    """:func:`fake_quantize` of PyTorch's operations."""
    total = x if residual is None else x + residual
    scale = scale.view(1, -1, 1, 1)
    inside = (total / scale).clamp(-LARGEST, LARGEST)
    return (inside + (inside.round() - inside).detach()) * scale


def _runs(x: Tensor) -> bool:
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.shape[1] % CHANNELS == 0
        and _cpu.runs_bfloat16()
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, mask, bias):
        ctx.save_for_backward(x, weight, mask)
        return _convolve(x, weight, mask, bias.float())

    @staticmethod
    def backward(ctx, grad):
        x, weight, mask = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            no_bias = torch.zeros(x.shape[1])
            grad_x = _convolve(grad, transposed(weight), transposed(mask), no_bias)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            grads = _cpu.bfloat16_trimmed_conv2d_gradients(
                _bits(_last(x)), _bits(_last(grad)), _mask(mask), torch.get_num_threads()
            )
            grad_weight, grad_bias = (torch.from_numpy(g).to(weight.dtype) for g in grads)
        return grad_x, grad_weight, None, grad_bias


class _Prelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        x, slope = ctx.saved_tensors
        grad_x, grad_slope = _cpu.bfloat16_prelu_gradients(
            _rows(x), slope.detach().float().numpy(), _rows(grad), torch.get_num_threads()
        )
        return _like(x, grad_x), torch.from_numpy(grad_slope).to(slope.dtype)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, residual):
        ctx.save_for_backward(x, scale, residual)
        out = _cpu.bfloat16_fake_quantize(
            *_FakeQuantize._operands(x, scale, residual), torch.get_num_threads()
        )
        return _like(x, out)

    @staticmethod
    def backward(ctx, grad):
        x, scale, residual = ctx.saved_tensors
        grad_x, grad_scale = _cpu.bfloat16_fake_quantize_gradients(
            *_FakeQuantize._operands(x, scale, residual), _rows(grad), torch.get_num_threads()
        )
        grad_x = _like(x, grad_x)
        return (
            grad_x,
            torch.from_numpy(grad_scale).to(scale.dtype),
            None if residual is None else grad_x,
        )

    @staticmethod
    def _operands(x, scale, residual):
        values = scale.detach().float().numpy()
        return _rows(x), None if residual is None else _rows(residual), values


def _convolve(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    out = _cpu.bfloat16_trimmed_conv2d(
        _bits(_last(x)),
        _bits(weight.detach().contiguous()),
        _mask(mask),
        bias.detach().numpy(),
        torch.get_num_threads(),
    )
    return _floats(out).permute(0, 3, 1, 2)


def _last(x: Tensor) -> Tensor:
    """[N, H, W, C], contiguous."""
    return x.detach().permute(0, 2, 3, 1).contiguous()


def _rows(x: Tensor) -> NDArray[np.uint16]:
    """[positions, C]."""
    return _bits(_last(x).flatten(0, 2))


def _like(x: Tensor, rows: NDArray[np.uint16]) -> Tensor:
    """[positions, C] in the shape of x."""
    n, channels, height, width = x.shape
    return _floats(rows).view(n, height, width, channels).permute(0, 3, 1, 2)


def _mask(mask: Tensor) -> NDArray[np.bool_]:
    return mask.contiguous().numpy()


def _bits(x: Tensor) -> NDArray[np.uint16]:
    """NumPy has no bfloat16."""
    return x.view(torch.int16).numpy().view(np.uint16)


def _floats(bits: NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
