"""The photo codec's transforms in float, with the rounding of their integer form simulated.

``docs/quantization.md`` is what is simulated: inputs of convolutions on grids with a scale and a
zero point for each channel, weights of 4, 6 or 8 bits with a scale for each output channel. Scales
and offsets are trained (DynaQuant, arXiv 2511.07903); gradients pass the rounding by an estimator
of choice. Streams stay in float here: their 16 bits round a hundredth of what the grids do.

A layer has a *variant* for each width it may have, with weight scales of its own, and where it
reads a stream with its own grid too. So choosing among variants by the content of a picture also
chooses scales and offsets by it. After a ReLU the grid is one for all variants: the layer before
writes it, whoever reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pycodec.models.blocks import convolutions_by
from pycodec.models.integer_transforms import NARROW_BITS
from pycodec.models.integer_variants import branch_layers
from pycodec.models.photo import TRANSFORMS
from pycodec.models.photo_network import PhotoNetwork
from pycodec.quantization.bit_width import WIDTHS, BitWidthSelector, channel_activity
from pycodec.quantization.fake_quant import round_ste
from pycodec.quantization.recipe import (
    best_weight_scale,
    layers_after_relu,
    layers_of_pixels,
    named_layers,
)
from pycodec.quantization.transforms import (
    ActivationGrid,
    LayerPlan,
    TransformPlan,
    export_transform,
)

Rounding = Callable[[Tensor], Tensor]
FIRST_LAYERS = {"analysis": "stem", "synthesis": "head"}
"""What dynamic transforms begin with, the same for every picture, and what the selector reads."""


class LearnedGrid(nn.Module):
    """A grid for a convolution's input, whose scales and offsets are trained.

    ``q = clamp(round(x / scale) + z)`` with ``z = round(-offset 2^(bits - 1))``, and the result is
    ``scale (q - z)``. The offset says where a channel's values lie, as a share of half its grid;
    its gradient comes from values beyond the ends (LSQ+, arXiv 2004.09576). After a ReLU there is
    none. A wide grid has range and levels to spare: it stays as it is.

    Args:
        start: of the training.
        after_relu: the grid begins at 0.
        exact: the values are on the grid: nothing is rounded, and nothing trained.
    """

    def __init__(self, start: ActivationGrid, after_relu: bool, exact: bool = False) -> None:
        super().__init__()
        self.bits, self.exact = start.bits, exact
        self.exact_zero = start.zero_point.int()
        self.half = 1 << (start.bits - 1)
        self.low, self.high = (0, 2 * self.half - 1) if after_relu else (-self.half, self.half - 1)
        trained = not exact and start.bits <= NARROW_BITS
        self.log_scale = nn.Parameter(start.scale.float().log(), requires_grad=trained)
        self.offset = None
        if trained and not after_relu:
            self.offset = nn.Parameter(-start.zero_point / self.half)

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def zero_point(self) -> Tensor:
        """Whole numbers [Cin]; gradients go to the offset."""
        if self.offset is None:
            return torch.zeros_like(self.log_scale)
        return round_ste((-self.offset * self.half).clamp(self.low, self.high))

    def forward(self, x: Tensor, rounding: Rounding) -> Tensor:
        if self.exact:
            return x
        scale = self.scale.view(1, -1, 1, 1)
        if self.offset is None:
            return rounding((x / scale).clamp(self.low, self.high)) * scale
        # The ends of the grid move with the zero point, and give it its gradient.
        zero = self.zero_point().view(1, -1, 1, 1)
        return rounding((x / scale).clamp(self.low - zero, self.high - zero)) * scale

    def frozen(self) -> ActivationGrid:
        """As export takes it."""
        with torch.no_grad():
            zero = self.exact_zero if self.exact else self.zero_point().int()
            return ActivationGrid(self.scale.clone(), zero, self.bits)


class LayerQuantizer(nn.Module):
    """Grids and weight scales of one convolution, for each of its widths.

    Args:
        layer: the convolution; it keeps its weights.
        plans: of its variants, by bits of the weights.
        after_relu: whether it reads the result of a ReLU.
        exact: whether what it reads is on the grid already.
    """

    def __init__(
        self,
        layer: nn.Conv2d,
        plans: Mapping[int, LayerPlan],
        after_relu: bool,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.widths = tuple(sorted(plans))
        self.own_grids = not after_relu
        starts = [plans[width].input for width in self.widths]
        self.grids = nn.ModuleList(
            LearnedGrid(start, after_relu, exact)
            for start in (starts if self.own_grids else starts[-1:])
        )
        self.log_weight_scales = nn.ParameterList(
            nn.Parameter(self._start(layer, plans[width], number).log())
            for number, width in enumerate(self.widths)
        )
        self.enabled = True
        self.active = len(self.widths) - 1
        """The variant for pictures without a choice."""

    def grid(self, variant: int) -> LearnedGrid:
        return self.grids[variant if self.own_grids else 0]

    @torch.no_grad()
    def _start(self, layer: nn.Conv2d, plan: LayerPlan, variant: int) -> Tensor:
        if plan.weight_scale is not None:
            return plan.weight_scale.float()
        folded = layer.weight * self.grid(variant).scale.view(1, -1, 1, 1)
        return best_weight_scale(folded, plan.weight_bits)

    def quantized_weight(self, weight: Tensor, variant: int, rounding: Rounding) -> Tensor:
        """Weights as a variant has them, in the units of ``weight``."""
        top = (1 << (self.widths[variant] - 1)) - 1
        # What the grid of the input does to it is not what it is for: no gradient that way.
        fold = self.grid(variant).scale.detach().view(1, -1, 1, 1)
        scale = self.log_weight_scales[variant].exp().view(-1, 1, 1, 1)
        return rounding((weight * fold / scale).clamp(-top, top)) * scale / fold

    def forward(
        self, layer: nn.Conv2d, x: Tensor, choice: Tensor | None, rounding: Rounding
    ) -> Tensor:
        """The convolution of real values, rounded as the integer form does.

        Args:
            layer: the convolution.
            x: [B, Cin, H, W].
            choice: one-hot over variants [B, variants]; the active variant for all if None.
            rounding: with the gradient that is wanted.
        """
        if choice is None:
            weight = self.quantized_weight(layer.weight, self.active, rounding)
            return _convolve(layer, self.grid(self.active)(x, rounding), weight)
        variants = range(len(self.widths))
        inputs = [grid(x, rounding) for grid in self.grids]
        weights = [self.quantized_weight(layer.weight, v, rounding) for v in variants]
        results = []
        for number, picked in enumerate(choice):  # each picture has weights of its own
            weight = sum(w * p for w, p in zip(weights, picked, strict=True))
            one = [i[number : number + 1] for i in inputs]
            seen = sum(i * p for i, p in zip(one, picked, strict=True)) if len(one) > 1 else one[0]
            results.append(_convolve(layer, seen, weight))
        return torch.cat(results)

    def keep(self, widths: Collection[int]) -> None:
        """Forget the other variants."""
        kept = [v for v, width in enumerate(self.widths) if width in widths]
        if self.own_grids:
            self.grids = nn.ModuleList(self.grids[v] for v in kept)
        self.log_weight_scales = nn.ParameterList(self.log_weight_scales[v] for v in kept)
        self.widths = tuple(self.widths[v] for v in kept)
        self.active = len(kept) - 1

    def plans(self) -> dict[int, LayerPlan]:
        """As export takes them, by bits of the weights."""
        return {
            width: LayerPlan(self.grid(v).frozen(), width, self.log_weight_scales[v].detach().exp())
            for v, width in enumerate(self.widths)
        }


def _convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


@dataclass
class SimulatedPass:
    """What :class:`SimulatedTransforms` returns.

    Attributes:
        x_hat: the reconstruction [B, 3, H, W].
        bits: of the stream, [B].
        weight_bits: mean width of the weights of branches, over their multiply-accumulates, [B].
            (In the paper it is the mean over layers, where a small layer's bits are as dear.)
        choices: of the layers whose width a selector chose: one-hot [B, variants].
    """

    x_hat: Tensor
    bits: Tensor
    weight_bits: Tensor
    choices: dict[str, Tensor]


class SimulatedTransforms(nn.Module):
    """A photo network whose transforms compute as their integer form will.

    Args:
        network: shared, not copied: training this trains it. Its entropy model stays as it is.
        plans: of :func:`by_layer`; layers start with the weights that they have.
        streams: scales of the streams, by transform.
        rounding: ``round_ste`` or ``round_modulated``.
        dynamic: choose among variants for each picture; else a layer has its widest one.
    """

    def __init__(
        self,
        network: PhotoNetwork,
        plans: Mapping[str, Mapping[int, LayerPlan]],
        streams: Mapping[str, Mapping[str, Tensor]],
        rounding: Rounding = round_ste,
        dynamic: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.streams, self.rounding = streams, rounding
        self.names: list[str] = []
        self.quantizers = nn.ModuleList()
        self.selectors = nn.ModuleDict()
        self.temperature = 1.0
        self._numbers: dict[nn.Module, int] = {}
        for transform in TRANSFORMS:
            getattr(network, transform).requires_grad_(True)
        for name, layer in named_layers(network).items():
            transform, path = name.split(".", 1)
            self._numbers[layer] = len(self.names)
            self.names.append(name)
            self.quantizers.append(
                LayerQuantizer(
                    layer,
                    plans[name],
                    path in layers_after_relu(transform),
                    exact=path in layers_of_pixels(transform),
                )
            )
        for transform in FIRST_LAYERS if dynamic else ():
            first = network.get_submodule(f"{transform}.{FIRST_LAYERS[transform]}")
            count = len(self.dynamic_layers(transform))
            self.selectors[transform] = BitWidthSelector(first.out_channels, count)
        self._choices: dict[str, Tensor] = {}
        self.activity: dict[str, Tensor] = {}
        self.costs = multiply_accumulates(network)

    def layer(self, name: str) -> LayerQuantizer:
        """The quantizer of ``synthesis.blocks8.0.conv``."""
        return self.quantizers[self.names.index(name)]

    def dynamic_layers(self, transform: str) -> list[str]:
        """Names of the layers whose width its selector chooses, in the order of its choices."""
        return [f"{transform}.{path}" for path in branch_layers(transform)]

    def transform_plans(self, bits: int | None = None) -> dict[str, TransformPlan]:
        """As export takes them.

        Args:
            bits: of the variants; those of a layer without such a variant, and of all layers if
                None, are its widest.
        """
        plans: dict[str, dict[str, LayerPlan]] = {name: {} for name in TRANSFORMS}
        for name, quantizer in zip(self.names, self.quantizers, strict=True):
            transform, path = name.split(".", 1)
            variants = quantizer.plans()
            plans[transform][path] = variants.get(bits, variants[max(variants)])
        return {name: TransformPlan(plans[name], dict(self.streams[name])) for name in TRANSFORMS}

    def forward(self, x: Tensor, quality: Tensor) -> SimulatedPass:
        """``x [B, 3, H, W]`` in [0, 1], sides multiples of 16; ``quality [B]`` in [1, 100]."""
        self._choices, self.activity = {}, {}
        self._quality = quality
        with convolutions_by(self._convolution):
            x_hat, y_bits, z_bits = self.network(x, quality)
        branches = [name for transform in TRANSFORMS for name in self.dynamic_layers(transform)]
        total = sum(self.costs[name] for name in branches)
        weight_bits = x.new_zeros(len(x))
        for name in branches:
            quantizer, choice = self.layer(name), self._choices.get(name)
            widths = x.new_tensor(quantizer.widths)
            bits = widths[quantizer.active] if choice is None else choice @ widths
            weight_bits = weight_bits + bits * (self.costs[name] / total)
        return SimulatedPass(x_hat, y_bits + z_bits, weight_bits, self._choices)

    def _convolution(self, layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        number = self._numbers[layer]
        name, quantizer = self.names[number], self.quantizers[number]
        if not quantizer.enabled:
            return _convolve(layer, x, layer.weight)
        result = quantizer(layer, x, self._choices.get(name), self.rounding)
        transform, path = name.split(".", 1)
        if transform in self.selectors and path == FIRST_LAYERS[transform]:
            self.activity[transform] = channel_activity(result.detach())
            choice = self.selectors[transform](
                self.activity[transform], self._quality, self.temperature
            )
            for row, dynamic in enumerate(self.dynamic_layers(transform)):
                had = [WIDTHS.index(w) for w in self.layer(dynamic).widths]
                self._choices[dynamic] = choice[:, row, had]
        return result


@torch.no_grad()
def multiply_accumulates(network: PhotoNetwork) -> dict[str, float]:
    """Of each convolution of the transforms, for each pixel of the picture, by its name."""
    names = {layer: name for name, layer in named_layers(network).items()}
    side, found = 64, {}

    def count(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result = _convolve(layer, x, weight)
        found[names[layer]] = weight.numel() * result[0, 0].numel() / side**2
        return result

    with convolutions_by(count):
        quality = torch.ones(1)
        y = network.analysis(torch.zeros(1, 3, side, side), quality)
        network.hyper_analysis(y, quality)
        network.synthesis(y, quality)
    return {name: found[name] for name in names.values()}


def drop_unused_variants(model: SimulatedTransforms, chosen: Mapping[str, Collection[int]]) -> None:
    """Keep the variants that some picture chose, and the widest, which is what `L` is in a file.

    Args:
        model: dynamic; its selectors no longer choose what is dropped.
        chosen: widths that were chosen, by layer.
    """
    for transform, selector in model.selectors.items():
        for row, name in enumerate(model.dynamic_layers(transform)):
            quantizer = model.layer(name)
            kept = {*chosen[name], max(quantizer.widths)}
            quantizer.keep(kept)
            selector.allowed[row] = torch.tensor([width in kept for width in WIDTHS])


@torch.no_grad()
def export(model: SimulatedTransforms) -> dict[str, Tensor]:
    """The integers of all transforms, as ``save_integers`` takes them.

    Layers ``L`` have their widest variant; the tensors of a narrower one are named ``L@6.weight``
    and so on. The selectors' tensors, in float, begin with ``selector.``: only encoders need them.

    Raises:
        CodecError: an accumulator could overflow, or scales are too far apart for integers.
    """
    tensors: dict[str, Tensor] = {}
    for bits in (None, *WIDTHS):
        for transform, transform_plan in model.transform_plans(bits).items():
            module = getattr(model.network, transform)
            made = export_transform(transform, module, transform_plan)
            if bits is None:
                tensors |= {f"{transform}.{key}": tensor for key, tensor in made.items()}
                continue
            for name in model.dynamic_layers(transform):
                path, widths = name.split(".", 1)[1], model.layer(name).widths
                if bits in widths[:-1]:
                    tensors |= {
                        f"{name}@{bits}.{key.removeprefix(f'{path}.')}": tensor
                        for key, tensor in made.items()
                        if key.startswith(f"{path}.")
                    }
    for transform, selector in model.selectors.items():
        for key, tensor in selector.state_dict().items():
            tensors[f"selector.{transform}.{key}"] = tensor
    return tensors
