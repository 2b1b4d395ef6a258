"""Rate-distortion curves of pycodec and its anchors on a set of pictures, from real files."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pycodec.errors import CodecError, InputError
from pycodec.evaluation.anchors import TestedCodec
from pycodec.evaluation.bd_rate import bd_rate
from pycodec.evaluation.metrics import ms_ssim, ms_ssim_db, psnr
from pycodec.images import Picture, atomic_write, load_image

# Where JPEG is usable: below 28 dB it falls apart, above 40 dB the differences cannot be seen.
DEFAULT_PSNR_RANGE = (28.0, 40.0)
DEFAULT_QUALITIES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)


@dataclass(frozen=True)
class Measurement:
    """One picture coded once.

    Attributes:
        codec, picture: names.
        setting: the codec's quality parameter.
        width, height: in pixels.
        bytes: size of the file.
        bpp: bits of the file a pixel.
        psnr: in dB, over R, G and B; infinite for a perfect copy.
        ms_ssim: similarity, or None if not measured or the picture is too small.
        encode_seconds, decode_seconds: wall time, pixels in memory to bytes in memory and back.
    """

    codec: str
    picture: str
    setting: float
    width: int
    height: int
    bytes: int
    bpp: float
    psnr: float
    ms_ssim: float | None
    encode_seconds: float
    decode_seconds: float


def pycodec_under_test(
    qualities: Sequence[float] = DEFAULT_QUALITIES,
    *,
    model: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> TestedCodec:
    """pycodec itself as a codec to measure."""
    from pycodec import api

    def encode(pixels: np.ndarray, quality: float) -> bytes:
        return api.encode_picture(
            Picture(pixels), quality, model=model, device=device, threads=threads
        )[0]

    def decode(data: bytes) -> np.ndarray:
        return api.decode_picture(data, model=model, device=device, threads=threads)[0].pixels

    return TestedCodec("pycodec", tuple(qualities), encode, decode)


def measure(
    pictures: Iterable[Path],
    codecs: Sequence[TestedCodec],
    *,
    with_ms_ssim: bool = True,
) -> Iterator[Measurement]:
    """Code every picture with every codec at every setting.

    Each file is written to disk and read back; its size is what the file system says. Metadata and
    alpha planes are left out, as the anchors would treat them differently. What a codec does only
    once (loading weights, starting threads) happens before its first time is taken.

    Yields:
        A measurement as soon as it is made.

    Raises:
        CodecError: a picture cannot be read, or a codec fails on it.
    """
    warm = set()
    with tempfile.TemporaryDirectory(prefix="pycodec-eval-") as folder:
        for path in pictures:
            pixels = load_image(path).pixels
            for codec in codecs:
                if codec.name not in warm:
                    codec.decode(codec.encode(pixels, codec.settings[0]))
                    warm.add(codec.name)
                file = Path(folder, codec.name)
                for setting in codec.settings:
                    yield _measure_once(path.name, pixels, codec, setting, file, with_ms_ssim)


def _measure_once(
    name: str,
    pixels: np.ndarray,
    codec: TestedCodec,
    setting: float,
    file: Path,
    with_ms_ssim: bool,
) -> Measurement:
    start = time.perf_counter()
    data = codec.encode(pixels, setting)
    encode_seconds = time.perf_counter() - start
    file.write_bytes(data)
    size = os.stat(file).st_size
    data = file.read_bytes()
    start = time.perf_counter()
    decoded = codec.decode(data)
    decode_seconds = time.perf_counter() - start

    if pixels.ndim == 2 and decoded.ndim == 3:
        decoded = decoded[..., 0]  # WebP has no gray: all channels are equal
    if decoded.shape != pixels.shape:
        raise CodecError(f"{name}: {codec.name} returns a picture of another shape")
    height, width = pixels.shape[:2]
    return Measurement(
        codec=codec.name,
        picture=name,
        setting=setting,
        width=width,
        height=height,
        bytes=size,
        bpp=8 * size / (width * height),
        psnr=psnr(pixels, decoded),
        ms_ssim=ms_ssim(pixels, decoded) if with_ms_ssim else None,
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
    )


def summarize(
    measurements: Sequence[Measurement],
    *,
    psnr_range: tuple[float, float] = DEFAULT_PSNR_RANGE,
) -> dict[str, Any]:
    """Mean curves and BD-rates.

    A point of a mean curve averages bpp, PSNR and MS-SSIM over the pictures at one setting, and
    takes the median of the times. BD-rates are those of the mean curves, and beside them the mean
    of the BD-rates of the single pictures. PSNR is confined to ``psnr_range``; MS-SSIM, in dB, is
    compared over the whole overlap of the curves.

    Returns:
        ``{"pictures": n, "psnr_range": [low, high], "curves": {codec: [point, ...]},
        "bd_rates": [{"codec", "anchor", "metric", "percent", "low", "high",
        "mean_of_pictures", "pictures_compared"}, ...]}``, ready for JSON: what does not exist is
        None.
    """
    codecs = list(dict.fromkeys(m.codec for m in measurements))
    by_codec = {name: [m for m in measurements if m.codec == name] for name in codecs}
    metrics: tuple[tuple[str, Callable[[Measurement], float | None], tuple[float, float]], ...] = (
        ("psnr", lambda m: m.psnr, psnr_range),
        ("ms_ssim", _similarity_db, (-math.inf, math.inf)),
    )
    comparisons = [
        _compare(by_codec[anchor], by_codec[codec], metric, value, interval)
        for codec in codecs
        for anchor in codecs
        if anchor != codec
        for metric, value, interval in metrics
    ]
    return {
        "pictures": len({m.picture for m in measurements}),
        "psnr_range": list(psnr_range),
        "curves": {name: _mean_curve(by_codec[name]) for name in codecs},
        "bd_rates": [comparison for comparison in comparisons if comparison is not None],
    }


def _similarity_db(measurement: Measurement) -> float | None:
    return None if measurement.ms_ssim is None else ms_ssim_db(measurement.ms_ssim)


def _group(
    measurements: Iterable[Measurement], key: Callable[[Measurement], Any]
) -> list[list[Measurement]]:
    groups: dict[Any, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(key(measurement), []).append(measurement)
    return list(groups.values())


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean, or None if a value is missing or infinite."""
    values = list(values)
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return statistics.fmean(values)


def _mean_curve(measurements: Sequence[Measurement]) -> list[dict[str, float | None]]:
    return [
        {
            "setting": group[0].setting,
            "bpp": _mean(m.bpp for m in group),
            "psnr": _mean(m.psnr for m in group),
            "ms_ssim": _mean(m.ms_ssim for m in group),
            "ms_ssim_db": _mean(_similarity_db(m) for m in group),
            "encode_seconds": statistics.median(m.encode_seconds for m in group),
            "decode_seconds": statistics.median(m.decode_seconds for m in group),
        }
        for group in _group(measurements, lambda m: m.setting)
    ]


def _compare(
    anchor: Sequence[Measurement],
    test: Sequence[Measurement],
    metric: str,
    value: Callable[[Measurement], float | None],
    interval: tuple[float, float],
) -> dict[str, Any] | None:
    """One entry of ``bd_rates``, or None where the metric was not measured."""

    def points(group: Iterable[Measurement]) -> list[tuple[float, float]]:
        return [(m.bpp, value(m)) for m in group if value(m) is not None]

    def mean_points(measurements: Sequence[Measurement]) -> list[tuple[float, float]]:
        means = (
            (_mean(m.bpp for m in group), _mean(value(m) for m in group))
            for group in _group(measurements, lambda m: m.setting)
        )
        return [(rate, quality) for rate, quality in means if quality is not None]

    if not points(anchor) or not points(test):
        return None
    of_means = bd_rate(mean_points(anchor), mean_points(test), interval)
    anchors_by_picture = {group[0].picture: group for group in _group(anchor, lambda m: m.picture)}
    single = [
        bd_rate(points(anchors_by_picture[group[0].picture]), points(group), interval)
        for group in _group(test, lambda m: m.picture)
    ]
    percents = [result.percent for result in single if result is not None]
    return {
        "codec": test[0].codec,
        "anchor": anchor[0].codec,
        "metric": metric,
        "percent": of_means.percent if of_means else None,
        "low": of_means.low if of_means else None,
        "high": of_means.high if of_means else None,
        "mean_of_pictures": statistics.fmean(percents) if percents else None,
        "pictures_compared": len(percents),
    }


def write_csv(measurements: Iterable[Measurement], path: str | os.PathLike) -> None:
    """One line a measurement; a missing MS-SSIM is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Measurement)])
    writer.writeheader()
    writer.writerows(asdict(measurement) for measurement in measurements)
    atomic_write(path, text.getvalue().encode())


def read_csv(path: str | os.PathLike) -> list[Measurement]:
    """What :func:`write_csv` wrote.

    Raises:
        InputError: the file cannot be read, or is not such a file.
    """
    names = [field.name for field in fields(Measurement)]
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != names:
                raise InputError(f"{os.fspath(path)}: not a table of measurements")
            return [
                Measurement(
                    codec=row["codec"],
                    picture=row["picture"],
                    setting=float(row["setting"]),
                    width=int(row["width"]),
                    height=int(row["height"]),
                    bytes=int(row["bytes"]),
                    bpp=float(row["bpp"]),
                    psnr=float(row["psnr"]),
                    ms_ssim=float(row["ms_ssim"]) if row["ms_ssim"] else None,
                    encode_seconds=float(row["encode_seconds"]),
                    decode_seconds=float(row["decode_seconds"]),
                )
                for row in reader
            ]
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{os.fspath(path)}: cannot be read: {error}") from error


def write_json(summary: dict[str, Any], path: str | os.PathLike) -> None:
    atomic_write(path, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())


def format_summary(summary: dict[str, Any]) -> str:
    """The summary as text: the curves, and the BD-rates of the first codec and of all to JPEG."""

    def cell(value: float | None, width: int, digits: int, scale: float = 1) -> str:
        return f"{'-':>{width}}" if value is None else f"{value * scale:{width}.{digits}f}"

    lines = ["codec    setting     bpp  PSNR dB  MS-SSIM  encode ms  decode ms"]
    for codec, curve in summary["curves"].items():
        lines += [
            f"{codec:<8} {point['setting']:7g} {cell(point['bpp'], 7, 4)} "
            f"{cell(point['psnr'], 8, 2)} {cell(point['ms_ssim'], 8, 4)} "
            f"{cell(point['encode_seconds'], 10, 1, 1000)} "
            f"{cell(point['decode_seconds'], 10, 1, 1000)}"
            for point in curve
        ]
    first = next(iter(summary["curves"]))
    shown = [e for e in summary["bd_rates"] if e["codec"] == first or e["anchor"] == "jpeg"]
    if shown:
        lines += ["", "BD-rate                  metric    mean curves   mean of pictures   over dB"]
    for entry in shown:
        pair = f"{entry['codec']} against {entry['anchor']}"
        span = "-" if entry["low"] is None else f"{entry['low']:.1f}..{entry['high']:.1f}"
        lines.append(
            f"{pair:<24} {entry['metric']:<8} {cell(entry['percent'], 10, 2)} % "
            f"{cell(entry['mean_of_pictures'], 16, 2)} %   {span}"
        )
    return "\n".join(lines)
