"""Coding orders and the trimming masks that follow from them.

A code volume has C groups (planes) of H x W symbols; a symbol is at (c, h, w). An order says which
symbols are coded before which others, so which offsets (dc, dh, dw) = input - output a convolution
may look at: *type A* (first layer) sees what is coded strictly earlier, *type B* (hidden layers)
also what is coded together with it, itself included.

=============  ====================  =============================================================
order          earlier by            an output at (c, h, w) sees (type A; B: or equal)
=============  ====================  =============================================================
raster         (h, w)                all channels of positions before it in raster order (PixelCNN)
plane          (c, h, w)             earlier groups in full, its own before it in raster order
zigzag         (c, h + w)            earlier groups in full, its own on earlier antidiagonals
channelwise    (c)                   earlier groups in full, nothing of its own
diagonal       (h + w)               all channels of positions on earlier antidiagonals
slope          (c + h + w)           c' + h' + w' < c + h + w
checkerboard   (h + w) mod 2         odd positions see the even ones, in all channels
=============  ====================  =============================================================

Keys with several entries compare lexicographically, as tuples do. ``plane`` is the rule of TCAE
(arXiv 1801.04662) and ``slope`` that of its general form (arXiv 1906.10057).

``zigzag`` is the scan of JPEG in every plane. A scan that runs up and down in turn cannot be cut
into one kernel, as what is earlier on the same antidiagonal depends on its direction; so a kernel
sees the earlier antidiagonals only, and the direction does not matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pycodec.errors import InputError

KINDS = ("A", "B")

Kernel = int | tuple[int, int]
Predicate = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Order(ABC):
    """Base of the orders.

    Attributes:
        name: how to call it.
        phase: int64 [ph, pw], what the time of a wave grows by at (h mod ph, w mod pw) on top of
            the hyperplane (``pycodec.context.schedule``); [[0]] unless waves are not hyperplanes.
    """

    name: str
    phase = np.zeros((1, 1), np.int64)

    @abstractmethod
    def group_mask(self, kind: str, groups_in: int, groups_out: int, kernel: Kernel) -> np.ndarray:
        """What each output group sees, ``bool [groups_out, groups_in, kh, kw]``."""

    def active(self, kind: str) -> np.ndarray | None:
        """Where a layer sees anything at all, ``bool [ph, pw]`` as ``phase``; None: everywhere.

        Masks are the same at all positions. Where that would let symbols see later ones, the layer
        looks away: its output there is its bias.
        """
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class _OffsetOrder(Order):
    """An order whose masks follow from a function of the offset."""

    @abstractmethod
    def visible(self, kind: str, dc: np.ndarray, dh: np.ndarray, dw: np.ndarray) -> np.ndarray:
        """Whether a kernel may look at the offset (dc, dh, dw): int arrays, broadcast together."""

    def group_mask(self, kind: str, groups_in: int, groups_out: int, kernel: Kernel) -> np.ndarray:
        _check_kind(kind)
        return _offset_mask(partial(self.visible, kind), groups_in, groups_out, kernel)


@dataclass(frozen=True, repr=False)
class LinearOrder(_OffsetOrder):
    """Symbols in the lexicographic order of some integer linear forms of (c, h, w).

    Args:
        name: how to call it.
        keys: coefficients of (c, h, w) in each form, the most significant form first. Symbols for
            which all forms are equal are coded together.
    """

    name: str
    keys: tuple[tuple[int, int, int], ...]

    def visible(self, kind: str, dc: np.ndarray, dh: np.ndarray, dw: np.ndarray) -> np.ndarray:
        earlier, equal = np.False_, np.True_
        for kc, kh, kw in self.keys:
            form = kc * dc + kh * dh + kw * dw
            earlier = earlier | (equal & (form < 0))
            equal = equal & (form == 0)
        return earlier if kind == "A" else earlier | equal


class CheckerboardOrder(_OffsetOrder):
    """Two phases: positions with even h + w, then those with odd h + w, all channels together.

    After arXiv 2103.15209: type A sees the odd offsets, the other colour; at even positions it sees
    nothing, see :meth:`Order.active`. Type B sees the even offsets, its own colour.
    """

    name = "checkerboard"
    phase = np.array([[0, 1], [1, 0]], np.int64)

    def visible(self, kind: str, dc: np.ndarray, dh: np.ndarray, dw: np.ndarray) -> np.ndarray:
        odd = (dh + dw + 0 * dc) % 2 == 1
        return odd if kind == "A" else ~odd

    def active(self, kind: str) -> np.ndarray | None:
        return self.phase == 1 if kind == "A" else None


class CustomOrder(Order):
    """Whatever a user wants a kernel to see; the schedule search tells whether it can be decoded.

    Args:
        first: what type A sees: a function of the offset arrays (dc, dh, dw) that returns a bool
            array; or bool [kh, kw], for all pairs of groups; or bool [groups, groups, kh, kw],
            indexed by output group, input group, row, column. Smaller kernels see its centre.
        hidden: what type B sees, in the same form. By default as ``first`` and the position itself:
            that symbol, or with bool [kh, kw] all channels of the position.
        name: how to call it.

    Raises:
        InputError: ``first`` and ``hidden`` differ in form, or are not masks of odd kernels.
    """

    def __init__(
        self,
        first: np.ndarray | Predicate,
        hidden: np.ndarray | Predicate | None = None,
        *,
        name: str = "custom",
    ) -> None:
        self.name = name
        if callable(first):
            if hidden is None:

                def or_itself(dc: np.ndarray, dh: np.ndarray, dw: np.ndarray) -> np.ndarray:
                    return first(dc, dh, dw) | ((dc == 0) & (dh == 0) & (dw == 0))

                hidden = or_itself
            if not callable(hidden):
                raise InputError("first is a function, so hidden must be one too")
            self._predicate: dict[str, Predicate] | None = {"A": first, "B": hidden}
            return
        if callable(hidden):
            raise InputError("first is an array, so hidden must be one too")
        self._predicate = None
        first = _checked_mask(first)
        if hidden is None:
            hidden = first.copy()
            centre = hidden[..., hidden.shape[-2] // 2, hidden.shape[-1] // 2]
            centre |= np.eye(len(hidden), dtype=bool) if hidden.ndim == 4 else True
        self._masks = {"A": first, "B": _checked_mask(hidden)}

    def group_mask(self, kind: str, groups_in: int, groups_out: int, kernel: Kernel) -> np.ndarray:
        _check_kind(kind)
        if self._predicate is not None:
            return _offset_mask(self._predicate[kind], groups_in, groups_out, kernel)
        whole = self._masks[kind]
        kh, kw = kernel_size(kernel)
        top, left = (whole.shape[-2] - kh) // 2, (whole.shape[-1] - kw) // 2
        if top < 0 or left < 0:
            raise InputError(
                f"order {self.name} has masks of {whole.shape[-2]}x{whole.shape[-1]}, "
                f"too small for a kernel of {kh}x{kw}"
            )
        if whole.ndim == 4 and whole.shape[:2] != (groups_out, groups_in):
            raise InputError(
                f"order {self.name} has {len(whole)} groups, not {groups_in} in and "
                f"{groups_out} out"
            )
        part = whole[..., top : top + kh, left : left + kw]
        return np.broadcast_to(part, (groups_out, groups_in, kh, kw)).copy()


RASTER = LinearOrder("raster", ((0, 1, 0), (0, 0, 1)))
PLANE = LinearOrder("plane", ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
ZIGZAG = LinearOrder("zigzag", ((1, 0, 0), (0, 1, 1)))
CHANNELWISE = LinearOrder("channelwise", ((1, 0, 0),))
DIAGONAL = LinearOrder("diagonal", ((0, 1, 1),))
SLOPE = LinearOrder("slope", ((1, 1, 1),))
CHECKERBOARD = CheckerboardOrder()

ORDERS: dict[str, Order] = {
    order.name: order
    for order in (RASTER, PLANE, ZIGZAG, CHANNELWISE, DIAGONAL, SLOPE, CHECKERBOARD)
}


def get_order(order: Order | str) -> Order:
    """The order of that name, or ``order`` itself."""
    if isinstance(order, Order):
        return order
    if order not in ORDERS:
        raise InputError(f"unknown order {order!r}; there are {', '.join(ORDERS)}")
    return ORDERS[order]


def mask(order: Order | str, kind: str, groups_in: int, groups_out: int, kernel: Kernel) -> Tensor:
    """What each output group of a trimmed convolution sees.

    Args:
        order: an order or the name of one in ``ORDERS``.
        kind: "A" for the first layer, "B" for the others.
        groups_in, groups_out: numbers of groups. Group g of either side has the coordinate c = g.
        kernel: odd size, k or (kh, kw).

    Returns:
        bool [groups_out, groups_in, kh, kw]; [.., i, j] is the offset (i - kh // 2, j - kw // 2).

    Raises:
        InputError: an argument does not fit the description above.
    """
    return torch.from_numpy(get_order(order).group_mask(kind, groups_in, groups_out, kernel))


def weight_mask(
    group_mask: Tensor, channels_in: int | Sequence[int], channels_out: int | Sequence[int]
) -> Tensor:
    """A mask for weights from one for groups.

    Channels of a group are contiguous, and groups are in order.

    Args:
        group_mask: bool [groups_out, groups_in, kh, kw].
        channels_in, channels_out: the number of channels, a multiple of the number of groups; or
            the width of each group.

    Returns:
        bool [channels_out, channels_in, kh, kw].
    """
    groups_out, groups_in = group_mask.shape[:2]
    for dim, groups, channels in ((0, groups_out, channels_out), (1, groups_in, channels_in)):
        if isinstance(channels, int):
            if channels % groups:
                raise InputError(f"{channels} channels cannot be split into {groups} equal groups")
            widths = [channels // groups] * groups
        else:
            widths = list(channels)
        if len(widths) != groups:
            raise InputError(f"there are {groups} groups, but {len(widths)} widths")
        repeats = torch.tensor(widths, device=group_mask.device)
        group_mask = group_mask.repeat_interleave(repeats, dim)
    return group_mask


def kernel_size(kernel: Kernel) -> tuple[int, int]:
    """``kernel`` as (kh, kw); raises :class:`InputError` unless both are odd."""
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    if kh < 1 or kw < 1 or kh % 2 == 0 or kw % 2 == 0:
        raise InputError(f"kernels must be odd, not {kh}x{kw}")
    return kh, kw


def _offset_mask(visible: Predicate, groups_in: int, groups_out: int, kernel: Kernel) -> np.ndarray:
    """``bool [groups_out, groups_in, kh, kw]`` from a function of the offset."""
    kh, kw = kernel_size(kernel)
    if groups_in < 1 or groups_out < 1:
        raise InputError(f"groups must be positive, not {groups_in} in and {groups_out} out")
    dc = np.arange(groups_in)[None, :, None, None] - np.arange(groups_out)[:, None, None, None]
    dh = np.arange(kh)[:, None] - kh // 2
    dw = np.arange(kw)[None, :] - kw // 2
    seen = np.asarray(visible(dc, dh, dw), bool)
    return np.broadcast_to(seen, (groups_out, groups_in, kh, kw)).copy()


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"a mask is of kind A or B, not {kind!r}")


def _checked_mask(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    if array.dtype != bool or array.ndim not in (2, 4):
        raise InputError(
            "a mask must be bool [kh, kw] or [groups, groups, kh, kw], "
            f"not {array.dtype} {list(array.shape)}"
        )
    kernel_size(array.shape[-2:])
    if array.ndim == 4 and array.shape[0] != array.shape[1]:
        raise InputError(f"a mask must have as many groups out as in, not {list(array.shape[:2])}")
    return array
