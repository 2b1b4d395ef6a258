"""How fast do batches of .lci files decode?

Pictures a second of 768x512 crops of photographs that scikit-image ships, quality 50, from bytes in
memory to tensors: one after the other with all threads in each (``pycodec.decode``), a thread a
picture (``BatchDecoder``), and worker processes of a ``DataLoader``. Medians of a few rounds.

Peer: the three ways of each other; ``pip install '.[demo]'`` for the photographs.

    python benchmarks/integrations/dataset.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from skimage import data
from torch.utils.data import DataLoader

import pycodec
from pycodec.integrations.dataset import BatchDecoder, LciFiles


def pictures(count: int) -> list[np.ndarray]:
    whole = [np.tile(p, (2, 2, 1)) for p in (data.astronaut(), data.coffee(), data.rocket())]
    return [
        np.ascontiguousarray(p[i * 8 : i * 8 + 512, i * 8 : i * 8 + 768])
        for i in range(count)
        for p in [whole[i % len(whole)]]
    ]


def report(name: str, decode: Callable[[], object], count: int, rounds: int) -> None:
    """Print pictures a second, after one warm-up."""
    decode()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        decode()
        times.append(time.perf_counter() - start)
    print(f"{name:<40} {count / statistics.median(times):6.1f} pictures/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    threads, count = torch.get_num_threads(), arguments.pictures
    files = pycodec.encode(pictures(count), 50)
    size = (count, arguments.rounds)
    report(f"pycodec.decode, {threads} threads a picture", lambda: pycodec.decode(files), *size)
    for workers in sorted({1, threads}):
        with BatchDecoder(workers=workers) as decoder:
            report(f"BatchDecoder, {workers} threads", partial(decoder, files), *size)
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(files):
            Path(folder, f"{i:04}.lci").write_bytes(file)
        for workers in (0, threads):
            # As they are used: started once, for many epochs.
            loader = DataLoader(
                LciFiles(folder),
                batch_size=max(1, count // 4),
                num_workers=workers,
                persistent_workers=workers > 0,
            )
            report(f"DataLoader, {workers} worker processes", partial(list, loader), *size)


if __name__ == "__main__":
    main()
