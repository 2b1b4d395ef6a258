"""What the pseudocylindrical operations share: the layout of tiles, and checks.

A representation is a batch of tiles: [N * T, C, h, W], or [N * T, h, W, C] where channels are last.
Tile t of picture n, counted from the north, is number n * T + t. All are h rows high, and stored as
wide as the picture, W; of tile t the first ``widths[t]`` columns mean something, and the others are
padding that no operation here reads.

So every layer of a network takes a representation as it takes pictures: N * T of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycodec.errors import InputError
from pycodec.ops.backends import check_backend, default_backend

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.uint8)
_HALVES = (torch.float16, torch.bfloat16)
MAX_WIDTH = 1 << 15
"""Of a picture: products of two widths, doubled, fit into 32 bits."""


def require(name: str, condition: bool, message: str) -> None:
    """Raises :class:`InputError` with the operation's name unless the condition holds."""
    if not condition:
        raise InputError(f"{name}: {message}")


def check_dtype(name: str, x: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Raises :class:`InputError` unless x has four dimensions and one of the dtypes."""
    require(name, x.dim() == 4, f"x must have 4 dimensions, not {list(x.shape)}")
    require(name, x.dtype in dtypes, f"x cannot be {x.dtype}")


def check_widths(name: str, widths: Sequence[int], width: int) -> None:
    """Raises :class:`InputError` unless the widths can be those of tiles stored ``width`` wide."""
    require(name, len(widths) > 0, "there must be at least one tile")
    require(name, width <= MAX_WIDTH, f"pictures are up to {MAX_WIDTH} wide, not {width}")
    if min(widths) < 1 or max(widths) > width:
        tile, w = next((t, w) for t, w in enumerate(widths) if not 1 <= w <= width)
        raise InputError(f"{name}: tile {tile} must be 1 to {width} columns wide, but has {w}")


def check_tiles(name: str, x: Tensor, widths: Sequence[int], channels_last: bool) -> None:
    """Raises :class:`InputError` unless x can be a batch of tiles of these widths."""
    height, width = x.shape[1:3] if channels_last else x.shape[2:]
    require(name, height > 0 and width > 0, f"tiles are empty: {list(x.shape)}")
    check_widths(name, widths, width)
    require(
        name,
        x.shape[0] % len(widths) == 0,
        f"a batch of {x.shape[0]} is no multiple of {len(widths)} tiles",
    )


def sliced_shape(x: Tensor, tiles: int, to_tiles: bool) -> tuple[int, ...]:
    """[N * T, C, h, W] of [N, C, T * h, W], or the opposite."""
    n, channels, height, width = x.shape
    if to_tiles:
        return n * tiles, channels, height // tiles, width
    return n // tiles, channels, height * tiles, width


def padded_shape(x: Tensor, pad: Sequence[int], channels_last: bool) -> list[int]:
    """The shape of x with (rows, columns) of padding on both sides."""
    shape = list(x.shape)
    first = 1 if channels_last else 2
    shape[first] += 2 * pad[0]
    shape[first + 1] += 2 * pad[1]
    return shape


def unpadded(y: Tensor, pad: Sequence[int], channels_last: bool) -> Tensor:
    """y without its padding."""
    first = 1 if channels_last else 2
    for dimension, p in zip((first, first + 1), pad, strict=True):
        y = y.narrow(dimension, p, y.shape[dimension] - 2 * p)
    return y


def implementation(name: str, implementations: dict, x: Tensor, backend: str | None):
    """The operation's implementation: that of ``backend``, by default the fastest for x.

    Raises:
        InputError: there is no such backend, or it does not run on x's device.
    """
    if backend is None:
        backend = default_backend(x.device)
    check_backend(backend)
    # No `require`: its message would be made in every call, which short operations cannot afford.
    if backend == "native" and not x.is_cpu:
        raise InputError(f"{name}: the native backend runs on the CPU, but x is on {x.device}")
    return implementations[backend]


def is_direct(x: Tensor, backend: str | None) -> bool:
    """Whether a call needs no registered operation, which takes 0.1 ms: neither gradient nor graph.

    By default operations are registered ones, as everywhere in ``pycodec.ops``.
    """
    return not (backend is None or x.requires_grad or torch.compiler.is_compiling())


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums of numbers of this dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_numpy(x: Tensor) -> NDArray:
    """x as a C-contiguous array; NumPy has no bfloat16, so halves come as the words they are."""
    x = (x.detach() if x.requires_grad else x).contiguous()
    return (x.view(torch.int16) if x.dtype in _HALVES else x).numpy()


def from_numpy(array: NDArray, dtype: torch.dtype) -> Tensor:
    """The opposite."""
    x = torch.from_numpy(array)
    return x.view(dtype) if dtype in _HALVES else x


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    """As the kernels call it."""
    return str(dtype).removeprefix("torch.")


@functools.lru_cache(maxsize=64)
def device_integers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 on the device. Kept: a network asks for the same ones in every layer."""
    return torch.from_numpy(np.array(values, dtype=np.int32)).to(device)
