"""How fast is the integer trimmed convolution, against PyTorch's float32 with a masked weight?

The layers of the lossless models, 8 groups, on a picture of 768x512. Times are the best of several
runs; weights are packed in every call. PyTorch's time is that of its faster memory layout.

Peer: PyTorch's own convolution; nothing to install.

    python benchmarks/ops/quantized_trimmed_conv2d.py [--threads N] [--order ORDER] [--repeats R]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.context.orders import ORDERS, mask
from pycodec.ops import quantized_trimmed_conv2d
from pycodec.ops.trimmed_conv2d import expand_mask

HEIGHT, WIDTH, GROUPS = 512, 768, 8
LAYERS = (  # channels in and out, kernel, type
    (8, 64, 5, "A"),
    (64, 64, 5, "B"),
    (64, 64, 3, "B"),
    (64, 64, 1, "B"),
    (64, 8, 3, "B"),
    (64, 8, 1, "B"),
)


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--order", choices=ORDERS, default="slope")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    print(
        f"{options.order} order, {options.threads} threads, {_cpu.simd_level()}\n"
        f"{'layer':16} {'seen':>5} {'int8':>8} {'':>11} {'float32':>9} {'':>11} {'ratio':>6}"
    )
    for channels, outputs, kernel, kind in LAYERS:
        seen = mask(options.order, kind, GROUPS, GROUPS, kernel)
        x = torch.randint(-127, 128, (1, HEIGHT, WIDTH, channels), dtype=torch.int8)
        weight = torch.randint(-127, 128, (outputs, kernel, kernel, channels), dtype=torch.int8)
        bias = torch.zeros(outputs, dtype=torch.int32)
        multiplier = torch.full((outputs,), 1000, dtype=torch.int32)
        arguments = (x, weight, seen, bias, multiplier, multiplier, 22)
        integer = best_seconds(lambda a=arguments: quantized_trimmed_conv2d(*a), options.repeats)
        dense = HEIGHT * WIDTH * channels * outputs * kernel**2 / 1e9
        share = float(seen.float().mean())
        float_weight = torch.rand(outputs, channels, kernel, kernel)
        float_weight = float_weight * expand_mask(seen, float_weight)
        float_bias = torch.zeros(outputs)
        times = []
        for layout in (torch.contiguous_format, torch.channels_last):
            image = torch.rand(1, channels, HEIGHT, WIDTH).to(memory_format=layout)
            with torch.inference_mode():
                operands = (image, float_weight, float_bias)
                times.append(
                    best_seconds(
                        lambda o=operands, k=kernel: F.conv2d(*o, padding=k // 2), options.repeats
                    )
                )
        print(
            f"{channels:2} to {outputs:2}, {kernel}x{kernel} {kind} {share:5.0%}"
            f" {integer * 1e3:5.1f} ms {share * dense / integer:5.0f} GMAC/s"
            f" {min(times) * 1e3:6.1f} ms {dense / min(times):5.0f} GMAC/s"
            f" {min(times) / integer:5.1f} x"
        )


if __name__ == "__main__":
    main()
