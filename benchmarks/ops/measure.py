"""What the benchmarks of operations have in common: peaks of the processor, and times."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pycodec import _cpu

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def int8_peak() -> float | None:
    """int8 multiply-adds a second of one core; None where no SIMD level has them."""
    return _cpu.arithmetic_peak("int8")


def float32_peak() -> float | None:
    """float32 multiply-adds a second of one core; None where no SIMD level has them."""
    return _cpu.arithmetic_peak("float32")


def keep_memory() -> None:
    """Let memory be kept from call to call, where the C library is glibc.

    Otherwise the system's clearing of fresh pages is most of what is measured where memory is.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def time_calls(run: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Median and best time of a call, over as many as fit in ``seconds`` (5 at least)."""
    run()
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), min(times)


def time_side_by_side(
    runs: dict[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, float]:
    """Median time of each call over ``rounds`` calls, or more of them that fit in ``seconds``.

    They take turns, so a busy machine hits all of them alike, and rest in between: the threads of
    PyTorch's OpenMP spin on for some milliseconds when they are done, on cores that the next one
    needs.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for round_number in itertools.count():
        if round_number >= rounds and time.perf_counter() > end:
            break
        for name, run in runs.items():
            time.sleep(0.03)
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


GRAPH_CALLS = 10


def graph_seconds(call: Callable[[], object], repeats: int) -> float:
    """Of one call on the GPU: the median over replays of a CUDA graph of several, between events.

    What Python takes to queue it, longer than most kernels, is not in it.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, chooses algorithms, allocates
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            call()
    times = []
    for _ in range(1 + repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[1:]) / GRAPH_CALLS


@dataclass(frozen=True)
class Row:
    """One implementation of one layer."""

    layer: str
    threads: int
    implementation: str
    median_ms: float
    speedup: float  # of the dense convolution in float32
    gmac_s: float  # effective: what is left after trimming, by time
    share_of_peak: float | None  # of what the implementation multiplies, trimmed or not
    gb_s: float  # input, output and weights, once each, by time


def compare_with_dense(
    layer: str,
    runs: dict[str, Callable[[], object]],
    seen_macs: int,
    dense_macs: int,
    num_bytes: dict[str, int],
    peaks: dict[str, float | None],
    rounds: int,
    seconds: float,
) -> list[Row]:
    """Times and prints the implementations of a layer, the first of which is the dense one.

    Args:
        layer: its name.
        runs: by name; ``torch`` in a name marks those that multiply by trimmed weights too.
        seen_macs, dense_macs: multiply-adds with and without trimming.
        num_bytes: input, output and weights of each run.
        peaks: multiply-adds a second of a core, for each run.
        rounds, seconds: as in :func:`time_side_by_side`.
    """
    threads = torch.get_num_threads()
    with torch.inference_mode():
        medians = time_side_by_side(runs, rounds, seconds)
    dense = next(iter(medians.values()))
    rows = []
    for name, median in medians.items():
        peak, multiplied = peaks[name], dense_macs if "torch" in name else seen_macs
        share = multiplied / median / (peak * threads) if peak else None
        row = Row(
            layer,
            threads,
            name,
            round(median * 1e3, 3),
            round(dense / median, 3),
            round(seen_macs / median / 1e9, 2),
            None if share is None else round(share, 3),
            round(num_bytes[name] / median / 1e9, 2),
        )
        print(
            f"{layer:>36} {threads:>7}  {name:<24} {row.median_ms:9.2f} {row.speedup:7.2f} x"
            f" {row.gmac_s:8.1f}  {'' if share is None else f'{share:6.0%}':>6} {row.gb_s:8.1f}",
            flush=True,
        )
        rows.append(row)
    return rows


def print_header() -> None:
    print(
        f"{'layer':>36} {'threads':>7}  {'implementation':<24} {'median ms':>9} {'speedup':>9}"
        f" {'GMAC/s':>8} of peak     GB/s"
    )


def write_rows(path: Path, peaks: dict[str, float | None], rows: list[Row]) -> None:
    """Writes peaks of one core, in GMAC/s, and the rows."""
    document = {
        "torch": torch.__version__,
        "peak_gmac_s": {name: peak and round(peak / 1e9, 1) for name, peak in peaks.items()},
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
