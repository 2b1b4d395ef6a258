"""Does a GPU encode gray video without loss as fast as it comes?

A made picture in gray, pixels in memory to a file's bytes and back, by the packaged model; the time
is that of whole calls, which end on the host. Tiles are coded side by side, a warp each, so small
tiles and many lanes are fast, and cost bytes. Heads are not fitted (``adapt=False``), as that is
the processor's work. Bytes must be those that the processor writes, which is the peer; nothing to
install.

    python benchmarks/models/lossless_cuda.py [--sizes 768x512 1080p] [--model tcae-fast]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mirroring import gray

from pycodec.models.lossless import LosslessCodec, load_lossless_model
from pycodec.models.zoo import WEIGHTS
from pycodec.profiling.bench import made_picture, parse_size

WAYS = ((10, None), (9, 64), (8, 64))
"""Of encoding: log2 of the tiles' side, and lanes."""


@dataclass(frozen=True)
class Result:
    device: str
    model: str
    size: str
    tile: int
    lanes: int | None  # None: as many as the encoder chooses
    bytes: int
    sha256: str  # of all streams
    encode_ms: float
    frames_per_second: float
    decode_ms: float


def milliseconds(call: Callable[[], object], runs: int) -> float:
    """Median of some runs."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def measure(codec: LosslessCodec, device: str, size: str, runs: int) -> Iterator[Result]:
    width, height = parse_size(size)
    pixels = gray(made_picture(width, height).pixels)
    for tile_log2, lanes in WAYS:
        options = {"tile_log2": tile_log2, "lanes": lanes, "adapt": False}

        def encode(options=options) -> list[bytes]:
            return codec.compress(pixels, **options).streams

        def decode(streams: list[bytes], tile_log2=tile_log2):
            return codec.decompress(streams, width, height, gray=True, tile_log2=tile_log2)

        streams = encode()  # the first runs do not count
        if (decode(streams) != pixels).any():
            raise AssertionError("decoded other pixels")
        encoding = milliseconds(encode, runs)
        yield Result(
            device,
            codec.name,
            size,
            1 << tile_log2,
            lanes,
            sum(map(len, streams)),
            hashlib.sha256(b"".join(streams)).hexdigest(),
            encoding,
            1e3 / encoding,
            milliseconds(lambda streams=streams: decode(streams), runs),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["768x512", "1080p"])
    parser.add_argument("--model", default="tcae-fast")
    parser.add_argument("--runs", type=int, default=5, help="on the GPU; on the processor one")
    parser.add_argument("--devices", nargs="+", choices=("cuda", "cpu"), default=["cuda", "cpu"])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    if "cuda" in args.devices and not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    results: list[Result] = []
    for size in args.sizes:
        for device in args.devices:
            codec = load_lossless_model(WEIGHTS / args.model, device=device)
            name = torch.cuda.get_device_name() if device == "cuda" else device
            for r in measure(codec, name, size, args.runs if device == "cuda" else 1):
                print(
                    f"{r.size:>10} {r.device:24} tiles of {r.tile:4}, lanes {r.lanes or 'few':>3}: "
                    f"encode {r.encode_ms:8.2f} ms ({r.frames_per_second:6.1f} a second), "
                    f"decode {r.decode_ms:8.2f} ms, {r.bytes} bytes",
                    flush=True,
                )
                results.append(r)
        if len({r.sha256 for r in results if r.size == size}) > len(WAYS):
            raise AssertionError("the GPU's bytes are not the processor's")
        if args.json:  # after each size, lest time runs out
            args.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
