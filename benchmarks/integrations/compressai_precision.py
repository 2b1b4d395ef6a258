"""What do integers cost the models that were converted from CompressAI, and what do they save?

Rates, with ``--models`` of ``pycodec quantize`` and ``--pictures``: bytes and PSNR of real files in
float32 and in integers, and the loss that such models are trained for: bits a pixel and
``--weight`` times the squared error. Times: of the transforms at 768x512, all architectures with
random weights (what takes time depends on widths and sizes), weights of 12 bits and of 8.

CompressAI itself is not needed.

    python benchmarks/integrations/compressai_precision.py --json \
        benchmarks/results/compressai_precision.json --models runs/mbt2018 --pictures KODAK
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data

from pycodec import _cpu, api
from pycodec.evaluation.metrics import psnr
from pycodec.images import load_image
from pycodec.models.hyperprior import export_entropy_model
from pycodec.models.hyperprior_codec import (
    load_hyperprior_model,
    save_hyperprior_model,
)
from pycodec.models.hyperprior_network import HyperpriorNetwork
from pycodec.models.photo import save_integers
from pycodec.quantization.hyperprior import WEIGHT_BITS, HyperpriorCalibration

SIZE = (768, 512)
WIDTHS = {
    "bmshj2018-factorized": (128, 192),
    "bmshj2018-hyperprior": (128, 192),
    "mbt2018-mean": (128, 192),
    "mbt2018": (192, 192),
    "cheng2020-anchor": (128, 128),
    "cheng2020-attn": (128, 128),
    "elic2022-official": (192, 320),
}
"""Of quality 3, as compressai.zoo has them, ELIC's its own. Those that are not here have the same
transforms: the checkerboard model those of the anchor, the second ELIC those of the first."""


def photograph() -> np.ndarray:
    """scikit-image's coffee cup, scaled."""
    image = Image.fromarray(data.coffee()).resize(SIZE, Image.Resampling.LANCZOS)
    return np.asarray(image)


def random_models(architecture: str, root: Path) -> dict[str, Path]:
    """Folders with weights of each width, made unless they are there: making takes its time."""
    folders = {f"int8, {bits}": root / f"{architecture}-{bits}" for bits in WEIGHT_BITS}
    if all(folder.exists() for folder in folders.values()):
        return folders
    torch.manual_seed(0)
    network = HyperpriorNetwork(architecture, *WIDTHS[architecture]).eval().requires_grad_(False)
    entropy = export_entropy_model(network, torch.rand(1, 3, 128, 128))
    calibration = None
    for folder, bits in zip(folders.values(), WEIGHT_BITS, strict=True):
        save_hyperprior_model(folder, network, entropy)
        if calibration is None:
            crop = photograph()[128:256, 256:384].copy()
            calibration = HyperpriorCalibration(load_hyperprior_model(folder), [crop])
        layers = dict.fromkeys(calibration.multiplications(), bits)
        save_integers(folder, "int8", calibration.export(layers))
    return folders


def measure_times(architecture: str, root: Path, rounds: int, threads: int) -> dict:
    """Least milliseconds of the transforms: g_a and h_a, and g_s."""
    picture, row = photograph(), {"model": architecture}
    folders = random_models(architecture, root)
    codecs = {k: load_hyperprior_model(v, precision="int8") for k, v in folders.items()}
    codecs["fp32"] = load_hyperprior_model(next(iter(folders.values())))
    for name, codec in codecs.items():
        best = {"analysis": float("inf"), "synthesis": float("inf")}
        for _ in range(rounds):
            coded = codec.compress(picture, threads=threads)
            seconds = dict(coded.seconds)
            codec.decompress(
                coded.streams, *SIZE, coded.quality_code, threads=threads, seconds=seconds
            )
            best = {stage: min(ms, 1e3 * seconds[stage]) for stage, ms in best.items()}
        row[name] = {stage: round(ms, 1) for stage, ms in best.items()}
    print(json.dumps(row), flush=True)
    return row


def measure_rate(folder: Path, pictures: list[Path], weight: float) -> dict:
    """Bytes of files, mean PSNR and training loss of both precisions."""
    row: dict = {"model": folder.name, "pictures": len(pictures)}
    for precision in ("fp32", "int8"):
        codec = load_hyperprior_model(folder, precision=precision)
        total, errors, qualities, pixels = 0, 0.0, [], 0
        for path in pictures:
            picture = load_image(path)
            file, _ = api.encode_picture(picture, 50, model=codec)
            decoded = api.decode_picture(file, model=codec)[0].pixels
            total += len(file)
            errors += float(np.square(picture.pixels.astype(float) - decoded).mean(2).sum())
            pixels += picture.width * picture.height
            qualities.append(psnr(picture.pixels, decoded))
        row[precision] = {
            "bytes": total,
            "bpp": 8 * total / pixels,
            "psnr": float(np.mean(qualities)),
            "loss": (8 * total + weight * errors) / pixels,
        }
    for name in ("bytes", "loss"):
        row[f"{name}_percent"] = 100 * (row["int8"][name] / row["fp32"][name] - 1)
    row["psnr_db"] = row["int8"]["psnr"] - row["fp32"]["psnr"]
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", nargs="*", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--random", type=Path, help="where models of random weights are kept")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="folders, for the rates")
    parser.add_argument("--pictures", type=Path, help="folder")
    parser.add_argument("--count", type=int, default=24, help="of these pictures")
    parser.add_argument("--set", help="a name for these pictures (default: the folder's)")
    parser.add_argument("--weight", type=float, default=0.0067, help="of the squared error")
    parser.add_argument("--json", type=Path, help="parts that this run leaves out are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = {}
    if arguments.json and arguments.json.exists():
        report = json.loads(arguments.json.read_text())
    report |= {
        "torch": torch.__version__,
        "threads": arguments.threads,
        "simd_level": _cpu.simd_level(),
    }

    def save() -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=2) + "\n")

    times = {row["model"]: row for row in report.get("times_ms", [])}
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.random or Path(temporary)
        for architecture in arguments.times:
            times[architecture] = measure_times(
                architecture, root, arguments.rounds, arguments.threads
            )
            report["times_ms"] = [times[name] for name in WIDTHS if name in times]
            save()
    if arguments.pictures:
        files = sorted(arguments.pictures.iterdir())[: arguments.count]
        name = arguments.set or arguments.pictures.resolve().name
        rows = {(row["model"], row["set"]): row for row in report.get("rates", [])}
        for folder in arguments.models:
            rows[folder.name, name] = {
                "set": name,
                **measure_rate(folder, files, arguments.weight),
            }
            report["rates"] = [rows[key] for key in sorted(rows)]
            save()


if __name__ == "__main__":
    main()
