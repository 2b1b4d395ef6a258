"""How fast does the wave engine encode and decode, and what do waves gain over single symbols?

Integer networks with random weights over 8 binary planes: the shape of TCAE (5x5 from 8 to 64
channels, 5x5, four residual blocks of two 5x5, 3x3 to one output a plane) and a small one, in
several orders. Times are the best of a few runs and include the rANS coder; what was decoded is
checked. "single" is the network in plane order decoded one symbol at a time, on a small picture, in
microseconds a symbol; "gain" is what a symbol in waves is faster.

    python benchmarks/context/wave_network.py [--height H] [--width W] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pycodec import _cpu
from pycodec.coding.tables import TableSet
from pycodec.context.orders import mask
from pycodec.context.schedule import Layer, find_schedule
from pycodec.context.wave_network import IntegerLayer, WaveNetwork

PLANES = 8
TABLES = TableSet([[4096 - f, f] for f in range(64, 4096, 64)], [0] * 63)
SINGLE = 24  # side of the picture that is decoded symbol by symbol


@dataclass(frozen=True)
class Shape:
    """A network: the width of its hidden groups, its kernel, and how many residual blocks."""

    width: int
    kernel: int
    blocks: int


SHAPES = {"tcae": Shape(8, 5, 4), "small": Shape(4, 3, 1)}


@dataclass(frozen=True)
class Result:
    network: str
    order: str
    simd_level: str
    threads: int
    kmac_per_pixel: float  # after trimming
    kmac_untrimmed: float
    waves: int
    encode_seconds: float
    decode_seconds: float
    encode_gmac_s: float
    decode_us_per_symbol: float
    single_us_per_symbol: float


def make_layers(shape: Shape, order: str) -> list[IntegerLayer]:
    rng = np.random.default_rng(0)
    layers: list[IntegerLayer] = []

    def add(source: int, in_width: int, out_width: int, kernel: int, residual: int | None) -> int:
        last, first = out_width == 1, source == 0
        seen = mask(order, "A" if first else "B", PLANES, PLANES, kernel).numpy()
        channels, shift = PLANES * out_width, 20
        # Outputs that use their range: accumulators are about 73 sqrt(fan_in) times the inputs.
        fan_in = seen.sum() * in_width / PLANES
        unit = (1 if last else 20 if first else 1.5) * 2.0**shift / (73 * np.sqrt(fan_in))
        bias = rng.integers(-2000, 2000, channels) + (32 * 2**shift / unit if last else 0)
        size = (channels, kernel, kernel, PLANES * in_width)
        layers.append(
            IntegerLayer(
                input=source,
                weight=rng.integers(-127, 128, size).astype(np.int8),
                mask=seen,
                bias=bias.astype(np.int32),
                multiplier=np.full(channels, unit, np.int32),
                negative_multiplier=np.full(channels, unit / 4, np.int32),
                shift=shift,
                residual=residual,
                residual_multiplier=0 if residual is None else 1 << (shift - 1),
                lower=0 if last else -127,
                upper=TABLES.num_tables - 1 if last else 127,
            )
        )
        return len(layers)

    x = add(0, 1, shape.width, shape.kernel, None)
    x = add(x, shape.width, shape.width, shape.kernel, None)
    for _ in range(shape.blocks):
        y = add(x, shape.width, shape.width, shape.kernel, None)
        x = add(y, shape.width, shape.width, shape.kernel, x)
    add(x, shape.width, 1, 3, None)
    return layers


def best_seconds(call: Callable[[], object], repeats: int) -> tuple[float, object]:
    best, value = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        value = call()
        best = min(best, time.perf_counter() - start)
    return best, value


def measure_decode(network: WaveNetwork, height: int, width: int, threads: int, repeats: int):
    """Seconds to encode and decode random bits of this size."""
    rng = np.random.default_rng(1)
    symbols = rng.integers(0, 2, (PLANES, height, width)).astype(np.int32)
    encode, stream = best_seconds(lambda: network.encode(symbols, TABLES, threads=threads), repeats)
    decode, decoded = best_seconds(
        lambda: network.decode(stream, TABLES, height, width, threads=threads), repeats
    )
    if not np.array_equal(decoded, symbols):
        raise AssertionError("other symbols were decoded")
    return encode, decode


def single_us_per_symbol(name: str) -> float:
    """Plane order as it is defined: a symbol depends on all before it, so each is a wave."""
    network = WaveNetwork(make_layers(SHAPES[name], "plane"), (SINGLE * SINGLE, SINGLE, 1))
    _, seconds = measure_decode(network, SINGLE, SINGLE, 1, 2)
    return seconds / (PLANES * SINGLE * SINGLE) * 1e6


def measure(name: str, order: str, single: float, options: argparse.Namespace) -> Result:
    shape, height, width = SHAPES[name], options.height, options.width
    layers = make_layers(shape, order)
    kernels = [layer.weight.shape[1] for layer in layers]
    network_layers = [
        Layer.of(order, "B" if i else "A", PLANES, kernel) for i, kernel in enumerate(kernels)
    ]
    schedule = find_schedule(network_layers, PLANES, height, width)
    network = WaveNetwork(layers, tuple(int(step) for step in schedule.weights))
    encode, decode = measure_decode(network, height, width, options.threads, options.repeats)
    used = sum(int(x.mask.sum()) * x.in_width * x.out_width for x in layers)
    whole = sum(x.mask.size * x.in_width * x.out_width for x in layers)
    symbols = PLANES * height * width
    return Result(
        name,
        order,
        _cpu.simd_level(),
        options.threads,
        used / 1e3,
        whole / 1e3,
        network.num_waves(height, width),
        encode,
        decode,
        used * height * width / encode / 1e9,
        decode / symbols * 1e6,
        single,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    fastest_first = _cpu.supported_simd_levels()[::-1]
    parser.add_argument(
        "--levels",
        nargs="+",
        choices=fastest_first,
        default=[level for level in fastest_first if level != "scalar"] or fastest_first,
        help="SIMD levels (default: all but scalar, which takes minutes)",
    )
    options = parser.parse_args()
    print(f"{options.width}x{options.height}, {PLANES} planes, {options.threads} threads")
    print(
        f"{'network':8} {'order':8} {'level':11} {'kMAC/px':>8} {'of':>6} {'waves':>6} "
        f"{'encode':>9} {'decode':>9} {'GMAC/s':>7} {'us/symbol':>10} {'single':>8} {'gain':>8}"
    )
    results = []
    before = _cpu.simd_level()
    for level in options.levels:
        _cpu.set_simd_level(level)
        for name in SHAPES:
            single = single_us_per_symbol(name)
            for order in ("slope", "zigzag", "plane"):
                r = measure(name, order, single, options)
                print(
                    f"{name:8} {order:8} {level:11} {r.kmac_per_pixel:8.1f}"
                    f" {r.kmac_untrimmed:6.0f} {r.waves:6d} {r.encode_seconds:7.3f} s"
                    f" {r.decode_seconds:7.3f} s {r.encode_gmac_s:7.1f}"
                    f" {r.decode_us_per_symbol:10.4f} {r.single_us_per_symbol:8.3f}"
                    f" {r.single_us_per_symbol / r.decode_us_per_symbol:6.1f} x",
                    flush=True,
                )
                results.append(r)
    _cpu.set_simd_level(before)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
