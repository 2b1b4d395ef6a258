"""How small are lossless files, and how long do they take?

Encodes every picture of a folder with every lossless model and with the peers that are installed,
checks that each pixel comes back, and prints mean bits a pixel of whole files and median times of
one picture. Pictures in colour are turned to gray, Y = 0.299 R + 0.587 G + 0.114 B, truncated,
unless ``--colour`` is given. Peers: PNG, WebP, JPEG 2000 from Pillow; ``pip install imagecodecs``
adds JPEG-LS and JPEG XL.

    python benchmarks/models/lossless.py KODAK --json benchmarks/results/lossless.json
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mirroring import gray
from PIL import Image

from pycodec import api
from pycodec.images import Picture, load_image
from pycodec.models.zoo import WEIGHTS, load_model
from pycodec.profiling.machine import describe_machine

Coder = tuple[Callable[[np.ndarray], bytes], Callable[[bytes], np.ndarray]]


def pillow(format: str, **options) -> Coder:
    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format, **options)
        return buffer.getvalue()

    def decode(data: bytes, mode: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)).convert(mode))

    return encode, decode


def peers() -> dict[str, Coder]:
    found = {
        "PNG, optimized": pillow("PNG", optimize=True),
        "WebP": pillow("WEBP", lossless=True, quality=100, method=4),
        "JPEG 2000": pillow("JPEG2000", irreversible=False),
    }
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        def decoder(function: Callable[[bytes], np.ndarray]) -> Callable:
            return lambda data, mode: function(data)

        found["JPEG-LS"] = imagecodecs.jpegls_encode, decoder(imagecodecs.jpegls_decode)
        for effort in (7, 9):
            encode = partial(imagecodecs.jpegxl_encode, lossless=True, effort=effort)
            found[f"JPEG XL, effort {effort}"] = encode, decoder(imagecodecs.jpegxl_decode)
    return found


def model_coder(name: str, threads: int | None) -> Coder:
    model = load_model(name)

    def encode(pixels: np.ndarray) -> bytes:
        options = {"lossless": True, "model": model, "threads": threads}
        return api.encode_picture(Picture(pixels), 100, **options)[0]

    def decode(data: bytes, mode: str) -> np.ndarray:
        return api.decode_picture(data, model=model, threads=threads)[0].pixels

    return encode, decode


def measure(coder: Coder, pictures: list[np.ndarray]) -> dict:
    """Mean bits a pixel of whole files, and the median seconds a picture."""
    encode, decode = coder
    mode = "L" if pictures[0].ndim == 2 else "RGB"
    decode(encode(pictures[0]), mode)  # loads what is loaded once
    sizes, encode_seconds, decode_seconds = [], [], []
    for pixels in pictures:
        began = time.perf_counter()
        data = encode(pixels)
        middle = time.perf_counter()
        decoded = decode(data, mode)
        ended = time.perf_counter()
        if not np.array_equal(decoded, pixels):
            raise SystemExit("a pixel is not what it was")
        sizes.append(8 * len(data) / (pixels.shape[0] * pixels.shape[1]))
        encode_seconds.append(middle - began)
        decode_seconds.append(ended - middle)
    return {
        "bpp": round(statistics.fmean(sizes), 4),
        "encode_seconds": round(statistics.median(encode_seconds), 4),
        "decode_seconds": round(statistics.median(decode_seconds), 4),
        "bpp_of_pictures": [round(size, 4) for size in sizes],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--colour", action="store_true", help="keep the pictures in colour")
    parser.add_argument("--models", nargs="*", help="names or folders; default: all lossless ones")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--pictures", type=int, help="only the first N")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    paths = sorted(p for p in args.folder.iterdir() if p.is_file())[: args.pictures]
    pictures = [load_image(path).pixels for path in paths]
    if not args.colour:
        pictures = [gray(p) for p in pictures]
    names = args.models
    if names is None:
        names = sorted(p.name for p in WEIGHTS.glob("tcae*"))
        if args.colour:
            names = [name for name in names if load_model(name).chroma is not None]
    coders = {} if args.no_peers else peers()
    coders |= {name: model_coder(name, args.threads) for name in names}
    threads = args.threads or torch.get_num_threads()
    print(f"{len(pictures)} pictures, {'colour' if args.colour else 'gray'}, {threads} threads")
    results = {}
    for name, coder in coders.items():
        results[name] = measure(coder, pictures)
        row = results[name]
        print(
            f"{name:22} {row['bpp']:.4f} bpp  encode {row['encode_seconds']:.3f} s  "
            f"decode {row['decode_seconds']:.3f} s",
            flush=True,
        )
    if args.json:
        report = {
            "machine": describe_machine(),
            "pictures": [p.name for p in paths],
            "threads": threads,
            "results": results,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
