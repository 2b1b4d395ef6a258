"""A trimmed layer in training, forward and backward, on a processor that multiplies bfloat16.

Question: on a hidden layer of the lossless network, a trimmed convolution and PReLU on bfloat16
crops, how much faster are the kernels of ``pycodec.ops.trimmed_training`` than PyTorch (oneDNN)
with a masked weight, in either memory format? And where the layer's results are rounded as integers
will be? Times take turns, are medians, and are of the layer with all its gradients; effective
GMAC/s count what the mask leaves, three times a layer.

Peer: PyTorch itself; nothing to install.

    python benchmarks/ops/trimmed_training.py [--threads 1 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from measure import keep_memory, time_side_by_side
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.context.orders import mask
from pycodec.ops import trimmed_training
from pycodec.ops.trimmed_conv2d import expand_mask, trim

PLANES, CHANNELS = 8, 64


def layer_runs(
    crops: int, side: int, kernel: int, order: str, rounded: bool
) -> dict[str, Callable[[], None]]:
    """Forward and backward passes of the same layer."""
    seen = mask(order, "B", PLANES, PLANES, kernel)
    weight = torch.randn(CHANNELS, CHANNELS, kernel, kernel) / CHANNELS
    wide = expand_mask(seen, weight)
    bias, slope = torch.randn(CHANNELS), torch.rand(CHANNELS)
    leaves = [t.bfloat16().requires_grad_() for t in (trim(weight, wide), bias, slope)]
    if rounded:
        leaves.append(torch.full((CHANNELS,), 0.05, requires_grad=True))

    def run(apply: Callable[..., Tensor], layout: torch.memory_format) -> Callable[[], None]:
        shape = crops, CHANNELS, side, side
        x, grad = (torch.randn(shape).bfloat16().to(memory_format=layout) for _ in range(2))
        x.requires_grad_()

        def call() -> None:
            apply(x, *leaves).backward(grad)
            for tensor in (x, *leaves):
                tensor.grad = None

        return call

    def dense(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, *scale: Tensor) -> Tensor:
        out = F.prelu(F.conv2d(x, weight, bias, padding=kernel // 2), slope)
        return trimmed_training.fake_quantize_reference(out, *scale).bfloat16() if scale else out

    def trimmed(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, *scale: Tensor) -> Tensor:
        out = trimmed_training.prelu(trimmed_training.conv2d(x, weight, seen, bias), slope)
        return trimmed_training.fake_quantize(out, *scale) if scale else out

    return {
        "torch dense NCHW": run(dense, torch.contiguous_format),
        "torch dense NHWC": run(dense, torch.channels_last),
        "trimmed_training": run(trimmed, torch.channels_last),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--side", type=int, default=96, help="of the crops in pixels")
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--rounds", type=int, default=9, help="at least")
    parser.add_argument("--seconds", type=float, default=3, help="for a layer, at least")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    if not _cpu.runs_bfloat16():
        parser.error("this processor has neither AVX-512 BF16 nor AMX")
    torch.manual_seed(0)
    keep_memory()
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for order, kernel, rounded in product(("plane", "slope"), (5, 3), (False, True)):
            runs = layer_runs(options.crops, options.side, kernel, order, rounded)
            times = time_side_by_side(runs, options.rounds, options.seconds)
            share = mask(order, "B", PLANES, PLANES, kernel).float().mean().item()
            products = 3 * share * (CHANNELS * kernel * options.side) ** 2 * options.crops
            layer = f"{order} {CHANNELS}->{CHANNELS} {kernel}x{kernel}"
            for name, seconds in times.items():
                row = {
                    "layer": f"{layer}, rounded" if rounded else layer,
                    "threads": threads,
                    "implementation": name,
                    "median_ms": round(1e3 * seconds, 3),
                    "speedup": round(times["torch dense NHWC"] / seconds, 2),
                    "gmac_s": round(products / seconds / 1e9, 1),
                }
                rows.append(row)
                print(*(f"{value}" for value in row.values()), sep="  ", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
