"""How close is each CPU kernel to what this processor allows?

Every native kernel runs on a workload of the codecs' size, on one thread, with its spans recorded:
they say how many bytes it moves (inputs, outputs and weights, once each) and how many operations it
does. Its time, the best of many calls, is compared with the roofline: the lower one of the measured
peak of its arithmetic (multiply-adds in registers, at the SIMD level in force) and what a copy of
64 MiB moves in the time. What stays in the caches may be faster than that copy.

On a busy machine run it some times with the same ``--json``: of what the file holds already the
faster times are kept, and the higher ceilings, against which all shares are.

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
from pycodec.context.gaussian_waves import GaussianWaves
from pycodec.context.orders import mask
from pycodec.context.wave_network import WaveNetwork
from pycodec.models.lossless_network import PLANES, SIZES
from pycodec.ops import (
    Int16Conv2d,
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
from pycodec.profiling.spans import KERNEL, WAVE, Recorder, Span
from pycodec.projection.widths import TileWidths

sys.path.insert(0, str(Path(__file__).parent / "context"))
from wave_network import TABLES, make_layers, steps_of

HEIGHT, WIDTH = 512, 768
LATENTS = 32, 48, 320  # height, width, channels
SYMBOLS = 1 << 20


NAMED_BELOW = 0.3
"""A share of the roof that has to be explained."""
_PORTABLE = (
    "it is portable code in 64-bit integers, for whose products, shifts and bounds the SSE2 of any "
    "x86-64 has no vectors"
)
_SINGLE_STATE = (
    "CompressAI's streams have a single state, so that each symbol waits for the one before: "
    "latency is the limit, not bandwidth"
)
_SHORT_SUMS = (
    "sums are short in this small network, some 20 multiply-add instructions for a vector of eight "
    "outputs: by sampling (perf, one thread, AVX-512 VNNI) the convolution spends 15 % of its time "
    "in them, 35 % in loads of inputs, a broadcast for each, 29 % in addresses and loops, and 17 % "
    "in requantization to 64 bits and back and in stores"
)
_FEW_POSITIONS = "a wave has 11 positions on average, for which 4 MB of weights are read anew"
_GATHERS_OUT = (
    "a symbol's entry of its table is gathered, a load for each lane: by sampling (perf, Zen 4) a "
    "third of the time, the rest being the division of the states and their renormalization"
)
_GATHERS_IN = (
    "two entries of tables are gathered for each symbol, a load for each lane: by sampling (perf, "
    "Zen 4) three quarters of the time"
)
REASONS = {
    "wave_network_encode": _SHORT_SUMS,
    "wave_network_decode": f"{_SHORT_SUMS}; besides, waves are short runs along a slope, between "
    "which one thread draws the symbols",
    "stage_parameters": _PORTABLE,
    "quantize_residuals": f"{_PORTABLE}, and it divides",
    "reconstruct_stage": _PORTABLE,
    "rans_encode": _GATHERS_OUT,
    "rans_encode_substreams": _GATHERS_OUT,
    "rans_decode": _GATHERS_IN,
    "rans_decode_substreams": _GATHERS_IN,
    "pseudocylindrical_pad_adjoint": "it is portable code, which adds rows by the four lanes of "
    "SSE2, and what wrapped columns get a value at a time",
    "pseudocylindrical_resample": "rows are transposed on the way in and out, a value at a time",
    "gaussian_waves_encode": _FEW_POSITIONS,
    "gaussian_waves_decode": f"{_FEW_POSITIONS}, and one thread draws the symbols",
    "compressai_encode": _SINGLE_STATE,
    "compressai_decode": _SINGLE_STATE,
}


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
    reason: str | None  # of a small share


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
    layers = make_layers(SIZES["tcae-fast"], "slope")
    network = WaveNetwork(layers, steps_of(layers, "slope", HEIGHT, WIDTH))
    symbols = np.random.default_rng(1).integers(0, 2, (PLANES, HEIGHT, WIDTH)).astype(np.int32)
    stream = network.encode(symbols, TABLES)
    what = f"tcae-fast, slope order, {WIDTH}x{HEIGHT}, 8 planes"
    yield Workload("wave_network_encode", what, lambda: network.order(symbols))
    yield Workload(
        "wave_network_decode", what, lambda: network.decode(stream, TABLES, HEIGHT, WIDTH)
    )


def gaussians() -> Iterator[Workload]:
    """Of the shape of CompressAI's mbt2018 at low rates."""
    height, width, channels = 32, 48, 192
    rng = np.random.default_rng(0)

    def layer(cout: int, kernel: int, cin: int, limit: int) -> Int16Conv2d:
        weight = rng.integers(-1000, 1001, (cout, kernel, kernel, cin)).astype(np.int16)
        if kernel > 1:
            weight[:, kernel // 2, kernel // 2 :] = 0
            weight[:, kernel // 2 + 1 :] = 0
        multiplier = torch.full((cout,), 1 << 12, dtype=torch.int32)
        bias = torch.zeros(cout, dtype=torch.int32)
        return Int16Conv2d(torch.from_numpy(weight), bias, multiplier, multiplier, 36, limit)

    conv = layer(2 * channels, 5, channels, 16383)
    x = torch.from_numpy(rng.integers(-2000, 2000, (1, height, width, channels)).astype(np.int16))
    what = f"192 to 384 channels, 5x5, {width}x{height}"
    yield Workload("int16_conv2d", what, lambda: conv(x, threads=1))
    heads = [layer(640, 1, 768, 16383), layer(512, 1, 640, 16383), layer(384, 1, 512, 1 << 26)]
    scales = [0.11 * 1.4**i for i in range(20)]
    thresholds = [int(s * 4096) for s in scales[:-1]]
    waves = GaussianWaves(conv, heads, 2 * channels, 1, 16383, 8, thresholds)
    side = rng.integers(-2000, 2000, (height, width, 2 * channels)).astype(np.int16)
    latents = np.rint(rng.normal(0, 900, (height, width, channels))).astype(np.int32)
    symbols, indexes, _ = waves.encode(latents, side)
    tables = TableSet.gaussian(scales, 14)
    stream = rans.encode(symbols, indexes, tables)
    what = f"192 channels, mbt2018, {width}x{height}"
    yield Workload("gaussian_waves_encode", what, lambda: waves.encode(latents, side))
    yield Workload("gaussian_waves_decode", what, lambda: waves.decode(stream, tables, side))


def kernel_of(work: Workload, recorder: Recorder) -> Span:
    """The one span of the kernel."""
    (kernel,) = (s for s in recorder.spans if s.kind == KERNEL and s.name == work.kernel)
    return kernel


def measure(work: Workload, seconds: float, ceilings: Ceilings) -> Result:
    """The best call of those that fit in ``seconds``, three at least."""
    work.run()
    best: tuple[float, Recorder] | None = None
    calls, end = 0, time.perf_counter() + seconds
    while calls < 3 or time.perf_counter() < end:
        with Recorder() as recorder:
            work.run()
        kernel = kernel_of(work, recorder)
        if best is None or kernel.seconds < best[0]:
            best = kernel.seconds, recorder
        calls += 1
    took, recorder = best
    kernel = kernel_of(work, recorder)
    # A network's operations are those of its layers, or of its waves.
    inside = [s for s in recorder.spans if s.kind == WAVE or s.name == "wave_network_layers"]
    size = kernel.bytes + sum(s.bytes for s in inside)
    operations = kernel.operations + sum(s.operations for s in inside)
    arithmetic = next((s.arithmetic for s in (kernel, *inside) if s.arithmetic), None)
    figures = rates(took, size, operations, arithmetic, ceilings)
    result = Result(
        work.kernel, work.what, 1e6 * took, size, operations, arithmetic, *figures, None
    )
    return with_shares(result, ceilings)


def with_shares(r: Result, ceilings: Ceilings) -> Result:
    """A result against these ceilings, with the reason where little is reached."""
    figures = rates(1e-6 * r.us, r.bytes, r.operations, r.arithmetic, ceilings)
    small = figures[-1] < NAMED_BELOW
    reason = REASONS.get(r.kernel, "not known yet") if small else None
    same = (r.kernel, r.what, r.us, r.bytes, r.operations, r.arithmetic)
    return Result(*same, *figures, reason)


def higher(a: Ceilings, b: Ceilings) -> Ceilings:
    """Each ceiling from where it is higher."""
    names = a.gop_s.keys() | b.gop_s.keys()
    gop_s = {name: max(c.gop_s.get(name, 0.0) for c in (a, b)) for name in sorted(names)}
    return Ceilings(max(a.copy_gb_s, b.copy_gb_s), gop_s, a.threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each kernel, at least")
    parser.add_argument("--kernels", nargs="+", help="only these")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ceilings = measure_ceilings(threads=1)
    known: dict[tuple[str, str], Result] = {}
    if arguments.json and arguments.json.exists():
        document = json.loads(arguments.json.read_text())
        if document["machine"] != describe_machine():
            parser.error(f"{arguments.json} is of another machine, or another version of torch")
        ceilings = higher(ceilings, Ceilings(**document["ceilings"]))
        known = {(r["kernel"], r["what"]): Result(**r) for r in document["results"]}
    print(f"copy {ceilings.copy_gb_s:.1f} GB/s", end="")
    for name, peak in ceilings.gop_s.items():
        print(f", {name} {peak:.0f} GOP/s", end="")
    print(f", {_cpu.simd_level()}")
    results = []
    with torch.inference_mode():
        for make in (convolutions, networks, gaussians, coders, stages, sphere):
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
                before = known.pop((r.kernel, r.what), r)
                results.append(min(r, before, key=lambda result: result.us))
    results = [with_shares(r, ceilings) for r in (*results, *known.values())]
    if arguments.json:
        document = {
            "machine": describe_machine(),
            "ceilings": ceilings.to_json(),
            "results": [asdict(r) for r in results],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
