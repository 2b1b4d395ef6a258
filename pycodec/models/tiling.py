"""What the codecs share: square tiles in raster order, thread counts, times by stage."""

from __future__ import annotations

import contextlib
import numbers
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pycodec.errors import CorruptStreamError, InputError
from pycodec.profiling import spans

MAX_THREADS = 1024
"""Far beyond these OpenMP, asked for stacks that it cannot have, ends the process."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of pixels, ``bottom`` and ``right`` excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array with."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def cut_tiles(height: int, width: int, side: int) -> Iterator[Tile]:
    """All tiles of a picture, row by row; those at its right and lower border may be smaller."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield Tile(top, left, min(top + side, height), min(left + side, width))


def tiles_of(
    streams: Sequence[bytes], height: int, width: int, tile_log2: int, sides: range
) -> list[Tile]:
    """The tiles that the streams of a picture are of.

    Args:
        tile_log2: of the tiles' side; one of ``sides``.

    Raises:
        CorruptStreamError: the side is none of them, or there are not as many tiles as streams.
    """
    if tile_log2 not in sides:
        raise CorruptStreamError(f"the tile size 2^{tile_log2} is out of range")
    side = 1 << tile_log2
    count = -(-height // side) * -(-width // side)
    if len(streams) != count:
        raise CorruptStreamError(f"{count} tiles, but {len(streams)} streams")
    return list(cut_tiles(height, width, side))


@contextlib.contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Run torch with ``threads`` threads (None: as many as it has), then restore its setting."""
    before = torch.get_num_threads()
    if threads is None:
        yield before
        return
    if (
        isinstance(threads, bool)
        or not isinstance(threads, numbers.Integral)
        or not 1 <= threads <= MAX_THREADS
    ):
        raise InputError(f"threads must be 1 to {MAX_THREADS}, not {threads!r}")
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)


def add_seconds(seconds: dict[str, float], stage: str, amount: float) -> None:
    """Add to the time of a stage."""
    seconds[stage] = seconds.get(stage, 0.0) + amount


def end_stage(seconds: dict[str, float], stage: str, began: float) -> None:
    """Add the time of a stage that began at ``began``, of ``time.perf_counter``, and ends now."""
    ended = time.perf_counter()
    add_seconds(seconds, stage, ended - began)
    spans.add_stage(stage, began, ended)
