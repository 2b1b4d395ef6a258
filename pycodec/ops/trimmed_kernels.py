"""What the GPU kernels of the trimmed convolutions share: lists of blocks, launches, gradients.

A kernel walks, for each output group, over the blocks of weights that the mask does not cut off in
whole: (tap, block of input channels). What a mask cuts within a block is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pycodec.ops.backends import launch_cuda
from pycodec.ops.quantized_trimmed_conv2d import output_dtype
from pycodec.ops.trimmed_conv2d import expand_mask, require, same_conv2d_backward, trim

# kTrimmedDepth and 4 * kTrimmedWords in csrc/cuda/trimmed_conv2d.hpp
CUDA_BLOCK_IN, CUDA_BLOCK_IN_INT8 = 16, 32

_DEVICE_TYPE = "cuda"


def block_lists(mask: Tensor, in_channels: int, block_in: int) -> tuple[Tensor, Tensor]:
    """The blocks that each output group sees; computed on the mask's device without waiting for it.

    Args:
        mask: bool [Gout, Gin, kh, kw].
        in_channels: a multiple of Gin.
        block_in: input channels in a block; the last one of a tap may hold fewer.

    Returns:
        int32 [Gout]: how many blocks a group sees; int32 [Gout, kh * kw * blocks in a tap]: their
        numbers, ``tap * blocks + block``, ascending, the unseen ones behind them.
    """
    groups_out, groups_in, kh, kw = mask.shape
    blocks = -(-in_channels // block_in)
    seen = mask.permute(0, 2, 3, 1).reshape(groups_out, kh * kw, groups_in)
    seen = seen.repeat_interleave(in_channels // groups_in, 2)
    seen = torch.nn.functional.pad(seen, (0, blocks * block_in - in_channels))
    seen = seen.view(groups_out, kh * kw * blocks, block_in).any(2)
    numbers = torch.argsort((~seen).to(torch.uint8), dim=1, stable=True)
    return seen.sum(1, dtype=torch.int32), numbers.to(torch.int32)


class _Convolution(torch.autograd.Function):
    """A kernel's forward pass with the gradients of the definition."""

    @staticmethod
    def forward(ctx, x, weight, mask, bias, run):
        ctx.save_for_backward(x, weight, mask)
        return run(x, weight, mask, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight, mask = ctx.saved_tensors
        wide = expand_mask(mask, weight)
        wants_x, wants_weight, _, wants_bias, _ = ctx.needs_input_grad
        grad_x, grad_weight, grad_bias = same_conv2d_backward(
            grad, x, trim(weight, wide), (wants_x, wants_weight, wants_bias)
        )
        return grad_x, trim(grad_weight, wide) if wants_weight else None, None, grad_bias, None


def cuda(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`pycodec.ops.trimmed_conv2d.trimmed_conv2d` by ``csrc/cuda/trimmed_conv2d.cu``."""
    _check_device("trimmed_conv2d", x)
    return _Convolution.apply(x, weight, mask, bias, _run_cuda)


def triton(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """The same by ``triton_kernels/trimmed_conv2d.py``."""
    return _Convolution.apply(x, weight, mask, bias, _run_triton)


def _run_cuda(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    x = x.contiguous()
    out = x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))
    packed = trim(weight, expand_mask(mask, weight)).permute(2, 3, 1, 0).contiguous()
    counts, blocks = block_lists(mask, x.shape[1], CUDA_BLOCK_IN)
    launch_cuda(
        "trimmed_conv2d",
        x.device,
        x=x.data_ptr(),
        weight=packed.data_ptr(),
        bias=0 if bias is None else bias.contiguous().data_ptr(),
        counts=counts.data_ptr(),
        blocks=blocks.data_ptr(),
        out=out.data_ptr(),
        x_shape=tuple(x.shape),
        weight_shape=tuple(weight.shape),
        groups_out=mask.shape[0],
        dtype=str(x.dtype).removeprefix("torch."),
    )
    return out


def _run_triton(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    # Imported late: triton is an optional package and slow to import.
    from pycodec.triton_kernels import trimmed_conv2d as kernel

    x = x.contiguous()
    out = x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))
    packed = trim(weight, expand_mask(mask, weight)).permute(2, 3, 1, 0).contiguous()
    counts, blocks = block_lists(mask, x.shape[1], kernel.BLOCK_IN)
    kernel.launch(x, packed, counts, blocks, None if bias is None else bias.contiguous(), out)
    return out


def trim_quantized(weight: Tensor, mask: Tensor) -> Tensor:
    """int8 [Cout, kh, kw, Cin] with zeros where the mask [Gout, Gin, kh, kw] cuts."""
    wide = expand_mask(mask, weight.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return trim(weight, wide)


@dataclass(frozen=True)
class QuantizedWeights:
    """What the integer CUDA kernel takes for a weight and a mask: the same for all pictures."""

    weight: Tensor  # int8 [Cout, kh, kw, Cin], zeros where the mask cuts
    counts: Tensor  # of block_lists()
    blocks: Tensor
    groups_out: int


def pack_quantized_cuda(weight: Tensor, mask: Tensor) -> QuantizedWeights:
    """A weight int8 [Cout, kh, kw, Cin] and a mask [Gout, Gin, kh, kw] of the same device."""
    lists = block_lists(mask, weight.shape[3], CUDA_BLOCK_IN_INT8)
    return QuantizedWeights(trim_quantized(weight, mask).contiguous(), *lists, mask.shape[0])


def quantized_cuda(x: Tensor, weight: Tensor, mask: Tensor, *others: Tensor | int | None) -> Tensor:
    """:mod:`pycodec.ops.quantized_trimmed_conv2d` by ``csrc/cuda/trimmed_conv2d.cu``."""
    _check_device("quantized_trimmed_conv2d", x)
    return run_quantized_cuda(x, pack_quantized_cuda(weight, mask), *others)


def run_quantized_cuda(
    x: Tensor,
    weights: QuantizedWeights,
    bias: Tensor,
    multiplier: Tensor,
    negative_multiplier: Tensor,
    shift: int,
    residual: Tensor | None,
    residual_multiplier: Tensor | None,
    lower: int,
    upper: int,
) -> Tensor:
    """:func:`quantized_cuda` of weights that are packed already."""
    out = _quantized_output(x, weights.weight, upper)
    launch_cuda(
        "quantized_trimmed_conv2d",
        x.device,
        x=x.data_ptr(),
        weight=weights.weight.data_ptr(),
        bias=bias.data_ptr(),
        multiplier=multiplier.data_ptr(),
        negative_multiplier=negative_multiplier.data_ptr(),
        residual=0 if residual is None else residual.data_ptr(),
        residual_multiplier=0 if residual_multiplier is None else residual_multiplier.data_ptr(),
        counts=weights.counts.data_ptr(),
        blocks=weights.blocks.data_ptr(),
        out=out.data_ptr(),
        x_shape=tuple(x.shape),
        weight_shape=tuple(weights.weight.shape),
        groups_out=weights.groups_out,
        shift=shift,
        lower=lower,
        upper=upper,
    )
    return out


def quantized_triton(
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
    """The same by ``triton_kernels/trimmed_conv2d.py``."""
    from pycodec.triton_kernels import trimmed_conv2d as kernel

    out = _quantized_output(x, weight, upper)
    packed = trim_quantized(weight, mask).permute(1, 2, 3, 0).contiguous()
    counts, blocks = block_lists(mask, x.shape[3], kernel.BLOCK_IN_INT8)
    kernel.launch_quantized(
        x,
        packed,
        counts,
        blocks,
        (bias, multiplier, negative_multiplier),
        shift,
        residual,
        residual_multiplier,
        lower,
        upper,
        out,
    )
    return out


def _quantized_output(x: Tensor, weight: Tensor, upper: int) -> Tensor:
    return x.new_empty((*x.shape[:3], weight.shape[0]), dtype=output_dtype(upper))


def _check_device(name: str, x: Tensor) -> None:
    on_gpu = x.device.type == _DEVICE_TYPE
    require(name, on_gpu, f"the cuda backend runs on a GPU, but x is on {x.device}")
