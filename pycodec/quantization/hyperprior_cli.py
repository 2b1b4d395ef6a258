"""``pycodec quantize`` for models that were converted from CompressAI."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from pycodec.errors import InputError
from pycodec.evaluation.metrics import psnr
from pycodec.models.hyperprior_codec import KIND, HyperpriorCodec, load_hyperprior_model
from pycodec.models.model_folder import read_model_folder, write_model_folder
from pycodec.models.photo import save_integers
from pycodec.profiling.spans import LAYER, Recorder
from pycodec.quantization.hyperprior import HyperpriorCalibration
from pycodec.quantization.recipe import calibration_pictures
from pycodec.quantization.report import LayerReport, weight_bytes, write_report
from pycodec.quantization.transforms import model_bytes

PRECISION = "int8"
_JUDGED = 4
"""Pictures for what rounding does to files and pixels."""

_REPEATS = 5


def run(args: argparse.Namespace, folder: Path) -> None:
    """Quantize the model of a folder.

    Raises:
        InputError: an option asks for training, or is at fault.
    """
    _check(args, folder.name)
    codec = load_hyperprior_model(folder)
    calibration = HyperpriorCalibration(codec, calibration_pictures(args.calibrate, args.pictures))
    pictures = calibration_pictures(args.calibrate, _JUDGED)
    shares = calibration.sensitivity(pictures)
    bits = calibration.choose_bits(shares)
    tensors = calibration.export(bits)
    integer_codec = _write(folder, args.out, tensors)
    _say(_change(codec, integer_codec, pictures))
    if args.report is not None:
        times = _layer_milliseconds(integer_codec, pictures[0])
        write_report(args.report, _rows(calibration, bits, shares, times))
        _say(f"wrote the report to {args.report}")


def _check(args: argparse.Namespace, name: str) -> None:
    if args.pictures < 1:
        raise InputError("--pictures is a count")
    asked = {
        "--dynamic": args.dynamic,
        "--finetune": args.finetune != 0,
        "--mean-bits": args.mean_bits is not None,
    }
    for option, is_asked in asked.items():
        if is_asked:
            raise InputError(
                f"{option} is for photo models: {name} was trained outside of pycodec, which "
                "chooses between 12 and 8 bits for its layers, and does not train them"
            )


def _write(folder: Path, out: Path, tensors: dict[str, Tensor]) -> HyperpriorCodec:
    """Add integers to a copy of the model, or to the model itself; returns what was written."""
    if out.resolve() != folder.resolve():
        description, weights = read_model_folder(folder, KIND)
        write_model_folder(out, KIND, weights, description["config"])
    save_integers(out, PRECISION, tensors)
    codec = load_hyperprior_model(out, precision=PRECISION)
    _say(f"{model_bytes(tensors)} bytes of integers")
    _say(f"wrote {out}; use it with --model {out} --precision {PRECISION}")
    return codec


def _change(before: HyperpriorCodec, after: HyperpriorCodec, pictures: Sequence[np.ndarray]) -> str:
    sizes, qualities = [0, 0], [0.0, 0.0]
    for picture in pictures:
        for i, codec in enumerate((before, after)):
            coded = codec.compress(picture)
            height, width = picture.shape[:2]
            decoded = codec.decompress(coded.streams, width, height, coded.quality_code)
            sizes[i] += sum(map(len, coded.streams))
            qualities[i] += psnr(picture, decoded) / len(pictures)
    percent = 100 * (sizes[1] / sizes[0] - 1)
    return (
        f"on {len(pictures)} pictures: bytes {percent:+.2f} %, PSNR "
        f"{qualities[1] - qualities[0]:+.3f} dB"
    )


def _layer_milliseconds(codec: HyperpriorCodec, picture: np.ndarray) -> dict[str, float]:
    """Time of each layer on a picture, the best of five."""
    best: dict[str, float] = {}
    height, width = picture.shape[:2]
    for _ in range(_REPEATS):
        with Recorder() as recorder:
            coded = codec.compress(picture)
            codec.decompress(coded.streams, width, height, coded.quality_code)
        times: dict[str, float] = {}
        for span in recorder.spans:
            if span.kind == LAYER:
                times[span.name] = times.get(span.name, 0.0) + 1e3 * span.seconds
        best = {name: min(best.get(name, math.inf), ms) for name, ms in times.items()}
    return best


def _rows(
    calibration: HyperpriorCalibration,
    bits: Mapping[str, int],
    shares: Mapping[str, Mapping[int, float]],
    milliseconds: Mapping[str, float],
) -> list[LayerReport]:
    rows = []
    for name, macs in calibration.multiplications().items():
        weights = calibration.network.get_submodule(name).weight.numel()
        rows.append(
            LayerReport(
                name,
                {bits[name]: 1},
                dict(shares.get(name, {})),
                macs,
                weights,
                weight_bytes(weights, bits[name]),
                milliseconds.get(name),
            )
        )
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr)
