"""What does the profiler cost, on and off, and does its total agree with the clock?

Encodes and decodes pictures of 768x512 with the photo codec and the lossless one, by turns with
and without a recorder. Shares are of the time without. *On* compares the fastest of the runs, for
what a busy machine adds to single ones is more than what is measured here. *Off* is too little for
that: it is the number of spans that a run passes, times what one costs while nobody records,
measured in a loop. *Agreement* is the time of the outermost spans over that of a clock around the
call, of the run that differs most.

Compares with nothing but itself, so there is no peer to install.

    python benchmarks/profiling/overhead.py [--rounds N] [--threads T] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pycodec import _cpu, api
from pycodec.models.photo import PhotoCodec
from pycodec.profiling import spans
from pycodec.profiling.bench import made_picture
from pycodec.profiling.machine import Ceilings, describe_machine
from pycodec.profiling.profile import make_profile, record

NO_CEILINGS = Ceilings(1.0, {}, 1)  # of no interest here


@dataclass(frozen=True)
class Result:
    call: str
    ms: float  # without a recorder
    spans: int
    on: float  # relative
    off: float
    least_agreement: float


def off_costs() -> tuple[float, float]:
    """Seconds of a span that nobody records: of a kernel, of Python."""
    count = 1_000_000
    kernel = min(_cpu.time_spans(count) for _ in range(5)) / count
    count = 100_000
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            with spans.span("empty"):
                pass
        times.append(time.perf_counter() - began)
    return kernel, min(times) / count


def measure(name: str, call: Callable[[], object], model: object, rounds: int) -> Result:
    modules = {}
    if isinstance(model, PhotoCodec):
        modules = {k: getattr(model, k) for k in ("analysis", "hyper_analysis", "synthesis")}
    call()
    record(call, modules)
    without, within, agreements = [], [], []
    recorder = None
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        without.append(time.perf_counter() - began)
        _, seconds, recorder = record(call, modules)
        within.append(seconds)
        profile = make_profile(name, seconds, recorder, NO_CEILINGS, {})
        agreements.append(profile.total_seconds / seconds)
    kernel_cost, python_cost = off_costs()
    # Calls of torch have no spans while nobody records; all others cost the dearer one at most.
    count = sum(not s.name.startswith("torch.") for s in recorder.spans)
    native = sum(
        s.kind in (spans.KERNEL, spans.WAVE) and not s.name.startswith("torch.")
        for s in recorder.spans
    )
    off = (native * kernel_cost + (count - native) * python_cost) / min(without)
    worst = min(agreements, key=lambda a: -abs(a - 1))
    on = min(within) / min(without) - 1
    return Result(name, 1e3 * min(without), len(recorder.spans), on, off, worst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    arguments = parser.parse_args()
    picture = made_picture(768, 512)
    results = []
    for lossless in (False, True):
        model = api.encoding_model(None, lossless, None)
        options = {"model": model, "threads": arguments.threads}
        data, _ = api.encode_picture(picture, 50, lossless=lossless, **options)

        def encode(lossless=lossless, options=options) -> object:
            return api.encode_picture(picture, 50, lossless=lossless, **options)

        def decode(data=data, options=options) -> object:
            return api.decode_picture(data, **options)

        for direction, call in (("encode", encode), ("decode", decode)):
            result = measure(f"{model.name}, {direction}", call, model, arguments.rounds)
            results.append(result)
            print(
                f"{result.call:<20} {result.ms:8.2f} ms  {result.spans:6d} spans"
                f"  on {result.on:+.2%}  off {result.off:+.4%}"
                f"  agreement {result.least_agreement:.2%}",
                flush=True,
            )
    if arguments.json:
        document = {
            "machine": describe_machine(),
            "threads": arguments.threads,
            "results": [asdict(result) for result in results],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
