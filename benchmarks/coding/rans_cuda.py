"""How fast is the rANS coder on a GPU, for 1 to 100,000 substreams?

Codes symbols of 64 Gaussian tables (scales log-spaced from 0.11 to 20), 64 Ki in each substream
but at most ``--symbols`` in all. Kernel times are medians of CUDA events around the kernel alone,
the L2 cache having been overwritten before each; call times are medians of the whole call, which
waits for the kernel and, when encoding, copies the substreams behind their index. Traffic is what
must be read and written: 4 bytes a symbol, its index, and the stream; its share is of what a copy
in device memory moves. Every result is checked against the symbols, and against the CPU's stream.

Peer: the CPU's coder and a copy in device memory; nothing to install.

    python benchmarks/coding/rans_cuda.py [--symbols N] [--lanes 32 64] [--repeats R] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pycodec.coding import rans, rans_cuda
from pycodec.coding.tables import TableSet
from pycodec.ops.backends import cuda_kernels

SCALES = np.geomspace(0.11, 20, 64)
SUBSTREAMS = (1, 10, 100, 1_000, 10_000, 100_000)
SYMBOLS_PER_SUBSTREAM = 1 << 16
WARM_UP = 3  # runs that do not count
CPU_CHECK = 1 << 24  # symbols up to which the CPU encodes too


@dataclass(frozen=True)
class Result:
    device: str
    direction: str
    substreams: int
    lanes: int
    symbols: int
    bits_per_symbol: float
    kernel_gsym_s: float
    call_gsym_s: float
    traffic_gb_s: float  # of the kernel
    copy_share: float  # traffic relative to a measured copy


class Timer:
    """Times work on the GPU with a cold L2 cache."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        size = max(4 * torch.cuda.get_device_properties(0).L2_cache_size, 1 << 26)
        self._flush = torch.empty(size, dtype=torch.uint8, device="cuda")

    def once(self, run: Callable[[], object]) -> float:
        """Seconds between two events around ``run``, which queues work and does not wait."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.fill_(1)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def call_seconds(self, run: Callable[[], object]) -> float:
        """Median from the call to the end of its work."""
        times = []
        for _ in range(WARM_UP + self.repeats):
            self._flush.fill_(1)
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[WARM_UP:])


def copy_bytes_per_second(timer: Timer) -> float:
    """Bytes that a copy of 1 GiB in device memory reads and writes in a second."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [timer.once(lambda: target.copy_(source)) for _ in range(WARM_UP + timer.repeats)]
    return 2 * source.numel() / statistics.median(times[WARM_UP:])


def make_symbols(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols int32 [count] and indexes uint8 [count] on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    indexes = torch.randint(
        0, len(SCALES), (count,), dtype=torch.uint8, device="cuda", generator=generator
    )
    symbols = torch.empty(count, dtype=torch.int32, device="cuda")
    scales = torch.from_numpy(SCALES).float().cuda()
    part = 1 << 24  # bounds the float copies
    for s, i in zip(symbols.split(part), indexes.split(part), strict=True):
        noise = torch.randn(len(s), device="cuda", generator=generator)
        s.copy_((noise * scales[i.int()]).round())
    return symbols, indexes


def kernel_seconds_within(call: Callable[[], object], kernel: str, timer: Timer) -> float:
    """Median between two events around one kernel of a call."""
    launch, times = rans_cuda._launch, []

    def timed_launch(name: str, device: torch.device, **arguments: object) -> None:
        if name != kernel:
            launch(name, device, **arguments)
            return
        times.append(timer.once(lambda: launch(name, device, **arguments)))

    rans_cuda._launch = timed_launch
    try:
        for _ in range(WARM_UP + timer.repeats):
            call()
    finally:
        rans_cuda._launch = launch
    return statistics.median(times[WARM_UP:])


def measure(
    substreams: int, lanes: int, most_symbols: int, timer: Timer, copy_rate: float
) -> Iterator[Result]:
    each = min(SYMBOLS_PER_SUBSTREAM, most_symbols // substreams)
    symbols, indexes = make_symbols(each * substreams)
    tables = TableSet.gaussian(SCALES)
    options = {"counts": each, "lanes": lanes}
    data = rans_cuda.encode_substreams(symbols, indexes, tables, **options)
    if symbols.numel() <= CPU_CHECK:
        arrays = symbols.cpu().numpy(), indexes.cpu().numpy()
        if rans.encode_substreams(*arrays, tables, **options) != data.cpu().numpy().tobytes():
            raise AssertionError("the GPU encodes other bytes than the CPU")
    decoder = rans_cuda.SubstreamDecoder(data, tables)
    out = torch.empty_like(symbols)
    decoder.decode(indexes, out)
    if not torch.equal(out, symbols):
        raise AssertionError("the GPU decodes other symbols")

    def encode() -> torch.Tensor:
        return rans_cuda.encode_substreams(symbols, indexes, tables, **options)

    calls = {"encode": encode, "decode": lambda: decoder.decode(indexes, out)}
    traffic = 5 * symbols.numel() + data.numel()
    for direction, call in calls.items():
        seconds = kernel_seconds_within(call, f"rans_{direction}", timer)
        yield Result(
            device=torch.cuda.get_device_name(),
            direction=direction,
            substreams=substreams,
            lanes=lanes,
            symbols=symbols.numel(),
            bits_per_symbol=8 * data.numel() / symbols.numel(),
            kernel_gsym_s=symbols.numel() / seconds / 1e9,
            call_gsym_s=symbols.numel() / timer.call_seconds(call) / 1e9,
            traffic_gb_s=traffic / seconds / 1e9,
            copy_share=traffic / seconds / copy_rate,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=1 << 28, help="at most so many (256 Mi)")
    parser.add_argument("--lanes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--substreams", type=int, nargs="+", default=SUBSTREAMS)
    parser.add_argument("--repeats", type=int, default=15, help="runs, of which the median counts")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU, and torch sees none")
    if cuda_kernels() is None:
        sys.exit("pycodec was built without CUDA kernels; reinstall with PYCODEC_CUDA=1")

    timer = Timer(arguments.repeats)
    copy_rate = copy_bytes_per_second(timer)
    print(f"{torch.cuda.get_device_name()}; a copy moves {copy_rate / 1e9:.0f} GB/s")
    print(
        f"{'':6} {'substreams':>10} {'lanes':>5} {'symbols':>11} {'bits/sym':>8} "
        f"{'kernel Gsym/s':>13} {'call Gsym/s':>11} {'GB/s':>7}  of copy"
    )
    results = []
    for substreams in arguments.substreams:
        for lanes in arguments.lanes:
            for r in measure(substreams, lanes, arguments.symbols, timer, copy_rate):
                print(
                    f"{r.direction:6} {r.substreams:10} {r.lanes:5} {r.symbols:11} "
                    f"{r.bits_per_symbol:8.4f} {r.kernel_gsym_s:13.3f} {r.call_gsym_s:11.3f} "
                    f"{r.traffic_gb_s:7.1f}  {r.copy_share:7.1%}",
                    flush=True,
                )
                results.append(r)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
