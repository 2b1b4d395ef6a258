"""What does coding pictures mirrored save, and is the right way round chosen?

Codes each picture, turned to gray, both ways round with each model in slope order, and prints the
whole tiles' bytes: as it is, mirrored, and as the encoder chooses. Of the photographs of
scikit-image, or of those of a folder. The peer is the same codec without the choice; nothing to
install.

    python benchmarks/models/mirroring.py [FOLDER] [--models tcae tcae-fast] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from skimage import data

from pycodec.images import load_image
from pycodec.models import lossless
from pycodec.models.zoo import load_model
from pycodec.training.lossless import to_gray

PHOTOGRAPHS = ("camera", "astronaut", "chelsea", "coffee", "rocket")


def gray(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2:
        return pixels
    return to_gray(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0].numpy()


def coded_bytes(codec: lossless.LosslessCodec, pixels: np.ndarray, mirrored: bool | None) -> int:
    """Of all tiles; None: as the encoder chooses."""
    chosen = lossless.wants_mirror if mirrored is None else lambda component: mirrored
    with mock.patch.object(lossless, "wants_mirror", chosen):
        return sum(map(len, codec.compress(pixels).streams))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--models", nargs="+", default=["tcae", "tcae-fast"])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    if args.folder:
        paths = sorted(p for p in args.folder.iterdir() if p.is_file())
        pictures = {path.name: gray(load_image(path).pixels) for path in paths}
    else:
        pictures = {name: gray(getattr(data, name)()) for name in PHOTOGRAPHS}
    results = {}
    for model in args.models:
        codec = load_model(model)
        rows = {}
        for name, pixels in pictures.items():
            rows[name] = [coded_bytes(codec, pixels, how) for how in (False, True, None)]
            print(f"{model:10} {name:30} {rows[name]}", flush=True)
        rates = [[8 * size / pictures[name].size for size in row] for name, row in rows.items()]
        as_is, _, chosen = np.mean(rates, axis=0)
        right = sum(min(row[:2]) == row[2] for row in rows.values())
        print(
            f"{model:10} {as_is:.4f} -> {chosen:.4f} bpp ({100 * (chosen / as_is - 1):+.2f} %), "
            f"right {right} of {len(rows)}"
        )
        results[model] = {"as_is_mirrored_chosen_bytes": rows, "bpp": [as_is, chosen]}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
