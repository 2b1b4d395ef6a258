"""The integer convolution against oneDNN's, PyTorch's float convolutions, and the processor.

Question: on layers of the size of an entropy model's and of the photo codec's transforms, how fast
is the integer convolution in each SIMD variant, what do oneDNN's int8 convolution (through
torch.ops.quantized, requantized to uint8, too), float32 and bfloat16 cost, and what share of the
core's int8 multiply-add rate is reached? The rate is of the best call, as the peak is, so that both
mean the same on a busy machine; where the median is far from the best, the machine was busy. The
processor's rate is that of vpdpbusd: AMX has sixteen times as much, int16 weights need two or four
products of bytes for one. Float layers run channels-last without bias, activation and
requantization, which the integer layers include.

Peer: PyTorch's own convolutions; nothing to install.

    python benchmarks/ops/quantized_conv2d.py [--threads 1 2] [--seconds 0.5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from measure import int8_peak, time_calls
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.ops import QuantizedConv2d

LAYERS = (
    # height, width, in_channels, out_channels, kernel, stride, bits of weights and inputs
    (32, 48, 256, 96, 3, 1, 8),
    (32, 48, 192, 192, 3, 1, 8),
    (32, 48, 128, 128, 5, 1, 8),
    (32, 48, 192, 192, 1, 1, 8),
    (16, 24, 96, 64, 3, 1, 8),
    (1, 64, 192, 96, 3, 1, 8),
    # The transforms' at 768x512: branches, then the signal's.
    (128, 192, 64, 64, 3, 1, 8),
    (64, 96, 192, 96, 1, 1, 8),
    (64, 96, 96, 96, 3, 1, 8),
    (64, 96, 96, 192, 1, 1, 8),
    (32, 48, 320, 160, 1, 1, 8),
    (32, 48, 160, 160, 3, 1, 8),
    (128, 192, 64, 192, 3, 2, 16),
    (64, 96, 192, 320, 3, 2, 16),
    (32, 48, 320, 768, 1, 1, 16),
    (64, 96, 192, 256, 1, 1, 16),
)


def candidates(layer: tuple[int, ...], threads: int) -> dict[str, Callable[[], object]]:
    """What to time for one layer, by name."""
    height, width, cin, cout, kernel, stride, bits = layer
    x = torch.randint(0, 256, (1, height, width, cin), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (cout, kernel, kernel, cin), dtype=torch.int8)
    bias = torch.zeros(cout, dtype=torch.int32)
    multiplier = torch.full((cout,), 1 << 29, dtype=torch.int32)
    wide = (lambda t: t.to(torch.int16)) if bits == 16 else lambda t: t
    wide_x = wide(x)
    runs: dict[str, Callable[[], object]] = {}
    before = _cpu.simd_level()
    for level in _cpu.supported_simd_levels():
        _cpu.set_simd_level(level)
        conv = QuantizedConv2d(
            *(wide(weight), bias, multiplier, 45),
            out_dtype=torch.uint8,
            relu=True,
            stride=stride,
        )
        runs[f"int{bits} {level}"] = lambda conv=conv: conv(wide_x, threads=threads)
    _cpu.set_simd_level(before)
    runs |= onednn_int8(x, weight, stride)
    for dtype in (torch.float32, torch.bfloat16):
        # NHWC data seen as NCHW: what torch calls channels_last.
        image = x.to(dtype).permute(0, 3, 1, 2)
        filters = weight.to(dtype).permute(0, 3, 1, 2)
        name = f"torch {str(dtype).removeprefix('torch.')}"
        runs[name] = lambda a=image, b=filters: F.conv2d(a, b, stride=stride, padding=kernel // 2)
    return runs


def onednn_int8(x: Tensor, weight: Tensor, stride: int) -> dict[str, Callable[[], object]]:
    """PyTorch's quantized convolution with ReLU and requantization, by oneDNN; none where it lacks.

    Inputs uint8 and weights int8, one scale an output channel, weights packed once.
    """
    if "onednn" not in torch.backends.quantized.supported_engines:
        return {}
    torch.backends.quantized.engine = "onednn"
    pad = weight.shape[1] // 2
    image = torch.quantize_per_tensor(x.float().permute(0, 3, 1, 2), 1.0, 0, torch.quint8)
    scales = torch.ones(weight.shape[0], dtype=torch.float64)
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
    filters = torch.quantize_per_channel(
        weight.float().permute(0, 3, 1, 2), scales, zeros, 0, torch.qint8
    )
    packed = torch.ops.quantized.conv2d_prepack(
        filters, torch.zeros(weight.shape[0]), [stride] * 2, [pad] * 2, [1, 1], 1
    )
    return {"oneDNN int8": lambda: torch.ops.quantized.conv2d_relu(image, packed, 2.0**16, 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each number")
    parser.add_argument("--layers", type=int, nargs="+", help="numbers of the layers, all if none")
    parser.add_argument("--json", type=Path, help="add the rows to those in this file")
    options = parser.parse_args()
    rows = []
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text())
    peak = int8_peak()
    if peak:
        print(f"int8 peak of one core (vpdpbusd on registers): {peak / 1e9:.0f} GMAC/s\n")
    print(
        f"{'layer':>22}  {'threads':>7}  {'implementation':<16} {'median ms':>9} {'best ms':>8} "
        f"{'GMAC/s':>7}  of peak"
    )
    for number in options.layers or range(len(LAYERS)):
        layer = LAYERS[number]
        height, width, cin, cout, kernel, stride, bits = layer
        macs = height * width * cin * cout * kernel * kernel / stride**2
        name = f"{width}x{height} {cin}->{cout} {kernel}x{kernel}" + "/2" * (stride == 2)
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
                rows.append(
                    {
                        "layer": name,
                        "bits": bits,
                        "threads": threads,
                        "implementation": implementation,
                        "median_ms": round(median * 1e3, 4),
                        "best_ms": round(best * 1e3, 4),
                        "gmac_per_second": round(macs / best / 1e9, 1),
                    }
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
