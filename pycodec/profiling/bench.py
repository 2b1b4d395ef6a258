"""How fast a codec is on this machine: pixels in memory to bytes and back, by size of picture."""

from __future__ import annotations

import contextlib
import gc
import inspect
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pycodec import api
from pycodec.errors import CodecError, InputError
from pycodec.images import Picture
from pycodec.profiling.machine import describe_machine

LADDER = {"512x512": (512, 512), "768x512": (768, 512), "1080p": (1920, 1080), "4k": (3840, 2160)}
"""Width and height by name."""
DIRECTIONS = ("encode", "decode")
FORMAT = "pycodec bench 1"


@dataclass(frozen=True)
class Case:
    """What is measured: both directions of it.

    Attributes:
        size: of the pictures, a name of LADDER or ``WIDTHxHEIGHT``.
        batch: pictures in a call.
        threads: of the processor.
        precision: as the API takes it; None is its default.
        device: of the transforms.
    """

    size: str
    batch: int
    threads: int
    precision: str | None
    device: str


@dataclass(frozen=True)
class Result:
    """One direction of a case.

    Attributes:
        model: its name.
        size, batch, threads, precision, device: of the :class:`Case`.
        direction: ``encode``: pixels of the host's memory to bytes; ``decode``: back.
        runs: that were timed.
        ms_median, ms_p95: of a call, which does a whole batch.
        fps: pictures a second, by the median.
        mpixel_s: million pixels a second, by the median.
        bytes: of all files of the batch.
        peak_memory_mib: resident memory of the process at most; None where it cannot be told.
        gpu_memory_mib: allocated on the GPU at most; None without one.
        joules: of the processor's package and the GPU, of a call; None where neither is readable.
    """

    model: str
    size: str
    batch: int
    threads: int
    precision: str | None
    device: str
    direction: str
    runs: int
    ms_median: float
    ms_p95: float
    fps: float
    mpixel_s: float
    bytes: int
    peak_memory_mib: float | None
    gpu_memory_mib: float | None
    joules: float | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What two results must share to be compared."""
        return tuple(
            getattr(self, name)
            for name in ("model", "size", "batch", "threads", "precision", "device", "direction")
        )

    def to_json(self) -> dict[str, Any]:
        """What is not known is not in it."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in values if value is not None}


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of a name of LADDER or ``WIDTHxHEIGHT``.

    Raises:
        InputError: it is neither.
    """
    if text.lower() in LADDER:
        return LADDER[text.lower()]
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        names = ", ".join(LADDER)
        raise InputError(f"{text!r} is no size: give {names} or WIDTHxHEIGHT") from None
    if width < 1 or height < 1:
        raise InputError(f"a picture cannot be {width}x{height}")
    return width, height


def made_picture(width: int, height: int) -> Picture:
    """A picture with a photograph's spectrum: noise whose amplitude falls as the frequency rises.

    The same on every machine, up to rounding.
    """
    rng = np.random.default_rng(7)
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        shape = (min(height, 2**octave + 1), min(width, 2**octave + 1))
        noise = rng.standard_normal((*shape, 1)) + 0.3 * rng.standard_normal((*shape, 3))
        planes = [
            np.asarray(
                Image.fromarray(noise[..., c].astype(np.float32)).resize(
                    (width, height), Image.Resampling.BICUBIC
                )
            )
            for c in range(3)
        ]
        total += np.stack(planes, 2) / 1.9**octave
    return Picture(np.clip(128 + 60 * total, 0, 255).astype(np.uint8))


def fitted(picture: Picture, width: int, height: int) -> Picture:
    """A user's picture, scaled to cover a size, its middle cut out."""
    if (picture.width, picture.height) == (width, height):
        return picture
    scale = max(width / picture.width, height / picture.height)
    larger = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    image = Image.fromarray(picture.pixels).resize(larger, Image.Resampling.LANCZOS)
    left, top = (larger[0] - width) // 2, (larger[1] - height) // 2
    return Picture(np.asarray(image.crop((left, top, left + width, top + height))))


def measure(
    cases: Iterable[Case],
    *,
    picture: Picture | None = None,
    quality: float = 50.0,
    lossless: bool = False,
    model: str | None = None,
    seconds: float = 3.0,
    least_runs: int = 5,
    warm_up: int = 1,
) -> Iterator[Result]:
    """Measures the cases in turn, encoding before decoding.

    Args:
        picture: a user's, fitted to each size; None for :func:`made_picture`.
        quality, lossless, model: as of :func:`pycodec.api.encode_picture`.
        seconds, least_runs: a direction is timed for so long, and so often, at least.
        warm_up: calls before, which do not count.

    Raises:
        CodecError: an argument cannot be used, or the memory does not suffice.
    """
    for case in cases:
        width, height = parse_size(case.size)
        pixels = made_picture(width, height) if picture is None else fitted(picture, width, height)
        pictures = [pixels] * case.batch
        precision = precision_option(case.precision)
        codec = api.encoding_model(model, lossless, case.device, **precision)
        options = {"model": codec, "device": case.device, "threads": case.threads, **precision}
        files: list[bytes] = []

        def encode(pictures=pictures, options=options, files=files) -> None:
            files[:] = [
                api.encode_picture(p, quality, lossless=lossless, **options)[0] for p in pictures
            ]

        def decode(options=options, files=files) -> None:
            for file in files:
                api.decode_picture(file, **options)

        for direction, call in zip(DIRECTIONS, (encode, decode), strict=True):
            try:
                figures = _time(call, torch.device(case.device), seconds, least_runs, warm_up)
            except (MemoryError, torch.OutOfMemoryError) as error:
                raise CodecError(
                    f"not enough memory to {direction} {case.batch} x {case.size}: "
                    "leave this size out, or take smaller batches"
                ) from error
            yield _result(case, codec.name, direction, width * height, files, figures)


def precision_option(precision: str | None) -> dict[str, str]:
    """The API's argument for a precision, if it knows one.

    Raises:
        InputError: it does not.
    """
    if precision is None:
        return {}
    for function in (api.encode_picture, api.decode_picture):
        if "precision" not in inspect.signature(function).parameters:
            raise InputError("this version of pycodec offers no choice of precision: leave it out")
    return {"precision": precision}


@dataclass(frozen=True)
class _Figures:
    times: list[float]  # sorted
    peak_memory: int | None
    gpu_memory: int | None
    joules: float | None


def _time(
    call: Callable[[], None], device: torch.device, seconds: float, least_runs: int, warm_up: int
) -> _Figures:
    for _ in range(warm_up):
        call()
    gc.collect()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    resettable = _reset_peak_memory()
    meter = EnergyMeter(device)
    before = meter.joules()
    times: list[float] = []
    while len(times) < least_runs or sum(times) < seconds:
        began = time.perf_counter()
        call()  # it ends with results in the host's memory, so the GPU is done too
        times.append(time.perf_counter() - began)
    after = meter.joules()
    return _Figures(
        sorted(times),
        _peak_memory() if resettable else None,
        torch.cuda.max_memory_allocated(device) if on_gpu else None,
        None if before is None or after is None else (after - before) / len(times),
    )


def _result(
    case: Case, model: str, direction: str, pixels: int, files: Sequence[bytes], figures: _Figures
) -> Result:
    median = statistics.median(figures.times)
    p95 = figures.times[math.ceil(0.95 * len(figures.times)) - 1]

    def mib(value: int | None) -> float | None:
        return None if value is None else round(value / (1 << 20), 1)

    return Result(
        model=model,
        **{f.name: getattr(case, f.name) for f in fields(case)},
        direction=direction,
        runs=len(figures.times),
        ms_median=round(1e3 * median, 3),
        ms_p95=round(1e3 * p95, 3),
        fps=round(case.batch / median, 3),
        mpixel_s=round(1e-6 * case.batch * pixels / median, 3),
        bytes=sum(map(len, files)),
        peak_memory_mib=mib(figures.peak_memory),
        gpu_memory_mib=mib(figures.gpu_memory),
        joules=None if figures.joules is None else round(figures.joules, 4),
    )


def _reset_peak_memory() -> bool:
    """Let the peak of this process's memory start over; whether that is possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_memory() -> int | None:
    """The most resident memory since then, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(peaks[0]) if peaks else None


class EnergyMeter:
    """Energy of the processor's packages (RAPL) and of a GPU (NVML), as far as they can be read.

    Args:
        device: whose energy is added if it is a GPU and the package ``pynvml`` is installed.
        powercap: where Linux shows RAPL; usually only root may read it.
    """

    def __init__(self, device: torch.device, powercap: Path = Path("/sys/class/powercap")) -> None:
        self._packages = []
        for folder in sorted(powercap.glob("intel-rapl:*")):
            if folder.name.count(":") != 1:  # parts of a package
                continue
            with contextlib.suppress(OSError, ValueError):
                first = int((folder / "energy_uj").read_text())
                span = int((folder / "max_energy_range_uj").read_text()) + 1
                self._packages.append([folder / "energy_uj", span, first, 0])
        self._gpu = _nvml_joules(device) if device.type == "cuda" else None

    def joules(self) -> float | None:
        """Energy since some time in the past; None where nothing can be read."""
        if not self._packages and self._gpu is None:
            return None
        total = 0.0 if self._gpu is None else self._gpu()
        for package in self._packages:
            path, span, last, used = package
            now = int(path.read_text())
            package[2:] = now, used + (now - last) % span  # the counter starts over at its end
            total += 1e-6 * package[3]
        return total


def _nvml_joules(device: torch.device) -> Callable[[], float] | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, no permission, too old a chip: each in its own words
        return None
    return lambda: 1e-3 * pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)


def all_cases(
    sizes: Sequence[str],
    batches: Sequence[int],
    threads: Sequence[int],
    precisions: Sequence[str | None],
    device: str,
) -> list[Case]:
    """Every combination."""
    return [
        Case(size, batch, count, precision, device)
        for size, batch, count, precision in itertools.product(sizes, batches, threads, precisions)
    ]


def to_document(
    results: Sequence[Result], device: str, settings: dict[str, Any], *, complete: bool
) -> str:
    """JSON of results with the machine's description."""
    document = {
        "format": FORMAT,
        "complete": complete,
        "machine": describe_machine(device),
        "settings": settings,
        "results": [result.to_json() for result in results],
    }
    return json.dumps(document, indent=2) + "\n"


def read_document(path: str) -> tuple[dict[str, Any], list[Result]]:
    """What :func:`to_document` wrote: the machine and the results.

    Raises:
        InputError: the file cannot be read, or is not of this kind.
    """
    try:
        document = json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    try:
        if document["format"] != FORMAT:
            raise InputError(f"{path}: is of the format {document['format']!r}, not {FORMAT!r}")
        blank = {f.name: None for f in fields(Result)}
        results = [Result(**(blank | row)) for row in document["results"]]
        machine = document["machine"]
        for result in results:
            if not result.ms_median > 0 or not result.bytes > 0:
                raise TypeError("a result without a time or bytes")
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: was not written by pycodec bench: {error}") from error
    return machine, results


def to_table(results: Sequence[Result]) -> str:
    """One line a result."""
    header = (
        *("size", "batch", "threads", "precision", "direction", "ms", "p95", "fps", "Mpixel/s"),
        *("bytes", "MiB", "J"),
    )
    rows = [
        (
            r.size,
            str(r.batch),
            str(r.threads),
            r.precision or "",
            r.direction,
            f"{r.ms_median:.2f}",
            f"{r.ms_p95:.2f}",
            f"{r.fps:.2f}",
            f"{r.mpixel_s:.2f}",
            str(r.bytes),
            "" if r.peak_memory_mib is None else f"{r.peak_memory_mib:.0f}",
            "" if r.joules is None else f"{r.joules:.3f}",
        )
        for r in results
    ]
    return _aligned([header, *rows])


def compare(a: Sequence[Result], b: Sequence[Result]) -> str:
    """What both have, side by side; a speed-up above 1 means that ``b`` is faster.

    Raises:
        InputError: they have nothing in common.
    """
    others = {result.key: result for result in b}
    pairs = [(result, others[result.key]) for result in a if result.key in others]
    if not pairs:
        raise InputError("the two files have no case in common: nothing to compare")
    header = (
        *("model", "size", "batch", "threads", "precision", "direction"),
        *("ms A", "ms B", "speed-up", "bytes"),
    )
    rows = [
        (
            x.model,
            x.size,
            str(x.batch),
            str(x.threads),
            x.precision or "",
            x.direction,
            f"{x.ms_median:.2f}",
            f"{y.ms_median:.2f}",
            f"{x.ms_median / y.ms_median:.3f} x",
            f"{y.bytes / x.bytes - 1:+.2%}",
        )
        for x, y in pairs
    ]
    left = len(a) + len(b) - 2 * len(pairs)
    note = f"\n{left} results are in one of the files only" if left else ""
    return _aligned([header, *rows]) + note


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
