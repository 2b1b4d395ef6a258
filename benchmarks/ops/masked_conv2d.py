"""The masked convolution of raster order against a dense one with zeros in its weights.

Question: on the context models of learned image codecs (mbt2018: 5x5, from the latents' channels to
twice as many), how much faster is skipping what the mask cuts than PyTorch's convolution (oneDNN)
with a masked weight? As in benchmarks/ops/trimmed_conv2d.py, effective GMAC/s count what is left
after masking, and the share of the peak counts what is multiplied.

Peer: PyTorch's own convolution; nothing to install.

    THP_MEM_ALLOC_ENABLE=1 python benchmarks/ops/masked_conv2d.py [--threads 1 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from measure import compare_with_dense, float32_peak, print_header, write_rows
from torch.nn import functional as F
from trimmed_conv2d import at_level, check

from pycodec import _cpu
from pycodec.ops import masked_conv2d
from pycodec.ops.masked_conv2d import raster_mask

LAYERS = (
    # batch, height, width, in_channels, out_channels, kernel, kind
    (1, 32, 48, 192, 384, 5, "A"),  # mbt2018 on 512x768, low rates
    (1, 32, 48, 192, 384, 5, "B"),
    (1, 32, 48, 320, 640, 5, "A"),  # high rates
    (16, 16, 16, 192, 384, 5, "A"),  # training on 256x256
    (1, 512, 768, 16, 32, 7, "A"),  # PixelCNN's shape on a whole picture
    (1, 512, 768, 32, 32, 3, "B"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--rounds", type=int, default=3, help="at least")
    parser.add_argument("--seconds", type=float, default=2, help="for a layer, at least")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
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
    peak = float32_peak()
    print(f"float32 peak of one core in GMAC/s: {peak}")
    print_header()
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch, height, width, cin, cout, kernel, kind in LAYERS:
            x, bias = torch.randn(batch, cin, height, width), torch.randn(cout)
            weight = torch.randn(cout, cin, kernel, kernel)
            seen = raster_mask(kind, kernel, kernel)
            masked = weight * seen
            last = torch.channels_last
            image, filters = x.to(memory_format=last), masked.to(memory_format=last)
            p = kernel // 2

            def run(backend: str, x=x, weight=weight, bias=bias, kind=kind):
                return masked_conv2d(x, weight, bias, kind=kind, backend=backend)

            runs = {
                "torch dense": lambda a=x, b=masked, c=bias, p=p: F.conv2d(a, b, c, padding=p),
                "torch dense NHWC": lambda a=image, b=filters, c=bias, p=p: F.conv2d(
                    a, b, c, padding=p
                ),
                "torch reference": lambda run=run: run("reference"),
            } | {
                f"native {level}": at_level(level, lambda run=run: run("native"))
                for level in options.levels
            }
            check(runs)
            positions = batch * height * width
            size = 4 * (positions * (cin + cout) + weight.numel())
            rows += compare_with_dense(
                f"{batch}x {cin}->{cout} {kernel}x{kernel} {kind} {width}x{height}",
                runs,
                int(seen.sum()) * cin * cout * positions,
                weight.numel() * positions,
                dict.fromkeys(runs, size),
                dict.fromkeys(runs, peak),
                options.rounds,
                options.seconds,
            )
    if options.json:
        write_rows(options.json, {"float32": peak}, rows)


if __name__ == "__main__":
    main()
