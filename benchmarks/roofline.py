"""How close is each CPU kernel to what this processor allows?

Every native kernel runs on a workload of the codecs' size, on one thread, with its spans recorded:
they say how many bytes it moves (inputs, outputs and weights, once each) and how many operations it
does. Its time, the best of many calls, is compared with the roofline: the lower one of the measured
peak of its arithmetic (multiply-adds in registers, at the SIMD level in force) and what a copy of
64 MiB moves in the time. What stays in the caches may be faster than that copy.

The peer is the processor, so there is nothing to install. ``benchmarks/update_readme.py`` writes
the table to ``docs/performance.md``.

    THP_MEM_ALLOC_ENABLE=1 python benchmarks/roofline.py [--seconds S] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pycodec import _cpu
from pycodec.coding import compressai_ans, rans
from pycodec.coding.tables import TableSet
from pycodec.context.orders import mask
from pycodec.context.wave_network import WaveNetwork
from pycodec.models.lossless_network import PLANES, SIZES
from pycodec.ops import (
    QuantizedConv2d,
    pseudocylindrical_mask,
    pseudocylindrical_pad,
    trimmed_conv2d,
)
from pycodec.ops.pseudocylindrical_slice import pseudocylindrical_slice, pseudocylindrical_unslice
from pycodec.ops.quadtree_stage import quantize_residuals, reconstruct_stage, stage_parameters
from pycodec.ops.quantized_trimmed_conv2d import quantized_trimmed_conv2d
from pycodec.profiling.machine import Ceilings, describe_machine, measure_ceilings
from pycodec.profiling.profile import rates
from pycodec.profiling.spans import WAVE, Recorder
from pycodec.projection.widths import TileWidths

sys.path.insert(0, str(Path(__file__).parent / "context"))
from wave_network import TABLES, make_layers, steps_of

HEIGHT, WIDTH = 512, 768
LATENTS = 32, 48, 320  # height, width, channels
SYMBOLS = 1 << 20


@dataclass(frozen=True)
class Workload:
    """A kernel's name as in its spans, what it works on, and the call."""

    kernel: str
    what: str
    run: Callable[[], object]


@dataclass(frozen=True)
class Result:
    kernel: str
    what: str
    us: float
    bytes: int
    operations: int
    arithmetic: str | None
    gb_s: float
    gop_s: float | None
    share_of_copy: float
    share_of_peak: float | None
    share_of_roof: float


def convolutions() -> Iterator[Workload]:
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int, low: int = -127, dtype: torch.dtype = torch.int8) -> torch.Tensor:
        return torch.randint(low, 128, shape, dtype=dtype, generator=rng)

    for height, width, cin, cout, kernel in (
        (32, 48, 320, 96, 3),
        (32, 48, 224, 128, 1),
        (32, 48, 128, 640, 1),
    ):
        x = random(1, height, width, cin, low=0, dtype=torch.uint8)
        weight = random(cout, kernel, kernel, cin)
        bias = torch.zeros(cout, dtype=torch.int32)
        conv = QuantizedConv2d(
            weight, bias, torch.full_like(bias, 2**30), 45, out_dtype=torch.uint8, relu=True
        )
        what = f"{cin} to {cout} channels, {kernel}x{kernel}, {width}x{height}"
        yield Workload("quantized_conv2d", what, lambda conv=conv, x=x: conv(x, 1))
    groups, channels = 8, 64
    seen = mask("slope", "B", groups, groups, 5)
    weight = random(channels, 5, 5, channels)
    bias = torch.zeros(channels, dtype=torch.int32)
    multiplier = torch.full_like(bias, 300)
    x = random(1, HEIGHT, WIDTH, channels)
    what = f"64 to 64 channels in 8 groups, 5x5, {WIDTH}x{HEIGHT}"

    def integers(x=x, weight=weight, seen=seen, bias=bias, multiplier=multiplier) -> object:
        return quantized_trimmed_conv2d(
            x, weight, seen, bias, multiplier, multiplier, 20, backend="native"
        )

    yield Workload("quantized_trimmed_conv2d", what, integers)
    floats = torch.rand(1, channels, HEIGHT, WIDTH, generator=rng)
    filters = torch.rand(channels, channels, 5, 5, generator=rng)

    def trimmed(floats=floats, filters=filters, seen=seen) -> object:
        return trimmed_conv2d(floats, filters, seen, backend="native")

    yield Workload("float_trimmed_conv2d", what, trimmed)


def coders() -> Iterator[Workload]:
    rng = np.random.default_rng(0)
    scales = np.geomspace(0.11, 20, 64)
    tables = TableSet.gaussian(scales)
    indexes = rng.integers(0, 64, SYMBOLS).astype(np.uint8)
    symbols = np.rint(rng.standard_normal(SYMBOLS) * scales[indexes]).astype(np.int32)
    stream = rans.encode(symbols, indexes, tables, lanes=64)
    out = np.empty_like(symbols)
    what = "1 Mi symbols, 64 tables, 64 lanes"
    yield Workload("rans_encode", what, lambda: rans.encode(symbols, indexes, tables, lanes=64))
    yield Workload(
        "rans_decode", what, lambda: rans.RansDecoder(stream, tables).decode(indexes, out)
    )
    parts = rans.encode_substreams(symbols, indexes, tables, lanes=64, threads=1)
    what += ", 16 substreams"
    yield Workload(
        "rans_encode_substreams",
        what,
        lambda: rans.encode_substreams(symbols, indexes, tables, lanes=64, threads=1),
    )
    yield Workload(
        "rans_decode_substreams",
        what,
        lambda: rans.SubstreamDecoder(parts, tables).decode(indexes, out, threads=1),
    )
    cdfs, sizes, offsets = [], [], []
    for index in range(tables.num_tables):
        frequencies, offset, _ = tables.table(index)
        cdfs.append([0, *np.cumsum(16 * frequencies).tolist()])  # 12 bits to 16
        sizes.append(len(cdfs[-1]))
        offsets.append(offset)
    wide = indexes.astype(np.int32)

    def encode() -> bytes:
        encoder = compressai_ans.RansEncoder()
        return encoder.encode_with_indexes(symbols, wide, cdfs, sizes, offsets)

    theirs = encode()
    what = "1 Mi symbols, 64 tables"
    yield Workload("compressai_encode", what, encode)
    yield Workload(
        "compressai_decode",
        what,
        lambda: compressai_ans.RansDecoder().decode_with_indexes(
            theirs, wide, cdfs, sizes, offsets
        ),
    )


def stages() -> Iterator[Workload]:
    height, width, channels = LATENTS
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randint(-2000, 2000, shape, dtype=torch.int32, generator=rng)

    head, latents = random(height, width, 2 * channels), random(*LATENTS)
    log2_step = torch.zeros(channels, dtype=torch.int32)
    step = torch.full((channels,), 300, dtype=torch.int32)
    rounding = torch.full((256,), 128, dtype=torch.int32)
    multiplier = torch.full((channels,), 1 << 20, dtype=torch.int32)
    options = {"threads": 1, "backend": "native"}
    mean, index = stage_parameters(head, 1, log2_step, **options)
    symbols = quantize_residuals(latents, 1, mean, index, step, rounding, **options)
    decoded, context = torch.zeros_like(latents), torch.zeros(LATENTS, dtype=torch.int8)
    what = f"{width}x{height}x{channels} latents"
    yield Workload(
        "stage_parameters", what, lambda: stage_parameters(head, 1, log2_step, **options)
    )
    yield Workload(
        "quantize_residuals",
        what,
        lambda: quantize_residuals(latents, 1, mean, index, step, rounding, **options),
    )
    yield Workload(
        "reconstruct_stage",
        what,
        lambda: reconstruct_stage(
            symbols, 1, mean, step, multiplier, 28, decoded, context, **options
        ),
    )


def sphere() -> Iterator[Workload]:
    widths = TileWidths.preset("optimized").pixels(512)
    x = torch.rand(len(widths), 192, 8, 512)
    what = f"{len(widths)} tiles of 192x8x512, float32"
    yield Workload("pseudocylindrical_pad", what, lambda: pseudocylindrical_pad(x, widths, 2))
    y = pseudocylindrical_pad(x, widths, 2)
    module = sys.modules["pycodec.ops.pseudocylindrical_pad"]
    yield Workload(
        "pseudocylindrical_pad_adjoint",
        what,
        lambda: module._native_adjoint(y, widths, (2, 2), False),
    )
    yield Workload("pseudocylindrical_mask", what, lambda: pseudocylindrical_mask(x, widths))
    picture = torch.rand(1, 192, 8 * len(widths), 512)
    yield Workload(
        "pseudocylindrical_resample",
        f"to tiles: {what}",
        lambda: pseudocylindrical_slice(picture, widths),
    )
    yield Workload(
        "pseudocylindrical_resample", f"back: {what}", lambda: pseudocylindrical_unslice(x, widths)
    )


def networks() -> Iterator[Workload]:
    layers = make_layers(SIZES["tcae"], "slope")
    network = WaveNetwork(layers, steps_of(layers, "slope", HEIGHT, WIDTH))
    symbols = np.random.default_rng(1).integers(0, 2, (PLANES, HEIGHT, WIDTH)).astype(np.int32)
    stream = network.encode(symbols, TABLES)
    what = f"tcae, slope order, {WIDTH}x{HEIGHT}, 8 planes"
    yield Workload("wave_network_encode", what, lambda: network.order(symbols))
    yield Workload(
        "wave_network_decode", what, lambda: network.decode(stream, TABLES, HEIGHT, WIDTH)
    )


def measure(work: Workload, seconds: float, ceilings: Ceilings) -> Result:
    """The best call of those that fit in ``seconds``, three at least."""
    work.run()
    best: tuple[float, Recorder] | None = None
    calls, end = 0, time.perf_counter() + seconds
    while calls < 3 or time.perf_counter() < end:
        with Recorder() as recorder:
            work.run()
        (kernel,) = (s for s in recorder.spans if s.name == work.kernel)
        if best is None or kernel.seconds < best[0]:
            best = kernel.seconds, recorder
        calls += 1
    took, recorder = best
    (kernel,) = (s for s in recorder.spans if s.name == work.kernel)
    # A network's operations are those of its layers, or of its waves.
    inside = [s for s in recorder.spans if s.kind == WAVE or s.name == "wave_network_layers"]
    size = kernel.bytes + sum(s.bytes for s in inside)
    operations = kernel.operations + sum(s.operations for s in inside)
    arithmetic = next((s.arithmetic for s in (kernel, *inside) if s.arithmetic), None)
    return Result(
        work.kernel,
        work.what,
        1e6 * took,
        size,
        operations,
        arithmetic,
        *rates(took, size, operations, arithmetic, ceilings),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each kernel, at least")
    parser.add_argument("--kernels", nargs="+", help="only these")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ceilings = measure_ceilings(threads=1)
    print(f"copy {ceilings.copy_gb_s:.1f} GB/s", end="")
    for name, peak in ceilings.gop_s.items():
        print(f", {name} {peak:.0f} GOP/s", end="")
    print(f", {_cpu.simd_level()}")
    results = []
    with torch.inference_mode():
        for make in (convolutions, networks, coders, stages, sphere):
            for work in make():
                if arguments.kernels and work.kernel not in arguments.kernels:
                    continue
                r = measure(work, arguments.seconds, ceilings)
                gop_s = "" if r.gop_s is None else f"{r.gop_s:7.1f} GOP/s"
                print(
                    f"{r.kernel:<30} {r.us:10.1f} us {r.gb_s:7.2f} GB/s {gop_s:>14}"
                    f" {r.share_of_roof:6.1%} of roof  {r.what}",
                    flush=True,
                )
                results.append(r)
    if arguments.json:
        document = {
            "machine": describe_machine(),
            "ceilings": ceilings.to_json(),
            "results": [asdict(r) for r in results],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
