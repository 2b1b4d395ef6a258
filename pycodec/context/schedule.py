"""Schedules: which symbols of a code volume are decoded together, in which wave.

A context network is described by its masks (:class:`Layer`). Its schedule gives a symbol the time

    t(c, h, w) = alpha c + beta h + gamma w + phase[h mod ph, w mod pw]

with integers such that t is smaller at everything a type A layer sees, and not larger at anything a
type B layer sees. Then all symbols of one time form a wave: they can be decoded at once, and every
activation of every layer can be computed in the wave of its own position (proof in
``docs/waves.md``). The phase is zero but for orders that are no hyperplanes, like checkerboards.

This is hyperplane scheduling (Lamport, "The parallel execution of DO loops", 1974).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pycodec.context.orders import KINDS, Kernel, LinearOrder, Order, get_order, kernel_size
from pycodec.errors import InputError

_MAX_RADIUS = 256
"""The search for a first schedule gives up at weights beyond this."""

_CHUNK = 1 << 21
"""Numbers in one intermediate array of the search."""


@dataclass(frozen=True, eq=False)
class Layer:
    """What one convolution of a context network sees.

    Args:
        mask: bool [groups, groups, kh, kw]: output group, input group, row, column; numpy or torch.
            One group stands for any number of channels that are coded together.
        kind: "A" or "B".
        active: bool [ph, pw]: the layer sees nothing where this is False at (h mod ph, w mod pw).
        phase: int64 [qh, qw]: the order's phase, see the module.
    """

    mask: np.ndarray
    kind: str
    active: np.ndarray | None = None
    phase: np.ndarray | None = None

    def __post_init__(self) -> None:
        mask = np.asarray(self.mask)
        if mask.dtype != bool or mask.ndim != 4 or mask.shape[0] != mask.shape[1]:
            raise InputError(
                "a layer's mask must be bool [groups, groups, kh, kw], "
                f"not {mask.dtype} {list(mask.shape)}"
            )
        kernel_size(mask.shape[2:])
        if self.kind not in KINDS:
            raise InputError(f"a layer is of kind A or B, not {self.kind!r}")
        object.__setattr__(self, "mask", mask)

    @classmethod
    def of(cls, order: Order | str, kind: str, groups: int, kernel: Kernel) -> Layer:
        """The layer with this order's mask."""
        order = get_order(order)
        mask = order.group_mask(kind, groups, groups, kernel)
        return cls(mask, kind, order.active(kind), order.phase)


@dataclass(frozen=True)
class Residual:
    """A residual block: its layers one after another, and their input added to the result."""

    layers: Sequence[Layer | Residual]


Network = Sequence[Layer | Residual]


@dataclass(frozen=True)
class Waves:
    """The symbols of a volume, wave by wave.

    Attributes:
        positions: int32 or int64 [C H W], ``(c H + h) W + w`` of each symbol, increasing in a wave.
        offsets: int64 [waves + 1]: wave i is ``positions[offsets[i] : offsets[i + 1]]``.
        shape: (C, H, W).
    """

    positions: np.ndarray
    offsets: np.ndarray
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, wave: int) -> np.ndarray:
        if not 0 <= wave < len(self):
            raise IndexError(f"there are {len(self)} waves, no wave {wave}")
        return self.positions[self.offsets[wave] : self.offsets[wave + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[wave] for wave in range(len(self)))

    def coordinates(self, wave: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """c, h and w of the symbols of a wave, int64 each."""
        return np.unravel_index(self[wave], self.shape)


@dataclass(frozen=True)
class Schedule:
    """Times of symbols, see the module.

    Args:
        alpha, beta, gamma: the weights of c, h and w.
        phase: rows of integers, one period.
    """

    alpha: int
    beta: int
    gamma: int
    phase: tuple[tuple[int, ...], ...] = field(default=((0,),))

    @property
    def weights(self) -> tuple[int, int, int]:
        return self.alpha, self.beta, self.gamma

    def time(self, c: np.ndarray, h: np.ndarray, w: np.ndarray) -> np.ndarray:
        """t of symbols, int64; negative weights can make it negative."""
        phase = np.asarray(self.phase, np.int64)
        c, h, w = (np.asarray(x, np.int64) for x in (c, h, w))
        rows, columns = phase.shape
        return self.alpha * c + self.beta * h + self.gamma * w + phase[h % rows, w % columns]

    def slots(self, channels: int, height: int, width: int) -> int:
        """Times from the first wave's to the last one's: max t - min t + 1.

        Without phases ``1 + |alpha| (C - 1) + |beta| (H - 1) + |gamma| (W - 1)``.
        """
        ends = [_ends(*part) for part in self._parts(channels, height, width)]
        return max(high for _, high in ends) - min(low for low, _ in ends) + 1

    def count(self, channels: int, height: int, width: int) -> int:
        """How many waves there are: the times, of ``slots``, at which there is a symbol.

        Fewer than slots only if a weight exceeds what the others span, as t = 3 h + w with W = 2.
        """
        low = min(_ends(*part)[0] for part in self._parts(channels, height, width))
        times = 0  # bit i: there is a symbol at time low + i
        for start, steps in self._parts(channels, height, width):
            first, _ = _ends(start, steps)
            bits = 1
            for step, number in steps:
                bits = _repeat(bits, abs(step), number)
            times |= bits << (first - low)
        return times.bit_count()

    def waves(self, channels: int, height: int, width: int) -> Waves:
        """All symbols in the order in which they are coded; waves without symbols are left out."""
        _check_volume(channels, height, width)
        time = self._times(channels, height, width).ravel()
        time -= time.min()
        counts = np.bincount(time)
        order = _stable_argsort(time, len(counts))
        dtype = np.int32 if len(time) < 2**31 else np.int64
        offsets = np.concatenate([[0], np.cumsum(counts[counts > 0])])
        return Waves(order.astype(dtype), offsets, (channels, height, width))

    def wave_numbers(self, channels: int, height: int, width: int) -> np.ndarray:
        """The wave of each symbol, int64 [C, H, W], counted as in :meth:`waves`."""
        _check_volume(channels, height, width)
        _, number = np.unique(self._times(channels, height, width), return_inverse=True)
        return number.reshape(channels, height, width)

    def _times(self, channels: int, height: int, width: int) -> np.ndarray:
        c, h, w = np.ogrid[:channels, :height, :width]
        return self.time(c, h, w)

    def _parts(
        self, channels: int, height: int, width: int
    ) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """The volume in parts of one phase: time of the first symbol, (step, number) by axis."""
        _check_volume(channels, height, width)
        rows, columns = len(self.phase), len(self.phase[0])
        for i, j in itertools.product(range(min(rows, height)), range(min(columns, width))):
            yield (
                self.beta * i + self.gamma * j + self.phase[i][j],
                [
                    (self.alpha, channels),
                    (self.beta * rows, -(-(height - i) // rows)),
                    (self.gamma * columns, -(-(width - j) // columns)),
                ],
            )


def find_schedule(network: Network, channels: int, height: int, width: int) -> Schedule:
    """The schedule with the fewest waves for one size of volume.

    What is minimal, exactly, is :meth:`Schedule.slots`: no integer weights that keep the conditions
    of the module have fewer. (Of the slots, tiny volumes may leave some without symbols. Then other
    weights can have more slots and yet fewer waves; that is rare, and not looked for.) Among equals
    those with the smallest sum of absolute weights are taken, then smaller absolute gamma, beta,
    alpha, then positive ones. So the schedule is a function of masks and size alone, and both sides
    of a stream find the same one. Offsets that do not fit into the volume do not count, and the
    weight of an axis of length 1 is 0.

    Args:
        network: the layers of the network, in any order; residual blocks or plain lists of their
            layers. Layers of one group stand for any number of channels.
        channels: C, the number of groups.
        height, width: H and W.

    Raises:
        InputError: no weights fulfil the conditions, so the masks cannot be decoded in waves of
            this kind; no layer is of type A; or layers differ in numbers of groups or phases.
    """
    _check_volume(channels, height, width)
    layers = list(flatten(network))
    check_groups(layers, channels)
    if all(layer.kind == "B" for layer in layers):
        raise InputError("a network without a type A layer sees the symbols that it predicts")
    phase = network_phase(layers)
    offsets, limits = _conditions(layers, phase, (channels, height, width))
    weights = _minimise(offsets, limits, (channels, height, width))
    return Schedule(*weights, phase=tuple(tuple(row) for row in phase.tolist()))


def order_schedule(order: Order | str, channels: int, height: int, width: int) -> Schedule:
    """The steps in which an order itself codes a volume, whatever the network.

    For ``raster`` these are positions one by one (t = W h + w), for ``plane`` symbols one by one
    (t = H W c + W h + w): the sequential decoder to which waves are compared.

    Raises:
        InputError: a custom order, which does not say its steps.
    """
    _check_volume(channels, height, width)
    order = get_order(order)
    weights = np.zeros(3, np.int64)
    if isinstance(order, LinearOrder):
        unit = 1
        for key in reversed(order.keys):
            weights += unit * np.array(key)
            unit *= 1 + int(np.abs(key) @ np.array([channels - 1, height - 1, width - 1]))
    elif not order.phase.any():
        raise InputError(f"order {order.name} does not say its steps; use find_schedule")
    return Schedule(*weights.tolist(), phase=tuple(tuple(row) for row in order.phase.tolist()))


def flatten(network: Network) -> Iterator[Layer]:
    """The layers of a network, those in residual blocks too."""
    for part in network:
        if isinstance(part, Residual):
            yield from flatten(part.layers)
        elif isinstance(part, Layer):
            yield part
        else:
            raise InputError(f"a network is a list of Layer and Residual, not {type(part)}")


def check_groups(layers: Sequence[Layer], channels: int) -> bool:
    """Whether all layers have one group only; raises InputError if they do not fit together."""
    if not layers:
        raise InputError("a network needs at least one layer")
    groups = {len(layer.mask) for layer in layers}
    if groups == {1}:
        return True
    if groups - {channels}:
        raise InputError(f"{channels} groups are coded, but layers have {sorted(groups)} groups")
    return False


def network_phase(layers: Sequence[Layer]) -> np.ndarray:
    """The phase that the layers have in common, int64 [ph, pw]; [[0]] if none has any."""
    phases = [np.asarray(layer.phase, np.int64) for layer in layers if layer.phase is not None]
    for phase in phases[1:]:
        if not np.array_equal(phase, phases[0]):
            raise InputError("the layers' orders have different phases")
    return phases[0] if phases else np.zeros((1, 1), np.int64)


def periodic(layers: Sequence[Layer], phase: np.ndarray) -> tuple[int, int]:
    """The period (rows, columns) of phase and all patterns of activity."""
    shapes = [phase.shape, *(layer.active.shape for layer in layers if layer.active is not None)]
    return math.lcm(*(s[0] for s in shapes)), math.lcm(*(s[1] for s in shapes))


def _check_volume(channels: int, height: int, width: int) -> None:
    if min(channels, height, width) < 1:
        raise InputError(f"a volume cannot be {channels}x{height}x{width}")


def _conditions(
    layers: Sequence[Layer], phase: np.ndarray, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """All conditions ``offsets @ weights <= limits``: int64 [n, 3] and [n], offsets distinct."""
    rows, columns = periodic(layers, phase)
    conditions: dict[tuple[int, int, int], int] = {}
    for layer in layers:
        seen = _offsets(layer.mask, shape)
        strict = 1 if layer.kind == "A" else 0
        for i, j in itertools.product(range(min(rows, shape[1])), range(min(columns, shape[2]))):
            if layer.active is not None and not _at(layer.active, i, j):
                continue
            for dc, dh, dw in seen:
                limit = _at(phase, i, j) - _at(phase, i + dh, j + dw) - strict
                key = (dc, dh, dw)
                conditions[key] = min(conditions.get(key, limit), limit)
    # A condition 0 <= limit that holds says nothing.
    useful = {key: limit for key, limit in conditions.items() if any(key) or limit < 0}
    offsets = np.array(sorted(useful), np.int64).reshape(-1, 3)
    return offsets, np.array([useful[tuple(key)] for key in offsets.tolist()], np.int64)


def _offsets(mask: np.ndarray, shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The distinct (dc, dh, dw) that a mask sees and that fit into the volume."""
    groups, _, kh, kw = mask.shape
    output, input_, i, j = np.nonzero(mask)
    # Unique numbers are found much faster than unique rows.
    number = np.unique(((input_ - output + groups) * kh + i) * kw + j)
    found = np.stack(
        [number // (kh * kw) - groups, number // kw % kh - kh // 2, number % kw - kw // 2], 1
    )
    if len(mask) == 1 < shape[0]:  # one group stands for all: each sees each
        other = np.arange(1 - shape[0], shape[0])
        found = np.repeat(found, len(other), 0)
        found[:, 0] = np.tile(other, len(found) // len(other))
    found = found[(np.abs(found) < np.array(shape)).all(1)]
    return [tuple(offset) for offset in found.tolist()]


def _at(pattern: np.ndarray, h: int, w: int) -> int:
    return int(pattern[h % pattern.shape[0], w % pattern.shape[1]])


def _minimise(
    offsets: np.ndarray, limits: np.ndarray, shape: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Integer weights with ``offsets @ weights <= limits`` and the fewest slots.

    The axis with the fewest symbols is solved for in closed form (given the other weights its own
    lies in an interval), the others are enumerated: first in growing boxes until anything is found,
    then in the box that holds everything which could be better.
    """
    _explain_contradictions(offsets, limits)
    lengths = np.array(shape) - 1
    axes = [int(axis) for axis in np.argsort(lengths, kind="stable") if lengths[axis] > 0]
    if not axes or not len(offsets):
        return (0, 0, 0)
    solved, others = axes[0], axes[1:]

    reach = np.maximum(np.abs(offsets).max(0), 1)
    # Cramer's rule: if all limits are <= 0, some solution has weights of at most this.
    bound = 6 * int(reach.prod() // reach.min()) * max(1, int(np.abs(limits).max()))
    proven = bound <= _MAX_RADIUS and limits.max() <= 0
    radius, found = 1, None
    while found is None:
        found = _best_in_box(offsets, limits, lengths, solved, others, [radius] * len(others))
        if found is None and radius >= min(bound, _MAX_RADIUS):
            raise InputError(
                "these masks have no schedule: no integer hyperplane "
                + ("" if proven else f"with weights up to {radius} ")
                + "puts all that they see into earlier waves"
            )
        radius = min(2 * radius, bound, _MAX_RADIUS)
    cost = int(np.abs(found) @ lengths)
    box = [cost // int(lengths[axis]) for axis in others]
    best = _best_in_box(offsets, limits, lengths, solved, others, box, cost)
    assert best is not None
    return tuple(best.tolist())


def _best_in_box(
    offsets: np.ndarray,
    limits: np.ndarray,
    lengths: np.ndarray,
    solved: int,
    others: list[int],
    box: list[int],
    max_cost: int | None = None,
) -> np.ndarray | None:
    """The best weights, int64 [3], with the others' at most ``box``; None if there are none."""
    grid = (
        np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in box), indexing="ij"), -1).reshape(
            -1, len(others)
        )
        if others
        else np.zeros((1, 0), np.int64)
    )
    if max_cost is not None:
        grid = grid[np.abs(grid) @ lengths[others] <= max_cost]
    step = offsets[:, solved]
    upper, lower, free = step > 0, step < 0, step == 0
    best = None
    chunk = max(1, _CHUNK // len(offsets))
    for start in range(0, len(grid), chunk):
        part = grid[start : start + chunk]
        slack = limits - part @ offsets[:, others].T
        high = (slack[:, upper] // step[upper]).min(1, initial=2**40)
        low = -(slack[:, lower] // -step[lower]).min(1, initial=2**40)
        possible = (slack[:, free] >= 0).all(1) & (low <= high)
        if not possible.any():
            continue
        weights = np.zeros((int(possible.sum()), 3), np.int64)
        weights[:, others] = part[possible]
        weights[:, solved] = np.clip(0, low[possible], high[possible])
        size = np.abs(weights)
        # lexsort: the last key is the most significant one.
        keys = (*-weights.T, *size.T, size.sum(1), size @ lengths)
        candidate = weights[np.lexsort(keys)[0]]
        if best is None or _rank(candidate, lengths) < _rank(best, lengths):
            best = candidate
    return best


def _rank(weights: np.ndarray, lengths: np.ndarray) -> tuple[int, ...]:
    """What :func:`find_schedule` minimises, the most significant number first."""
    size = np.abs(weights)
    return (int(size @ lengths), int(size.sum()), *size[::-1].tolist(), *(-weights[::-1]).tolist())


def _explain_contradictions(offsets: np.ndarray, limits: np.ndarray) -> None:
    """Clear errors for what is plainly impossible: a symbol that sees itself, or two each other."""
    limit_of = dict(zip(map(tuple, offsets.tolist()), limits.tolist(), strict=True))
    if (0, 0, 0) in limit_of:
        raise InputError("these masks have no schedule: a type A layer sees the symbol itself")
    for key, limit in limit_of.items():
        opposite = limit_of.get(tuple(-x for x in key))
        if opposite is not None and limit + opposite < 0:
            raise InputError(
                f"these masks have no schedule: the offsets (dc, dh, dw) = {key} and its opposite "
                "are both visible, so that symbols wait for each other"
            )


def _ends(start: int, steps: list[tuple[int, int]]) -> tuple[int, int]:
    """Least and greatest of all ``start + sum of step * i`` with 0 <= i < number."""
    spans = [step * (number - 1) for step, number in steps]
    return start + sum(min(s, 0) for s in spans), start + sum(max(s, 0) for s in spans)


def _repeat(bits: int, step: int, number: int) -> int:
    """The union of ``bits << (step i)`` for 0 <= i < number, in log2(number) steps."""
    done = 1
    while done < number:
        more = min(done, number - done)
        bits |= bits << (step * more)
        done += more
    return bits


def _stable_argsort(values: np.ndarray, bound: int) -> np.ndarray:
    """A stable argsort of integers in [0, bound), by radix: NumPy has that for 16 bits."""
    order = np.argsort((values & 0xFFFF).astype(np.uint16), kind="stable")
    shift = 16
    while bound > 1 << shift:
        digit = ((values >> shift) & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
        shift += 16
    return order
