"""The integer convolution against PyTorch's float convolutions, and against the processor.

Question: on layers of the size of an entropy model's, how fast is the integer convolution in each
SIMD variant, what would float32 and bfloat16 cost, and what share of the core's int8 multiply-add
rate is reached? The rate is of the best call, as the peak is, so that both mean the same on a busy
machine; where the median is far from the best, the machine was busy. Float layers run channels-last
without bias, activation and requantization, which the integer layers include.

Peer: PyTorch's own convolutions; nothing to install.

    python benchmarks/ops/quantized_conv2d.py [--threads 1 2] [--seconds 0.5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import int8_peak, time_calls
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.ops import QuantizedConv2d

LAYERS = (
    # height, width, in_channels, out_channels, kernel
    (32, 48, 256, 96, 3),
    (32, 48, 192, 192, 3),
    (32, 48, 128, 128, 5),
    (32, 48, 192, 192, 1),
    (16, 24, 96, 64, 3),
    (1, 64, 192, 96, 3),
)


def candidates(layer: tuple[int, ...], threads: int) -> dict[str, Callable[[], object]]:
    """What to time for one layer, by name."""
    height, width, cin, cout, kernel = layer
    x = torch.randint(0, 256, (1, height, width, cin), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (cout, kernel, kernel, cin), dtype=torch.int8)
    bias = torch.zeros(cout, dtype=torch.int32)
    multiplier = torch.full((cout,), 2**30, dtype=torch.int32)
    runs: dict[str, Callable[[], object]] = {}
    for level in _cpu.supported_simd_levels():
        _cpu.set_simd_level(level)
        conv = QuantizedConv2d(weight, bias, multiplier, 45, out_dtype=torch.uint8, relu=True)
        runs[f"int8 {level}"] = lambda conv=conv: conv(x, threads=threads)
    for dtype in (torch.float32, torch.bfloat16):
        # NHWC data seen as NCHW: what torch calls channels_last.
        image = x.to(dtype).permute(0, 3, 1, 2)
        filters = weight.to(dtype).permute(0, 3, 1, 2)
        name = f"torch {str(dtype).removeprefix('torch.')}"
        runs[name] = lambda a=image, b=filters: F.conv2d(a, b, padding=kernel // 2)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each number")
    options = parser.parse_args()
    peak = int8_peak()
    if peak:
        print(f"int8 peak of one core (vpdpbusd on registers): {peak / 1e9:.0f} GMAC/s\n")
    print(
        f"{'layer':>22}  {'threads':>7}  {'implementation':<16} {'median ms':>9} {'best ms':>8} "
        f"{'GMAC/s':>7}  of peak"
    )
    for layer in LAYERS:
        height, width, cin, cout, kernel = layer
        macs = height * width * cin * cout * kernel * kernel
        name = f"{width}x{height} {cin}->{cout} {kernel}x{kernel}"
        for threads in options.threads:
            torch.set_num_threads(threads)
            for implementation, run in candidates(layer, threads).items():
                with torch.inference_mode():
                    median, best = time_calls(run, options.seconds)
                share = f"{macs / best / (peak * threads):7.0%}" if peak else ""
                print(
                    f"{name:>22}  {threads:>7}  {implementation:<16} {median * 1e3:9.3f} "
                    f"{best * 1e3:8.3f} {macs / best / 1e9:7.1f}  {share}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
