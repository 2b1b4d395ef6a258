"""What does the codec for the sphere save on equirectangular (ERP) pictures?

Encodes every picture of a folder with `--projection erp`, with the photo codec as it is, and with
the peers that Pillow has, all from real files, and prints BD-rates of the first against the others
in WS-PSNR and in the PSNR of fourteen viewports, means of the pictures; then its times, and the
error at the former border of a picture that was turned by half, in dB against the unturned one.

    python benchmarks/models/sphere.py ERP --json benchmarks/results/sphere.json
    python benchmarks/models/sphere.py ERP --pictures aframe_lake.png polyhaven_venice_sunset_1k.png
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pycodec import api
from pycodec.evaluation.anchors import TestedCodec, anchor, available_anchors
from pycodec.evaluation.bd_rate import bd_rate
from pycodec.evaluation.sphere import viewport_psnr, ws_psnr
from pycodec.images import Picture, load_image

QUALITIES = (5.0, 15.0, 30.0, 45.0, 60.0, 75.0, 90.0)
PSNR_RANGE = 28.0, 40.0
METRICS = {"ws_psnr": ws_psnr, "viewport_psnr": viewport_psnr}


def pycodec_codec(name: str, projection: str) -> TestedCodec:
    def encode(pixels: np.ndarray, quality: float) -> bytes:
        return api.encode_picture(Picture(pixels), quality, projection=projection)[0]

    def decode(data: bytes) -> np.ndarray:
        return api.decode_picture(data)[0].pixels

    return TestedCodec(name, QUALITIES, encode, decode)


def curve(codec: TestedCodec, pixels: np.ndarray) -> list[dict[str, float]]:
    points = []
    for setting in codec.settings:
        began = time.perf_counter()
        data = codec.encode(pixels, setting)
        middle = time.perf_counter()
        decoded = codec.decode(data)
        ended = time.perf_counter()
        point = {
            "setting": setting,
            "bpp": 8 * len(data) / (pixels.shape[0] * pixels.shape[1]),
            "encode_seconds": middle - began,
            "decode_seconds": ended - middle,
        }
        points.append(point | {name: metric(pixels, decoded) for name, metric in METRICS.items()})
    return points


def seam(codec: TestedCodec, pixels: np.ndarray, quality: float) -> float:
    """PSNR of the eight columns around the border, when it lies inside less when it is a border."""
    half = pixels.shape[1] // 2
    near = np.arange(-4, 4)
    original = pixels[:, near].astype(np.float64)
    errors = []
    for turn in (half, 0):
        decoded = codec.decode(codec.encode(np.roll(pixels, turn, 1), quality))
        errors.append(np.square(np.roll(decoded, -turn, 1)[:, near] - original).mean())
    return 10 * math.log10(errors[1] / errors[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", nargs="*", help="names; default: all")
    parser.add_argument("--no-peers", action="store_true", help="only the photo codec")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    paths = sorted(p for p in args.folder.iterdir() if p.is_file())
    if args.pictures:
        paths = [args.folder / name for name in args.pictures]
    sphere = pycodec_codec("sphere", "erp")
    codecs = [sphere, pycodec_codec("photo", "none")]
    if not args.no_peers:
        codecs += map(anchor, (n for n in available_anchors() if n in ("jpeg", "webp", "avif")))
    print(f"{len(paths)} pictures, {torch.get_num_threads()} threads")
    curves: dict[str, dict[str, list]] = {codec.name: {} for codec in codecs}
    seams = {}
    for path in paths:
        pixels = load_image(path).pixels
        sphere.decode(sphere.encode(pixels, 50.0))  # loads what is loaded once
        for codec in codecs:
            curves[codec.name][path.name] = curve(codec, pixels)
        seams[path.name] = {c.name: round(seam(c, pixels, 50.0), 3) for c in codecs[:2]}
        height, width = pixels.shape[:2]
        times = [
            statistics.median(p[f"{way}_seconds"] for p in curves["sphere"][path.name])
            for way in ("encode", "decode")
        ]
        print(
            f"{path.name:36} {width}x{height}  encode {times[0]:.2f} s  decode {times[1]:.2f} s  "
            f"seam {seams[path.name]['sphere']:+.2f} dB, photo codec "
            f"{seams[path.name]['photo']:+.2f} dB",
            flush=True,
        )
    rates = {}
    for codec in codecs[1:]:
        for metric in METRICS:
            points = {
                name: {
                    picture: [(p["bpp"], p[metric]) for p in curve]
                    for picture, curve in curves[name].items()
                }
                for name in ("sphere", codec.name)
            }
            compare = partial(bd_rate, interval=PSNR_RANGE)
            found = {
                p.name: compare(points[codec.name][p.name], points["sphere"][p.name]) for p in paths
            }
            percents = {name: round(r.percent, 2) for name, r in found.items() if r is not None}
            mean = round(statistics.fmean(percents.values()), 2)
            rates[f"{codec.name}, {metric}"] = {"mean": mean, "pictures": percents}
            print(f"BD-rate against {codec.name:6} in {metric:14} {mean:+7.2f} %  {percents}")
    if args.json:
        report = {"psnr_range": PSNR_RANGE, "bd_rates": rates, "seams_db": seams, "curves": curves}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
