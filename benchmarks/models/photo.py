"""How fast is the photo codec, and where does the time go?

Encodes and decodes one photograph, pixels to bytes and bytes to pixels, model loaded, and prints
the median time of each stage. The photograph is one that scikit-image ships, scaled to size.

Peers are in ``pycodec eval``; ``pip install '.[demo]'`` for the photograph.

    python benchmarks/models/photo.py --size 768x512 --quality 20 50 80
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data

from pycodec import api
from pycodec.images import Picture


def photograph(width: int, height: int) -> np.ndarray:
    """scikit-image's coffee cup (600x400), scaled: uint8 [height, width, 3]."""
    image = Image.fromarray(data.coffee())
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def measure(picture: Picture, quality: float, args: argparse.Namespace) -> dict[str, float]:
    """Medians over ``args.rounds``: milliseconds by stage, file size, overhead of the file."""
    options = {"model": args.model, "threads": args.threads, "device": args.device}
    encode_ms: list[dict[str, float]] = []
    decode_ms: list[dict[str, float]] = []
    for _ in range(args.rounds + args.warmup):
        began = time.perf_counter()
        file, encoded = api.encode_picture(picture, quality, **options)
        middle = time.perf_counter()
        _, decoded = api.decode_picture(file, **options)
        ended = time.perf_counter()
        encode_ms.append({**encoded.seconds, "total": middle - began})
        decode_ms.append({**decoded.seconds, "total": ended - middle})
    result = {"quality": quality, "bytes": len(file)}
    for name, rows in (("encode", encode_ms), ("decode", decode_ms)):
        for stage in rows[0]:
            values = [1e3 * row[stage] for row in rows[args.warmup :]]
            result[f"{name}_{stage}_ms"] = round(statistics.median(values), 2)
    _, encoded = api.encode_picture(picture, quality, code_length=True, **options)
    result["overhead_bytes"] = round(len(file) - encoded.code_length_bits / 8, 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="768x512")
    parser.add_argument("--quality", type=float, nargs="+", default=[20, 50, 80])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device")
    parser.add_argument("--model")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    picture = Picture(photograph(width, height))
    threads = args.threads or torch.get_num_threads()
    print(f"{width}x{height}, {threads} threads, medians of {args.rounds}")
    rows = [measure(picture, quality, args) for quality in args.quality]
    for row in rows:
        print("  ".join(f"{key} {value:g}" for key, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
