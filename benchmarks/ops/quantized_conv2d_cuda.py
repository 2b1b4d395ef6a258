"""How fast is the integer convolution on a GPU, and how far from what the GPU can do?

Layers of the photo codec's entropy model at 1080p. Times are medians of CUDA events around a call.
Peers compute the same sums in floats, without requantization: cuDNN in float16, channels last, and
what torch.compile makes of it, with ReLU; they come with torch, nothing to install. ``of roof`` is
the share of what the measured ceilings (an int8 matrix product, a copy) allow for these products
and bytes. What the CUDA and Triton kernels compute is checked against the reference.

    python benchmarks/ops/quantized_conv2d_cuda.py [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from trimmed_conv2d_cuda import event_seconds

from pycodec.ops import quantized_conv2d
from pycodec.profiling.machine import Ceilings, describe_machine, measure_ceilings

LAYERS = (
    # height, width, in_channels, out_channels, kernel
    (68, 120, 320, 96, 3),
    (68, 120, 224, 128, 1),
    (68, 120, 128, 128, 1),
    (68, 120, 128, 640, 1),
    (17, 30, 64, 128, 3),
)


@dataclass(frozen=True)
class Result:
    layer: str
    implementation: str
    ms: float
    gop_s: float
    share_of_roof: float | None


def calls(layer: tuple[int, ...]) -> dict[str, Callable[[], torch.Tensor]]:
    height, width, cin, cout, kernel = layer
    x = torch.randint(0, 256, (1, height, width, cin), dtype=torch.uint8, device="cuda")
    weight = torch.randint(-128, 128, (cout, kernel, kernel, cin), dtype=torch.int8, device="cuda")
    bias = torch.zeros(cout, dtype=torch.int32, device="cuda")
    multiplier = torch.full_like(bias, 2**30)

    def integer(backend: str) -> torch.Tensor:
        return quantized_conv2d(
            x, weight, bias, multiplier, 45, out_dtype=torch.uint8, relu=True, backend=backend
        )

    # NHWC data seen as NCHW: what torch calls channels_last.
    image, filters = (t.half().permute(0, 3, 1, 2) for t in (x, weight))

    def floats() -> torch.Tensor:
        return F.relu(F.conv2d(image, filters, padding=kernel // 2))

    compiled = torch.compile(floats)
    expected = integer("reference")
    for backend in ("cuda", "triton"):
        if not torch.equal(integer(backend), expected):
            raise AssertionError(f"{layer}: {backend} differs from the reference")
    return {
        "cuda": lambda: integer("cuda"),
        "triton": lambda: integer("triton"),
        "cuDNN float16": floats,
        "torch.compile float16": compiled,
    }


def measure(layer: tuple[int, ...], repeats: int, ceilings: Ceilings) -> list[Result]:
    height, width, cin, cout, kernel = layer
    operations = 2 * height * width * cin * cout * kernel * kernel
    size = height * width * (cin + cout) + cin * cout * kernel * kernel
    name = f"{width}x{height} {cin}->{cout} {kernel}x{kernel}"
    roof = ceilings.roof("int8", operations / size)
    results = []
    for implementation, call in calls(layer).items():
        seconds = event_seconds(call, repeats)
        gop_s = 1e-9 * operations / seconds
        is_int8 = implementation in ("cuda", "triton") and roof is not None
        share = gop_s / roof if is_int8 else None
        results.append(Result(name, implementation, 1e3 * seconds, gop_s, share))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    ceilings = measure_ceilings("cuda")
    results = []
    with torch.inference_mode():
        for layer in LAYERS:
            for r in measure(layer, options.repeats, ceilings):
                share = "" if r.share_of_roof is None else f"{r.share_of_roof:6.1%} of roof"
                print(
                    f"{r.layer:>22} {r.implementation:<22} {r.ms:8.4f} ms {r.gop_s:9.1f} GOP/s"
                    f" {share}",
                    flush=True,
                )
                results.append(r)
    if options.json:
        document = {
            "machine": describe_machine("cuda"),
            "ceilings": ceilings.to_json(),
            "results": [asdict(r) for r in results],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
