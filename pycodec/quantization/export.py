"""Export of the trained entropy model to integers, and the way back.

A layer's accumulator counts ``s_w[o]``, the scale of its output channel's weights after the scales
of its inputs were folded in; ``multiplier / 2**shift = s_w / s_out`` takes it to the grid of its
output. The worst case of every accumulator is bounded here, so none can overflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pycodec.coding.tables import TableSet
from pycodec.context.quadtree import STAGES
from pycodec.errors import CodecError
from pycodec.models.entropy_model import EntropyModel
from pycodec.ops.quadtree_stage import (
    LATENT_FRACTION_BITS,
    LOG2_SCALE_MIN,
    LOG2_UNITS,
    MAX_CONTEXT_SHIFT,
    SCALE_LEVELS,
)
from pycodec.quantization.fake_quant import QuantizedConv2d

ACTIVATION_SCALE = "log_scale"
"""How the names of trained activation scales end; coding does not need them, training does."""

EXP2_FIRST, EXP2_LAST = -1200, 1200
"""Range of the step table, in hundredths of an octave."""


def fixed_multiplier(ratio: Tensor, max_shift: int = 62) -> tuple[Tensor, int]:
    """Per-channel ratios as ``multiplier / 2**shift`` with one shift and 30-bit multipliers."""
    largest = float(ratio.max())
    if not 0 < largest < 2**29:
        raise CodecError(f"a layer's scales are out of range ({largest:g}): it cannot be exported")
    shift = min(max_shift, 29 - math.floor(math.log2(largest)))
    return torch.round(ratio.double() * 2.0**shift).to(torch.int32), shift


def check_accumulator(name: str, weight: Tensor, bias: Tensor, input_limit: int) -> int:
    """The largest |accumulator| that a layer can reach; raises CodecError if int32 is too small.

    Args:
        name: of the layer, for the message.
        weight: int8 [O, k, k, I].
        bias: int32 [O] or [K, O].
        input_limit: largest |input|: 255 for uint8, 127 for clamped int8.
    """
    worst = weight.long().abs().sum(dim=(1, 2, 3)) * input_limit + bias.long().abs()
    bound = int(worst.max())
    if bound >= 2**31:
        raise CodecError(f"layer {name} could overflow int32 (bound {bound}); train with less gain")
    return bound


def _export_conv(
    name: str,
    conv: QuantizedConv2d,
    in_scale: Tensor,
    out_scale: Tensor,
    *,
    signed_input: bool = False,
    quality_bias: Tensor | None = None,
    shuffle: bool = False,
) -> dict[str, Tensor]:
    """One convolution, channels last; ``shuffle`` turns outputs (c, dy, dx) into (dy, dx, c)."""
    folded, scale = conv.weight_grid(in_scale.expand(conv.weight.shape[1]))
    weight = torch.round(folded / scale).clamp(-127, 127).to(torch.int8)
    scale = scale.flatten().double()
    bias = conv.bias.double()
    if quality_bias is not None:
        bias = bias + quality_bias.double()
    bias = torch.round(bias / scale)
    if float(bias.abs().max()) >= 2**31:
        raise CodecError(f"layer {name}: a bias exceeds int32; a channel's weights have vanished")
    multiplier, shift = fixed_multiplier(scale / out_scale.double().expand(len(scale)))
    weight = weight.permute(0, 2, 3, 1)
    if shuffle:
        order = torch.arange(len(scale)).view(-1, 4).T.flatten()
        weight, bias, multiplier = weight[order], bias[..., order], multiplier[order]
    bias = bias.to(torch.int32).contiguous()
    check_accumulator(name, weight, bias, 127 if signed_input else 255)
    return {
        f"{name}.weight": weight.contiguous(),
        f"{name}.bias": bias,
        f"{name}.multiplier": multiplier.contiguous(),
        f"{name}.shift": torch.tensor(shift, dtype=torch.int32),
        f"{name}.weight_scale": (scale[order] if shuffle else scale).float(),
    }


def gaussian_tables(precision: int = 12) -> TableSet:
    """Start tables, for latents and for hyperlatents: Gaussians at the scale levels."""
    scales = [2.0 ** ((LOG2_SCALE_MIN + 16 * i) / LOG2_UNITS) for i in range(SCALE_LEVELS)]
    return TableSet.gaussian(scales * 2, precision)


@torch.no_grad()
def export_entropy_model(model: EntropyModel, tables: TableSet | None = None) -> dict[str, Tensor]:
    """The integer tensors of ``IntegerEntropyModel``.

    Args:
        model: trained with quantization on (``model.quantized``).
        tables: 2 x 64 tables; Gaussians if None.

    Raises:
        CodecError: a layer cannot be represented.
    """
    if not model.quantized:
        raise CodecError("the entropy model was not trained with quantization: nothing to export")
    hyper = model.hyper_synthesis
    one = torch.ones(1)
    scales = [one, hyper.act1.scale, hyper.act2.scale, hyper.act3.scale, hyper.act4.scale]
    out = _export_conv("hyper.conv1", hyper.conv1, scales[0], scales[1], signed_input=True)
    out |= _export_conv("hyper.conv2", hyper.conv2, scales[1], scales[2], shuffle=True)
    out |= _export_conv("hyper.conv3", hyper.conv3, scales[2], scales[3])
    out |= _export_conv(
        "hyper.conv4",
        hyper.conv4,
        scales[3],
        scales[4],
        quality_bias=hyper.quality_bias.nodes,
        shuffle=True,
    )
    features = hyper.act4.scale.expand(hyper.conv4.weight.shape[0] // 4)
    channels = model.latent_channels
    head_scale = torch.cat(
        [
            torch.full((channels,), 2.0**-LATENT_FRACTION_BITS),
            torch.full((channels,), 1.0 / LOG2_UNITS),
        ]
    )
    for number in range(STAGES):
        stage, name = model.stages[number], f"stage{number}"
        scale = features
        if stage.context is not None:
            seen = stage.act_context.scale
            out |= _export_conv(
                f"{name}.context", stage.context, model.latent_input.scale, seen, signed_input=True
            )
            scale = torch.cat([features, seen.expand(stage.context.weight.shape[0])])
        mixed, hidden = stage.act_mix.scale, stage.act_hidden.scale
        out |= _export_conv(
            f"{name}.mix", stage.mix, scale, mixed, quality_bias=stage.quality_bias.nodes
        )
        out |= _export_conv(f"{name}.hidden", stage.hidden, mixed, hidden)
        out |= _export_conv(f"{name}.head", stage.head, hidden, head_scale)
    # The latents have 25 bits: 30-bit multipliers leave the 64-bit product room.
    multiplier, shift = fixed_multiplier(
        2.0**-LATENT_FRACTION_BITS / model.latent_input.scale, MAX_CONTEXT_SHIFT
    )
    out["context.multiplier"] = multiplier
    out["context.shift"] = torch.tensor(shift, dtype=torch.int32)
    out["log2_step"] = torch.round(model.log2_step.nodes * LOG2_UNITS).int()
    out["hyper_log2_scale"] = torch.round(model.hyper_log2_scale.nodes * LOG2_UNITS).int()
    exponents = np.arange(EXP2_FIRST, EXP2_LAST + 1) / LOG2_UNITS
    steps = np.maximum(1, np.rint(2.0 ** (exponents + LATENT_FRACTION_BITS)))
    out["exp2.first"] = torch.tensor(EXP2_FIRST, dtype=torch.int32)
    out["exp2.values"] = torch.from_numpy(steps.astype(np.int32))
    out["rounding"] = torch.full((SCALE_LEVELS,), 128, dtype=torch.int32)
    for name, parameter in model.named_parameters():
        if name.endswith(ACTIVATION_SCALE):
            out[f"training.{name}"] = parameter.detach().clone()
    arrays = (tables or gaussian_tables()).to_arrays()
    out |= {f"tables.{k}": torch.from_numpy(v.astype(np.int32)) for k, v in arrays.items()}
    return out


def _restore_conv(
    name: str,
    conv: QuantizedConv2d,
    tensors: Mapping[str, Tensor],
    in_scale: Tensor,
    *,
    quality_bias: Tensor | None = None,
    shuffle: bool = False,
) -> None:
    scale = tensors[f"{name}.weight_scale"]
    weight = tensors[f"{name}.weight"].float() * scale.view(-1, 1, 1, 1)
    bias = tensors[f"{name}.bias"].float() * scale
    if shuffle:
        order = torch.arange(len(scale)).view(4, -1).T.flatten()
        weight, bias = weight[order], bias[..., order]
    in_scale = in_scale.view(1, -1, 1, 1).to(weight.device)
    conv.weight.copy_(weight.permute(0, 3, 1, 2) / in_scale)
    if quality_bias is None:
        conv.bias.copy_(bias)
    else:  # only their sum was kept
        conv.bias.zero_()
        quality_bias.copy_(bias)


@torch.no_grad()
def restore_entropy_model(model: EntropyModel, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``export_entropy_model``, for training to go on from a model folder.

    Weights come back on their int8 grids; simulated quantization is switched on.

    Args:
        model: of the same configuration; overwritten.
        tensors: of ``export_entropy_model``.
    """
    model.set_quantization(True)
    for name, parameter in model.named_parameters():
        if name.endswith(ACTIVATION_SCALE):
            parameter.copy_(tensors[f"training.{name}"])
    model.log2_step.nodes.copy_(tensors["log2_step"] / LOG2_UNITS)
    model.hyper_log2_scale.nodes.copy_(tensors["hyper_log2_scale"] / LOG2_UNITS)
    hyper = model.hyper_synthesis
    one = torch.ones(1)
    _restore_conv("hyper.conv1", hyper.conv1, tensors, one)
    _restore_conv("hyper.conv2", hyper.conv2, tensors, hyper.act1.scale, shuffle=True)
    _restore_conv("hyper.conv3", hyper.conv3, tensors, hyper.act2.scale)
    _restore_conv(
        "hyper.conv4",
        hyper.conv4,
        tensors,
        hyper.act3.scale,
        quality_bias=hyper.quality_bias.nodes,
        shuffle=True,
    )
    for number, stage in enumerate(model.stages):
        name = f"stage{number}"
        scale = hyper.act4.scale.expand(hyper.conv4.weight.shape[0] // 4)
        if stage.context is not None:
            _restore_conv(f"{name}.context", stage.context, tensors, model.latent_input.scale)
            seen = stage.act_context.scale.expand(stage.context.weight.shape[0])
            scale = torch.cat([scale, seen])
        _restore_conv(
            f"{name}.mix", stage.mix, tensors, scale, quality_bias=stage.quality_bias.nodes
        )
        _restore_conv(f"{name}.hidden", stage.hidden, tensors, stage.act_mix.scale)
        _restore_conv(f"{name}.head", stage.head, tensors, stage.act_hidden.scale)
