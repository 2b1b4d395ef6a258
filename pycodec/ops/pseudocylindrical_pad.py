"""The padding that makes ordinary convolution exact on the sphere (arXiv 2112.13227).

Each tile of a pseudocylindrical representation (see ``pycodec.ops.pseudocylindrical_tiles``) gets
rows above and below and columns at its sides, after which a convolution without padding of its own
sees around each pixel what lies around it on the sphere. Of H = T h rows in all, row r of padded
tile t is

    g = t h - pad_rows + r                     mod 2 H: over a pole and on along the other side
    if g >= H:  g = 2 H - 1 - g, half a turn away

and its column w, from -pad_columns up to before widths[t] + pad_columns, is read at its longitude:
with W_t = widths[t] and W_g the width of the tile that row g is in, at

    s = (w + 1/2) W_g / W_t - 1/2 (+ W_g / 2 if half a turn away)                mod W_g

between the centres of pixels, linearly; integers are those of the pixel that has the longitude.
Columns further right are zero. Where widths are equal, values are copied.

Positions are computed in integers: every backend reads the same pixels with the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycodec import _cpu
from pycodec.errors import InputError
from pycodec.ops import pseudocylindrical_kernels as kernels
from pycodec.ops.pseudocylindrical_tiles import (
    FLOATS,
    INTEGERS,
    accumulator,
    check_dtype,
    check_tiles,
    dtype_name,
    from_numpy,
    implementation,
    is_direct,
    padded_shape,
    require,
    to_numpy,
    unpadded,
)

_NAME = "pseudocylindrical_pad"
MAX_PAD = 1 << 12


def pseudocylindrical_pad(
    x: Tensor,
    widths: Sequence[int],
    pad: int | tuple[int, int],
    *,
    channels_last: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Pads each tile with what surrounds it on the sphere; see the module for the formula.

    A convolution with an odd kernel k and stride 1 takes pad k // 2, and its result is a
    representation with the same widths. With stride 2 the result has half the height and half the
    widths, which must all be even, for pad k // 2 and for pad k // 2 - 1 of an even kernel. Both
    leave values beyond a tile's width, which the next padding does not read.

    Args:
        x: float64, float32, float16, bfloat16, int8 or uint8 [N * T, C, h, W] or [N * T, h, W, C].
        widths: of the T tiles, pixels.
        pad: rows above and below and columns at each side, or (rows, columns); any size.
        channels_last: whether x is [N * T, h, W, C].
        backend: one of ``pycodec.ops.backends.BACKENDS``; by default the fastest for x's device.

    Returns:
        x's dtype, contiguous, [N * T, C, h + 2 rows, W + 2 columns] or [N * T, h + 2 rows,
        W + 2 columns, C]. Floats are differentiable twice.

    Raises:
        InputError: an argument does not fit the description above.
    """
    pads = (pad, pad) if isinstance(pad, int) else pad
    if not is_direct(x, backend):
        arguments = x, list(widths), list(pads), channels_last
        return torch.ops.pycodec.pseudocylindrical_pad(*arguments, backend)
    if backend == "native":  # which checks for itself
        return _native(x, widths, pads, channels_last)
    run = implementation(_NAME, _IMPLEMENTATIONS, x, backend)
    _check(x, widths, pads, channels_last)
    return run(x, widths, pads, channels_last)


def read_positions(
    widths: Sequence[int], height: int, width: int, pad: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Where the pixels of padded tiles are read.

    Args:
        widths, height, width: of the tiles, and as they are stored.
        pad: rows, columns.

    Returns:
        Of each pixel of [T, height + 2 rows, width + 2 columns]: row g; twice W_t times its
        position s in that row, modulo W_g; W_g; whether it is inside the padded tile at all.
    """
    tiles, (rows, columns) = len(widths), pad
    all_rows = tiles * height
    tile = np.arange(tiles)[:, None, None]
    g = (tile * height - rows + np.arange(height + 2 * rows)[:, None]) % (2 * all_rows)
    turned = g >= all_rows
    g = np.where(turned, 2 * all_rows - 1 - g, g)
    w = np.arange(width + 2 * columns) - columns
    target = np.array(widths)[:, None, None]
    source = np.array(widths)[g // height]
    position = (2 * w + 1) * source - target + turned * target * source
    shape = tiles, height + 2 * rows, width + 2 * columns
    inside = w < target + columns
    return tuple(
        np.broadcast_to(a, shape) for a in (g, position % (2 * target * source), source, inside)
    )


def nearest_positions(
    widths: Sequence[int], height: int, width: int, pad: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which pixels integers are padded with: see :func:`read_positions`.

    Returns:
        Of each pixel of [T, height + 2 rows, width + 2 columns], flat: the number of the pixel of
        [T, height, width] that has its longitude; whether it is inside the padded tile at all.
    """
    g, position, source, inside = (
        a.reshape(-1) for a in read_positions(widths, height, width, pad)
    )
    double = 2 * np.repeat(widths, len(g) // len(widths))
    return g * width + (position + double // 2) // double % source, inside


def _check(x: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool) -> None:
    check_dtype(_NAME, x, (*FLOATS, *INTEGERS))
    check_tiles(_NAME, x, widths, channels_last)
    _check_pad(pad)


def _check_adjoint(
    y: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool
) -> None:
    name = "pseudocylindrical_pad_adjoint"
    check_dtype(name, y, FLOATS)
    _check_pad(pad)
    rows, columns = y.shape[1:3] if channels_last else y.shape[2:]
    fits = rows > 2 * pad[0] and columns > 2 * pad[1]
    require(name, fits, f"tiles of {rows} x {columns} are no larger than their padding {list(pad)}")
    check_tiles(name, unpadded(y, pad, channels_last), widths, channels_last)


def _check_pad(pad: Sequence[int]) -> None:
    fits = len(pad) == 2 and all(0 <= p <= MAX_PAD for p in pad)
    require(_NAME, fits, f"pad must be (rows, columns), each 0 to {MAX_PAD}, not {list(pad)}")


class _Weights:
    """The definition's tables: pixels of the padded tiles, as sums of pixels of the tiles."""

    def __init__(self, widths: Sequence[int], height: int, width: int, pad: Sequence[int]) -> None:
        g, position, source, _ = (a.reshape(-1) for a in read_positions(widths, height, width, pad))
        nearest, inside = nearest_positions(widths, height, width, pad)
        double = 2 * np.repeat(widths, len(g) // len(widths))
        left = position // double
        self.left = torch.from_numpy(g * width + left)
        self.right = torch.from_numpy(g * width + (left + 1) % source)
        self.nearest = torch.from_numpy(nearest)
        self.weight = torch.from_numpy(position % double / double)[:, None]
        self.inside = torch.from_numpy(inside.copy())[:, None]

    def to(self, x: Tensor) -> _Weights:
        for name, table in vars(self).items():
            setattr(self, name, table.to(x.device))
        self.weight = self.weight.to(accumulator(x.dtype))
        return self


def _reference(x: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool) -> Tensor:
    """The definition."""
    if not channels_last:
        return _reference(x.permute(0, 2, 3, 1), widths, pad, True).permute(0, 3, 1, 2).contiguous()
    batch, height, width, channels = x.shape
    tiles = len(widths)
    table = _Weights(widths, height, width, pad).to(x)
    pixels = x.reshape(batch // tiles, tiles * height * width, channels)
    if x.dtype in INTEGERS:
        value = pixels[:, table.nearest]
    else:
        pixels = pixels.to(accumulator(x.dtype))
        left, right = pixels[:, table.left], pixels[:, table.right]
        between = (1 - table.weight) * left + table.weight * right
        value = torch.where(table.weight == 0, left, between)
    value = torch.where(table.inside, value, value.new_zeros(())).to(x.dtype)
    return value.reshape(padded_shape(x, pad, True))


def _reference_adjoint(
    y: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool
) -> Tensor:
    if not channels_last:
        y = y.permute(0, 2, 3, 1)
        return _reference_adjoint(y, widths, pad, True).permute(0, 3, 1, 2).contiguous()
    shape = unpadded(y, pad, True).shape
    batch, height, width, channels = shape
    tiles = len(widths)
    table = _Weights(widths, height, width, pad).to(y)
    pixels = y.reshape(batch // tiles, len(table.weight), channels).to(accumulator(y.dtype))
    pixels = torch.where(table.inside, pixels, pixels.new_zeros(()))
    result = pixels.new_zeros(batch // tiles, tiles * height * width, channels)
    result.index_add_(1, table.left, (1 - table.weight) * pixels)
    result.index_add_(1, table.right, table.weight * pixels)
    return result.to(y.dtype).reshape(shape)


def _native(x: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool) -> Tensor:
    """Checks its arguments, but in Python only those that the kernel refused.

    A call from cold caches, as between other layers, takes a tenth of a millisecond in Python
    already, of half a one for a small layer.
    """
    dtype = x.dtype
    try:
        out = _cpu.pseudocylindrical_pad(
            to_numpy(x), dtype_name(dtype), widths, pad, channels_last, torch.get_num_threads()
        )
    except (InputError, TypeError):
        implementation(_NAME, _IMPLEMENTATIONS, x, "native")
        _check(x, widths, pad, channels_last)
        raise
    return from_numpy(out, dtype)


def _native_adjoint(
    y: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool
) -> Tensor:
    threads, dtype = torch.get_num_threads(), dtype_name(y.dtype)
    run = _cpu.pseudocylindrical_pad_adjoint
    return from_numpy(run(to_numpy(y), dtype, widths, pad, channels_last, threads), y.dtype)


_IMPLEMENTATIONS = {
    "reference": _reference,
    "native": _native,
    "cuda": kernels.pad_cuda,
    "triton": kernels.pad_triton,
}
_ADJOINTS = {
    "reference": _reference_adjoint,
    "native": _native_adjoint,
    "cuda": kernels.pad_adjoint_cuda,
    "triton": kernels.pad_adjoint_triton,
}


@torch.library.custom_op("pycodec::pseudocylindrical_pad", mutates_args=())
def _pad_op(
    x: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool, backend: str | None
) -> Tensor:
    _check(x, widths, pad, channels_last)
    return implementation(_NAME, _IMPLEMENTATIONS, x, backend)(x, widths, pad, channels_last)


@_pad_op.register_fake
def _(
    x: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool, backend: str | None
) -> Tensor:
    _check(x, widths, pad, channels_last)
    return x.new_empty(padded_shape(x, pad, channels_last))


@torch.library.custom_op("pycodec::pseudocylindrical_pad_adjoint", mutates_args=())
def _adjoint_op(
    y: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool, backend: str | None
) -> Tensor:
    """The transposed linear map: the gradient in x of the sum of y times the padded x."""
    _check_adjoint(y, widths, pad, channels_last)
    return implementation(_NAME, _ADJOINTS, y, backend)(y, widths, pad, channels_last)


@_adjoint_op.register_fake
def _(
    y: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool, backend: str | None
) -> Tensor:
    _check_adjoint(y, widths, pad, channels_last)
    return y.new_empty(unpadded(y, pad, channels_last).shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.arguments = inputs[1:]


# Both are linear, and each is the other's gradient.
_pad_op.register_autograd(
    lambda ctx, grad: (_adjoint_op(grad, *ctx.arguments), None, None, None, None),
    setup_context=_setup_context,
)
_adjoint_op.register_autograd(
    lambda ctx, grad: (_pad_op(grad, *ctx.arguments), None, None, None, None),
    setup_context=_setup_context,
)
