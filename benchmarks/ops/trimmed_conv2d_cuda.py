"""How fast are the GPU kernels of the trimmed convolutions, and what do the masks save?

Layers of the lossless codec's shape (64 channels in 8 groups, slope order) and a masked one of a
single group. Times are medians of CUDA events around a call, which trims and packs the weights;
``dense`` is cuDNN on masked weights (the reference backend; TF32 for float32), for floats, and
PyTorch's float64 matrix products, for integers. GMAC/s counts what the mask leaves. Every result
is checked.

Peer: cuDNN, which comes with PyTorch; nothing to install.

    python benchmarks/ops/trimmed_conv2d_cuda.py [--sizes 768x512 1920x1080] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pycodec.context.orders import mask
from pycodec.ops.quantized_trimmed_conv2d import quantized_trimmed_conv2d
from pycodec.ops.trimmed_conv2d import trimmed_conv2d

# Order, groups, channels, kernel.
LAYERS = {
    "tcae 5x5": ("slope", 8, 64, 5),
    "tcae 3x3": ("slope", 8, 64, 3),
    "one group": ("raster", 1, 192, 5),
}
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BACKENDS = {"cuda": "cuda", "triton": "triton", "dense": "reference"}
WARM_UP = 3  # runs that do not count


@dataclass(frozen=True)
class Result:
    device: str
    layer: str
    dtype: str
    backend: str
    height: int
    width: int
    seconds: float
    gmac_s: float


def event_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median between two events around ``run``."""
    times = []
    for _ in range(WARM_UP + repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[WARM_UP:])


def float_calls(layer: tuple, dtype: torch.dtype, height: int, width: int) -> dict:
    order, groups, channels, kernel = layer
    seen = mask(order, "B", groups, groups, kernel).cuda()
    x = torch.randn(1, channels, height, width, device="cuda", dtype=dtype)
    weight = torch.randn(channels, channels, kernel, kernel, device="cuda", dtype=dtype)
    return {
        name: lambda backend=backend: trimmed_conv2d(x, weight, seen, backend=backend)
        for name, backend in BACKENDS.items()
    }


def integer_calls(layer: tuple, height: int, width: int) -> dict:
    order, groups, channels, kernel = layer
    seen = mask(order, "B", groups, groups, kernel).cuda().contiguous()

    def random(*shape: int) -> torch.Tensor:
        return torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")

    x, weight = random(1, height, width, channels), random(channels, kernel, kernel, channels)
    bias = torch.zeros(channels, dtype=torch.int32, device="cuda")
    multiplier = torch.full_like(bias, 300)
    arguments = (x, weight, seen, bias, multiplier, multiplier, 20)
    return {
        name: lambda backend=backend: quantized_trimmed_conv2d(*arguments, backend=backend)
        for name, backend in BACKENDS.items()
    }


def measure(name: str, height: int, width: int, repeats: int) -> Iterator[Result]:
    order, groups, channels, kernel = layer = LAYERS[name]
    macs = int(mask(order, "B", groups, groups, kernel).sum()) * (channels // groups) ** 2
    cases = {n: float_calls(layer, dtype, height, width) for n, dtype in FLOATS.items()}
    cases["int8"] = integer_calls(layer, height, width)
    for dtype, calls in cases.items():
        expected = calls["dense"]().double()
        for backend, call in calls.items():
            error = (call().double() - expected).norm() / expected.norm()
            if error > (0 if dtype == "int8" else 0.02):
                raise AssertionError(f"{name} {dtype} {backend}: relative error {error:.2g}")
            seconds = event_seconds(call, repeats)
            yield Result(
                torch.cuda.get_device_name(),
                name,
                dtype,
                backend,
                height,
                width,
                seconds,
                macs * height * width / seconds / 1e9,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["768x512", "1920x1080"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    print(torch.cuda.get_device_name())
    results = []
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        for name in LAYERS:
            for r in measure(name, height, width, options.repeats):
                print(
                    f"{size:>10} {name:10} {r.dtype:9} {r.backend:8} {r.seconds * 1e3:9.3f} ms"
                    f" {r.gmac_s:9.1f} GMAC/s",
                    flush=True,
                )
                results.append(r)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
