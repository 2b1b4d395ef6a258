"""How fast is the integer trimmed convolution, against PyTorch's float32 with a masked weight?

One layer of the published lossless model: 64 to 64 channels in 8 groups, 5x5, type B, on a picture
of 768x512. Times are the best of several runs; weights are packed in every call.

    python benchmarks/ops/quantized_trimmed_conv2d.py [--threads N] [--order ORDER] [--repeats R]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from pycodec.context.orders import ORDERS, mask
from pycodec.ops import quantized_trimmed_conv2d
from pycodec.ops.trimmed_conv2d import expand_mask

HEIGHT, WIDTH, CHANNELS, GROUPS, KERNEL = 512, 768, 64, 8, 5


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

    seen = mask(options.order, "B", GROUPS, GROUPS, KERNEL)
    x = torch.randint(-127, 128, (1, HEIGHT, WIDTH, CHANNELS), dtype=torch.int8)
    weight = torch.randint(-127, 128, (CHANNELS, KERNEL, KERNEL, CHANNELS), dtype=torch.int8)
    bias = torch.zeros(CHANNELS, dtype=torch.int32)
    multiplier = torch.full((CHANNELS,), 1000, dtype=torch.int32)
    integer = best_seconds(
        lambda: quantized_trimmed_conv2d(x, weight, seen, bias, multiplier, multiplier, 22),
        options.repeats,
    )
    dense = HEIGHT * WIDTH * CHANNELS**2 * KERNEL**2 / 1e9
    left = dense * float(seen.float().mean())
    print(f"{options.order}, {options.threads} threads, {left / dense:.0%} of the weights are seen")
    print(f"int8 trimmed           {integer * 1e3:7.1f} ms {left / integer:6.0f} GMAC/s")
    float_weight = torch.rand(CHANNELS, CHANNELS, KERNEL, KERNEL)
    float_weight = float_weight * expand_mask(seen, float_weight)
    for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        image = torch.rand(1, CHANNELS, HEIGHT, WIDTH).to(memory_format=layout)
        with torch.inference_mode():
            seconds = best_seconds(
                lambda image=image: F.conv2d(image, float_weight, padding=KERNEL // 2),
                options.repeats,
            )
        print(
            f"float32 masked, {name}   {seconds * 1e3:7.1f} ms {dense / seconds:6.0f} GMAC/s,"
            f" int8 is {seconds / integer:.1f} x faster"
        )


if __name__ == "__main__":
    main()
