"""How fast does the wave engine encode and decode, and what do waves gain over single symbols?

Integer networks with random weights over 8 binary planes, in the shapes of the lossless codec
(``pycodec.models.lossless_network.SIZES``: the published one and a small one). Methods:

waves       the engine; times are the best of a few runs and include the rANS coder
single      the same kernels, one symbol at a time (plane order as it is defined, waves of one)
framework   as research code does it: a float PyTorch network, run for each symbol on the window
            that it sees, read out at the centre; without an entropy decoder. Measured on some
            symbols and scaled to the picture

What was decoded by the first two is checked. Where ``extrapolated`` is set, a time was not measured
at this size but scaled from the time of a symbol.

Peer: PyTorch itself (``framework``); nothing to install.

    python benchmarks/context/wave_network.py [--sizes 768x512 ...] [--threads 1 2] [--json FILE]
    python benchmarks/context/wave_network.py --json FILE --sizes --plot PNG    # draw only
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pycodec import _cpu
from pycodec.coding.tables import TableSet
from pycodec.context.orders import mask
from pycodec.context.schedule import Layer, find_schedule
from pycodec.context.wave_network import IntegerLayer, WaveNetwork
from pycodec.models.lossless_network import PLANES, SIZES, LosslessConfig, LosslessNetwork
from pycodec.profiling.machine import describe_machine, machine_name

TABLES = TableSet([[4096 - f, f] for f in range(64, 4096, 64)], [0] * 63)
ORDERS = ("slope", "zigzag", "plane")
LEVELS = ("scalar", "avx2", "avx512vnni")  # of the engine's kernels, the best last
SINGLE_SIZE = 128, 192  # of the picture that is decoded symbol by symbol
FRAMEWORK_SYMBOLS = 200


@dataclass(frozen=True)
class Result:
    network: str
    order: str
    method: str
    simd_level: str
    threads: int
    height: int
    width: int
    kmac_per_pixel: float  # after trimming
    waves: int
    encode_seconds: float | None
    decode_seconds: float
    extrapolated: bool

    @property
    def key(self) -> tuple:
        """What was measured."""
        names = ("network", "order", "method", "simd_level", "threads", "height", "width")
        return tuple(getattr(self, name) for name in names)


def make_layers(config: LosslessConfig, order: str) -> list[IntegerLayer]:
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
                residual_multiplier=None
                if residual is None
                else np.full(channels, 1 << (shift - 1), np.int32),
                lower=0 if last else -127,
                upper=TABLES.num_tables - 1 if last else 127,
            )
        )
        return len(layers)

    width = config.width
    x = add(0, 1, width, config.first, None)
    for kernel in config.hidden:
        x = add(x, width, width, kernel, None)
    for first, second in config.blocks:
        y = add(x, width, width, first, None)
        x = add(y, width, width, second, x)
    add(x, width, 1, config.head, None)
    return layers


def steps_of(layers: list[IntegerLayer], order: str, height: int, width: int) -> tuple[int, ...]:
    masks = [Layer.of(order, "A" if x.input == 0 else "B", PLANES, x.mask.shape[2]) for x in layers]
    return tuple(int(step) for step in find_schedule(masks, PLANES, height, width).weights)


def kmac_per_pixel(layers: list[IntegerLayer]) -> float:
    return sum(int(x.mask.sum()) * x.in_width * x.out_width for x in layers) / 1e3


def best_seconds(call: Callable[[], object]) -> tuple[float, object]:
    """The best of three runs, of more if they fit into a second, of fewer beyond four seconds."""
    times: list[float] = []
    while (sum(times) < 1 and len(times) < 20) or (len(times) < 3 and sum(times) < 4):
        start = time.perf_counter()
        value = call()
        times.append(time.perf_counter() - start)
    return min(times), value


def measure(network: WaveNetwork, height: int, width: int, threads: int) -> tuple[float, float]:
    """Seconds to encode and decode random bits of this size."""
    rng = np.random.default_rng(1)
    symbols = rng.integers(0, 2, (PLANES, height, width)).astype(np.int32)
    encode, stream = best_seconds(lambda: network.encode(symbols, TABLES, threads=threads))
    decode, decoded = best_seconds(
        lambda: network.decode(stream, TABLES, height, width, threads=threads)
    )
    if not np.array_equal(decoded, symbols):
        raise AssertionError("other symbols were decoded")
    return encode, decode


def wave_results(name: str, order: str, sizes: list, threads: list[int]) -> Iterator[Result]:
    layers = make_layers(SIZES[name], order)
    for height, width in sizes:
        network = WaveNetwork(layers, steps_of(layers, order, height, width))
        for team in threads:
            encode, decode = measure(network, height, width, team)
            yield Result(
                name,
                order,
                "waves",
                _cpu.simd_level(),
                team,
                height,
                width,
                kmac_per_pixel(layers),
                network.num_waves(height, width),
                encode,
                decode,
                extrapolated=False,
            )


def single_results(name: str, sizes: list) -> Iterator[Result]:
    """Plane order as it is defined: a symbol depends on all before it, so each is a wave."""
    layers = make_layers(SIZES[name], "plane")
    height, width = SINGLE_SIZE
    network = WaveNetwork(layers, (height * width, width, 1))
    _, seconds = measure(network, height, width, 1)
    yield from scaled_results(name, "single", 1, seconds / (height * width), layers, sizes)


def framework_results(name: str, sizes: list, threads: int) -> Iterator[Result]:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    config = SIZES[name]
    network = LosslessNetwork(LosslessConfig(**{**config.to_dict(), "order": "plane"})).eval()
    radius = sum(m.weight.shape[2] // 2 for m in network.modules() if isinstance(m, nn.Conv2d))
    rng = np.random.default_rng(2)
    side = 2 * radius + 16
    bits = torch.from_numpy(rng.integers(0, 2, (1, PLANES, side, side)).astype(np.float32))

    def decode(symbols: int) -> None:
        for n in range(symbols):
            plane, row, column = n % PLANES, n // 16 % 16, n % 16
            window = bits[:, :, row : row + 2 * radius + 1, column : column + 2 * radius + 1]
            log_odds = network(window)[0, plane, radius, radius].item()
            bits[0, plane, row + radius, column + radius] = log_odds > 0

    with torch.inference_mode():
        decode(3)
        start = time.perf_counter()
        decode(FRAMEWORK_SYMBOLS)
        seconds = (time.perf_counter() - start) / FRAMEWORK_SYMBOLS
    layers = make_layers(config, "plane")
    yield from scaled_results(name, "framework", threads, PLANES * seconds, layers, sizes)


def scaled_results(
    name: str, method: str, threads: int, pixel: float, layers: list[IntegerLayer], sizes: list
) -> Iterator[Result]:
    for height, width in sizes:
        yield Result(
            name,
            "plane",
            method,
            _cpu.simd_level() if method == "single" else "torch",
            threads,
            height,
            width,
            kmac_per_pixel(layers),
            PLANES * height * width,
            None,
            pixel * height * width,
            extrapolated=method == "framework" or (height, width) != SINGLE_SIZE,
        )


def all_results(options: argparse.Namespace) -> Iterator[Result]:
    before = _cpu.simd_level()
    for level in options.levels:
        _cpu.set_simd_level(level)
        for name in options.networks:
            if "waves" in options.methods:
                for order in options.orders:
                    yield from wave_results(name, order, options.sizes, options.threads)
            if "single" in options.methods:
                yield from single_results(name, options.sizes)
    _cpu.set_simd_level(before)
    if "framework" in options.methods:
        for name in options.networks:
            for threads in options.threads:
                yield from framework_results(name, options.sizes, threads)


def plot(results: list[Result], path: Path) -> None:
    """Decoding time over pixels, a panel a network."""
    from matplotlib.figure import Figure

    colours = dict(zip(ORDERS, ("#c1121f", "#f4a261", "#1d4e89"), strict=True))
    names = [name for name in SIZES if any(r.network == name for r in results)]
    figure = Figure(figsize=(6.5 * len(names), 5), layout="constrained")
    best = [x for x in LEVELS if any(r.simd_level == x for r in results)][-1]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        lines: dict[tuple, list[Result]] = {}
        for r in results:
            if r.network == name and r.simd_level in (best, "torch"):
                lines.setdefault((r.method, r.order, r.threads), []).append(r)
        for (method, order, threads), line in lines.items():
            line.sort(key=lambda r: r.height * r.width)
            label = {
                "waves": f"waves, {order}",
                "single": "one by one, same kernels (scaled)",
                "framework": "one by one, PyTorch (scaled)",
            }[method]
            axes.plot(
                [r.height * r.width for r in line],
                [r.decode_seconds for r in line],
                marker="o",
                markersize=4,
                linestyle="-" if threads > 1 else "--",
                color={"single": "#6c757d", "framework": "#000000"}.get(method, colours[order]),
                label=f"{label}, {threads} thread{'s' * (threads > 1)}",
            )
        kmac = next(r.kmac_per_pixel for r in results if r.network == name and r.order == "plane")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="pixels",
            ylabel="seconds to decode",
            title=f"{name}: {kmac:.0f} kMAC a pixel (plane order)",
        )
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def size(text: str) -> tuple[int, int]:
    """ "WIDTHxHEIGHT" as (height, width)."""
    width, height = map(int, text.split("x"))
    return height, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sizes = ["192x128", "384x256", "768x512", "1536x1024"]
    levels = [x for x in LEVELS if x in _cpu.supported_simd_levels()]
    parser.add_argument("--sizes", nargs="*", type=size, default=[size(s) for s in sizes])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=["slope", "plane"])
    methods = ["waves", "single", "framework"]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--levels", nargs="+", choices=levels, default=levels[-1:])
    parser.add_argument("--json", type=Path, help="keep results in this file; known ones stay")
    parser.add_argument("--plot", type=Path, help="draw all results to this PNG file")
    options = parser.parse_args()
    results: dict[tuple, Result] = {}
    machine = describe_machine()
    if options.json and options.json.exists():
        known = json.loads(options.json.read_text())
        if options.sizes and machine_name(known["machine"]) != machine_name(machine):
            parser.error(f"{options.json} is of another machine: {machine_name(known['machine'])}")
        for row in known["results"]:
            result = Result(**{field.name: row[field.name] for field in fields(Result)})
            results[result.key] = result
    if options.sizes:
        print(
            f"{'network':9} {'order':7} {'method':10} {'level':11} {'threads':>7} {'size':>10}"
            f" {'kMAC/px':>8} {'waves':>8} {'encode':>9} {'decode':>10}"
        )
        for r in all_results(options):
            encode = f"{r.encode_seconds:7.3f} s" if r.encode_seconds is not None else ""
            print(
                f"{r.network:9} {r.order:7} {r.method:10} {r.simd_level:11} {r.threads:7}"
                f" {f'{r.width}x{r.height}':>10} {r.kmac_per_pixel:8.1f} {r.waves:8} {encode:>9}"
                f" {r.decode_seconds:8.3f} s{' (scaled)' * r.extrapolated}",
                flush=True,
            )
            results[r.key] = r
    if options.json and options.sizes:
        rows = [asdict(r) for _, r in sorted(results.items())]
        document = {"machine": machine, "results": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    if options.plot:
        plot(list(results.values()), options.plot)


if __name__ == "__main__":
    main()
