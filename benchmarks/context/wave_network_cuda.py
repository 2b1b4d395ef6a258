"""How fast does a GPU decode waves, and what of it is waiting for each other?

The networks, orders and tables of ``wave_network.py``, on a CUDA device. Times are medians of CUDA
events around the launch alone; encoding is the whole call, which copies to the host and includes
the CPU's rANS coder. What was decoded is checked. Ways to decode:

persistent  one cooperative kernel whose blocks meet after each stage and each draw; for several
            numbers of threads and of blocks on a multiprocessor
graph       a kernel a stage and one for the draw, a CUDA graph of one wave launched for each

``barrier_us`` is what an empty meeting of as many blocks costs; ``barriers_share`` is what all
meetings of a picture would take at that price, as a part of its time.

Peer: the two ways of each other, and an empty meeting; nothing to install.

    python benchmarks/context/wave_network_cuda.py [--sizes 768x512 1920x1080] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from wave_network import ORDERS, TABLES, kmac_per_pixel, make_layers, steps_of

from pycodec.coding import rans_cuda
from pycodec.context.wave_network import WaveNetwork
from pycodec.context.wave_network_cuda import CudaWaveNetwork, Launch
from pycodec.models.lossless_network import PLANES, SIZES
from pycodec.ops.backends import cuda_kernels

LAUNCHES = [
    Launch(threads=threads, blocks_per_multiprocessor=blocks)
    for threads, blocks in ((64, 1), (128, 1), (128, 2), (256, 1))
] + [Launch(persistent=False, threads=threads) for threads in (128, 256)]
LANES = 64
WARM_UP = 2  # runs that do not count
BARRIERS = 10_000


@dataclass(frozen=True)
class Result:
    device: str
    network: str
    order: str
    height: int
    width: int
    kmac_per_pixel: float  # after trimming
    waves: int
    layers: int
    meetings: int  # of all blocks, in a wave
    method: str
    threads: int
    blocks: int  # of the persistent kernel
    decode_seconds: float
    us_per_wave: float
    barrier_us: float | None
    barriers_share: float | None
    encode_seconds: float
    order_seconds: float  # of encoding, without rANS


def event_seconds(run: Callable[[], object]) -> float:
    """Between two events around ``run``."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def launch_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median of the launch within a call, without what prepares it."""
    launch, times = rans_cuda._launch, []

    def timed_launch(*arguments: object, **options: object) -> None:
        times.append(event_seconds(lambda: launch(*arguments, **options)))

    rans_cuda._launch = timed_launch
    try:
        for _ in range(WARM_UP + repeats):
            call()
    finally:
        rans_cuda._launch = launch
    return statistics.median(times[WARM_UP:])


def call_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median of whole calls, which end when their results are on the host."""
    times = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def barrier_seconds(blocks: int, threads: int, repeats: int) -> float:
    def run() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        cuda_kernels().wave_barriers(count=BARRIERS, blocks=blocks, threads=threads, stream=stream)

    times = [event_seconds(run) for _ in range(WARM_UP + repeats)]
    return statistics.median(times[WARM_UP:]) / BARRIERS


def measure(name: str, order: str, height: int, width: int, repeats: int) -> Iterator[Result]:
    layers = make_layers(SIZES[name], order)
    network = WaveNetwork(layers, steps_of(layers, order, height, width))
    on_gpu = CudaWaveNetwork(network)
    rng = np.random.default_rng(1)
    symbols = rng.integers(0, 2, (PLANES, height, width)).astype(np.int32)
    stream = on_gpu.encode(symbols, TABLES, lanes=LANES)
    encode = call_seconds(lambda: on_gpu.encode(symbols, TABLES, lanes=LANES), repeats)
    ordered = call_seconds(lambda: on_gpu.order(symbols), repeats)
    waves, meetings = network.num_waves(height, width), len(on_gpu.stages) + 1
    for launch in LAUNCHES:
        decoded = on_gpu.decode(stream, TABLES, height, width, launch=launch)
        if not np.array_equal(decoded, symbols):
            raise AssertionError(f"{launch} decoded other symbols")
        seconds = launch_seconds(
            lambda launch=launch: on_gpu.queue_decode(stream, TABLES, height, width, launch=launch),
            repeats,
        )
        blocks, barrier, share = 0, None, None
        if launch.persistent:
            blocks, _ = on_gpu.grid(launch, LANES, TABLES)
            barrier = barrier_seconds(blocks, launch.threads, repeats)
            share = barrier * waves * meetings / seconds
        yield Result(
            torch.cuda.get_device_name(),
            name,
            order,
            height,
            width,
            kmac_per_pixel(layers),
            waves,
            len(layers),
            meetings,
            "persistent" if launch.persistent else "graph",
            launch.threads,
            blocks,
            seconds,
            seconds / waves * 1e6,
            None if barrier is None else barrier * 1e6,
            share,
            encode,
            ordered,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["768x512", "1920x1080"])
    parser.add_argument("--networks", nargs="+", choices=sorted(SIZES), default=sorted(SIZES))
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    print(torch.cuda.get_device_name())
    results = []
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        for name in options.networks:
            for order in options.orders:
                for r in measure(name, order, height, width, options.repeats):
                    barriers = "" if r.barrier_us is None else f"{r.barrier_us:6.2f} us a barrier"
                    share = "" if r.barriers_share is None else f"{r.barriers_share:6.1%}"
                    grid = f"{r.blocks:4d} x {r.threads:3d}"
                    print(
                        f"{size:>10} {name:10} {order:7} {r.method:10} {grid}"
                        f" {r.decode_seconds * 1e3:9.2f} ms {r.us_per_wave:8.2f} us/wave"
                        f" {barriers:19} {share:7} encode {r.encode_seconds * 1e3:8.2f} ms"
                        f" ({r.order_seconds * 1e3:.2f} ms before rANS)",
                        flush=True,
                    )
                    results.append(r)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
