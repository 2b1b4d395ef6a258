"""Convolutions of published networks in integers, between layers that stay in floating point.

A *run* is convolutions with nothing but ReLUs and pixel shuffles between them. Its input is rounded
to the grid of its first convolution, its result comes back as floats; between its layers there are
none. What stands around runs (GDN, leaky ReLUs, attention, sums) is the network's own. Tensors are
channels last in memory throughout, so layouts are never converted.

``docs/quantization.md`` says what the tensors of a convolution are; ``docs/integrations.md``, what
they are worth. ``pycodec/quantization/hyperprior.py`` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pycodec.errors import InputError
from pycodec.models.hyperprior_network import GDN
from pycodec.models.integer_transforms import NARROW_BITS, stored_weight
from pycodec.models.photo import branch_dtype
from pycodec.ops.quantize import dequantize, quantize
from pycodec.ops.quantized_conv2d import QuantizedConv2d
from pycodec.quantization.int16 import FloatLayer, float_layers

GDN_PIXELS = 1024
"""That a GDN works on at a time."""


@dataclass(frozen=True)
class Convolution:
    """One of a run; ``name`` is the float module's in :func:`as_convolutions`."""

    name: str
    stride: int
    upscale: int


@dataclass(frozen=True)
class Run:
    """Convolutions with a ReLU after each but the last.

    Attributes:
        layers: the convolutions.
        modules: names of all that the run stands for, activations and shuffles included.
    """

    layers: list[Convolution]
    modules: list[str]


def as_convolutions(network: nn.Module) -> None:
    """Replace transposed convolutions by convolutions and pixel shuffles: the same sums."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ConvTranspose2d):
            (layer,) = float_layers(module)
            network.set_submodule(name, _subpixel(layer))


def _subpixel(layer: FloatLayer) -> nn.Module:
    outputs, inputs, *kernel = layer.weight.shape
    conv = nn.Conv2d(inputs, outputs, kernel, padding=[k // 2 for k in kernel])
    conv.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    conv.requires_grad_(False)
    return nn.Sequential(conv, nn.PixelShuffle(2)) if layer.shuffle else conv


def find_runs(network: nn.Module) -> list[Run]:
    """The runs of a network without transposed convolutions; each convolution is in one."""
    runs: list[Run] = []
    is_open, relu = False, None  # whether the last run may go on, and the ReLU it ends with so far
    for name in _in_order(network, ""):
        module = None if name is None else network.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            if relu is None:
                runs.append(Run([], []))
            else:
                runs[-1].modules.append(relu)
            runs[-1].layers.append(Convolution(name, module.stride[0], 1))
            runs[-1].modules.append(name)
            is_open, relu = True, None
        elif is_open and relu is None and isinstance(module, nn.PixelShuffle):
            layer = runs[-1].layers.pop()
            runs[-1].layers.append(replace(layer, upscale=module.upscale_factor))
            runs[-1].modules.append(name)
        elif is_open and relu is None and isinstance(module, nn.ReLU):
            relu = name
        else:
            is_open, relu = False, None
    return runs


def _in_order(module: nn.Module, name: str) -> Iterator[str | None]:
    """Names of the modules without children that run one after the other; None between others."""
    prefix = f"{name}." if name else ""
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        for key, child in children.items():
            yield from _in_order(child, prefix + key)
    elif not children:
        yield name
    else:
        branch = getattr(module, "branch", [])
        yield from (None, *(prefix + key for key in branch), None)
        for key, child in children.items():
            if key not in branch:
                yield from (*_in_order(child, prefix + key), None)


class ChunkedGDN(nn.Module):
    """A GDN, on a CPU some pixels at a time, which stay in the cache; overwrites its input.

    Args:
        gdn: whose numbers it takes.
        dtype: of the squares and their weights; sums are of 32 bits.
    """

    def __init__(self, gdn: GDN, dtype: torch.dtype) -> None:
        super().__init__()
        self.inverse = gdn.inverse
        self.register_buffer("gamma", gdn.gamma_reparam(gdn.gamma).T.contiguous().to(dtype))
        self.register_buffer("beta", gdn.beta_reparam(gdn.beta).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).contiguous()
        pixels = x.flatten(0, 2)
        for part in pixels.split(GDN_PIXELS) if x.device.type == "cpu" else (pixels,):
            squares = part.square().to(self.gamma.dtype)
            norm = torch.addmm(self.beta, squares, self.gamma).float()
            part.mul_(norm.sqrt_() if self.inverse else norm.rsqrt_())
        return x.permute(0, 3, 1, 2)


def use_integers(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace all convolutions of a network by those of ``tensors``, on their device.

    Raises:
        InputError: a tensor is missing or does not fit.
    """
    as_convolutions(network)
    for run in find_runs(network):
        try:
            integer_run = IntegerRun(run, tensors)
        except KeyError as error:
            raise InputError(f"the integers lack the tensor {error}") from None
        inputs = network.get_submodule(run.layers[0].name).in_channels
        if integer_run.in_channels != inputs:
            raise InputError(f"the integers of {run.layers[0].name} are for other inputs")
        first, *others = run.modules
        network.set_submodule(first, integer_run)
        for name in others:
            network.set_submodule(name, nn.Identity())
    for name, module in list(network.named_modules()):
        if isinstance(module, GDN):
            dtype = branch_dtype(module.gamma.device)
            network.set_submodule(name, ChunkedGDN(module, dtype))


class IntegerRun(nn.Module):
    """A run in integers: float [N, Cin, H, W] to float, channels last in memory.

    Args:
        run: as :func:`find_runs` has it.
        tensors: of all layers of the network, by their names, on one device.
        backend: of the operations; by default the fastest of the device.

    Raises:
        InputError: tensors do not fit each other.
        KeyError: a tensor is missing.
    """

    def __init__(self, run: Run, tensors: Mapping[str, Tensor], backend: str | None = None) -> None:
        super().__init__()
        first, last = run.layers[0].name, run.layers[-1].name
        self.layers = [
            _load_layer(tensors, layer, layer is not run.layers[-1], backend)
            for layer in run.layers
        ]
        self.in_channels = self.layers[0].in_channels
        bits = int(tensors[f"{first}.input.bits"])
        self._grid, self._out_grid = (
            (scale, torch.zeros_like(scale, dtype=torch.int32))
            for scale in (tensors[f"{first}.input.scale"], tensors[f"{last}.output.scale"])
        )
        if bits > NARROW_BITS:
            half = 1 << (bits - 1)
            self._range = {"out_dtype": torch.int16, "lower": -half, "upper": half - 1}
        else:
            self._range = {"out_dtype": torch.uint8}  # pixels
        self._backend = backend

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).contiguous()
        q = quantize(x, *self._grid, **self._range, backend=self._backend)
        for layer in self.layers:
            q = layer(q)
        return dequantize(q, *self._out_grid, backend=self._backend).permute(0, 3, 1, 2)


def _load_layer(
    tensors: Mapping[str, Tensor], layer: Convolution, has_relu: bool, backend: str | None
) -> QuantizedConv2d:
    name = layer.name
    return QuantizedConv2d(
        stored_weight(tensors, name),
        tensors[f"{name}.bias"],
        tensors[f"{name}.multiplier"],
        int(tensors[f"{name}.shift"]),
        out_dtype=torch.int16,
        relu=has_relu,
        stride=layer.stride,
        upscale=layer.upscale,
        backend=backend,
        name=name,
    )
