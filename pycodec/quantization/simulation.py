"""The photo codec's transforms in float, with the rounding of their integer form simulated.

``docs/quantization.md`` is what is simulated: inputs of convolutions on grids with a scale and a
zero point for each channel, weights of 4, 6 or 8 bits with a scale for each output channel. Scales
and offsets are trained (DynaQuant, arXiv 2511.07903); gradients pass the rounding by an estimator
of choice. Streams stay in float here: their 16 bits round a hundredth of what the grids do.

A layer has a *variant* for each width it may have, with weights and scales of its own, and where it
reads a stream with its own grid too. So choosing among variants by the content of a picture also
chooses scales and offsets by it. After a ReLU the grid is one for all variants: the layer before
writes it, whoever reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
    """Grids for a convolution's input, one a variant, whose scales and offsets are trained.

    ``q = clamp(round(x / scale) + z)`` with ``z = round(-offset 2^(bits - 1))``, and the result is
    ``scale (q - z)``. The offset says where a channel's values lie, as a share of half its grid;
    its gradient comes from values beyond the ends (LSQ+, arXiv 2004.09576). After a ReLU there is
    none. A wide grid has range and levels to spare: it stays as it is.

    Args:
        starts: of the training, all with the same bits.
        after_relu: the grid begins at 0.
        exact: the values are on the grid: nothing is rounded, and nothing trained.
    """

    def __init__(
        self, starts: Sequence[ActivationGrid], after_relu: bool, exact: bool = False
    ) -> None:
        super().__init__()
        self.bits, self.exact = starts[0].bits, exact
        self.exact_zero = starts[0].zero_point.int()
        self.half = 1 << (self.bits - 1)
        self.low, self.high = (0, 2 * self.half - 1) if after_relu else (-self.half, self.half - 1)
        trained = not exact and self.bits <= NARROW_BITS
        scales = torch.stack([start.scale.float() for start in starts])
        self.log_scale = nn.Parameter(scales.log(), requires_grad=trained)
        self.offset = None
        if trained and not after_relu:
            zeros = torch.stack([start.zero_point for start in starts])
            self.offset = nn.Parameter(-zeros / self.half)

    @property
    def scale(self) -> Tensor:
        """[grids, Cin]."""
        return self.log_scale.exp()

    def zero_point(self) -> Tensor:
        """Whole numbers [grids, Cin]; gradients go to the offset."""
        if self.offset is None:
            return torch.zeros_like(self.log_scale)
        return round_ste((-self.offset * self.half).clamp(self.low, self.high))

    def forward(self, x: Tensor, rounding: Rounding, choice: Tensor | int = 0) -> Tensor:
        """``x [B, Cin, H, W]``, rounded to one grid, or to that of each picture.

        Args:
            x: real values.
            rounding: with the gradient that is wanted.
            choice: the number of a grid, or one-hot [B, grids].
        """
        if self.exact:
            return x
        scale = _chosen(self.scale, choice)[:, :, None, None]
        if self.offset is None:
            return rounding((x / scale).clamp(self.low, self.high)) * scale
        # The ends of the grid move with the zero point, and give it its gradient.
        zero = _chosen(self.zero_point(), choice)[:, :, None, None]
        return rounding((x / scale).clamp(self.low - zero, self.high - zero)) * scale

    def frozen(self, number: int = 0) -> ActivationGrid:
        """One of the grids, as export takes it."""
        with torch.no_grad():
            zero = self.exact_zero if self.exact else self.zero_point()[number].int()
            return ActivationGrid(self.scale[number], zero, self.bits)


def _chosen(table: Tensor, choice: Tensor | int) -> Tensor:
    """A row ``[1, ...]`` of the table, or one for each picture."""
    if isinstance(choice, int):
        return table[choice : choice + 1]
    return choice @ table


class LayerQuantizer(nn.Module):
    """Grids, weights and their scales of one convolution, for each of its widths.

    The layer's own weights and bias are those of its widest variant. Narrower ones have theirs
    here, since a file has them too: what is best in 4 bits is not the rounding of what is best in
    8.

    Args:
        layer: the convolution.
        plans: of its variants, by bits of the weights; rounding that was chosen is what those
            beside the widest start from.
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
        self.grid = LearnedGrid(starts if self.own_grids else starts[-1:], after_relu, exact)
        scales = [self._start(layer, plans[width]) for width in self.widths]
        self.log_weight_scales = nn.Parameter(torch.stack(scales).log())
        self.narrow_weights = self.narrow_biases = None
        if len(self.widths) > 1:
            own = [
                _rounded(layer, plans[width], scale)
                for width, scale in zip(self.widths[:-1], scales, strict=False)
            ]
            self.narrow_weights = nn.Parameter(torch.stack([weight for weight, _ in own]))
            self.narrow_biases = nn.Parameter(torch.stack([bias for _, bias in own]))
        self.register_buffer("tops", self._tops(), persistent=False)
        self.enabled = True
        self.active = len(self.widths) - 1
        """The variant for pictures without a choice."""

    def _tops(self) -> Tensor:
        return torch.tensor([float((1 << (width - 1)) - 1) for width in self.widths])

    @staticmethod
    @torch.no_grad()
    def _start(layer: nn.Conv2d, plan: LayerPlan) -> Tensor:
        if plan.weight_scale is not None:
            return plan.weight_scale.float()
        folded = layer.weight * plan.input.scale.float().view(1, -1, 1, 1)
        return best_weight_scale(folded, plan.weight_bits)

    def _integers(
        self, layer: nn.Conv2d, part: slice, rounding: Rounding
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of some variants in units [variants, Cout, Cin, k, k] and biases."""
        weight, bias = layer.weight[None], layer.bias[None]
        if self.narrow_weights is not None:
            weight = torch.cat([self.narrow_weights, weight])[part]
            bias = torch.cat([self.narrow_biases, bias])[part]
        # What the grid of the input does to it is not what it is for: no gradient that way.
        fold = self.grid.scale.detach()
        fold = (fold[part] if self.own_grids else fold)[:, None, :, None, None]
        unit = self.log_weight_scales[part].exp()[:, :, None, None, None] / fold
        top = self.tops[part].view(-1, 1, 1, 1, 1)
        return rounding((weight / unit).clamp(-top, top)), unit, bias

    def quantized_weights(
        self, layer: nn.Conv2d, part: slice, rounding: Rounding
    ) -> tuple[Tensor, Tensor]:
        """Weights [variants, Cout, Cin, k, k] and biases [variants, Cout] of some variants."""
        integers, unit, bias = self._integers(layer, part, rounding)
        return integers * unit, bias

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
            one = slice(self.active, self.active + 1)
            weights, biases = self.quantized_weights(layer, one, rounding)
            seen = self.grid(x, rounding, self.active if self.own_grids else 0)
            return _convolve(layer, seen, weights[0], biases[0])
        weights, biases = self.quantized_weights(layer, slice(None), rounding)
        # Widths are chosen for what they do to weights; grids follow.
        seen = self.grid(x, rounding, choice.detach() if self.own_grids else 0)
        if x.device.type == "cuda":
            return _convolve_all(layer, seen, weights, biases, choice)
        return _convolve_each(layer, seen, weights, biases, choice)

    @torch.no_grad()
    def keep(self, layer: nn.Conv2d, widths: Collection[int]) -> None:
        """Forget the other variants; the layer gets the weights of the widest that is left."""
        kept = [v for v, width in enumerate(self.widths) if width in widths]
        if kept[-1] < len(self.widths) - 1:
            layer.weight.copy_(self.narrow_weights[kept[-1]])
            layer.bias.copy_(self.narrow_biases[kept[-1]])
        self.log_weight_scales = nn.Parameter(self.log_weight_scales[kept])
        if self.own_grids:
            self.grid.log_scale = nn.Parameter(
                self.grid.log_scale[kept], self.grid.log_scale.requires_grad
            )
            if self.grid.offset is not None:
                self.grid.offset = nn.Parameter(self.grid.offset[kept])
        if self.narrow_weights is not None:
            narrow = kept[:-1]
            self.narrow_weights = nn.Parameter(self.narrow_weights[narrow]) if narrow else None
            self.narrow_biases = nn.Parameter(self.narrow_biases[narrow]) if narrow else None
        self.widths = tuple(self.widths[v] for v in kept)
        self.tops = self._tops().to(self.tops)
        self.active = len(kept) - 1

    @torch.no_grad()
    def plans(self, layer: nn.Conv2d) -> dict[int, LayerPlan]:
        """As export takes them, by bits of the weights."""
        integers, _, biases = self._integers(layer, slice(None), torch.round)
        scales = self.log_weight_scales.exp()
        made = {}
        for v, width in enumerate(self.widths):
            grid = self.grid.frozen(v if self.own_grids else 0)
            made[width] = LayerPlan(grid, width, scales[v])
            if v < len(self.widths) - 1:
                made[width].rounded, made[width].bias = integers[v], biases[v]
        return made


@torch.no_grad()
def _rounded(layer: nn.Conv2d, plan: LayerPlan, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bias as calibration chose them; the layer's own where it chose none."""
    weight, bias = layer.weight.clone(), layer.bias.clone()
    if plan.rounded is not None:
        weight = plan.rounded * weight_scale.view(-1, 1, 1, 1)
        weight = (weight / plan.input.scale.view(1, -1, 1, 1)).to(layer.weight)
    if plan.bias is not None:
        bias = plan.bias.to(layer.bias)
    return weight, bias


def _convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, layer.stride, layer.padding)


def _convolve_all(
    layer: nn.Conv2d, x: Tensor, weights: Tensor, biases: Tensor, choice: Tensor
) -> Tensor:
    """As :func:`_convolve_each`, from the results of all variants: for a GPU, where one dense
    convolution of three times the work is faster than one in groups.
    """
    results = _convolve(layer, x, weights.flatten(0, 1), biases.flatten())
    results = results.unflatten(1, biases.shape)
    return (results * choice[:, :, None, None, None]).sum(1)


def _convolve_each(
    layer: nn.Conv2d, x: Tensor, weights: Tensor, biases: Tensor, choice: Tensor
) -> Tensor:
    """Each picture with the variant that it chose.

    Args:
        layer: the convolution.
        x: [B, Cin, H, W].
        weights: of the variants [variants, Cout, Cin, k, k].
        biases: [variants, Cout].
        choice: one-hot [B, variants].
    """
    weight = (choice @ weights.flatten(1)).view(len(choice), *layer.weight.shape)
    bias = choice @ biases
    count, channels = bias.shape
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1):
        result = torch.baddbmm(bias[:, :, None], weight.flatten(2), x.flatten(2))
        return result.view(count, channels, *x.shape[2:])
    # All pictures beside each other, as groups of channels.
    together = x.reshape(1, -1, *x.shape[2:])
    result = F.conv2d(
        together, weight.flatten(0, 1), bias.flatten(), layer.stride, layer.padding, groups=count
    )
    return result.view(count, channels, *result.shape[2:])


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
        self._drawn: dict[str, Tensor] = {}
        self.activity: dict[str, Tensor] = {}
        self.costs = multiply_accumulates(network)
        # Tensors, since a CUDA graph reads them anew each time.
        self.register_buffer("temperature", torch.ones(()), persistent=False)
        self.register_buffer("_widths", torch.tensor(WIDTHS).float(), persistent=False)
        self.branches = [n for transform in TRANSFORMS for n in self.dynamic_layers(transform)]
        for transform in self.selectors:
            shares = [self.share(name) for name in self.dynamic_layers(transform)]
            self.register_buffer(f"_{transform}_shares", torch.tensor(shares), persistent=False)

    def layer(self, name: str) -> LayerQuantizer:
        """The quantizer of ``synthesis.blocks8.0.conv``."""
        return self.quantizers[self.names.index(name)]

    def layers(self) -> Iterator[tuple[str, nn.Conv2d, LayerQuantizer]]:
        """Name, convolution and quantizer of each."""
        for name, quantizer in zip(self.names, self.quantizers, strict=True):
            yield name, self.network.get_submodule(name), quantizer

    def weights(self) -> list[nn.Parameter]:
        """Everything of the transforms that float networks have, too, of all variants."""
        own = [
            p
            for quantizer in self.quantizers
            for p in (quantizer.narrow_weights, quantizer.narrow_biases)
            if p is not None
        ]
        return [p for p in self.network.parameters() if p.requires_grad] + own

    def scales(self) -> list[nn.Parameter]:
        """Of weights and grids, and the offsets of these, where they are trained."""
        weights = {id(p) for p in self.weights()}
        return [p for p in self.quantizers.parameters() if p.requires_grad and id(p) not in weights]

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
        for name, layer, quantizer in self.layers():
            transform, path = name.split(".", 1)
            variants = quantizer.plans(layer)
            plans[transform][path] = variants.get(bits, variants[max(variants)])
        return {name: TransformPlan(plans[name], dict(self.streams[name])) for name in TRANSFORMS}

    def forward(self, x: Tensor, quality: Tensor) -> SimulatedPass:
        """``x [B, 3, H, W]`` in [0, 1], sides multiples of 16; ``quality [B]`` in [1, 100]."""
        self._choices, self._drawn, self.activity = {}, {}, {}
        self._quality = quality
        with convolutions_by(self._convolution):
            x_hat, y_bits, z_bits = self.network(x, quality)
        return SimulatedPass(x_hat, y_bits + z_bits, self._mean_bits(x), self._choices)

    def _mean_bits(self, x: Tensor) -> Tensor:
        mean = x.new_zeros(len(x))
        for transform in TRANSFORMS:
            if transform in self._drawn:
                share = getattr(self, f"_{transform}_shares")
                mean = mean + self._drawn[transform] @ self._widths @ share
                continue
            for name in self.dynamic_layers(transform):
                quantizer = self.layer(name)
                mean = mean + self.share(name) * quantizer.widths[quantizer.active]
        return mean

    def share(self, name: str) -> float:
        """Of a layer, of the multiply-accumulates of all whose width is a choice."""
        return self.costs[name] / sum(self.costs[n] for n in self.branches)

    def _convolution(self, layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        number = self._numbers[layer]
        name, quantizer = self.names[number], self.quantizers[number]
        if not quantizer.enabled:
            return _convolve(layer, x, layer.weight, layer.bias)
        result = quantizer(layer, x, self._choices.get(name), self.rounding)
        transform, path = name.split(".", 1)
        if transform in self.selectors and path == FIRST_LAYERS[transform]:
            self.activity[transform] = channel_activity(result.detach())
            choice = self.selectors[transform](
                self.activity[transform], self._quality, self.temperature
            )
            self._drawn[transform] = choice
            for row, dynamic in enumerate(self.dynamic_layers(transform)):
                had = [WIDTHS.index(w) for w in self.layer(dynamic).widths]
                # Not by a list, which would be copied to the device.
                one = choice[:, row]
                if len(had) < len(WIDTHS):
                    one = torch.stack([one[:, w] for w in had], 1)
                self._choices[dynamic] = one
        return result


@torch.no_grad()
def multiply_accumulates(network: PhotoNetwork) -> dict[str, float]:
    """Of each convolution of the transforms, for each pixel of the picture, by its name."""
    names = {layer: name for name, layer in named_layers(network).items()}
    side, found = 64, {}

    def count(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result = _convolve(layer, x, weight, bias)
        found[names[layer]] = weight.numel() * result[0, 0].numel() / side**2
        return result

    with convolutions_by(count):
        quality = torch.ones(1)
        y = network.analysis(torch.zeros(1, 3, side, side), quality)
        network.hyper_analysis(y, quality)
        network.synthesis(y, quality)
    return {name: found[name] for name in names.values()}


def drop_unused_variants(model: SimulatedTransforms, chosen: Mapping[str, Collection[int]]) -> None:
    """Keep the variants that some picture chose; the widest of them becomes `L` of a file.

    Args:
        model: dynamic; its selectors no longer choose what is dropped.
        chosen: widths that were chosen, by layer; at least one of each.
    """
    for transform, selector in model.selectors.items():
        for row, name in enumerate(model.dynamic_layers(transform)):
            quantizer = model.layer(name)
            kept = set(chosen[name])
            quantizer.keep(model.network.get_submodule(name), kept)
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
