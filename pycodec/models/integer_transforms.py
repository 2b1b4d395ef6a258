"""Analysis, synthesis and hyper-analysis of the photo codec in integers.

``docs/quantization.md`` defines what is computed. A transform is a program, a list of steps: the
structure is that of ``pycodec/models/transforms.py``, the numbers are what
``pycodec/quantization/transforms.py`` exported. The native backend runs a program without a stop
between its layers; the others run it an operation at a time, with equal results.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pycodec import _cpu
from pycodec.context.integer_entropy_model import interpolate_nodes
from pycodec.errors import InputError
from pycodec.ops.backends import check_backend, default_backend
from pycodec.ops.quantized_conv2d import QuantizedConv2d
from pycodec.ops.requantize import requantize
from pycodec.projection.grid import SphereGrid
from pycodec.projection.integer_borders import tile_borders, with_borders

LOG2_BITS = 16
"""Multipliers that depend on quality are stored as log2 in units of 2**-LOG2_BITS."""

OFFSET_BITS = 8
"""Offsets that depend on quality are in 2**-OFFSET_BITS of the output's unit."""

PIXEL_FACTOR = 4
NARROW_BITS = 8

_ROOT_BITS = 62
_HALF = LOG2_BITS // 2


@dataclass(frozen=True)
class ReadPixels:
    """Pixels to the first layer's input: patches of 4 by 4 become channels."""

    layer: str


@dataclass(frozen=True)
class Convert:
    """A value to the input of a layer, perhaps scaled and shifted by quality, perhaps with a ReLU.

    ``source`` "input" is the program's.
    """

    source: str
    layer: str
    affine: str | None = None
    relu: bool = False


@dataclass(frozen=True)
class Convolve:
    """A layer, to the input of the layer ``to`` after a ReLU, or to the value ``to``."""

    layer: str
    to: str
    to_layer: bool = False
    add: bool = False
    stride: int = 1
    upscale: int = 1


Step = ReadPixels | Convert | Convolve


def _bottlenecks(name: str, count: int, stream: str) -> list[Step]:
    steps: list[Step] = []
    for i in range(count):
        reduce, conv, expand = (f"{name}.{i}.{part}" for part in ("reduce", "conv", "expand"))
        steps += [
            Convert(stream, reduce),
            Convolve(reduce, conv, to_layer=True),
            Convolve(conv, expand, to_layer=True),
            Convolve(expand, stream, add=True),
        ]
    return steps


_BLOCK4: list[Step] = [
    Convert("stream4", "block4.conv1"),
    Convolve("block4.conv1", "block4.conv2", to_layer=True),
    Convolve("block4.conv2", "stream4", add=True),
]

PROGRAMS: dict[str, list[Step]] = {
    "analysis": [
        ReadPixels("stem"),
        Convolve("stem", "stream4"),
        *_BLOCK4,
        Convert("stream4", "down8", "affine4"),
        Convolve("down8", "stream8", stride=2),
        *_bottlenecks("blocks8", 2, "stream8"),
        Convert("stream8", "down16", "affine8"),
        Convolve("down16", "stream16", stride=2),
        *_bottlenecks("blocks16", 2, "stream16"),
        Convert("stream16", "head", "affine16"),
        Convolve("head", "latents"),
    ],
    "hyper_analysis": [
        Convert("input", "conv1"),
        Convolve("conv1", "hidden", stride=2),
        Convert("hidden", "conv2", "affine", relu=True),
        Convolve("conv2", "conv3", to_layer=True, stride=2),
        Convolve("conv3", "hyperlatents"),
    ],
    "synthesis": [
        Convert("input", "head", "affine_latent"),
        Convolve("head", "stream16"),
        *_bottlenecks("blocks16", 2, "stream16"),
        Convert("stream16", "up8.conv", "affine16"),
        Convolve("up8.conv", "stream8", upscale=2),
        *_bottlenecks("blocks8", 3, "stream8"),
        Convert("stream8", "up4.conv", "affine8"),
        Convolve("up4.conv", "stream4", upscale=2),
        *_BLOCK4,
        Convert("stream4", "tail", "affine4"),
        Convolve("tail", "pixels", upscale=PIXEL_FACTOR),
    ],
}
"""The steps of each transform; layers are named after the float module's."""

VALUE_DTYPES = {
    "latents": torch.int32,
    "hyperlatents": torch.int8,
    "pixels": torch.uint8,
}
"""Of the results; all other values are streams, int16."""

BORDERED_HEIGHTS = {"analysis": (16, 8, 4), "hyper_analysis": (4, 2), "synthesis": (4, 8, 16)}
"""On the sphere, the rows of a tile where convolutions see what borders it."""


@functools.cache
def _exp2_tables() -> tuple[Tensor, Tensor]:
    """2**(i / 2**8) and 2**(i / 2**16), i = 0 to 255, in units of 2**-30: int64 [256] each.

    Products of repeated square roots, all in integers, so that they are the same everywhere.
    """
    one = 1 << _ROOT_BITS
    root, roots = 2 * one, []
    for _ in range(LOG2_BITS):
        root = math.isqrt(root * one)
        roots.append(root)  # 2**(2**-(i + 1))

    def table(first: int) -> Tensor:
        values = []
        for i in range(1 << _HALF):
            product = one
            for bit in range(_HALF):
                if i >> (_HALF - 1 - bit) & 1:
                    product = product * roots[first + bit] // one
            values.append(product >> (_ROOT_BITS - 30))
        return torch.tensor(values)

    return table(0), table(_HALF)


def exp2_fixed(log2: Tensor) -> Tensor:
    """floor(2**(log2 / 2**LOG2_BITS)), nearly: int32; 0 below log2 = 0, and log2 < 30 octaves."""
    high, low = _exp2_tables()
    log2 = log2.long()
    whole = log2 >> LOG2_BITS
    mask = (1 << _HALF) - 1
    product = high[log2 >> _HALF & mask] * low[log2 & mask]
    return torch.where(whole < 0, 0, product >> (60 - whole.clamp(0, 30))).int()


class IntegerTransform:
    """One of the transforms, made ready to run.

    Args:
        name: ``analysis``, ``hyper_analysis`` or ``synthesis``.
        tensors: of ``export_transform``.
        backend: ``native``, ``reference``, ``cuda`` or ``triton``; by default the fastest of the
            tensors' device.
        widths: see :func:`choose_variants`.

    Raises:
        InputError: a tensor is missing or does not fit.
    """

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        backend: str | None = None,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        self.name, self.steps = name, PROGRAMS[name]
        self._tensors = tensors = choose_variants(tensors, widths)
        self.backend = backend or default_backend(next(iter(tensors.values())).device)
        check_backend(self.backend)
        try:
            convolutions = [step for step in self.steps if isinstance(step, Convolve)]
            self._layers = {step.layer: self._layer(step) for step in convolutions}
            self._input_dtypes = {layer: self._input_dtype(layer) for layer in self._layers}
            self._conversions(100)  # so that a missing tensor is found here
        except KeyError as error:
            raise InputError(f"the transform {name} lacks the tensor {error}") from None
        self._conversions = functools.lru_cache(maxsize=128)(self._conversions)
        self._program = self._native_program() if self.backend == "native" else None

    def __call__(self, x: Tensor, quality_code: int, threads: int | None = None) -> Tensor:
        """Run the transform.

        Args:
            x: of analysis, pixels uint8 [H, W, 3], sides multiples of 16; of the others, latents
                int32 [H, W, M] in units of 2**-10.
            quality_code: 100 to 10000.
            threads: of the native backend.

        Returns:
            Latents int32 [H / 16, W / 16, M]; hyperlatents int8; pixels uint8 [16 H, 16 W, 3].
        """
        return self._run(x[None], self._conversions(quality_code), None, threads)[0]

    def on_sphere(
        self, x: Tensor, quality_codes: Sequence[int], grid: SphereGrid, threads: int | None = None
    ) -> Tensor:
        """Run the transform on tiles of a sphere, which border each other.

        Args:
            x: as of a call, [T, H, W, C]: the tiles of ``grid``.
            quality_codes: of each tile.
            grid: of the sphere, or of a part of it.
            threads: of the native backend.

        Returns:
            As a call, [T, ...].
        """
        each = [self._conversions(code) for code in quality_codes]
        together = {layer: _stacked([c[layer] for c in each]) for layer in each[0]}
        return self._run(x, together, grid, threads)

    def time_layers(self, x: Tensor, quality_code: int) -> dict[str, float]:
        """Seconds of each convolution on ``x``, run one at a time, not as a program."""
        seconds: dict[str, float] = {}
        self._run_steps(x[None], self._conversions(quality_code), None, seconds)
        return seconds

    def _run(
        self,
        x: Tensor,
        conversions: Mapping[str, _Conversion],
        grid: SphereGrid | None,
        threads: int | None,
    ) -> Tensor:
        if self._program is None:
            return self._run_steps(x, conversions, grid)
        parameters = [
            (c.multiplier.numpy(), c.offset.numpy(), c.shift, c.lower, c.upper)
            for c in conversions.values()
        ]
        heights = () if grid is None else BORDERED_HEIGHTS[self.name]
        borders = [(height, tile_borders(grid, height).numpy()) for height in heights]
        count = threads or torch.get_num_threads()
        x = x.contiguous().numpy()
        return torch.from_numpy(self._program.run(x, parameters, borders, count))

    def _run_steps(
        self,
        x: Tensor,
        conversions: Mapping[str, _Conversion],
        grid: SphereGrid | None,
        seconds: dict[str, float] | None = None,
    ) -> Tensor:
        values, inputs = {"input": x.contiguous()}, {}
        for step in self.steps:
            if isinstance(step, ReadPixels):
                inputs[step.layer] = unshuffle_pixels(values["input"])
            elif isinstance(step, Convert):
                inputs[step.layer] = conversions[step.layer].run(
                    values[step.source], self._input_dtypes[step.layer], self.backend
                )
            else:
                residual = values[step.to] if step.add else None
                began = time.perf_counter()
                result = self._convolve(step, inputs.pop(step.layer), residual, grid)
                if seconds is not None:
                    seconds[step.layer] = time.perf_counter() - began
                (inputs if step.to_layer else values)[step.to] = result
        return values[self.steps[-1].to]

    def _convolve(
        self, step: Convolve, x: Tensor, residual: Tensor | None, grid: SphereGrid | None
    ) -> Tensor:
        layer = self._layers[step.layer]
        if grid is None or layer.kernel_size == (1, 1):
            return layer(x, residual=residual)
        rows, columns = (step.upscale * (side // step.stride) for side in x.shape[1:3])
        x = with_borders(x, grid, self._tensors.get(f"{step.layer}.zero_point"))
        # The layer pads what is padded already, and what that gives is cut off. With a stride its
        # windows are those wanted if there is one more row and column of it.
        if step.stride == 2:
            x = F.pad(x, (0, 0, 1, 0, 1, 0))
        if residual is not None:
            residual = F.pad(residual, (0, 0, 1, 1, 1, 1))
        result = layer(x, residual=residual)
        first = step.upscale
        return result[:, first : first + rows, first : first + columns].contiguous()

    def _layer(self, step: Convolve) -> QuantizedConv2d:
        name, tensors = step.layer, self._tensors
        dtype = torch.uint8 if step.to_layer else VALUE_DTYPES.get(step.to, torch.int16)
        bits = int(tensors[f"{step.to}.input.bits"]) if step.to_layer else 0
        return QuantizedConv2d(
            stored_weight(tensors, name),
            tensors[f"{name}.bias"],
            tensors[f"{name}.multiplier"],
            int(tensors[f"{name}.shift"]),
            out_dtype=dtype,
            relu=step.to_layer,
            stride=step.stride,
            upscale=step.upscale,
            bits=bits,
            zero_point=tensors.get(f"{name}.zero_point"),
            backend=self.backend,
        )

    def _input_dtype(self, layer: str) -> torch.dtype:
        for step in self.steps:
            if isinstance(step, Convert) and step.layer == layer and not step.relu:
                wide = int(self._tensors[f"{layer}.input.bits"]) > NARROW_BITS
                return torch.int16 if wide else torch.int8
        return torch.uint8

    def _conversions(self, quality_code: int) -> dict[str, _Conversion]:
        """By the layer that reads the result, in the order of the steps."""
        steps = [step for step in self.steps if isinstance(step, Convert)]
        return {step.layer: self._conversion(step, quality_code) for step in steps}

    def _conversion(self, step: Convert, quality_code: int) -> _Conversion:
        tensors, name = self._tensors, f"{step.layer}.input"
        shift, bits = int(tensors[f"{name}.shift"]), int(tensors[f"{name}.bits"])
        if step.affine is None:
            multiplier = tensors[f"{name}.multiplier"]
            offset = torch.zeros_like(multiplier, dtype=torch.int64)
        else:
            log2 = interpolate_nodes(tensors[f"{name}.log2_multiplier"].cpu(), quality_code)
            multiplier = exp2_fixed(log2).to(tensors[f"{name}.offset"].device)
            offset = interpolate_nodes(tensors[f"{name}.offset"], quality_code).long()
            offset = offset << (shift - OFFSET_BITS)
        zero_point = tensors.get(f"{step.layer}.zero_point")
        if zero_point is not None:
            offset = offset + (zero_point.long() << shift)
        upper = (1 << (bits - (not step.relu))) - 1
        return _Conversion(
            multiplier.contiguous(),
            (offset + (1 << (shift - 1))).contiguous(),
            shift,
            0 if step.relu else -upper - 1,
            upper,
        )

    def _native_program(self) -> _cpu.TransformProgram:
        program = _cpu.TransformProgram()
        layers, values = {}, {"input": 0}
        for name, layer in self._layers.items():
            dtype = str(self._input_dtypes[name]).removeprefix("torch.")
            layers[name] = program.add_layer(layer.packed, dtype, f"{self.name}.{name}")
        for step in self.steps:
            if isinstance(step, ReadPixels):
                program.unshuffle(layers[step.layer], PIXEL_FACTOR)
            elif isinstance(step, Convert):
                program.requantize(values[step.source], layers[step.layer])
            elif step.to_layer:
                program.convolve_to_layer(layers[step.layer], layers[step.to])
            else:
                values[step.to] = program.convolve(
                    layers[step.layer], values.get(step.to, 0), step.add
                )
        return program


@dataclass(frozen=True)
class _Conversion:
    """What a :class:`Convert` computes at one quality; see ``pycodec.ops.requantize``."""

    multiplier: Tensor
    offset: Tensor
    shift: int
    lower: int
    upper: int

    def run(self, x: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
        backend = backend if backend == "native" else "reference"
        return requantize(
            *(x, self.multiplier, self.offset, self.shift),
            out_dtype=dtype,
            lower=self.lower,
            upper=self.upper,
            backend=backend,
        )


def _stacked(conversions: Sequence[_Conversion]) -> _Conversion:
    """Of a batch: [N, C] where they differ."""
    first = conversions[0]
    if all(c.multiplier is first.multiplier for c in conversions):
        return first
    return replace(
        first,
        multiplier=torch.stack([c.multiplier for c in conversions]),
        offset=torch.stack([c.offset for c in conversions]),
    )


def choose_variants(
    tensors: Mapping[str, Tensor], widths: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """The tensors with those of each layer's chosen variant in place of its own.

    Args:
        tensors: those of variants are named ``LAYER@BITS.weight`` and so on.
        widths: bits of the variants, by layer; layers that are not named keep their own.

    Raises:
        InputError: a layer has no such variant.
    """
    chosen = {name: tensor for name, tensor in tensors.items() if "@" not in name}
    for layer, bits in (widths or {}).items():
        prefix = f"{layer}@{bits}."
        variant = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not variant:
            raise InputError(f"the layer {layer} has no variant of {bits} bits")
        for name in [name for name in chosen if name.startswith(f"{layer}.")]:
            del chosen[name]
        chosen |= {f"{layer}.{name}": tensor for name, tensor in variant.items()}
    return chosen


def stored_weight(tensors: Mapping[str, Tensor], layer: str) -> Tensor:
    """A layer's weights as :class:`QuantizedConv2d` takes them."""
    packed = tensors.get(f"{layer}.weight12")
    return tensors[f"{layer}.weight"] if packed is None else unpack_int12(packed)


def pack_int12(weight: Tensor) -> Tensor:
    """Weights of 12 bits, two in three bytes, as model files hold them.

    Args:
        weight: int16 [..., C], -2048 to 2047, C even.

    Returns:
        uint8 [..., 3 C / 2]: of each pair the low 8 bits of both, then the high 4 bits, those
        of the first in the low half.
    """
    bits = weight.int() & 0xFFF
    first, second = bits[..., ::2], bits[..., 1::2]
    parts = [first & 255, second & 255, first >> 8 | second >> 8 << 4]
    return torch.stack(parts, -1).flatten(-2).to(torch.uint8)


def unpack_int12(packed: Tensor) -> Tensor:
    """The inverse of :func:`pack_int12`: int16."""
    first, second, high = packed.int().unflatten(-1, (-1, 3)).unbind(-1)
    values = torch.stack([first | (high & 15) << 8, second | high >> 4 << 8], -1).flatten(-2)
    return ((values ^ 0x800) - 0x800).to(torch.int16)


def unshuffle_pixels(x: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] to [N, H / 4, W / 4, 48], channels in the order (dy, dx, c)."""
    n, height, width, colours = x.shape
    f = PIXEL_FACTOR
    patches = x.view(n, height // f, f, width // f, f, colours).permute(0, 1, 3, 2, 4, 5)
    return patches.reshape(n, height // f, width // f, f * f * colours)


def pad_to_multiple(x: np.ndarray, multiple: int) -> np.ndarray:
    """Repeat the last row and column of [H, W, C] up to a multiple; contiguous."""
    bottom, right = -x.shape[0] % multiple, -x.shape[1] % multiple
    if bottom or right:
        x = np.pad(x, ((0, bottom), (0, right), (0, 0)), mode="edge")
    return np.ascontiguousarray(x)
