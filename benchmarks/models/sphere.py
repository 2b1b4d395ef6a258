"""What does the codec for the sphere save on equirectangular (ERP) pictures?

Encodes every picture of a folder with `--projection erp`, with the photo codec as it is, with the
former and the photo codec's weights ("untuned"), and with the peers that Pillow has, all from real
files. BD-rates of the first against the others are in WS-PSNR and in the PSNR of fourteen
viewports. Where errors lie, the first two tell at equal size of their files: by latitude, and in
the columns around the border, against the same columns of a picture that was turned by half, in
which they lie inside. Both are means over pictures that were turned in eight steps all around: one
border alone says more about what lies there.

Results go to a file as they come, and what it holds already is not measured again, unless a model's
weights have changed: the command may be stopped, and run again.

Peers: JPEG, WebP and AVIF come with Pillow; ``pip install '.[eval]'`` for BD-rates.

    python benchmarks/models/sphere.py ERP --json benchmarks/results/sphere.json --minutes 4
    python benchmarks/models/sphere.py ERP --json benchmarks/results/sphere.json --times
    python benchmarks/models/sphere.py --json benchmarks/results/sphere.json \\
        --plot docs/images/sphere.png
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pycodec import api
from pycodec.evaluation.anchors import TestedCodec, anchor
from pycodec.evaluation.bd_rate import bd_rate
from pycodec.evaluation.evaluate import pycodec_under_test
from pycodec.evaluation.sphere import row_weights, viewport_psnr, ws_psnr
from pycodec.images import Picture, atomic_write, load_image
from pycodec.models.zoo import DEFAULT_MODEL, DEFAULT_SPHERE_MODEL, load_model
from pycodec.projection.grid import SphereGrid
from pycodec.projection.viewport import Viewport
from pycodec.rate_control import encode_to_bpp

HELD_OUT = ("aframe_lake.png", "polyhaven_venice_sunset_1k.png")
"""Pictures that had no part in setting the encoder's constant."""

OURS = {
    "sphere": {"projection": "erp", "model": DEFAULT_SPHERE_MODEL},
    "photo": {"projection": "none", "model": DEFAULT_MODEL},
    "untuned": {"projection": "erp", "model": DEFAULT_MODEL},
}
PEERS = ("jpeg", "webp", "avif")
QUALITIES = (5.0, 15.0, 30.0, 45.0, 60.0, 75.0, 90.0)
PSNR_RANGE = 28.0, 40.0
METRICS = {"ws_psnr": ws_psnr, "viewport_psnr": viewport_psnr}
QUALITY = 50.0
"""Of the photo codec, where errors are looked at more closely."""
LOOKED_AT = "photo", "sphere"
COLUMNS = 32
"""At each side of the border."""
PLACES = 8
"""Of the border, evenly around the picture. An even number."""
LATITUDES = 32
REPEATS = 5
"""Of timed work; the fastest counts, on machines with other work to do."""
VIEWS = {
    "ahead, 90 degrees": Viewport(0, 0, 90, 640, 480),
    "ahead, 50 degrees": Viewport(0, 0, 50, 640, 480),
    "up, 90 degrees": Viewport(0, 90, 90, 640, 480),
}


def codec_of(name: str) -> TestedCodec:
    if name in PEERS:
        return anchor(name)
    return pycodec_under_test(QUALITIES, name=name, **OURS[name])


def curve(codec: TestedCodec, pixels: np.ndarray) -> list[dict[str, float]]:
    points = []
    for setting in codec.settings:
        data = codec.encode(pixels, setting)
        decoded = codec.decode(data)
        point = {"setting": setting, "bpp": 8 * len(data) / (pixels.shape[0] * pixels.shape[1])}
        points.append(point | {name: metric(pixels, decoded) for name, metric in METRICS.items()})
    return points


def where_errors_lie(name: str, pixels: np.ndarray) -> dict[str, Any]:
    """Mean squared errors of a codec, by latitude and around the border.

    At ``QUALITY`` of the photo codec; at that of the codec for the sphere whose file is as large.
    """
    codec, quality = codec_of(name), QUALITY
    if name == "sphere":
        photo = codec_of("photo").encode(pixels, QUALITY)
        bpp = 8 * len(photo) / (pixels.shape[0] * pixels.shape[1])
        quality = encode_to_bpp(Picture(pixels), bpp, partial(codec.encode, pixels)).quality
    near = np.arange(-COLUMNS, COLUMNS)
    half = pixels.shape[1] // 2
    weights = row_weights(len(pixels))
    rows, border, inside = [], [], []
    for place in range(PLACES):
        turned = np.roll(pixels, -(place * pixels.shape[1] // PLACES), 1)
        decoded = codec.decode(codec.encode(turned, quality))
        error = np.square(decoded.astype(np.float64) - turned).mean(axis=2)
        rows.append(error.mean(axis=1))
        columns = np.average(error, axis=0, weights=weights)
        border.append(columns[near])
        inside.append(columns[near + half])
    # What is at the border is in the middle of the picture that is turned by half.
    inside = np.roll(inside, PLACES // 2, 0)
    latitudes = np.array_split(np.mean(rows, axis=0), LATITUDES)
    return {
        "quality": quality,
        "latitudes": [round(row.mean(), 3) for row in latitudes],
        "border": np.mean(border, axis=0).round(3).tolist(),
        "inside": np.mean(inside, axis=0).round(3).tolist(),
        "places_db": [
            round(10 * math.log10(eight(a) / eight(b)), 3)
            for a, b in zip(border, inside, strict=True)
        ],
    }


def fastest(work: Callable[[], object]) -> float:
    work()
    return min(seconds_of(work) for _ in range(REPEATS))


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def padding_seconds(work: Callable[[], object]) -> tuple[float, float]:
    """What padding floats and integers on the sphere takes, of the fastest run."""
    pad = SphereGrid.pad
    spent = [0.0, 0.0]

    def timed(grid: SphereGrid, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        began = time.perf_counter()
        padded = pad(grid, x, *args, **options)
        spent[not x.is_floating_point()] += time.perf_counter() - began
        return padded

    def run() -> tuple[float, float]:
        spent[:] = 0.0, 0.0
        work()
        return spent[0], spent[1]

    with mock.patch.object(SphereGrid, "pad", timed):
        return min((run() for _ in range(REPEATS)), key=sum)


def times(pixels: np.ndarray) -> dict[str, float]:
    """Seconds, the least of several: files and views of the codec for the sphere."""
    picture = Picture(pixels)
    encode = partial(api.encode_picture, picture, QUALITY, projection="erp")
    data, _ = encode()
    decode = partial(api.decode_picture, data)
    result = {}
    for name, work in (("encode", encode), ("decode", decode)):
        result[name] = fastest(work)
        floats, integers = padding_seconds(work)
        result |= {f"{name}, of it padding": floats + integers, f"{name}, integers": integers}
    whole = decode()[0].pixels
    for name, view in VIEWS.items():
        result[f"view {name}"] = fastest(partial(api.view, data, view))
        result[f"of it drawing {name}"] = fastest(partial(view.render, whole))
    return {name: round(seconds, 4) for name, seconds in result.items()}


def missing(
    paths: list[Path], known: dict, models: dict[str, str], with_times: bool
) -> Iterator[tuple[Path, str, str, Callable[[np.ndarray], object]]]:
    """What is still to be measured with these models: picture, kind, name, how."""
    for path in paths:
        found = known.setdefault(path.name, {})
        before = found.get("models", {})
        curves, errors = found.setdefault("curves", {}), found.setdefault("errors", {})
        for name, fingerprint in models.items():
            if before.get(name) != fingerprint:
                curves.pop(name, None)
                errors.pop(name, None)
                if name == "photo":  # by which the other's quality was chosen
                    errors.pop("sphere", None)
                found.pop("times", None)
        found["models"] = models
        if with_times:
            yield path, "", "times", times
            continue
        for name in (*OURS, *PEERS):
            if name not in found["curves"]:
                yield path, "curves", name, lambda pixels, name=name: curve(codec_of(name), pixels)
        for name in LOOKED_AT:
            if name not in errors:
                yield path, "errors", name, partial(where_errors_lie, name)


def summarize(pictures: dict[str, dict]) -> tuple[dict, dict]:
    """BD-rates, and what the columns around the border lose, in dB."""

    def mean(percents: dict[str, float], names: tuple[str, ...] | None = None) -> float | None:
        chosen = [p for name, p in percents.items() if names is None or name in names]
        return round(statistics.fmean(chosen), 2) if chosen else None

    rates = {}
    for other in ("photo", "untuned", *PEERS):
        for metric in METRICS:
            percents = {}
            for name, found in pictures.items():
                curves = found.get("curves", {})
                if not {"sphere", other} <= curves.keys():
                    continue
                points = [
                    [(p["bpp"], p[metric]) for p in curves[codec]] for codec in (other, "sphere")
                ]
                rate = bd_rate(*points, PSNR_RANGE)
                if rate is not None:
                    percents[name] = round(rate.percent, 2)
            rates[f"{other}, {metric}"] = {
                "held_out": mean(percents, HELD_OUT),
                "all": mean(percents),
                "pictures": percents,
            }
    seams = {
        name: {
            codec: round(10 * math.log10(eight(errors["border"]) / eight(errors["inside"])), 3)
            for codec, errors in found["errors"].items()
        }
        for name, found in pictures.items()
        if found.get("errors")
    }
    return rates, seams


def eight(columns: Sequence[float]) -> float:
    """Mean of the eight columns around the border."""
    return statistics.fmean(columns[COLUMNS - 4 : COLUMNS + 4])


def plot(pictures: dict[str, dict], path: Path) -> None:
    """Where errors lie, means of the pictures in dB."""
    from matplotlib.figure import Figure

    found = [e for p in pictures.values() if set(e := p.get("errors", {})) >= set(LOOKED_AT)]
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    border, latitude = figure.subplots(1, 2)
    styles = {"photo": ("#9d4edd", "photo codec"), "sphere": ("#c1121f", "codec for the sphere")}
    for name, (colour, label) in styles.items():
        ratios = [10 * np.log10(np.divide(e[name]["border"], e[name]["inside"])) for e in found]
        columns = np.arange(-COLUMNS, COLUMNS) + 0.5
        border.plot(columns, np.mean(ratios, axis=0), color=colour, label=label, linewidth=1.8)
        psnrs = [10 * np.log10(255**2 / np.array(e[name]["latitudes"])) for e in found]
        middles = 90 - (np.arange(LATITUDES) + 0.5) * 180 / LATITUDES
        latitude.plot(middles, np.mean(psnrs, axis=0), color=colour, label=label, linewidth=1.8)
    border.axhline(0, color="gray", linewidth=0.8)
    border.set_xlabel("columns from the border of the picture")
    border.set_ylabel("squared error against a turned picture, dB")
    border.set_title("At the border, where the picture meets itself")
    latitude.set_xlabel("latitude, degrees")
    latitude.set_ylabel("PSNR of these rows, dB")
    latitude.set_title("From pole to pole, files of equal size")
    latitude.set_xticks(range(-90, 91, 30))
    for axes in (border, latitude):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Mean of {len(found)} pictures, quality {QUALITY:g}")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--json", type=Path, required=True, help="results: taken up, and written")
    parser.add_argument("--pictures", nargs="*", help="names; default: all")
    parser.add_argument("--minutes", type=float, help="begin nothing new after that time")
    parser.add_argument("--times", action="store_true", help="measure times, and only these")
    parser.add_argument("--plot", type=Path, help="draw where errors lie to this PNG file")
    args = parser.parse_args()
    began = time.monotonic()
    pictures = json.loads(args.json.read_text())["pictures"] if args.json.exists() else {}
    paths = sorted(p for p in args.folder.iterdir() if p.is_file()) if args.folder else []
    if args.pictures:
        paths = [path for path in paths if path.name in args.pictures]
    models = {n: load_model(options["model"]).fingerprint.hex() for n, options in OURS.items()}
    work = list(missing(paths, pictures, models, args.times))
    for done, (path, kind, name, measure) in enumerate(work):
        if args.minutes is not None and time.monotonic() - began > 60 * args.minutes:
            print(f"{len(work) - done} of {len(work)} measurements are left: run it again")
            break
        pixels = load_image(path).pixels
        started = time.monotonic()
        found = pictures[path.name]
        found["size"] = list(pixels.shape[1::-1])
        (found[kind] if kind else found)[name] = measure(pixels)
        print(f"{path.name:36} {kind} {name}: {time.monotonic() - started:.1f} s", flush=True)
        save(pictures, args.json)
    rates, seams = summarize(pictures)
    for name, rate in rates.items():
        print(f"BD-rate against {name:22} held out {rate['held_out']} %, all {rate['all']} %")
        print(f"    {rate['pictures']}")
    for name, losses in seams.items():
        print(f"{name:36} at the border {losses} dB")
    for name, found in pictures.items():
        if "times" in found:
            print(f"{name:36} {found['times']}, {torch.get_num_threads()} threads")
    save(pictures, args.json)
    if args.plot:
        plot(pictures, args.plot)


def save(pictures: dict[str, dict], path: Path) -> None:
    rates, seams = summarize(pictures)
    report = {
        "psnr_range": PSNR_RANGE,
        "held_out": HELD_OUT,
        "bd_rates": rates,
        "seams_db": seams,
        "pictures": pictures,
    }
    atomic_write(path, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
