"""Equirectangular pictures to pseudocylindrical representations and back (arXiv 2112.13227).

Row i of the picture becomes row i % h of tile i // h, resampled to the tile's width by Keys's cubic
kernel (a = -1/2) around the sphere: column w of n columns, of a row of m, is

    sum of k(i - c) x[i mod m] / sum of k(i - c),  c = (w + 1/2) m / n - 1/2
    k(d) = cubic(d / s),  s = max(1, m / n)

so rows that lose columns are smoothed first (s > 1), as near the poles, where a picture is sampled
far too densely; and where widths are equal, values are copied. Sums are in float64 for float64 and
in float32 for the other dtypes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycodec import _cpu
from pycodec.ops import pseudocylindrical_kernels as kernels
from pycodec.ops.pseudocylindrical_tiles import (
    FLOATS,
    accumulator,
    check_dtype,
    check_tiles,
    check_widths,
    dtype_name,
    from_numpy,
    implementation,
    is_direct,
    require,
    sliced_shape,
    to_numpy,
)


def pseudocylindrical_slice(
    x: Tensor, widths: Sequence[int], *, backend: str | None = None
) -> Tensor:
    """A picture's representation; see the module for the formula.

    Args:
        x: float64, float32, float16 or bfloat16 [N, C, H, W].
        widths: of the T tiles, pixels; T divides H.
        backend: one of ``pycodec.ops.backends.BACKENDS``; by default the fastest for x's device.

    Returns:
        x's dtype [N * T, C, H / T, W], contiguous, differentiable twice; zero from column
        ``widths[t]`` of each tile t on.

    Raises:
        InputError: an argument does not fit the description above.
    """
    return _resample(x, widths, True, backend)


def pseudocylindrical_unslice(
    tiles: Tensor, widths: Sequence[int], *, exact: bool = False, backend: str | None = None
) -> Tensor:
    """The picture of a representation, by the same formula: what was smoothed away stays so.

    Args:
        tiles: float64, float32, float16 or bfloat16 [N * T, C, h, W].
        widths: of the T tiles, pixels.
        exact: round weights to multiples of 2**-12. Of float32 tiles with multiples of 1/8 from 0
            to 255 no sum is then rounded, so every machine has the same result. It has no gradient.
        backend: as in :func:`pseudocylindrical_slice`.

    Returns:
        The tiles' dtype [N, C, T * h, W], contiguous, differentiable twice.

    Raises:
        InputError: an argument does not fit the description above.
    """
    if not exact:
        return _resample(tiles, widths, False, backend)
    _check(tiles, widths, False)
    require(_name(False), tiles.dtype == torch.float32, f"{tiles.dtype} sums are not exact")
    run = implementation(_name(False), _IMPLEMENTATIONS, tiles, backend)
    return run(tiles.detach(), list(widths), False, False, exact=True)


def _resample(x: Tensor, widths: Sequence[int], to_tiles: bool, backend: str | None) -> Tensor:
    widths = list(widths)
    if not is_direct(x, backend):
        return torch.ops.pycodec.pseudocylindrical_resample(x, widths, to_tiles, False, backend)
    _check(x, widths, to_tiles)
    run = implementation(_name(to_tiles), _IMPLEMENTATIONS, x, backend)
    return run(x, widths, to_tiles, False)


MAX_EXACT = 1 << 15
"""Columns whose exact weights int64 has room for."""


@dataclass(frozen=True)
class Resampling:
    """A linear map of rows, ``out[w] = sum over k of weights[k, w] x[(first[w] + k) mod m]``.

    Attributes:
        source, target: columns before and after; the former is m.
        first: int64 [target], any integers: what reads a column without wrapping tells them apart.
        weights: float64 [taps, target].
    """

    source: int
    target: int
    first: NDArray[np.int64]
    weights: NDArray[np.float64]

    def transposed(self) -> Resampling:
        """The map with the transposed matrix."""
        taps = len(self.weights)
        read = self.first + np.arange(taps)[:, None]
        column, turns = read % self.source, read // self.source
        # Without wrapping, the columns that read one of the source's are neighbours.
        reader = np.arange(self.target) - turns * self.target
        first = np.full(self.source, np.iinfo(np.int64).max)
        np.minimum.at(first, column, reader)
        unread = first == np.iinfo(np.int64).max
        first[unread] = 0
        place = reader - first[column]
        weights = np.zeros((place.max() + 1, self.source))
        np.add.at(weights, (place, column), self.weights)
        return Resampling(self.target, self.source, first, weights)


@functools.lru_cache(maxsize=256)
def cubic_resampling(
    source: int, target: int, transposed: bool = False, exact: bool = False
) -> Resampling:
    """The map from rows of ``source`` columns to rows of ``target``, or its transposed.

    ``exact``: see :func:`cubic_taps`.
    """
    if transposed:
        return cubic_resampling(source, target, exact=exact).transposed()
    if source == target:
        return Resampling(source, target, np.arange(target), np.ones((1, target)))
    position, weights = cubic_taps(source, target, np.arange(target), exact)
    return Resampling(source, target, position[0], normalized(weights))


def cubic_taps(
    source: int, target: int, columns: NDArray[np.int64], exact: bool = False
) -> tuple[NDArray[np.int64], NDArray]:
    """What columns of ``target`` read of ``source``: its columns, or beyond, and the kernel there.

    Args:
        source, target: columns.
        columns: of ``target``, int64 [n].
        exact: weights are integers, not floats, which :func:`normalized` keeps exact; of at most
            ``MAX_EXACT`` columns.

    Returns:
        Consecutive positions and weights that :func:`normalized` takes, [taps, n].
    """
    scale = max(1.0, source / target)
    centre = (columns + 0.5) * source / target - 0.5
    first = np.floor(centre - 2 * scale).astype(np.int64) + 1
    position = first + np.arange(int(np.ceil(4 * scale)))[:, None]
    unit = 2 * max(source, target)
    distance = np.abs(2 * target * position + target - (2 * columns + 1) * source)
    if exact:
        require("cubic_taps", unit <= 2 * MAX_EXACT, f"more than {MAX_EXACT} columns")
        return position, _cubic(distance, unit)
    return position, _cubic(distance / unit, 1.0)


def _cubic(d: NDArray, unit: float) -> NDArray:
    """The kernel at d / unit, times 2 unit**3: in integers if these are.

    Keys, "Cubic convolution interpolation for digital image processing", 1981; a = -1/2.
    """
    near = (3 * d - 5 * unit) * d * d + 2 * unit**3
    far = ((5 * unit - d) * d - 8 * unit**2) * d + 4 * unit**3
    return np.where(d <= unit, near, np.where(d < 2 * unit, far, 0))


def normalized(weights: NDArray) -> NDArray[np.float64]:
    """Weights [taps, n] of :func:`cubic_taps`, some perhaps put to 0, with sums of 1.

    If they are integers, so are the results, times 2**12.
    """
    if not np.issubdtype(weights.dtype, np.integer):
        return weights / weights.sum(0)
    units = (weights << 10) // (weights.sum(0) >> 2)
    largest = weights.argmax(0)
    units[largest, np.arange(weights.shape[1])] += (1 << 12) - units.sum(0)
    return units / (1 << 12)


@dataclass(frozen=True)
class Tables:
    """The maps of all tiles, as the kernels read them: of each width one.

    Attributes:
        table: int32 [T], which of the D maps is a tile's.
        sizes: int32 [D, 3]: source, target, taps.
        first: int32 [D, columns], 0 beyond the target.
        weights: [D, most taps, columns], 0 beyond taps and target.
    """

    table: Tensor
    sizes: Tensor
    first: Tensor
    weights: Tensor


@functools.lru_cache(maxsize=16)
def resampling_tables(
    widths: tuple[int, ...],
    width: int,
    to_tiles: bool,
    transposed: bool,
    dtype: torch.dtype,
    device: torch.device,
    exact: bool = False,
) -> Tables:
    """Tables of the maps from the picture's width to the tiles' (``to_tiles``) or back.

    Kept, since pictures of one size come in rows. ``dtype`` is that of the weights.
    """
    different = sorted(set(widths))
    maps = [_tile_map(width, w, to_tiles, transposed, exact) for w in different]
    first = np.zeros((len(maps), width), np.int32)
    weights = np.zeros((len(maps), max(len(m.weights) for m in maps), width))
    for i, m in enumerate(maps):
        first[i, : m.target] = m.first % m.source
        weights[i, : len(m.weights), : m.target] = m.weights
    sizes = np.array([(m.source, m.target, len(m.weights)) for m in maps], np.int32)
    table = np.array([different.index(w) for w in widths], np.int32)
    return Tables(
        *(torch.from_numpy(a).to(device) for a in (table, sizes, first)),
        torch.from_numpy(weights).to(device, dtype),
    )


def _tile_map(
    width: int, tile_width: int, to_tiles: bool, transposed: bool, exact: bool
) -> Resampling:
    # A transposed map goes from where its own map ends.
    if to_tiles == transposed:
        return cubic_resampling(tile_width, width, transposed, exact)
    return cubic_resampling(width, tile_width, transposed, exact)


def _name(to_tiles: bool) -> str:
    return "pseudocylindrical_slice" if to_tiles else "pseudocylindrical_unslice"


def _check(x: Tensor, widths: Sequence[int], to_tiles: bool) -> None:
    name = _name(to_tiles)
    check_dtype(name, x, FLOATS)
    if not to_tiles:
        check_tiles(name, x, widths, False)
        return
    height, width = x.shape[2:]
    require(name, height > 0 and width > 0, f"the picture is empty: {list(x.shape)}")
    check_widths(name, widths, width)
    fits = height % len(widths) == 0
    require(name, fits, f"{height} rows cannot be cut into {len(widths)} equal tiles")


def _reference(
    x: Tensor, widths: Sequence[int], to_tiles: bool, transposed: bool, exact: bool = False
) -> Tensor:
    """The definition, a tile at a time."""
    tiles, width = len(widths), x.shape[3]
    if to_tiles:
        rows = x.unflatten(2, (tiles, -1)).unbind(2)
    else:
        rows = x.unflatten(0, (-1, tiles)).unbind(1)
    results = []
    for part, tile_width in zip(rows, widths, strict=True):
        m = _tile_map(width, tile_width, to_tiles, transposed, exact)
        value = x.new_zeros(*part.shape[:3], m.target, dtype=accumulator(x.dtype))
        for k, weight in enumerate(m.weights):
            columns = torch.from_numpy((m.first + k) % m.source).to(x.device)
            value += part[..., columns] * torch.from_numpy(weight).to(value)
        results.append(torch.nn.functional.pad(value, (0, width - m.target)).to(x.dtype))
    stacked = torch.stack(results, 1 if to_tiles else 2)
    return stacked.reshape(sliced_shape(x, tiles, to_tiles))


def _tables(
    x: Tensor, widths: Sequence[int], to_tiles: bool, transposed: bool, exact: bool
) -> Tables:
    dtype = accumulator(x.dtype)
    return resampling_tables(
        tuple(widths), x.shape[3], to_tiles, transposed, dtype, x.device, exact
    )


def _native(
    x: Tensor, widths: Sequence[int], to_tiles: bool, transposed: bool, exact: bool = False
) -> Tensor:
    tables = _tables(x, widths, to_tiles, transposed, exact)
    out = _cpu.pseudocylindrical_resample(
        to_numpy(x),
        dtype_name(x.dtype),
        tables.table.numpy(),
        tables.sizes.numpy(),
        tables.first.numpy(),
        tables.weights.numpy(),
        to_tiles,
        torch.get_num_threads(),
    )
    return from_numpy(out, x.dtype)


def _on_gpu(run):
    """A kernel of ``pseudocylindrical_kernels``, given the tables."""

    def call(
        x: Tensor, widths: Sequence[int], to_tiles: bool, transposed: bool, exact: bool = False
    ) -> Tensor:
        out = x.new_empty(sliced_shape(x, len(widths), to_tiles))
        run(x.contiguous(), _tables(x, widths, to_tiles, transposed, exact), to_tiles, out)
        return out

    return call


_IMPLEMENTATIONS = {
    "reference": _reference,
    "native": _native,
    "cuda": _on_gpu(kernels.resample_cuda),
    "triton": _on_gpu(kernels.resample_triton),
}


@torch.library.custom_op("pycodec::pseudocylindrical_resample", mutates_args=())
def _resample_op(
    x: Tensor, widths: Sequence[int], to_tiles: bool, transposed: bool, backend: str | None
) -> Tensor:
    """Slices (``to_tiles``) or unslices; or, transposed, gives the other one's gradient."""
    _check(x, widths, to_tiles)
    run = implementation(_name(to_tiles), _IMPLEMENTATIONS, x, backend)
    return run(x, widths, to_tiles, transposed)


@_resample_op.register_fake
def _(
    x: Tensor, widths: Sequence[int], to_tiles: bool, transposed: bool, backend: str | None
) -> Tensor:
    _check(x, widths, to_tiles)
    return x.new_empty(sliced_shape(x, len(widths), to_tiles))


def _setup_context(ctx, inputs, output) -> None:
    ctx.arguments = inputs[1:]


def _backward(ctx, grad: Tensor):
    widths, to_tiles, transposed, backend = ctx.arguments
    gradient = _resample_op(grad, widths, not to_tiles, not transposed, backend)
    return gradient, None, None, None, None


_resample_op.register_autograd(_backward, setup_context=_setup_context)
