"""The trimmed convolution against a dense one with zeros in its weights.

Question: on the layers of a context network over 8 planes, how much faster is skipping what the
mask cuts than PyTorch's convolution (oneDNN) with a masked weight, in each SIMD variant, and how
far from the processor's float32 roof? Effective GMAC/s count what is left after trimming; the share
of the peak counts what is multiplied, so a dense convolution's includes zeros. The integer form on
int8 compares with the same dense float32 convolution. Results are checked against each other.

PyTorch takes fresh memory for every large output, in small pages; with THP_MEM_ALLOC_ENABLE=1 in
the environment in huge ones, as the native kernel does. The numbers in benchmarks/results have it.

Peer: PyTorch's own convolution; nothing to install.

    THP_MEM_ALLOC_ENABLE=1 python benchmarks/ops/trimmed_conv2d.py [--threads 1 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from measure import (
    compare_with_dense,
    float32_peak,
    int8_peak,
    print_header,
    write_rows,
)
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.context.orders import mask, weight_mask
from pycodec.ops import trimmed_conv2d

PLANES = 8
LAYERS = (
    # in_channels, out_channels, kernel, kind
    (8, 64, 5, "A"),
    (64, 64, 5, "B"),
    (64, 64, 3, "B"),
    (64, 16, 3, "B"),
    (64, 8, 3, "B"),
)


def at_level(level: str, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        _cpu.set_simd_level(level)
        return run()

    return call


def float_runs(
    x: Tensor, weight: Tensor, seen: Tensor, bias: Tensor, levels: list[str]
) -> dict[str, Callable[[], Tensor]]:
    """The dense convolution, on both layouts, the definition, and the native kernel."""
    wide = weight_mask(seen, weight.shape[1], weight.shape[0])
    masked = weight * wide
    last = torch.channels_last
    image, filters = x.to(memory_format=last), masked.to(memory_format=last)
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    return {
        "torch dense": lambda: F.conv2d(x, masked, bias, padding=padding),
        "torch dense NHWC": lambda: F.conv2d(image, filters, bias, padding=padding),
        "torch reference": lambda: trimmed_conv2d(x, weight, seen, bias, backend="reference"),
    } | {
        f"native {level}": at_level(
            level, lambda: trimmed_conv2d(x, weight, seen, bias, backend="native")
        )
        for level in levels
    }


def integer_runs(
    height: int, width: int, weight: Tensor, seen: Tensor, levels: list[str]
) -> dict[str, Callable[[], Tensor]]:
    """The integer form, on random int8."""
    from pycodec.ops.quantized_trimmed_conv2d import quantized_trimmed_conv2d

    cout, cin, kh, kw = weight.shape
    x = torch.randint(-127, 128, (1, height, width, cin), dtype=torch.int8)
    filters = torch.randint(-127, 128, (cout, kh, kw, cin), dtype=torch.int8)
    bias = torch.zeros(cout, dtype=torch.int32)
    multiplier = torch.full((cout,), 1 << 10, dtype=torch.int32)
    arguments = x, filters, seen, bias, multiplier, multiplier // 4, 20
    return {
        f"int8 {level}": at_level(
            level, lambda: quantized_trimmed_conv2d(*arguments, backend="native")
        )
        for level in levels
    }


def check(runs: dict[str, Callable[[], Tensor]]) -> None:
    """All float implementations give the same, up to rounding."""
    results = [run() for run in runs.values()]
    scale = float(results[0].abs().max())
    for name, result in zip(runs, results, strict=True):
        error = float((result - results[0]).abs().max()) / scale
        if error > 1e-5:
            raise AssertionError(f"{name} differs by {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--rounds", type=int, default=3, help="at least")
    parser.add_argument("--seconds", type=float, default=2, help="for a layer, at least")
    parser.add_argument("--orders", nargs="+", default=["plane", "slope"])
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--no-int8", action="store_true", help="leave the integer form out")
    fastest_first = _cpu.supported_simd_levels()[::-1]
    parser.add_argument(
        "--levels",
        nargs="+",
        choices=fastest_first,
        default=[level for level in fastest_first if level != "scalar"] or fastest_first,
        help="SIMD levels (default: all but scalar)",
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    height, width, levels = options.height, options.width, options.levels
    peaks = {"float32": float32_peak(), "int8": int8_peak()}
    print(f"peaks of one core in GMAC/s: {peaks}")
    print_header()
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for order in options.orders:
            for cin, cout, kernel, kind in LAYERS:
                x, bias = torch.randn(1, cin, height, width), torch.randn(cout)
                weight = torch.randn(cout, cin, kernel, kernel)
                seen = mask(order, kind, PLANES, PLANES, kernel)
                runs = float_runs(x, weight, seen, bias, levels)
                check(runs)
                positions = height * width
                values = positions * (cin + cout)
                num_bytes = dict.fromkeys(runs, 4 * (values + weight.numel()))
                roofs = dict.fromkeys(runs, peaks["float32"])
                if not options.no_int8:
                    integers = integer_runs(height, width, weight, seen, levels)
                    num_bytes |= dict.fromkeys(integers, values + weight.numel())
                    roofs |= dict.fromkeys(integers, peaks["int8"])
                    runs |= integers
                seen_macs = int(weight_mask(seen, cin, cout).sum()) * positions
                rows += compare_with_dense(
                    f"{order} {cin}->{cout} {kernel}x{kernel} {kind} {width}x{height}",
                    runs,
                    seen_macs,
                    weight.numel() * positions,
                    num_bytes,
                    roofs,
                    options.rounds,
                    options.seconds,
                )
    if options.json:
        write_rows(options.json, peaks, rows)


if __name__ == "__main__":
    main()
