"""Export of the float transforms to integers; ``docs/quantization.md`` is the contract.

A :class:`TransformPlan` says on which grids activations and weights lie: calibration
(``pycodec/quantization/calibration.py``) makes one, and so does training. :func:`export_transform`
makes the integers of it, and proves that no accumulator can overflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pycodec.errors import CodecError
from pycodec.models.blocks import QualityAffine
from pycodec.models.integer_transforms import (
    LOG2_BITS,
    NARROW_BITS,
    OFFSET_BITS,
    PROGRAMS,
    Convert,
    Convolve,
    ReadPixels,
    pack_int12,
)
from pycodec.ops.quadtree_stage import LATENT_FRACTION_BITS
from pycodec.ops.quantized_conv2d import pack_int4
from pycodec.quantization.export import fixed_multiplier

PIXEL_SCALE, PIXEL_ZERO = 1 / 255, 127.5
LATENT_SCALE = 2.0**-LATENT_FRACTION_BITS
MAX_MULTIPLIER_BITS = 30
MAX_CONVERT_SHIFT = 44
"""So that sums of conversions stay below 2**62."""

_MAX_BIAS = 1 << 30


@dataclass
class ActivationGrid:
    """Of a convolution's input: real values are ``scale * (q - zero_point)``.

    Attributes:
        scale: float [Cin].
        zero_point: int [Cin]; 0 after a ReLU and for wide inputs.
        bits: 2 to 8, or 9 to 16 for a wide input.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int = 8


@dataclass
class LayerPlan:
    """Of one convolution.

    Attributes:
        input: its input's grid.
        weight_bits: 2 to 16; two a byte from 4 down, two in three bytes from 9 to 12.
        weight_scale: float [Cout], of the weights after input scales were folded in; None: from
            their largest.
        rounded: integers [Cout, Cin, k, k], where rounding was chosen already.
        bias: float [Cout] in place of the module's, which makes up for the mean error of rounding.
    """

    input: ActivationGrid
    weight_bits: int = 8
    weight_scale: Tensor | None = None
    rounded: Tensor | None = None
    bias: Tensor | None = None


@dataclass
class TransformPlan:
    """Of a transform: layers by their module's path, and scales [C] of the streams by name."""

    layers: dict[str, LayerPlan]
    streams: dict[str, Tensor] = field(default_factory=dict)


def fold_weight(weight: Tensor, plan: LayerPlan, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weights for integer inputs, and the scale of each output's: [O, I, k, k], [O, 1, 1, 1].

    A scale is large enough for the bias, too, which counts in its units.
    """
    folded = weight.double() * plan.input.scale.double().view(1, -1, 1, 1)
    if plan.weight_scale is not None:
        return folded, plan.weight_scale.double().view(-1, 1, 1, 1)
    top = 2 ** (plan.weight_bits - 1) - 1
    peak = folded.abs().amax((1, 2, 3), keepdim=True) / top
    floor = bias.double().abs().view(-1, 1, 1, 1) / _MAX_BIAS
    return folded, peak.maximum(floor).clamp(min=1e-30)


def input_range(bits: int, signed: bool) -> tuple[int, int]:
    """The least and the largest integer of an input of so many bits."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def accumulator_bound(
    weight: Tensor, bias: Tensor, low: Tensor | int, high: Tensor | int
) -> tuple[int, int]:
    """The least and the largest accumulator for inputs in ``low`` to ``high``; both are reached.

    Padding lies in the same range, so borders exceed nothing.

    Args:
        weight: integers [O, k, k, I].
        bias: integers [O].
        low, high: of each input channel, [I], or of all.
    """
    weight = weight.long()
    ends = torch.stack([weight * low, weight * high])
    least = ends.amin(0).sum((1, 2, 3)) + bias.long()
    most = ends.amax(0).sum((1, 2, 3)) + bias.long()
    return int(least.min()), int(most.max())


@torch.no_grad()
def export_transform(name: str, module: nn.Module, plan: TransformPlan) -> dict[str, Tensor]:
    """The integer tensors of an ``IntegerTransform``.

    Args:
        name: ``analysis``, ``hyper_analysis`` or ``synthesis``.
        module: the float transform.
        plan: of it.

    Raises:
        CodecError: an accumulator could overflow, or scales are too far apart for integers.
    """
    tensors: dict[str, Tensor] = {}
    signed = {}
    for step in PROGRAMS[name]:
        if isinstance(step, ReadPixels):
            tensors |= _export_pixels(step.layer)
            signed[step.layer] = False
        elif isinstance(step, Convert):
            tensors |= _export_conversion(name, step, module, plan)
            signed[step.layer] = not step.relu
        else:
            if step.to_layer:
                signed[step.to] = False
                bits = plan.layers[step.to].input.bits
                tensors[f"{step.to}.input.bits"] = torch.tensor(bits, dtype=torch.int32)
            layer = plan.layers[step.layer]
            conv = module.get_submodule(step.layer)
            made = _export_layer(step, conv, layer, _output_scale(step, plan), signed[step.layer])
            tensors |= made
    return tensors


def _output_scale(step: Convolve, plan: TransformPlan) -> Tensor:
    if step.to_layer:
        return plan.layers[step.to].input.scale
    fixed = {"latents": LATENT_SCALE, "hyperlatents": 1.0, "pixels": PIXEL_SCALE}
    return torch.tensor(fixed[step.to]) if step.to in fixed else plan.streams[step.to]


def _export_pixels(layer: str) -> dict[str, Tensor]:
    return {
        f"{layer}.input.bits": torch.tensor(8, dtype=torch.int32),
        f"{layer}.zero_point": torch.full((48,), 128, dtype=torch.int16),
    }


def pixel_grid() -> ActivationGrid:
    """Of the first layer: the codec reads ``pixel / 255 - 1/2``."""
    return ActivationGrid(torch.full((48,), PIXEL_SCALE), torch.full((48,), 128), 8)


def patch_order(out_channels: int, upscale: int) -> Tensor:
    """Where torch's pixel shuffle has (c, dy, dx), the integer layer has (dy, dx, c)."""
    return torch.arange(out_channels).view(-1, upscale**2).T.flatten()


def unshuffled_weight(weight: Tensor) -> Tensor:
    """Weights on torch's unshuffled pixels (c, dy, dx) as weights on (dy, dx, c)."""
    o, i, kh, kw = weight.shape
    return weight.view(o, 3, i // 3, kh, kw).transpose(1, 2).reshape(o, i, kh, kw)


def layer_weight(step: Convolve, conv: nn.Conv2d) -> Tensor:
    """A layer's float weight with input channels in the integer layer's order."""
    weight = conv.weight.double()
    return unshuffled_weight(weight) if step.layer == "stem" else weight


def _export_layer(
    step: Convolve, conv: nn.Conv2d, plan: LayerPlan, out_scale: Tensor, signed: bool
) -> dict[str, Tensor]:
    bias = (conv.bias if plan.bias is None else plan.bias).double()
    zero = plan.input.zero_point.double()
    if step.layer == "stem":
        zero = torch.full_like(zero, PIXEL_ZERO)
    if step.to == "pixels":
        bias = bias + 0.5
    weight = layer_weight(step, conv)
    made = export_layer(
        step.layer, weight, bias, plan, out_scale, signed=signed, upscale=step.upscale, zero=zero
    )
    if step.layer != "stem" and bool(plan.input.zero_point.any()):
        made[f"{step.layer}.zero_point"] = plan.input.zero_point.to(torch.int16)
    return made


def export_layer(
    name: str,
    weight: Tensor,
    bias: Tensor,
    plan: LayerPlan,
    out_scale: Tensor,
    *,
    signed: bool,
    upscale: int = 1,
    zero: Tensor | None = None,
) -> dict[str, Tensor]:
    """Integers of a convolution: weight, bias, multiplier and shift, after its name and a dot.

    Args:
        name: of the layer.
        weight: float [Cout, Cin, k, k].
        bias: float64 [Cout].
        plan: of the layer; its bias is not looked at.
        out_scale: what a unit of the result stands for, of all or [Cout / upscale**2].
        signed: whether inputs may be negative.
        upscale: outputs (c, dy, dx) become (dy, dx, c).
        zero: input that stands for 0, [Cin]; None for 0.

    Raises:
        CodecError: an accumulator could overflow, or scales are too far apart for integers.
    """
    weight, scale = fold_weight(weight, plan, bias)
    top = 2 ** (plan.weight_bits - 1) - 1
    integers = (weight / scale).round() if plan.rounded is None else plan.rounded.double()
    integers = integers.clamp(-top, top)
    scale = scale.flatten()
    bias = bias / scale
    if zero is not None:
        bias = bias - (integers.sum((2, 3)) * zero).sum(1)
    if float(bias.abs().max()) >= 2**31:
        raise CodecError(f"layer {name}: a bias exceeds int32; a channel's weights have vanished")
    out_scale = out_scale.double().expand(len(scale) // upscale**2)
    out_scale = out_scale.repeat_interleave(upscale**2)
    multiplier, shift = fixed_multiplier(scale / out_scale)
    if upscale > 1:
        order = patch_order(len(scale), upscale)
        integers, bias, multiplier = integers[order], bias[order], multiplier[order]
    bias = bias.round().to(torch.int32)
    dtype = torch.int16 if plan.weight_bits > NARROW_BITS else torch.int8
    packed = integers.permute(0, 2, 3, 1).to(dtype).contiguous()
    least, most = accumulator_bound(packed, bias, *input_range(plan.input.bits, signed))
    if least < -(2**31) or most >= 2**31:
        raise CodecError(
            f"layer {name} could overflow int32 ({least} to {most}): calibrate with more pictures, "
            "in colour and of many kinds, so that no channel's scale vanishes"
        )
    return {
        **_stored_weight(name, packed, plan.weight_bits),
        f"{name}.bias": bias.contiguous(),
        f"{name}.multiplier": multiplier.contiguous(),
        f"{name}.shift": torch.tensor(shift, dtype=torch.int32),
    }


def _stored_weight(name: str, weight: Tensor, bits: int) -> dict[str, Tensor]:
    if bits <= 4:
        return {f"{name}.weight": pack_int4(weight)}
    if NARROW_BITS < bits <= 12 and weight.shape[-1] % 2 == 0:
        return {f"{name}.weight12": pack_int12(weight)}
    return {f"{name}.weight": weight}


def _export_conversion(
    name: str, step: Convert, module: nn.Module, plan: TransformPlan
) -> dict[str, Tensor]:
    grid = plan.layers[step.layer].input
    source = plan.streams[step.source] if step.source != "input" else torch.tensor(LATENT_SCALE)
    ratio = (source.double() / grid.scale.double()).expand(len(grid.scale))
    key = f"{step.layer}.input"
    made = {f"{key}.bits": torch.tensor(grid.bits, dtype=torch.int32)}
    affine = None if step.affine is None else module.get_submodule(step.affine)
    if affine is None:
        multiplier, shift = fixed_multiplier(ratio, MAX_CONVERT_SHIFT)
        made[f"{key}.multiplier"] = multiplier
    else:
        made |= _export_affine(key, affine, ratio, grid)
        shift = int(made.pop("shift"))
    if shift < OFFSET_BITS:
        raise CodecError(f"{name}.{step.layer}: the scales of its input are too far apart")
    made[f"{key}.shift"] = torch.tensor(shift, dtype=torch.int32)
    return made


def _export_affine(
    key: str, affine: QualityAffine, ratio: Tensor, grid: ActivationGrid
) -> dict[str, Tensor]:
    log2 = affine.log_scale.nodes.double() / math.log(2) + ratio.log2()
    shift = min(MAX_CONVERT_SHIFT, MAX_MULTIPLIER_BITS - 1 - math.floor(float(log2.max())))
    units = ((log2 + shift) * 2**LOG2_BITS).round().to(torch.int32)
    offset = affine.shift.nodes.double() / grid.scale.double() * 2**OFFSET_BITS
    limit = float(offset.abs().max())
    if limit * 2.0 ** (shift - OFFSET_BITS) >= 2**61:
        raise CodecError(f"{key}: a shift by quality is too large for integers")
    return {
        f"{key}.log2_multiplier": units.contiguous(),
        f"{key}.offset": offset.round().to(torch.int32).contiguous(),
        "shift": torch.tensor(shift),
    }


def model_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
