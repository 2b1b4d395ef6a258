"""Launches of the GPU kernels of the pseudocylindrical operations, on checked arguments.

The kernels are in ``csrc/cuda/pseudocylindrical.cu``, and in ``triton_kernels`` under the names of
the operations.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pycodec.ops.backends import launch_cuda
from pycodec.ops.pseudocylindrical_tiles import (
    INTEGERS,
    device_integers,
    dtype_name,
    padded_shape,
    require,
    unpadded,
)

_DEVICE_TYPE = "cuda"


def _check_device(name: str, x: Tensor) -> None:
    on_gpu = x.device.type == _DEVICE_TYPE
    require(name, on_gpu, f"the cuda backend runs on a GPU, but x is on {x.device}")


@functools.lru_cache(maxsize=64)
def row_readers(
    tiles: int, height: int, pad_rows: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which rows of padded tiles read a row of the tiles.

    Returns:
        int32 [tiles * height + 1]: where the readers of each row begin in the other tensor; int32
        [tiles * (height + 2 pad_rows)]: 2 * row of the padded tiles, + 1 if half a turn away.
    """
    rows = tiles * height
    padded = height + 2 * pad_rows
    g = np.arange(tiles)[:, None] * height - pad_rows + np.arange(padded)
    g = (g % (2 * rows)).reshape(-1)
    turned = g >= rows
    g = np.where(turned, 2 * rows - 1 - g, g)
    order = np.argsort(g, kind="stable")
    begins = np.searchsorted(g[order], np.arange(rows + 1))
    readers = 2 * order + turned[order]
    return tuple(torch.from_numpy(a.astype(np.int32)).to(device) for a in (begins, readers))


def _sizes(x: Tensor, pad: Sequence[int], channels_last: bool) -> dict[str, int]:
    """Sizes of tiles without padding, as the pad kernels want them."""
    height, width, channels = x.shape[1:] if channels_last else (*x.shape[2:], x.shape[1])
    return {
        "batch": x.shape[0],
        "channels": channels,
        "height": height,
        "width": width,
        "pad_rows": pad[0],
        "pad_columns": pad[1],
    }


def _copy_type(x: Tensor, sizes: dict[str, int], channels_last: bool) -> str:
    """The kernel's type for integers, which are only copied: pixels in words as wide as can be.

    Changes the number of channels in ``sizes`` to that of words.
    """
    word = 16 if channels_last else 1
    while sizes["channels"] % word or x.data_ptr() % word:
        word //= 2
    sizes["channels"] //= word
    return f"bytes{word}"


def pad_cuda(x: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool) -> Tensor:
    """The padding."""
    _check_device("pseudocylindrical_pad", x)
    x = x.contiguous()
    out = x.new_empty(padded_shape(x, pad, channels_last))
    sizes = _sizes(x, pad, channels_last)
    is_copied = x.dtype in INTEGERS
    launch_cuda(
        "pseudocylindrical_pad",
        x.device,
        x=x.data_ptr(),
        y=out.data_ptr(),
        widths=device_integers(tuple(widths), x.device).data_ptr(),
        tiles=len(widths),
        dtype=_copy_type(x, sizes, channels_last) if is_copied else dtype_name(x.dtype),
        channels_last=channels_last,
        **sizes,
    )
    return out


def pad_adjoint_cuda(
    y: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool
) -> Tensor:
    """The padding's transposed map."""
    _check_device("pseudocylindrical_pad_adjoint", y)
    y = y.contiguous()
    out = y.new_empty(unpadded(y, pad, channels_last).shape)
    sizes = _sizes(out, pad, channels_last)
    begins, readers = row_readers(len(widths), sizes["height"], pad[0], y.device)
    launch_cuda(
        "pseudocylindrical_pad_adjoint",
        y.device,
        y=y.data_ptr(),
        x=out.data_ptr(),
        widths=device_integers(tuple(widths), y.device).data_ptr(),
        begins=begins.data_ptr(),
        readers=readers.data_ptr(),
        tiles=len(widths),
        dtype=dtype_name(y.dtype),
        channels_last=channels_last,
        **sizes,
    )
    return out


def mask_cuda(x: Tensor, widths: Sequence[int], channels_last: bool) -> Tensor:
    """The mask."""
    _check_device("pseudocylindrical_mask", x)
    x = x.contiguous()
    out = torch.empty_like(x)
    launch_cuda(
        "pseudocylindrical_mask",
        x.device,
        x=x.data_ptr(),
        out=out.data_ptr(),
        widths=device_integers(tuple(widths), x.device).data_ptr(),
        tiles=len(widths),
        element_bytes=x.element_size(),
        **_mask_sizes(x, channels_last),
    )
    return out


def _mask_sizes(x: Tensor, channels_last: bool) -> dict[str, int]:
    """A tile is so many rows of so many columns of so many elements."""
    if channels_last:
        batch, rows, columns, elements = x.shape
    else:
        batch, channels, height, columns = x.shape
        rows, elements = channels * height, 1
    return {"batch": batch, "rows": rows, "columns": columns, "elements": elements}


def resample_cuda(x: Tensor, tables, to_tiles: bool, out: Tensor) -> None:
    """Resampling by the tables of :mod:`pycodec.ops.pseudocylindrical_slice`; writes ``out``."""
    _check_device("pseudocylindrical_resample", x)
    launch_cuda(
        "pseudocylindrical_resample",
        x.device,
        x=x.data_ptr(),
        out=out.data_ptr(),
        table=tables.table.data_ptr(),
        sizes=tables.sizes.data_ptr(),
        first=tables.first.data_ptr(),
        weights=tables.weights.data_ptr(),
        most_taps=tables.weights.shape[1],
        dtype=dtype_name(x.dtype),
        to_tiles=to_tiles,
        **_resample_sizes(x, tables, to_tiles),
    )


def _resample_sizes(x: Tensor, tables, to_tiles: bool) -> dict[str, int]:
    tiles = len(tables.table)
    batch, channels, height, width = x.shape
    return {
        "pictures": batch if to_tiles else batch // tiles,
        "channels": channels,
        "tiles": tiles,
        "height": height // tiles if to_tiles else height,
        "width": width,
    }


# Triton's modules are imported late: it is an optional package and slow to import.


def pad_triton(x: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool) -> Tensor:
    """The padding."""
    from pycodec.triton_kernels import pseudocylindrical_pad as kernel

    x = x.contiguous()
    out = x.new_empty(padded_shape(x, pad, channels_last))
    table = device_integers(tuple(widths), x.device)
    is_copied = x.dtype in INTEGERS
    kernel.launch(x, table, out, channels_last, is_copied, **_sizes(x, pad, channels_last))
    return out


def pad_adjoint_triton(
    y: Tensor, widths: Sequence[int], pad: Sequence[int], channels_last: bool
) -> Tensor:
    """The padding's transposed map."""
    from pycodec.triton_kernels import pseudocylindrical_pad as kernel

    y = y.contiguous()
    out = y.new_empty(unpadded(y, pad, channels_last).shape)
    sizes = _sizes(out, pad, channels_last)
    lists = row_readers(len(widths), sizes["height"], pad[0], y.device)
    table = device_integers(tuple(widths), y.device)
    kernel.launch_adjoint(y, table, *lists, out, channels_last, **sizes)
    return out


def mask_triton(x: Tensor, widths: Sequence[int], channels_last: bool) -> Tensor:
    """The mask."""
    from pycodec.triton_kernels import pseudocylindrical_mask as kernel

    x = x.contiguous()
    out = torch.empty_like(x)
    table = device_integers(tuple(widths), x.device)
    kernel.launch(x, table, out, **_mask_sizes(x, channels_last))
    return out


def resample_triton(x: Tensor, tables, to_tiles: bool, out: Tensor) -> None:
    """Resampling by the tables of :mod:`pycodec.ops.pseudocylindrical_slice`; writes ``out``."""
    from pycodec.triton_kernels import pseudocylindrical_slice as kernel

    kernel.launch(x, tables, out, to_tiles, **_resample_sizes(x, tables, to_tiles))
