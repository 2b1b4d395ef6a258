"""Wave by wave decoding in Triton: a launch a layer and wave, the symbols drawn on the host.

:mod:`pycodec.context.wave_network` is the definition. A layer is computed at the positions of one
wave only; these follow from the wave's number, so that no list of them is ever sent. What has no
position in a wave is not computed. Where a wave should cost less than its launches, use
:mod:`pycodec.context.wave_network_cuda`, which decodes in one kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from pycodec.coding import rans
from pycodec.coding.tables import TableSet
from pycodec.context.wave_network import SYMBOLS, IntegerLayer, WaveNetwork
from pycodec.errors import UnsupportedError
from pycodec.ops.trimmed_kernels import block_lists, trim_quantized
from pycodec.triton_kernels.trimmed_conv2d import (
    BLOCK_IN_INT8,
    accumulate_int8,
    block_out,
    quantized_signature,
    requantize,
)

BLOCK_POSITIONS = 32
NUM_WARPS = 4


@triton.jit
def wave_rows(
    t,
    group,
    group_step,
    row_step,
    column_step,
    divisor,  # gcd(row_step, column_step)
    row_stride,  # column_step / divisor
    inverse,  # of row_step / divisor modulo row_stride
    height,
    width,
):
    """Rows of a group that have a symbol in wave t: (the first, how many), row_stride apart.

    They solve row_step * row = rest modulo column_step with a column inside of the picture.
    """
    rest = tl.cast(t, tl.int64) - tl.cast(group_step, tl.int64) * group
    there = (rest >= 0) & (rest % divisor == 0)
    rest = tl.maximum(rest, 0)
    residue = rest // divisor % row_stride * inverse % row_stride
    beyond = tl.maximum(rest - tl.cast(column_step, tl.int64) * (width - 1), 0)
    low = tl.cast(0, tl.int64)
    high = tl.cast(height - 1, tl.int64)
    if row_step > 0:
        low = (beyond + row_step - 1) // row_step
        high = tl.minimum(high, rest // row_step)
    else:
        there = there & (beyond == 0)
    first = low + (residue + row_stride - low % row_stride) % row_stride
    count = tl.where(there & (first <= high), (high - first) // row_stride + 1, 0)
    return first, count


@triton.jit(do_not_specialize=["t"])
def wave_layer_kernel(
    x_ptr,  # int8 [height, width, in_channels]
    weight_ptr,  # int8 [KERNEL, KERNEL, in_channels, out_channels]
    counts_ptr,
    blocks_ptr,
    bias_ptr,
    multiplier_ptr,
    negative_multiplier_ptr,
    residual_ptr,  # int8 [height, width, out_channels]
    residual_multiplier_ptr,
    out_ptr,  # int8 [height, width, out_channels]; for the last layer uint8, in order of coding
    t,
    group_step,
    row_step,
    column_step,
    divisor,
    row_stride,
    inverse,
    height,
    width,
    in_channels,
    out_channels,
    group_width,
    blocks_per_tap,
    half,
    shift,
    lower,
    upper,
    KERNEL: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_LAST: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    blocks_of_group = tl.cdiv(group_width, BLOCK_OUT)
    group = tl.program_id(1) // blocks_of_group
    in_group = tl.program_id(1) % blocks_of_group * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    o = group * group_width + in_group
    o_inside = in_group < group_width
    first, count = wave_rows(
        t,
        group,
        group_step,
        row_step,
        column_step,
        divisor,
        row_stride,
        inverse,
        height,
        width,
    )
    n = tl.program_id(0) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    valid = n < count
    if tl.program_id(0) * BLOCK_POSITIONS < count:
        row = first + n.to(tl.int64) * row_stride
        rest = tl.cast(t, tl.int64) - tl.cast(group_step, tl.int64) * group
        column = (rest - row * row_step) // column_step
        position = row * width + column
        acc = accumulate_int8(
            x_ptr,
            weight_ptr,
            blocks_ptr + group * (KERNEL * KERNEL) * blocks_per_tap,
            tl.load(counts_ptr + group),
            position,
            row,
            column,
            valid,
            o,
            o_inside,
            height,
            width,
            in_channels,
            out_channels,
            blocks_per_tap,
            KERNEL,
            KERNEL,
            BLOCK_POSITIONS,
            BLOCK_OUT,
            BLOCK_IN,
        )
        value = requantize(
            acc,
            bias_ptr,
            multiplier_ptr,
            negative_multiplier_ptr,
            residual_ptr,
            residual_multiplier_ptr,
            half,
            shift,
            lower,
            upper,
            position,
            valid,
            o,
            o_inside,
            out_channels,
            HAS_RESIDUAL,
        )
        place = position[:, None] * out_channels + o[None, :]
        if IS_LAST:
            before = tl.cast(0, tl.int64)
            for other in range(group):
                _, others = wave_rows(
                    t,
                    other,
                    group_step,
                    row_step,
                    column_step,
                    divisor,
                    row_stride,
                    inverse,
                    height,
                    width,
                )
                before += others
            place = (before + n)[:, None] + in_group[None, :]
        tl.store(
            out_ptr + place,
            value.to(out_ptr.dtype.element_ty),
            mask=valid[:, None] & o_inside[None, :],
        )


@dataclass(frozen=True)
class _DeviceLayer:
    """A layer in device memory."""

    layer: IntegerLayer
    weight: Tensor  # int8 [k, k, Cin, Cout], trimmed
    counts: Tensor
    blocks: Tensor
    parameters: tuple[Tensor, Tensor, Tensor]
    of_residual: Tensor | None  # its multipliers


class WaveDecoder:
    """Decodes the streams of a network on a GPU, or on the CPU under Triton's interpreter.

    Args:
        network: its layers and order; its backend does not matter.
        device: where to decode.

    Raises:
        UnsupportedError: the network has side tensors or a phase, or a wave holds several symbols
            of a row.
    """

    def __init__(self, network: WaveNetwork, device: torch.device | str) -> None:
        if network.side_widths or network.phase.any() or network.steps[2] < 1:
            raise UnsupportedError("Triton decodes no network with side tensors or such an order")
        if any(layer.active is not None for layer in network.layers):
            raise UnsupportedError("Triton decodes no layers that are active at some places only")
        self._network = network
        self._device = torch.device(device)
        self._layers = [self._upload(layer) for layer in network.layers]

    def _upload(self, layer: IntegerLayer) -> _DeviceLayer:
        mask = torch.from_numpy(layer.mask).to(self._device)
        weight = trim_quantized(torch.from_numpy(layer.weight).to(self._device), mask)
        parameters = (layer.bias, layer.multiplier, layer.negative_multiplier)
        of_residual = layer.residual_multiplier
        return _DeviceLayer(
            layer,
            weight.permute(1, 2, 3, 0).contiguous(),
            *block_lists(mask, weight.shape[3], BLOCK_IN_INT8),
            tuple(torch.from_numpy(p).to(self._device) for p in parameters),
            None if of_residual is None else torch.from_numpy(of_residual).to(self._device),
        )

    def decode(self, data: bytes, tables: TableSet, height: int, width: int) -> NDArray[np.int32]:
        """The symbols of a stream of :meth:`WaveNetwork.encode`: int32 [G, height, width].

        Raises:
            CorruptStreamError: the stream is damaged.
        """
        groups, device = self._network.groups, self._device
        decoder = rans.RansDecoder(data, tables)
        symbols = np.zeros((groups, height, width), np.int32)
        tensors = [torch.zeros((height, width, groups), dtype=torch.int8, device=device)]
        tensors += [
            torch.zeros((height, width, layer.weight.shape[3]), dtype=torch.int8, device=device)
            for layer in self._layers[:-1]
        ]
        waves = self._network.waves(height, width) if symbols.size else []
        longest = max(map(len, waves), default=0)
        tensors.append(torch.empty(longest, dtype=torch.uint8, device=device))
        for t, wave in enumerate(waves):
            for number, layer in enumerate(self._layers):
                self._run(layer, tensors, number, t, height, width)
            drawn = decoder.decode(tensors[-1][: len(wave)].cpu().numpy())
            g, h, w = wave.T
            symbols[g, h, w] = drawn
            clamped = torch.from_numpy(np.clip(drawn, -128, 127).astype(np.int8))
            place = torch.from_numpy((h * width + w) * groups + g)
            tensors[SYMBOLS].view(-1)[place.to(device)] = clamped.to(device)
        decoder.finish()
        return symbols

    def _run(
        self,
        on_device: _DeviceLayer,
        tensors: list[Tensor],
        number: int,
        t: int,
        height: int,
        width: int,
    ) -> None:
        """Computes layer ``number`` at the positions of wave t."""
        layer = on_device.layer
        group_step, row_step, column_step = self._network.steps
        divisor = math.gcd(row_step, column_step)
        row_stride = column_step // divisor
        most = height if row_step == 0 else min(height, column_step * (width - 1) // row_step + 1)
        width_of_block = block_out(layer.out_width)
        grid = (
            triton.cdiv(triton.cdiv(most, row_stride), BLOCK_POSITIONS),
            layer.groups * triton.cdiv(layer.out_width, width_of_block),
        )
        wave_layer_kernel[grid](
            tensors[layer.input],
            on_device.weight,
            on_device.counts,
            on_device.blocks,
            *on_device.parameters,
            tensors[SYMBOLS if layer.residual is None else layer.residual],
            on_device.blocks if on_device.of_residual is None else on_device.of_residual,
            tensors[number + 1],
            t,
            group_step,
            row_step,
            column_step,
            divisor,
            row_stride,
            pow(row_step // divisor, -1, row_stride),
            height,
            width,
            layer.groups * layer.in_width,
            layer.groups * layer.out_width,
            layer.out_width,
            triton.cdiv(layer.groups * layer.in_width, BLOCK_IN_INT8),
            1 << (layer.shift - 1),
            layer.shift,
            layer.lower,
            layer.upper,
            KERNEL=layer.weight.shape[1],
            HAS_RESIDUAL=layer.residual is not None,
            IS_LAST=number == len(self._layers) - 1,
            BLOCK_POSITIONS=BLOCK_POSITIONS,
            BLOCK_OUT=width_of_block,
            BLOCK_IN=BLOCK_IN_INT8,
            num_warps=NUM_WARPS,
        )


def compile_variants():
    """What to compile ahead of time as a check: (kernel, signature, constants, options)."""
    for is_last, has_residual, kernel_size, width_of_block in (
        (False, True, 5, 16),
        (False, False, 3, 64),
        (True, False, 3, 16),
    ):
        constants = {
            "KERNEL": kernel_size,
            "HAS_RESIDUAL": has_residual,
            "IS_LAST": is_last,
            "BLOCK_POSITIONS": BLOCK_POSITIONS,
            "BLOCK_OUT": width_of_block,
            "BLOCK_IN": BLOCK_IN_INT8,
        }
        names = wave_layer_kernel.arg_names
        signature = quantized_signature(names, constants, "*u8" if is_last else "*i8")
        yield wave_layer_kernel, signature, constants, {"num_warps": NUM_WARPS}
