"""Trimmed convolutions and PReLU in bfloat16 on processors with matrix tiles: for training.

The same functions as :func:`pycodec.ops.trimmed_conv2d` and ``torch.nn.functional.prelu``, with
gradients, in channels-last memory. The convolution leaves out what the mask cuts in units of 32
inputs by 16 outputs, and PReLU's gradients take one pass over the memory. Both fall back to PyTorch
wherever the kernels (``csrc/cpu/trimmed_training.hpp``) cannot run: the caller need not ask.
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
        values = _last(x)
        rows = -1, x.shape[1]
        grad_x, grad_slope = _cpu.bfloat16_prelu_gradients(
            _bits(values.reshape(rows)),
            slope.detach().float().numpy(),
            _bits(_last(grad).reshape(rows)),
            torch.get_num_threads(),
        )
        grad_x = _floats(grad_x).view(values.shape).permute(0, 3, 1, 2)
        return grad_x, torch.from_numpy(grad_slope).to(slope.dtype)


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


def _mask(mask: Tensor) -> NDArray[np.bool_]:
    return mask.contiguous().numpy()


def _bits(x: Tensor) -> NDArray[np.uint16]:
    """NumPy has no bfloat16."""
    return x.view(torch.int16).numpy().view(np.uint16)


def _floats(bits: NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
