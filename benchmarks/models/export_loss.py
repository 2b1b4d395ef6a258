"""What does it cost to export a float network to integers?

Takes the float network of a training run (``pycodec train-lossless``) or a state dict as
``docs/lossless_codec.md`` describes it, and exports it without training it any further: scales from
crops of some pictures, weights rounded together. Prints the code length of pictures that neither
training nor scales have seen (one in 25 of the folder, at their own size): of the float network,
and of the integer network as it codes, by its tables. A run that was trained with rounding is
exported as it is. The peer is rounding each weight to the nearest; nothing to install.

    python benchmarks/models/export_loss.py CHECKPOINT FOLDER [--size tcae] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from mirroring import gray

from pycodec.images import load_image
from pycodec.models.lossless import LosslessCodec
from pycodec.models.lossless_network import (
    ORDERS,
    SIZES,
    LosslessConfig,
    LosslessNetwork,
    bit_planes,
    bits_per_pixel,
)
from pycodec.models.mirroring import wants_mirror
from pycodec.quantization.context import QuantizedNetwork, bit_tables
from pycodec.training.data import list_pictures, split_pictures
from pycodec.training.lossless import load_quantized, to_component

CROP = 96


def load_oriented(path: Path, order: str) -> np.ndarray:
    """In gray, mirrored as the encoder would."""
    pixels = gray(load_image(path).pixels)
    mirrored = order == "slope" and wants_mirror(pixels)
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels


def planes(pictures: list[np.ndarray]) -> torch.Tensor:
    return bit_planes(torch.from_numpy(np.stack(pictures))).float()


def calibration_crops(paths: list[Path], count: int, order: str) -> torch.Tensor:
    rng = np.random.default_rng(0)
    crops = []
    while len(crops) < count:
        pixels = load_oriented(paths[rng.integers(len(paths))], order)
        if min(pixels.shape) >= CROP:
            top, left = (rng.integers(size - CROP + 1) for size in pixels.shape)
            crops.append(pixels[top : top + CROP, left : left + CROP])
    return planes(crops)


def load(path: Path, size: str, order: str) -> QuantizedNetwork:
    state = torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else {}
    if "first.conv.weight" not in state:
        return load_quantized(path)
    network = LosslessNetwork(LosslessConfig(**{**SIZES[size].to_dict(), "order": order}))
    network.load_state_dict(state)
    return QuantizedNetwork(network)


def integer_rate(quantized: QuantizedNetwork, pictures: list[np.ndarray]) -> float:
    codec = LosslessCodec(to_component(quantized), None, bit_tables(), b"exported")
    rates = [
        codec.compress(p, adapt=False, code_length=True).code_length_bits / p.size for p in pictures
    ]
    return float(np.mean(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="run folder, checkpoint, or state dict")
    parser.add_argument("folder", type=Path, help="of pictures")
    parser.add_argument("--size", choices=tuple(SIZES), default="tcae", help="of a state dict")
    parser.add_argument("--order", choices=ORDERS, default="slope", help="of a state dict")
    parser.add_argument("--crops", type=int, default=48, help="for the scales and the rounding")
    parser.add_argument("--largest", type=int, default=512, help="side of what is coded of each")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    quantized = load(args.checkpoint, args.size, args.order)
    order = quantized.network.config.order
    training, held = split_pictures(list_pictures(args.folder), 25)
    pictures = [load_oriented(path, order)[: args.largest, : args.largest] for path in held]
    with torch.inference_mode():
        found = [bits_per_pixel(quantized.network(b), b).item() for b in map(planes, zip(pictures))]
    rates = {"floats": float(np.mean(found))}
    if quantized.enabled:
        rates["integers, trained with rounding"] = integer_rate(quantized, pictures)
    else:
        began = time.perf_counter()
        crops = calibration_crops(training, args.crops, order)
        quantized.calibrate(crops)
        rates["integers, each weight to the nearest"] = integer_rate(quantized, pictures)
        quantized.round_weights(crops)
        rates["integers, weights rounded together"] = integer_rate(quantized, pictures)
        print(f"{time.perf_counter() - began:.0f} s")
    print(f"{len(pictures)} pictures")
    for name, rate in rates.items():
        print(f"{name:40} {rate:.4f} bpp  {rate / rates['floats'] - 1:+.2%}")
    if args.json:
        args.json.write_text(json.dumps(rates, indent=1) + "\n")


if __name__ == "__main__":
    main()
