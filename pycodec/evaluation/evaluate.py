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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pycodec.errors import CodecError, InputError
from pycodec.evaluation import anchors
from pycodec.evaluation.anchors import TestedCodec
from pycodec.evaluation.bd_rate import bd_rate
from pycodec.evaluation.metrics import PLANE_METRICS, Metric
from pycodec.evaluation.sphere import SPHERE_METRICS
from pycodec.images import Picture, atomic_write, load_image

# Where JPEG is usable: below 28 dB it falls apart, above 40 dB the differences cannot be seen.
DEFAULT_PSNR_RANGE = (28.0, 40.0)
DEFAULT_QUALITIES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)

PHOTO_CODEC = "photo"
"""The anchor of the codec for the sphere that is the photo codec on the same pixels."""


@dataclass(frozen=True)
class Measurement:
    """One picture coded once.

    Attributes:
        codec, picture: names.
        setting: the codec's quality parameter.
        width, height: in pixels.
        bytes: size of the file.
        bpp: bits of the file a pixel.
        encode_seconds, decode_seconds: wall time, pixels in memory to bytes in memory and back.
        values: of metrics, by their names: PSNRs in dB, infinite for a perfect copy; similarities;
            None where the picture is too small.
    """

    codec: str
    picture: str
    setting: float
    width: int
    height: int
    bytes: int
    bpp: float
    encode_seconds: float
    decode_seconds: float
    values: dict[str, float | None]

    def row(self) -> dict[str, Any]:
        """As a line of a table, the metrics before the times."""
        facts = {name: getattr(self, name) for name in _COLUMNS}
        times = {name: facts.pop(name) for name in _TIMES}
        return {**facts, **self.values, **times}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Measurement:
        """What :meth:`row` made.

        Raises:
            KeyError: it is no such row.
        """
        facts = {name: row[name] for name in _COLUMNS}
        return cls(**facts, values={k: v for k, v in row.items() if k not in facts})


_COLUMNS = [field.name for field in fields(Measurement) if field.name != "values"]
_TIMES = ("encode_seconds", "decode_seconds")


def pycodec_under_test(
    qualities: Sequence[float] = DEFAULT_QUALITIES,
    *,
    model: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    projection: str = "none",
    name: str = "pycodec",
) -> TestedCodec:
    """pycodec itself as a codec to measure."""
    from pycodec import api

    def encode(pixels: np.ndarray, quality: float) -> bytes:
        return api.encode_picture(
            Picture(pixels),
            quality,
            model=model,
            device=device,
            threads=threads,
            precision=precision,
            projection=projection,
        )[0]

    def decode(data: bytes) -> np.ndarray:
        return api.decode_picture(
            data, model=model, device=device, threads=threads, precision=precision
        )[0].pixels

    return TestedCodec(name, tuple(qualities), encode, decode)


def metrics_for(projection: str, similarity: bool = True) -> list[Metric]:
    """Of pictures of a projection, ``none`` or ``erp``; similarities, which take time, or not."""
    metrics = SPHERE_METRICS if projection == "erp" else PLANE_METRICS
    return [metric for metric in metrics if similarity or not metric.similarity]


def anchor_names(projection: str) -> tuple[str, ...]:
    """All anchors that this installation can run; of the sphere also the photo codec."""
    return (PHOTO_CODEC,) * (projection == "erp") + anchors.available_anchors()


def anchor_under_test(
    name: str, projection: str, qualities: Sequence[float] = DEFAULT_QUALITIES, **options: Any
) -> TestedCodec:
    """An anchor by its name.

    Args:
        name: one of ``ANCHOR_NAMES``, or, of the sphere, ``PHOTO_CODEC``.
        projection: of the pictures, ``none`` or ``erp``.
        qualities, options: of the photo codec, see :func:`pycodec_under_test`.

    Raises:
        InputError: no such anchor.
        CodecError: this installation cannot run it.
    """
    if projection == "erp" and name == PHOTO_CODEC:
        return pycodec_under_test(qualities, name=name, projection="none", **options)
    return anchors.anchor(name)


def measure(
    pictures: Iterable[Path],
    codecs: Sequence[TestedCodec],
    metrics: Sequence[Metric] = PLANE_METRICS,
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
                    yield _measure_once(path.name, pixels, codec, setting, file, metrics)


def _measure_once(
    name: str,
    pixels: np.ndarray,
    codec: TestedCodec,
    setting: float,
    file: Path,
    metrics: Sequence[Metric],
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
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
        values={metric.name: metric.measure(pixels, decoded) for metric in metrics},
    )


def summarize(
    measurements: Sequence[Measurement],
    metrics: Sequence[Metric] = PLANE_METRICS,
    *,
    psnr_range: tuple[float, float] = DEFAULT_PSNR_RANGE,
) -> dict[str, Any]:
    """Mean curves and BD-rates.

    A point of a mean curve averages bpp and metrics over the pictures at one setting, and takes
    the median of the times. BD-rates are those of the mean curves, and beside them the mean of the
    BD-rates of the single pictures. PSNRs are confined to ``psnr_range``; similarities, in dB, are
    compared over the whole overlap of the curves.

    Returns:
        ``{"pictures": n, "psnr_range": [low, high], "curves": {codec: [point, ...]},
        "bd_rates": [{"codec", "anchor", "metric", "percent", "low", "high",
        "mean_of_pictures", "pictures_compared"}, ...]}``, ready for JSON: what does not exist is
        None. A point has the metrics under their names, similarities in dB too.
    """
    codecs = list(dict.fromkeys(m.codec for m in measurements))
    by_codec = {name: [m for m in measurements if m.codec == name] for name in codecs}
    comparisons = [
        _compare(by_codec[anchor], by_codec[codec], metric, psnr_range)
        for codec in codecs
        for anchor in codecs
        if anchor != codec
        for metric in metrics
    ]
    return {
        "pictures": len({m.picture for m in measurements}),
        "psnr_range": list(psnr_range),
        "curves": {name: _mean_curve(by_codec[name], metrics) for name in codecs},
        "bd_rates": [comparison for comparison in comparisons if comparison is not None],
    }


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


def _mean_curve(
    measurements: Sequence[Measurement], metrics: Sequence[Metric]
) -> list[dict[str, float | None]]:
    curve = []
    for group in _group(measurements, lambda m: m.setting):
        point = {"setting": group[0].setting, "bpp": _mean(m.bpp for m in group)}
        for metric in metrics:
            values = [m.values.get(metric.name) for m in group]
            point[metric.name] = _mean(values)
            point[metric.decibels] = _mean(map(metric.to_decibels, values))
        for name in _TIMES:
            point[name] = statistics.median(getattr(m, name) for m in group)
        curve.append(point)
    return curve


def _compare(
    anchor: Sequence[Measurement],
    test: Sequence[Measurement],
    metric: Metric,
    psnr_range: tuple[float, float],
) -> dict[str, Any] | None:
    """One entry of ``bd_rates``, or None where the metric was not measured."""
    interval = (-math.inf, math.inf) if metric.similarity else psnr_range

    def value(measurement: Measurement) -> float | None:
        return metric.to_decibels(measurement.values.get(metric.name))

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
        "metric": metric.name,
        "percent": of_means.percent if of_means else None,
        "low": of_means.low if of_means else None,
        "high": of_means.high if of_means else None,
        "mean_of_pictures": statistics.fmean(percents) if percents else None,
        "pictures_compared": len(percents),
    }


def write_csv(measurements: Iterable[Measurement], path: str | os.PathLike) -> None:
    """One line a measurement; what was not measured is empty."""
    rows = [measurement.row() for measurement in measurements]
    values = dict.fromkeys(name for row in rows for name in row if name not in _COLUMNS)
    text = io.StringIO(newline="")
    facts = [name for name in _COLUMNS if name not in _TIMES]
    writer = csv.DictWriter(text, [*facts, *values, *_TIMES], restval="")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue().encode())


def read_csv(path: str | os.PathLike) -> list[Measurement]:
    """What :func:`write_csv` wrote.

    Raises:
        InputError: the file cannot be read, or is not such a file.
    """

    def parse(name: str, text: str) -> Any:
        if name in ("codec", "picture"):
            return text
        if name in ("width", "height", "bytes"):
            return int(text)
        return float(text) if text or name in _COLUMNS else None

    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise InputError(f"{os.fspath(path)}: not a table of measurements")
            return [
                Measurement.from_row({name: parse(name, text) for name, text in row.items()})
                for row in reader
            ]
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{os.fspath(path)}: cannot be read: {error}") from error


def write_json(summary: dict[str, Any], path: str | os.PathLike) -> None:
    atomic_write(path, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())


def format_summary(summary: dict[str, Any], metrics: Sequence[Metric] = PLANE_METRICS) -> str:
    """The summary as text: the curves, and the BD-rates of the first codec and of all to JPEG."""

    def cell(value: float | None, width: int, digits: int, scale: float = 1) -> str:
        return f"{'-':>{width}}" if value is None else f"{value * scale:{width}.{digits}f}"

    headings = "  ".join(metric.heading for metric in metrics)
    lines = [f"codec    setting     bpp  {headings}  encode ms  decode ms"]
    for codec, curve in summary["curves"].items():
        for point in curve:
            values = (
                cell(point[m.name], len(m.heading) + 1, 4 if m.similarity else 2) for m in metrics
            )
            lines.append(
                f"{codec:<8} {point['setting']:7g} {cell(point['bpp'], 7, 4)} {' '.join(values)} "
                f"{cell(point['encode_seconds'], 10, 1, 1000)} "
                f"{cell(point['decode_seconds'], 10, 1, 1000)}"
            )
    first = next(iter(summary["curves"]))
    shown = [e for e in summary["bd_rates"] if e["codec"] == first or e["anchor"] == "jpeg"]
    width = max(len(metric.name) for metric in metrics)
    if shown:
        heading = f"{'BD-rate':<24} {'metric':<{width}} mean curves   mean of pictures   over dB"
        lines += ["", heading]
    for entry in shown:
        pair = f"{entry['codec']} against {entry['anchor']}"
        span = "-" if entry["low"] is None else f"{entry['low']:.1f}..{entry['high']:.1f}"
        lines.append(
            f"{pair:<24} {entry['metric']:<{width}} {cell(entry['percent'], 9, 2)} % "
            f"{cell(entry['mean_of_pictures'], 16, 2)} %   {span}"
        )
    return "\n".join(lines)
