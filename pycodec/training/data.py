"""Random training crops from a folder of photographs."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pycodec.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"}


NOISY, TURNED = 0.25, 0.3
"""Of so many crops noise is added to the pixels, and so many are turned by a random quarter."""


def list_pictures(folder: Path) -> list[Path]:
    """Picture files under ``folder``, sorted, so that a split by position is reproducible."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


def split_pictures(paths: list[Path], every: int = 50) -> tuple[list[Path], list[Path]]:
    """Training and validation files: one in ``every`` is held out."""
    held = paths[every // 2 :: every]
    out = set(held)
    return [p for p in paths if p not in out], held


class CropSampler:
    """Endless random crops, scaled down, flipped and turned.

    Scaling down by at least ``min_shrink`` averages the block artefacts of JPEG sources away;
    pictures too small for it are left out, and those too small for ``max_shrink`` are scaled as
    far as the crop allows. Pictures are drawn in proportion to the number of pixels they have to
    offer.

    Args:
        paths: picture files; kept decoded in memory (uint8).
        crop: side of the square crops in pixels.
        min_shrink, max_shrink: range of the random scale factor, drawn log-uniformly.
        seed: of the random stream.
        filters: one is drawn for each crop.
        noise: largest standard deviation of the Gaussian noise that one crop in four gets.

    Raises:
        InputError: no picture is large enough for a crop.
    """

    def __init__(
        self,
        paths: list[Path],
        crop: int,
        min_shrink: float = 0.85,
        max_shrink: float = 0.6,
        seed: int = 0,
        *,
        filters: Sequence[Image.Resampling] = (Image.Resampling.LANCZOS,),
        noise: float = 0.0,
    ) -> None:
        self.filters, self.noise = tuple(filters), noise
        self.crop = crop
        self.low, self.high = max_shrink, min_shrink
        self.random = np.random.default_rng(seed)
        with ThreadPoolExecutor() as pool:  # Pillow decodes without holding Python's lock
            pictures = list(pool.map(_open, paths))
        self.pictures = [p for p in pictures if min(p.size) * self.high >= crop]
        if not self.pictures:
            smallest = math.ceil(crop / self.high)
            raise InputError(
                f"no training picture has {smallest} pixels on both sides, as crops of {crop} need"
            )
        area = np.array([p.width * p.height for p in self.pictures], dtype=np.float64)
        self.weights = area / area.sum()

    def draw(self) -> np.ndarray:
        """One crop, ``uint8 [crop, crop, 3]``."""
        picture = self.pictures[self.random.choice(len(self.pictures), p=self.weights)]
        low = max(self.low, self.crop / min(picture.size))
        scale = np.exp(self.random.uniform(np.log(low), np.log(self.high)))
        side = min(self.crop / scale, min(picture.size))
        left = self.random.uniform(0, picture.width - side)
        top = self.random.uniform(0, picture.height - side)
        tile = picture.resize(
            (self.crop, self.crop),
            self.filters[self.random.integers(len(self.filters))],
            box=(left, top, left + side, top + side),
        )
        pixels = np.asarray(tile)
        if self.noise and self.random.random() < NOISY:
            deviation = self.random.uniform(0, self.noise)
            noisy = pixels + self.random.normal(0, deviation, pixels.shape)
            pixels = np.rint(noisy).clip(0, 255).astype(np.uint8)
        if self.random.random() < 0.5:
            pixels = pixels[:, ::-1]
        return np.rot90(
            pixels, int(self.random.integers(4)) if self.random.random() < TURNED else 0
        )

    def batch(self, size: int) -> Tensor:
        """``uint8 [size, 3, crop, crop]`` in channels-last memory."""
        pixels = np.stack([self.draw() for _ in range(size)])
        return self.finish(torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2))

    def finish(self, rgb: Tensor) -> Tensor:
        """What becomes of each batch at last: it stays as it is."""
        return rgb


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


class Sampler(Protocol):
    """What ``Prefetcher`` runs."""

    def batch(self, size: int) -> Any:
        """So many random pieces of pictures."""


class Stream(Protocol):
    """Endless batches that are made ahead."""

    def __next__(self) -> Any: ...

    def close(self) -> None: ...


def stream(sampler: Sampler, size: int, workers: int = 0) -> Stream:
    """Batches of ``size`` from a thread, or, for a GPU that would wait for it, from processes.

    Args:
        sampler: what draws them; with ``workers``, it has a ``random`` that each worker seeds anew.
        size: of the batches.
        workers: processes; 0: one thread of this process.
    """
    return Prefetcher(sampler, size) if workers == 0 else WorkerStream(sampler, size, workers)


class _Batches(torch.utils.data.IterableDataset):
    def __init__(self, sampler: Sampler, size: int) -> None:
        self.sampler, self.size = sampler, size

    def __iter__(self):
        seed = torch.utils.data.get_worker_info().seed
        self.sampler.random = np.random.default_rng(seed)
        while True:
            yield self.sampler.batch(self.size)


class WorkerStream:
    """Runs ``batch`` of a sampler in processes; which of them is next depends on their speed."""

    def __init__(self, sampler: Sampler, size: int, workers: int) -> None:
        generator = torch.Generator().manual_seed(int(sampler.random.integers(1 << 62)))
        loader = torch.utils.data.DataLoader(
            _Batches(sampler, size),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4,
            multiprocessing_context="fork",  # decoded pictures are shared, not copied
            generator=generator,
        )
        self._batches = iter(loader)

    def __next__(self) -> Any:
        return next(self._batches)

    def close(self) -> None:
        self._batches = None


class Prefetcher:
    """Runs ``batch`` of a sampler in a thread, a few batches ahead."""

    def __init__(self, sampler: Sampler, size: int, ahead: int = 4) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(sampler, size), daemon=True, name="pycodec-crops"
        )
        self._thread.start()

    def _run(self, sampler: Sampler, size: int) -> None:
        while not self._stop.is_set():
            try:
                item = sampler.batch(size)
            except Exception as error:  # handed to the consumer, which raises it
                item = error
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue

    def __next__(self) -> Any:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
