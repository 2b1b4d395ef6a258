"""Float networks, trained by someone else, as integer ones: int16 weights and activations.

No training follows: a channel's activations take 14 bits with a scale of its own, and weights are
as fine as int32 accumulators allow in the worst case. Transposed
convolutions of stride 2 become convolutions to four times the channels, one set for each place in a
2 x 2 block of the output, and a pixel shuffle (Shi et al., arXiv 1609.05158): the same sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pycodec.errors import UnsupportedError
from pycodec.ops.int16_conv2d import INT16_MAX, Int16Conv2d

ACTIVATION_LIMIT = (1 << 14) - 1
"""Of all int16 activations; what bounds the accumulators."""

HEADROOM = 4.0
"""Activations may become as many times the largest that was seen when the scales were chosen."""

_ACCUMULATOR_LIMIT = 2**31 - 1
_MULTIPLIER_BITS = 30


@dataclass(frozen=True)
class FloatLayer:
    """A convolution to the same size, and what follows it: shuffle, then activation.

    Attributes:
        weight: [Cout, Cin, kh, kw], odd kernels.
        bias: [Cout].
        slope: of negative results; 1 where there is no activation.
        shuffle: whether four channels become a 2 x 2 block each, as of :class:`nn.PixelShuffle`.
    """

    weight: Tensor
    bias: Tensor
    slope: float = 1.0
    shuffle: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] to [N, Cout, H, W], or [N, Cout / 4, 2 H, 2 W].

        Raises:
            UnsupportedError: x has another number of channels.
        """
        if x.shape[1] != self.weight.shape[1]:
            raise UnsupportedError(
                f"networks do not fit together: a layer for {self.weight.shape[1]} channels would "
                f"get {x.shape[1]}"
            )
        kh, kw = self.weight.shape[2:]
        x = F.conv2d(x, self.weight, self.bias, padding=(kh // 2, kw // 2))
        if self.shuffle:
            x = F.pixel_shuffle(x, 2)
        return torch.where(x < 0, x * self.slope, x)


def float_layers(network: nn.Module) -> list[FloatLayer]:
    """The layers of a stack of convolutions, (leaky) ReLUs and pixel shuffles.

    Raises:
        UnsupportedError: something else is in it.
    """
    layers: list[FloatLayer] = []
    for module in _leaves(network):
        if isinstance(module, nn.ConvTranspose2d):
            transposed = _flipped if module.stride == (1, 1) else _subpixel
            layers.append(transposed(module))
        elif isinstance(module, nn.Conv2d):
            layers.append(_convolution(module))
        elif isinstance(module, nn.Identity):
            continue
        elif layers and layers[-1].slope == 1 and isinstance(module, (nn.ReLU, nn.LeakyReLU)):
            slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
            layers[-1] = replace(layers[-1], slope=slope)
        elif (
            layers
            and not layers[-1].shuffle
            and isinstance(module, nn.PixelShuffle)
            and module.upscale_factor == 2
        ):
            layers[-1] = replace(layers[-1], shuffle=True)
        else:
            raise UnsupportedError(f"no integer network is known for {module}")
    return layers


def _leaves(network: nn.Module) -> Iterable[nn.Module]:
    if isinstance(network, nn.Sequential):
        for child in network:
            yield from _leaves(child)
    else:
        yield network


def _convolution(conv: nn.Conv2d) -> FloatLayer:
    kernel = conv.kernel_size
    same = tuple(k // 2 for k in kernel)
    if (
        conv.stride != (1, 1)
        or conv.dilation != (1, 1)
        or conv.groups != 1
        or conv.padding not in (same, "same")
        or any(k % 2 == 0 for k in kernel)
        or conv.padding_mode != "zeros"
    ):
        raise UnsupportedError(f"no integer network is known for {conv}")
    weight = conv.weight.detach().float()
    if getattr(conv, "mask", None) is not None:  # CompressAI's MaskedConv2d
        weight = weight * conv.mask
    return FloatLayer(weight, _bias(conv))


def _bias(conv: nn.Module) -> Tensor:
    if conv.bias is None:
        return conv.weight.new_zeros(conv.out_channels, dtype=torch.float32)
    return conv.bias.detach().float()


def _flipped(conv: nn.ConvTranspose2d) -> FloatLayer:
    """A transposed convolution of stride 1 is a convolution by the kernel turned by 180 degrees."""
    kernel = conv.kernel_size
    if (
        conv.dilation != (1, 1)
        or conv.groups != 1
        or conv.output_padding != (0, 0)
        or any(k % 2 == 0 or p != k // 2 for k, p in zip(kernel, conv.padding, strict=True))
    ):
        raise UnsupportedError(f"no integer network is known for {conv}")
    weight = conv.weight.detach().float().transpose(0, 1).flip(2, 3)
    return FloatLayer(weight, _bias(conv))


def _subpixel(conv: nn.ConvTranspose2d) -> FloatLayer:
    """A transposed convolution of stride 2 that doubles the size.

    Output 2 i + d takes input i + t by the weight at d + padding - 2 t.
    """
    kernel, padding = conv.kernel_size, conv.padding
    if (
        conv.stride != (2, 2)
        or conv.dilation != (1, 1)
        or conv.groups != 1
        or any(
            k - 2 * p + o != 2 for k, p, o in zip(kernel, padding, conv.output_padding, strict=True)
        )
    ):
        raise UnsupportedError(f"no integer network is known for {conv}")
    weight = conv.weight.detach().float()  # [Cin, Cout, kh, kw]
    reach = [
        max(abs(t) for d in (0, 1) for t in range(-k, k + 1) if 0 <= d + p - 2 * t < k)
        for k, p in zip(kernel, padding, strict=True)
    ]
    cin, cout = weight.shape[:2]
    full = weight.new_zeros(cout, 2, 2, cin, 2 * reach[0] + 1, 2 * reach[1] + 1)
    for dy in (0, 1):
        for dx in (0, 1):
            for ty in range(-reach[0], reach[0] + 1):
                for tx in range(-reach[1], reach[1] + 1):
                    y, x = dy + padding[0] - 2 * ty, dx + padding[1] - 2 * tx
                    if 0 <= y < kernel[0] and 0 <= x < kernel[1]:
                        full[:, dy, dx, :, ty + reach[0], tx + reach[1]] = weight[:, :, y, x].T
    return FloatLayer(
        full.reshape(4 * cout, cin, *full.shape[4:]), _bias(conv).repeat_interleave(4), shuffle=True
    )


def channel_scales(x: Tensor) -> Tensor:
    """What one step of an int16 activation stands for, by channel of [N, C, H, W]; float64 [C]."""
    return peak_scales(x.detach().double().abs().amax(dim=(0, 2, 3)), ACTIVATION_LIMIT)


def peak_scales(peak: Tensor, limit: int) -> Tensor:
    """The same from the largest absolute values that were seen, [C], for integers up to ``limit``.

    Values may become :data:`HEADROOM` times as large.
    """
    # Channels that were silent may speak up for other pictures.
    peak = peak.clamp(min=max(float(peak.max()) * 1e-2, 1e-6))
    return peak * (HEADROOM / limit)


def integer_layer(
    layer: FloatLayer, in_scale: Tensor, out_scale: Tensor, limit: int = ACTIVATION_LIMIT
) -> dict[str, Tensor]:
    """The arguments of :class:`Int16Conv2d`, and ``shuffle``.

    Channels of a layer with ``shuffle`` come out in the order (dy, dx, channel).

    Args:
        layer: with inputs of up to :data:`ACTIVATION_LIMIT`.
        in_scale: float64 [Cin], what a step of the input stands for.
        out_scale: float64 [Cout], or [Cout / 4] with ``shuffle``.
        limit: of the output.

    Raises:
        UnsupportedError: the layer's numbers are too far apart.
    """
    weight = layer.weight.double() * in_scale.view(1, -1, 1, 1)
    bias = layer.bias.double()
    if layer.shuffle:
        order = torch.arange(len(bias)).view(-1, 4).T.flatten()
        weight, bias, out_scale = weight[order], bias[order], out_scale.repeat(4)
    inputs = weight[0].numel()
    # Rounding adds half a step to each weight and to the bias.
    room = _ACCUMULATOR_LIMIT - (inputs * ACTIVATION_LIMIT + 1) / 2
    if room <= 0:
        raise UnsupportedError(f"a layer sees {inputs} numbers at once, too many for integers")
    reach = weight.abs().sum((1, 2, 3)) * ACTIVATION_LIMIT + bias.abs()
    step = torch.maximum(weight.abs().amax((1, 2, 3)) / INT16_MAX, reach / room).clamp(min=1e-30)
    integers = torch.round(weight / step.view(-1, 1, 1, 1))
    integer_bias = torch.round(bias / step)
    worst = integers.abs().sum((1, 2, 3)) * ACTIVATION_LIMIT + integer_bias.abs()
    if not bool((worst <= _ACCUMULATOR_LIMIT).all()):  # NaN too
        raise UnsupportedError("a layer's weights cannot be represented in integers")
    ratio = step / out_scale.double()
    largest = float(ratio.max()) * max(1.0, abs(layer.slope))
    shift = min(62, _MULTIPLIER_BITS - math.ceil(math.log2(largest)))
    if shift < 1:
        raise UnsupportedError(f"a layer's scales are too far apart for integers ({largest:g})")
    return {
        "weight": integers.permute(0, 2, 3, 1).to(torch.int16).contiguous(),
        "bias": integer_bias.to(torch.int32),
        "multiplier": torch.round(ratio * 2.0**shift).to(torch.int32),
        "negative_multiplier": torch.round(ratio * layer.slope * 2.0**shift).to(torch.int32),
        "shift": torch.tensor(shift, dtype=torch.int32),
        "limit": torch.tensor(limit, dtype=torch.int32),
        "shuffle": torch.tensor(int(layer.shuffle), dtype=torch.int32),
    }


def load_layer(tensors: Mapping[str, Tensor], backend: str = "native") -> tuple[Int16Conv2d, bool]:
    """The layer of :func:`integer_layer` and whether a pixel shuffle follows.

    Raises:
        KeyError: a tensor is missing.
        InputError: they do not fit together.
    """
    names = ("weight", "bias", "multiplier", "negative_multiplier")
    layer = Int16Conv2d(
        *(tensors[name] for name in names),
        int(tensors["shift"]),
        int(tensors["limit"]),
        backend=backend,
    )
    return layer, bool(tensors["shuffle"])


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def save_stack(layers: Sequence[Mapping[str, Tensor]], name: str) -> dict[str, Tensor]:
    """The layers of :func:`integer_network` as one set of tensors."""
    return {f"{name}{i}.{k}": v for i, layer in enumerate(layers) for k, v in layer.items()}


def load_stack(
    tensors: Mapping[str, Tensor], name: str, backend: str = "native"
) -> list[tuple[Int16Conv2d, bool]]:
    """The layers of :func:`save_stack`, as :func:`load_layer` has them; empty if there are none.

    Raises:
        KeyError: a tensor is missing.
        InputError: they do not fit together.
    """
    layers = []
    while f"{name}{len(layers)}.weight" in tensors:
        layers.append(load_layer(under(tensors, f"{name}{len(layers)}."), backend))
    return layers


def integer_network(
    layers: Sequence[FloatLayer],
    x: Tensor,
    in_scale: Tensor,
    last_scale: Tensor | None = None,
    last_limit: int = ACTIVATION_LIMIT,
) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    """A stack of layers in integers, with scales for inputs like ``x``.

    Args:
        layers: one after the other.
        x: inputs, [N, C, H, W].
        in_scale: float64 [C].
        last_scale, last_limit: of the results; None for scales that fit them.

    Returns:
        The integer layers, the float results for ``x`` and their scales.
    """
    integers = []
    for index, layer in enumerate(layers):
        x = layer(x)
        is_last = index + 1 == len(layers)
        out_scale = last_scale if is_last and last_scale is not None else channel_scales(x)
        limit = last_limit if is_last else ACTIVATION_LIMIT
        integers.append(integer_layer(layer, in_scale, out_scale, limit))
        in_scale = out_scale
    return integers, x, in_scale
