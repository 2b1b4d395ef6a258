"""What do integers cost the photo codec, and what do they save?

Encodes every picture of a folder in each precision, from real files, and prints BD-rates against
fp32, then the times of whole encodings and decodings of one photograph (least of several rounds,
stages apart), on each SIMD level for the integers, with what the multiply-accumulates alone would
take at the processor's measured int8 peak, and the bytes of the weights.

    python benchmarks/models/precision.py KODAK --json benchmarks/results/precision.json
    python benchmarks/models/precision.py --no-pictures --rounds 20

    python benchmarks/models/precision.py --no-pictures --no-times --erp ERP --json ...

--erp measures the codec for the sphere, too, on equirectangular pictures and in WS-PSNR.

--dynamic measures a model of dynamic widths, as ``pycodec quantize --dynamic`` writes it, beside
the others: its ``mixed`` integers, with what the selectors chose for the synthesis in the files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from skimage import data

from pycodec import _cpu, api
from pycodec.evaluation.bd_rate import bd_rate
from pycodec.evaluation.metrics import psnr
from pycodec.evaluation.sphere import ws_psnr
from pycodec.images import Picture, load_image
from pycodec.models.integer_transforms import PROGRAMS, Convolve, IntegerTransform
from pycodec.models.photo import INTEGER_PRECISIONS, PRECISIONS, load_photo_model
from pycodec.models.zoo import WEIGHTS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models.sphere import HELD_OUT
from ops.measure import int8_peak

QUALITIES = (5.0, 20.0, 35.0, 50.0, 65.0, 80.0, 95.0)
SIZE = (768, 512)
MODEL, SPHERE_MODEL = WEIGHTS / "photo", WEIGHTS / "photo-sphere"


def photograph() -> Picture:
    """scikit-image's coffee cup, scaled."""
    image = Image.fromarray(data.coffee()).resize(SIZE, Image.Resampling.LANCZOS)
    return Picture(np.asarray(image))


def curve(path: Path, precision: str, model: Path = MODEL) -> list[tuple[float, float]]:
    """(bits a pixel of the file, PSNR, on the sphere WS-PSNR) at each quality."""
    pixels = load_image(path).pixels
    points = []
    options = {"precision": precision, "exact_pixels": model not in (MODEL, SPHERE_MODEL)}
    projection, metric = ("erp", ws_psnr) if model == SPHERE_MODEL else ("none", psnr)
    codec = load_photo_model(model, precision=precision)
    for quality in QUALITIES:
        file, _ = api.encode_picture(
            Picture(pixels), quality, model=codec, projection=projection, **options
        )
        decoded, _ = api.decode_picture(file, model=codec, **options)
        bpp = 8 * len(file) / (pixels.shape[0] * pixels.shape[1])
        points.append((bpp, metric(pixels, decoded.pixels)))
    return points


def rate_distortion(
    paths: list[Path],
    precisions: Sequence[str],
    dynamic: Path | None = None,
    model: Path = MODEL,
) -> dict[str, dict]:
    """Against fp32, of precisions and, if there is one, of a dynamic model."""
    wanted = ("fp32", *(p for p in precisions if p != "fp32"))
    curves = {p: {path.name: curve(path, p, model) for path in paths} for p in wanted}
    if dynamic is not None:
        curves["dynamic"] = {path.name: curve(path, "mixed", dynamic) for path in paths}
    return against_fp32(curves, paths)


def against_fp32(
    curves: dict[str, dict[str, list[tuple[float, float]]]], paths: list[Path]
) -> dict[str, dict]:
    """Of the curves of each precision, by the names of pictures."""
    result = {}
    for precision in list(curves)[1:]:
        rates = [bd_rate(curves["fp32"][path.name], curves[precision][path.name]) for path in paths]
        values = [rate.percent for rate in rates if rate is not None]
        result[precision] = {
            "bd_rate_percent": statistics.mean(values),
            "worst_picture_percent": max(values),
            "mean_db_at_quality": {
                str(quality): statistics.mean(
                    curves[precision][path.name][i][1] - curves["fp32"][path.name][i][1]
                    for path in paths
                )
                for i, quality in enumerate(QUALITIES)
            },
        }
    return result


def stage_times(
    picture: Picture, precision: str, rounds: int, threads: int, model: Path = MODEL
) -> dict[str, float]:
    """Least milliseconds of each stage and of the whole."""
    codec = load_photo_model(model, precision=precision)
    projection = "erp" if model == SPHERE_MODEL else "none"
    best: dict[str, float] = {}
    for _ in range(rounds + 1):
        began = time.perf_counter()
        file, encoded = api.encode_picture(
            picture, 50, model=codec, threads=threads, projection=projection
        )
        middle = time.perf_counter()
        _, decoded = api.decode_picture(file, model=codec, threads=threads)
        ended = time.perf_counter()
        times = {f"encode_{k}": v for k, v in encoded.seconds.items()}
        times |= {f"decode_{k}": v for k, v in decoded.seconds.items()}
        times |= {"encode": middle - began, "decode": ended - middle}
        for name, seconds in times.items():
            best[name] = min(best.get(name, seconds), seconds)
    return {name: round(1e3 * seconds, 2) for name, seconds in best.items()}


def byte_products(tensors: dict[str, torch.Tensor], part: str) -> float:
    """Multiply-accumulates of bytes for SIZE: a product of two int16 is four of bytes."""
    own = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
    transform = IntegerTransform(part, own, "reference")
    pixels = SIZE[0] * SIZE[1] / (1 if part == "analysis" else 256)
    positions = {"stem": pixels / 16, "input": pixels}
    total = 0.0
    for step in PROGRAMS[part]:
        layer = getattr(step, "layer", None)
        if not isinstance(step, Convolve):
            positions[layer] = positions.get(getattr(step, "source", "stem"), pixels / 16)
            continue
        outputs = positions[layer] / step.stride**2
        weight = transform._layers[layer]._arguments[0]
        area = weight.shape[1] * weight.shape[2] * transform._layers[layer].in_channels
        planes = 2 if weight.dtype == torch.int16 else 1
        planes *= 2 if transform._input_dtypes[layer] == torch.int16 else 1
        total += outputs * weight.shape[0] * area * planes
        positions[step.to] = outputs * step.upscale**2
    return total


def sizes(dynamic: Path | None) -> dict[str, float]:
    """Bytes of the weights; fp32: all that is trained in 4 bytes a number."""
    stored = safetensors.torch.load_file(MODEL / "model.safetensors")
    entropy = sum(v.nbytes for k, v in stored.items() if k.startswith("entropy."))
    floats = sum(v.numel() for k, v in stored.items() if not k.startswith("entropy."))
    weights = sum(
        v.numel() for k, v in stored.items() if k.startswith("entropy.") and v.dtype == torch.int8
    )
    fp32 = 4 * (floats + weights) + entropy - weights
    result = {"fp32": fp32, "fp32_transforms": 4 * floats, "entropy_model": entropy}
    files = {precision: MODEL / f"{precision}.safetensors" for precision in INTEGER_PRECISIONS}
    if dynamic is not None:
        files["dynamic"] = dynamic / "mixed.safetensors"
    for precision, file in files.items():
        own = file.stat().st_size
        result[f"{precision}_transforms"] = own
        result[precision] = own + entropy
        result[f"{precision}_of_fp32"] = round((own + entropy) / fp32, 4)
        result[f"{precision}_transforms_of_fp32"] = round(own / (4 * floats), 4)
    return result


def on_sphere(options: argparse.Namespace) -> dict[str, object]:
    """BD-rates of pictures that nothing was fitted to, and of all; times of the largest."""
    paths = sorted(p for p in options.erp.iterdir() if p.suffix == ".png")
    curves = {
        precision: {path.name: curve(path, precision, SPHERE_MODEL) for path in paths}
        for precision in PRECISIONS
    }
    held_out = [path for path in paths if path.name in HELD_OUT]
    largest = max((load_image(path) for path in paths), key=lambda p: p.pixels.size)
    return {
        "held_out": against_fp32(curves, held_out) | {"pictures": len(held_out)},
        "all": against_fp32(curves, paths) | {"pictures": len(paths)},
        "size": list(largest.pixels.shape[1::-1]),
        "times_ms": {
            precision: stage_times(
                largest, precision, options.rounds, options.threads, SPHERE_MODEL
            )
            for precision in PRECISIONS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--no-pictures", action="store_true", help="times and sizes alone")
    parser.add_argument(
        "--erp", type=Path, help="folder of equirectangular pictures, for the codec of the sphere"
    )
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument(
        "--precisions",
        nargs="*",
        choices=PRECISIONS,
        default=PRECISIONS,
        help="whose BD-rates to measure; others stay as they are in the results",
    )
    parser.add_argument("--dynamic", type=Path, metavar="MODEL", help="folder of a dynamic model")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write results here, beside what is there")
    options = parser.parse_args()
    if options.folder is None and not options.no_pictures:
        parser.error("a folder of pictures, or --no-pictures")
    results = {}
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())
    results["bytes"] = results.get("bytes", {}) | sizes(options.dynamic)
    if not options.no_times:
        picture, levels = photograph(), _cpu.supported_simd_levels()
        times = {}
        for precision in PRECISIONS:
            used = levels[:1:-1] if precision in INTEGER_PRECISIONS else levels[-1:]
            for level in used:
                _cpu.set_simd_level(level)
                name = f"{precision} {level}"
                times[name] = stage_times(picture, precision, options.rounds, options.threads)
                print(name, times[name], flush=True)
        peak = int8_peak()
        tensors = safetensors.torch.load_file(MODEL / "int8.safetensors")
        macs = {part: byte_products(tensors, part) for part in ("analysis", "synthesis")}
        results |= {
            "times_ms": times,
            "size": list(SIZE),
            "threads": options.threads,
            "byte_products": macs,
            "int8_peak_per_core": peak,
        }
        if peak:
            results["ms_at_vnni_peak"] = {
                k: round(1e3 * v / peak / options.threads, 2) for k, v in macs.items()
            }
    if not options.no_pictures:
        paths = sorted(p for p in options.folder.iterdir() if p.suffix == ".png")
        measured = rate_distortion(paths, options.precisions, options.dynamic)
        rates = results.get("rate_distortion", {})
        results["rate_distortion"] = rates | measured | {"pictures": len(paths)}
    if options.erp is not None:
        results["sphere"] = on_sphere(options)
    print(json.dumps(results, indent=2))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
