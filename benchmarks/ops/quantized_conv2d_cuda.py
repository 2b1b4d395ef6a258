"""How fast is the integer convolution on a GPU, and how far from what the GPU can do?

Layers of the photo codec, in the types that it runs them in, at three picture sizes. Times are
medians of CUDA events around a CUDA graph of several calls, divided by their number: what the GPU
needs, without Python; data that fit in the second-level cache are in it, as between the layers of
a network. ``mma`` is the tensor-core kernel with the tile that the shape chooses (``--tiles`` times
each tile), ``dp4a`` the one without tensor cores. Triton's calls include the sums of its weights;
they are left out, and the output says so, where its kernels are not installed.

Peers compute less: cuDNN in float16 and bfloat16, channels last, autotuned, is the convolution
alone, without bias, requantization and residual; ``_int_mm`` is the matrix product alone (torch,
int8 to int32) of the size that the convolution has once its inputs are laid out as a matrix (im2col
is not timed). There is none for layers of 16 bits. They come with torch, nothing to install.

``of peak`` is the share of the int8 operations a second that a matrix product of 8192 by 8192 by
8192 (``_int_mm``) reaches here, counting a layer of 16 bits by its products of bytes; ``of copy``
the share of the bytes a second of a copy of 512 MiB, counting each input, weight, residual and
output once. What the CUDA and Triton kernels compute is checked against the reference.

    python benchmarks/ops/quantized_conv2d_cuda.py [--sizes 1920x1080] [--tiles] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import graph_seconds
from torch.nn import functional as F

from pycodec.ops.backends import optional_module
from pycodec.ops.quantized_conv2d import QuantizedConv2d, pack_int4
from pycodec.profiling.machine import describe_machine

TRITON = optional_module("pycodec.triton_kernels.quantized_conv2d")
PEAK_SIDE = 8192
COPY_BYTES = 1 << 29
TILES = ("mma128x96", "mma128x64", "mma64x32")
COLUMNS = ("mma", "dp4a", "triton", "cuDNN float16", "cuDNN bfloat16", "_int_mm")


@dataclass(frozen=True)
class Layer:
    name: str
    scale: int  # pixels an input position stands for, in each direction
    x_dtype: torch.dtype
    weight_bits: int
    in_channels: int
    out_channels: int
    kernel: int
    out_dtype: torch.dtype = torch.uint8
    stride: int = 1
    upscale: int = 1
    has_residual: bool = False

    @property
    def byte_products(self) -> int:
        """Of each product of the layer."""
        return (1 + (self.x_dtype == torch.int16)) * (1 + (self.weight_bits == 16))


U8, I8, I16 = torch.uint8, torch.int8, torch.int16
LAYERS = (
    Layer("block4.conv1", 4, I8, 8, 64, 64, 3),
    Layer("block4.conv2", 4, U8, 8, 64, 64, 3, I16, has_residual=True),
    Layer("blocks8.reduce", 8, I8, 8, 192, 96, 1),
    Layer("blocks8.conv", 8, U8, 8, 96, 96, 3),
    Layer("blocks8.expand", 8, U8, 8, 96, 192, 1, I16, has_residual=True),
    Layer("blocks16.reduce", 16, I8, 4, 320, 160, 1),
    Layer("blocks16.conv", 16, U8, 8, 160, 160, 3),
    Layer("blocks16.conv", 16, U8, 4, 160, 160, 3),
    Layer("blocks16.expand", 16, U8, 4, 160, 320, 1, I16, has_residual=True),
    Layer("down16", 8, I16, 16, 288, 320, 3, I16, stride=2),
    Layer("up4.conv", 8, I16, 16, 288, 256, 1, I16, upscale=2),
    Layer("stage head", 16, U8, 8, 128, 640, 1, torch.int32),
)


@dataclass(frozen=True)
class Result:
    layer: str
    types: str
    picture: str
    implementation: str
    ms: float
    tera_operations_s: float
    share_of_peak: float | None
    share_of_copy: float | None


def ceilings() -> tuple[float, float]:
    """Operations a second of an int8 matrix product, and bytes a second of a copy."""
    square = random_bytes(PEAK_SIDE, PEAK_SIDE)
    product_seconds = graph_seconds(lambda: torch._int_mm(square, square.t()), 5)
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_seconds = graph_seconds(lambda: target.copy_(source), 5)
    return 2 * PEAK_SIDE**3 / product_seconds, 2 * COPY_BYTES / copy_seconds


def random_bytes(*shape: int, bits: int = 8) -> torch.Tensor:
    top = 1 << (bits - 1)
    dtype = torch.int8 if bits <= 8 else torch.int16
    return torch.randint(-top, top, shape, dtype=dtype, device="cuda")


class Case:
    """A layer with data of a size, and calls of everything that is timed."""

    def __init__(self, layer: Layer, width: int, height: int, tiles: bool) -> None:
        self.layer = layer
        rows, columns = (-(-side // 16) * 16 // layer.scale for side in (height, width))
        n, m = layer.in_channels, layer.out_channels
        bits = 8 * layer.x_dtype.itemsize
        self.x = random_bytes(1, rows, columns, n, bits=bits)
        if layer.x_dtype == torch.uint8:
            self.x = self.x.view(torch.uint8)
        self.kept = random_bytes(m, layer.kernel, layer.kernel, n, bits=min(layer.weight_bits, 12))
        self.weight = self.kept.short() if layer.weight_bits == 16 else self.kept
        if layer.weight_bits == 4:
            self.weight = pack_int4(self.kept)
        self.bias = torch.zeros(m, dtype=torch.int32, device="cuda")
        out = (1, -(-rows // layer.stride), -(-columns // layer.stride), m)
        self.positions = out[1] * out[2]
        self.residual = random_bytes(*out, bits=16) if layer.has_residual else None
        self.operations = 2 * self.positions * m * n * layer.kernel**2
        outputs = self.positions * m
        self.bytes = outputs * layer.out_dtype.itemsize + outputs * 2 * layer.has_residual
        self.bytes += sum(t.numel() * t.element_size() for t in (self.x, self.weight))
        self.kernels = {"mma": "mma", "dp4a": "dp4a"} | {name: name for name in TILES if tiles}
        if layer.byte_products > 1:
            self.kernels.pop("mma128x96", None)
        self.layers = {
            name: self.integer_layer("cuda", kernel) for name, kernel in self.kernels.items()
        }
        if TRITON:
            self.layers["triton"] = self.integer_layer("triton", None)

    def integer_layer(self, backend: str, kernel: str | None) -> QuantizedConv2d:
        # Sums of products of random bytes fill the middle of the output's range, nearly.
        bits = 8 * self.layer.x_dtype.itemsize + min(self.layer.weight_bits, 12) - 4
        deviation = 2.0**bits * (self.layer.in_channels * self.layer.kernel**2) ** 0.5
        scale = 2.0 ** min(8 * self.layer.out_dtype.itemsize - 3, 13) / deviation
        shift = 30 - math.floor(math.log2(scale))
        multiplier = torch.full_like(self.bias, int(scale * 2.0**shift))
        return QuantizedConv2d(
            *(self.weight, self.bias, multiplier, shift),
            out_dtype=self.layer.out_dtype,
            relu=self.layer.out_dtype == torch.uint8,
            stride=self.layer.stride,
            upscale=self.layer.upscale,
            backend=backend,
            kernel=kernel,
        )

    def check(self) -> None:
        expected = self.integer_layer("reference", None)(self.x, residual=self.residual)
        for name, layer in self.layers.items():
            if not torch.equal(layer(self.x, residual=self.residual), expected):
                raise AssertionError(f"{self.layer}: {name} differs from the reference")

    def calls(self) -> dict[str, Callable[[], object]]:
        found: dict[str, Callable[[], object]] = {
            name: lambda layer=layer: layer(self.x, residual=self.residual)
            for name, layer in self.layers.items()
        }
        padding = self.layer.kernel // 2
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
            # NHWC data seen as NCHW: what torch calls channels_last.
            image, filters = (t.to(dtype).permute(0, 3, 1, 2) for t in (self.x, self.kept))
            found[f"cuDNN {name}"] = lambda image=image, filters=filters: F.conv2d(
                image, filters, stride=self.layer.stride, padding=padding
            )
        if self.layer.byte_products == 1:
            inner = self.layer.in_channels * self.layer.kernel**2
            matrix, weights = random_bytes(self.positions, inner), self.kept.flatten(1).t()
            found["_int_mm"] = lambda: torch._int_mm(matrix, weights)
        return found


def measure(case: Case, picture: str, repeats: int, peak: float, copy: float) -> list[Result]:
    layer = case.layer
    size = f"{layer.in_channels}->{layer.out_channels} {layer.kernel}x{layer.kernel}"
    types = f"{8 * layer.x_dtype.itemsize}x{layer.weight_bits} bits {size}"
    results = []
    for name, call in case.calls().items():
        seconds = graph_seconds(call, repeats)
        rate = case.operations / seconds
        of_peak = of_copy = None
        if name in case.layers:
            of_peak, of_copy = rate * layer.byte_products / peak, case.bytes / seconds / copy
        elif name == "_int_mm":
            of_peak = rate / peak
        results.append(
            Result(layer.name, types, picture, name, 1e3 * seconds, 1e-12 * rate, of_peak, of_copy)
        )
    return results


def show(results: list[Result]) -> None:
    by_name = {r.implementation: r for r in results}
    first = by_name["mma"]
    line = f"{first.picture:>10} {first.layer:<16} {first.types:<25}"
    for name in COLUMNS:
        line += f" {by_name[name].ms:8.4f}" if name in by_name else "        -"
    line += f"  {first.share_of_peak:6.1%} {first.share_of_copy:6.1%}"
    tiles = (f"{name[3:]} {by_name[name].ms:.4f}" for name in TILES if name in by_name)
    print(line, *tiles, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["768x512", "1920x1080", "3840x2160"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tiles", action="store_true", help="time each tile of mma")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    torch.backends.cudnn.benchmark = True
    peak, copy = ceilings()
    name = torch.cuda.get_device_name()
    print(f"{name}: int8 {1e-12 * peak:.0f} TOP/s, copy {1e-9 * copy:.0f} GB/s; times in ms")
    if not TRITON:
        print("pycodec.triton_kernels is not installed: Triton is left out")
    heads = "".join(f" {name[-8:]:>8}" for name in COLUMNS)
    print(f"{'':>53}{heads}  of peak and copy: mma")
    results = []
    with torch.inference_mode():
        for size in options.sizes:
            width, height = map(int, size.split("x"))
            for layer in LAYERS:
                case = Case(layer, width, height, options.tiles)
                case.check()
                found = measure(case, size, options.repeats, peak, copy)
                show(found)
                results += found
    if options.json:
        document = {
            "machine": describe_machine("cuda"),
            "int8_tera_operations_s": 1e-12 * peak,
            "copy_gb_s": 1e-9 * copy,
            "results": [asdict(r) for r in results],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
