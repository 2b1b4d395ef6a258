"""What does the profiler cost, on and off, and does its total agree with the clock?

For pictures of 768x512, the photo codec and the lossless one. A busy machine disturbs a call by
more than what is measured here, so costs are measured where they stand out, and set against the
fastest of the calls. *On*: what recording adds to the fastest call on a picture of 64x64, which has
the same spans, but for waves, and little else; and for the spans that the larger picture has more,
what a kernel's costs in a loop while it is recorded. *Off*: the spans that a call passes, times
what one costs in a loop while nobody records. *Agreement*: the time of the outermost spans over
that of a clock around the call, the median of the calls.

Compares with nothing but itself, so there is no peer to install.

    python benchmarks/profiling/overhead.py [--rounds N] [--codecs photo lossless] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

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
    ms: float  # without a recorder; the fastest call
    spans: int
    on: float  # relative
    off: float
    agreement: float


def best_seconds(run: Callable[[], object], rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def kernel_cost(recorded: bool) -> float:
    """Seconds of a kernel's span."""
    count = 100_000
    _cpu.record_spans(recorded)
    try:
        return min(_cpu.time_spans(count) for _ in range(2)) / count  # 2: the buffer has an end
    finally:
        _cpu.record_spans(False)
        _cpu.take_spans()


def python_cost() -> float:
    """Seconds of a span in Python while nobody records."""
    count = 100_000

    def run() -> None:
        for _ in range(count):
            with spans.span("empty"):
                pass

    return best_seconds(run) / count


def added_seconds(call: Callable[[], object], modules: dict, rounds: int) -> tuple[float, int]:
    """What recording adds to the fastest call, and how many spans that has."""
    call()
    record(call, modules)
    without, within = [], []
    for _ in range(rounds):
        without.append(best_seconds(call, 1))
        _, seconds, recorder = record(call, modules)
        within.append(seconds)
    return min(within) - min(without), len(recorder.spans)


def measure(
    name: str,
    call: Callable[[], object],
    small_call: Callable[[], object],
    model: object,
    rounds: int,
) -> Result:
    modules = {}
    if isinstance(model, PhotoCodec):
        modules = {k: getattr(model, k) for k in ("analysis", "hyper_analysis", "synthesis")}
    call()
    added, small_count = added_seconds(small_call, modules, 20 * rounds)
    wall, agreements = [], []
    for _ in range(rounds):
        wall.append(best_seconds(call, 1))
        _, seconds, recorder = record(call, modules)
        profile = make_profile(name, seconds, recorder, NO_CEILINGS, {})
        agreements.append(profile.total_seconds / seconds)
    count = len(recorder.spans)
    on = added + (count - small_count) * kernel_cost(True)
    # Calls of torch have no spans while nobody records.
    passed = [s for s in recorder.spans if not s.name.startswith("torch.")]
    native = sum(s.kind in (spans.KERNEL, spans.WAVE) for s in passed)
    off = native * kernel_cost(False) + (len(passed) - native) * python_cost()
    return Result(
        name,
        1e3 * min(wall),
        count,
        on / min(wall),
        off / min(wall),
        statistics.median(agreements),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    codecs = ("photo", "lossless")
    parser.add_argument("--codecs", nargs="+", choices=codecs, default=codecs)
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    arguments = parser.parse_args()
    pictures = made_picture(768, 512), made_picture(64, 64)
    results = []
    for lossless in (codec == "lossless" for codec in arguments.codecs):
        model = api.encoding_model(None, lossless, None)
        options = {"lossless": lossless, "model": model}
        files = [api.encode_picture(picture, 50, **options)[0] for picture in pictures]
        encode = [partial(api.encode_picture, p, 50, **options) for p in pictures]
        decode = [partial(api.decode_picture, file, model=model) for file in files]
        for direction, calls in (("encode", encode), ("decode", decode)):
            r = measure(f"{model.name}, {direction}", *calls, model, arguments.rounds)
            results.append(r)
            print(
                f"{r.call:<18} {r.ms:8.2f} ms {r.spans:6d} spans  on {r.on:+.2%}"
                f"  off {r.off:+.4%}  agreement {r.agreement:.2%}",
                flush=True,
            )
    if arguments.json:
        document = {"machine": describe_machine(), "results": [asdict(r) for r in results]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
