"""Integer probability tables for the rANS coder.

A table gives each of a run of consecutive values a frequency in units of 2**-precision. Tables are
made in floating point once, when a model is exported, and stored with it as integers: encoder and
decoder read the same integers and never rebuild them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycodec import _cpu
from pycodec.errors import InputError

MAX_PRECISION = 16


class TableSet:
    """Tables of one precision, named by their index; immutable.

    Args:
        frequencies: one array a table, each item at least 1, each sum 2**precision.
        offsets: the value that each table's first frequency stands for.
        precision: 1..16 bits.
        escape: whether a table's last frequency stands for "a value outside", after which the
            coder writes the value's distance from the table as an Elias gamma code; one bool a
            table or one for all.

    Raises:
        InputError: if the above does not hold, a table's values exceed int32, or the set is empty
            or has more than 2**26 slots (tables times 2**precision).
    """

    def __init__(
        self,
        frequencies: Sequence[ArrayLike],
        offsets: Sequence[int],
        precision: int = 12,
        escape: Sequence[bool] | bool = False,
    ) -> None:
        tables = [
            _integers(f, np.uint32, f"frequencies of table {i}") for i, f in enumerate(frequencies)
        ]
        escapes = [escape] * len(tables) if isinstance(escape, (bool, np.bool_)) else escape
        self._precision = int(precision)
        self._sizes = np.array([len(f) for f in tables], np.uint32)
        self._frequencies = np.concatenate([*tables, np.empty(0, np.uint32)])
        self._offsets = _integers(offsets, np.int32, "offsets")
        self._escapes = np.array(escapes, np.bool_)
        self._native = _cpu.RansTableSet(
            self._precision, self._frequencies, self._sizes, self._offsets, self._escapes
        )
        self._starts = np.cumsum(self._sizes, dtype=np.int64) - self._sizes
        self._num_values = self._sizes.astype(np.int64) - self._escapes

    @property
    def precision(self) -> int:
        """Bits: each table's frequencies add up to 2**precision."""
        return self._precision

    @property
    def num_tables(self) -> int:
        """Number of tables; valid indexes are 0..num_tables - 1."""
        return len(self._sizes)

    @property
    def native(self) -> _cpu.RansTableSet:
        """The set as the C++ coder uses it."""
        return self._native

    def table(self, index: int) -> tuple[NDArray[np.uint32], int, bool]:
        """The frequencies (a copy), offset and escape flag of one table."""
        start, size = self._starts[index], self._sizes[index]
        frequencies = self._frequencies[start : start + size].copy()
        return frequencies, int(self._offsets[index]), bool(self._escapes[index])

    def to_arrays(self) -> dict[str, NDArray]:
        """The set as flat arrays, for safetensors.

        Returns:
            ``precision`` uint8 [1]; ``frequencies`` uint32 [sum of sizes]; ``sizes`` uint32 [T];
            ``offsets`` int32 [T]; ``escapes`` uint8 [T].
        """
        return {
            "precision": np.array([self._precision], np.uint8),
            "frequencies": self._frequencies.copy(),
            "sizes": self._sizes.copy(),
            "offsets": self._offsets.copy(),
            "escapes": self._escapes.astype(np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> TableSet:
        """The set that :meth:`to_arrays` described; integer arrays or CPU tensors of any width.

        Raises:
            InputError: an array is missing or does not fit the others, or the tables are invalid.
        """
        try:
            precision, frequencies, sizes, offsets, escapes = (
                _integers(arrays[name], np.int64, name)
                for name in ("precision", "frequencies", "sizes", "offsets", "escapes")
            )
        except KeyError as error:
            raise InputError(f"the tables lack the array {error}") from None
        if precision.size != 1 or (sizes < 0).any() or sizes.sum() != frequencies.size:
            raise InputError("the arrays of the tables do not fit together")
        tables = np.split(frequencies, np.cumsum(sizes)[:-1]) if sizes.size else []
        return cls(tables, offsets, int(precision[0]), escapes.astype(bool))

    def cost_bits(self, symbols: ArrayLike, indexes: ArrayLike) -> float:
        """The exact code length of symbols: what an ideal coder would need with these tables.

        Args:
            symbols: int32, any shape.
            indexes: uint8 or uint16, the same number of items.

        Returns:
            The sum over all symbols, in bits, escapes included.

        Raises:
            InputError: for what :func:`pycodec.coding.rans.encode` refuses.
        """
        values = np.asarray(symbols).reshape(-1).astype(np.int64)
        index = np.asarray(indexes).reshape(-1).astype(np.int64)
        if values.size != index.size:
            raise InputError(f"{values.size} symbols with {index.size} indexes")
        if index.size and (index.min() < 0 or index.max() >= self.num_tables):
            raise InputError(f"a table index exceeds the set of {self.num_tables} tables")
        num_values = self._num_values[index]
        rank = values - self._offsets[index]
        outside = (rank < 0) | (rank >= num_values)
        if not self._escapes[index[outside]].all():
            raise InputError("a symbol is outside its table, which has no escape")
        entry = self._starts[index] + np.where(outside, num_values, rank)
        bits = (self._precision - np.log2(self._frequencies))[entry].sum()
        below, above = -rank[outside], rank[outside] - num_values[outside] + 1
        code = np.where(below > 0, 2 * below, 2 * above - 1)
        # frexp counts the bits of an integer exactly: code < 2**53.
        gamma_bits = 2 * (np.frexp(code.astype(np.float64))[1] - 1) + 1
        return float(bits + gamma_bits.sum())

    @classmethod
    def gaussian(
        cls, scales: Sequence[float], precision: int = 12, tail_mass: float | None = None
    ) -> TableSet:
        """Zero-mean Gaussians integrated over unit steps, with an escape for the tails.

        Args:
            scales: one standard deviation a table, in steps, positive and finite.
            precision: 1..16 bits.
            tail_mass: at most this probability is left to the escape, where the alphabet has room
                for it; None takes 2**-precision, the probability that the escape costs anyway.

        Returns:
            Tables over -K..K, K chosen for each scale, the escape last.

        Raises:
            InputError: if an argument is out of its range.
        """
        _check_precision(precision)
        if tail_mass is None:
            tail_mass = 2.0**-precision
        if not 0 < tail_mass < 1:
            raise InputError(f"tail_mass must be between 0 and 1, not {tail_mass}")
        # 2 K + 1 values and the escape need a slot each.
        widest = 2 ** (precision - 1) - 1
        frequencies, offsets = [], []
        for scale in scales:
            if not (scale > 0 and math.isfinite(scale)):
                raise InputError(f"a scale must be positive and finite, not {scale}")
            pmf, reach = _gaussian_pmf(float(scale), tail_mass, widest)
            frequencies.append(quantize_pmf(pmf, precision))
            offsets.append(-reach)
        return cls(frequencies, offsets, precision, escape=True)

    @classmethod
    def from_histograms(
        cls,
        histograms: Sequence[ArrayLike],
        offsets: Sequence[int],
        precision: int = 12,
        escape: bool = True,
    ) -> TableSet:
        """Tables that fit observed counts best.

        Args:
            histograms: one array a table: how often each value was seen. All-zero is uniform.
            offsets: the value of each histogram's first count.
            precision: 1..16 bits.
            escape: whether to add an escape, with the least probability, to each table.

        Raises:
            InputError: if counts are negative or a histogram is longer than its table can be.
        """
        frequencies = []
        for counts in histograms:
            pmf = np.asarray(counts, np.float64)
            if not pmf.any():
                pmf = np.ones_like(pmf)
            if escape:
                pmf = np.append(pmf, 0.0)
            frequencies.append(quantize_pmf(pmf, precision))
        return cls(frequencies, offsets, precision, escape)


def quantize_pmf(pmf: ArrayLike, precision: int) -> NDArray[np.uint32]:
    """Integer frequencies closest to a distribution.

    Minimizes the Kullback-Leibler divergence sum p * log(p * 2**precision / f) over all integers
    f >= 1 with sum 2**precision. The sum is separable and convex, so single counts moved from where
    they cost least to where they gain most, until nothing is gained, end in the optimum (greedy
    allocation; B. Fox, "Discrete optimization via marginal analysis", 1966).

    Args:
        pmf: probabilities or weights, 1-D, non-negative, finite, not all zero.
        precision: 1..16 bits.

    Returns:
        uint32 frequencies, as many as there are weights. Equal weights in doubt: lower index first.

    Raises:
        InputError: for an invalid distribution, or more weights than 2**precision.
    """
    weights = np.asarray(pmf, np.float64)
    _check_precision(precision)
    total = 1 << precision
    if weights.ndim != 1 or not 1 <= weights.size <= total:
        raise InputError(f"a table of {precision} bits has 1..{total} probabilities in one row")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise InputError("probabilities must be finite and non-negative, one at least positive")
    scaled = weights / weights.max()  # so that their sum cannot overflow
    p = scaled / scaled.sum()
    return _allocate_counts(p.tolist(), total)


def _allocate_counts(p: list[float], total: int) -> NDArray[np.uint32]:
    counts = [max(1, math.floor(x * total + 0.5)) for x in p]

    def gain(i: int) -> float:
        return p[i] * math.log1p(1 / counts[i])

    # Computed just as the gain that it undoes: counts that go in circles would gain exactly 0.
    def loss(i: int) -> float:
        return p[i] * math.log1p(1 / (counts[i] - 1)) if counts[i] > 1 else math.inf

    # Heaps with an entry for each symbol; one that has moved since is out of date and dropped.
    gains = [(-gain(i), i, counts[i]) for i in range(len(p))]
    losses = [(loss(i), i, counts[i]) for i in range(len(p))]
    heapq.heapify(gains)
    heapq.heapify(losses)

    def top(heap: list[tuple[float, int, int]]) -> tuple[float, int, int]:
        while heap[0][2] != counts[heap[0][1]]:
            heapq.heappop(heap)
        return heap[0]

    def move(i: int, step: int) -> None:
        counts[i] += step
        heapq.heappush(gains, (-gain(i), i, counts[i]))
        heapq.heappush(losses, (loss(i), i, counts[i]))

    missing = total - sum(counts)
    while missing != 0:
        step = 1 if missing > 0 else -1
        move(top(gains if missing > 0 else losses)[1], step)
        missing -= step
    while -top(gains)[0] > top(losses)[0]:
        taker, giver = top(gains)[1], top(losses)[1]
        move(giver, -1)
        move(taker, 1)
    return np.array(counts, np.uint32)


def _gaussian_pmf(scale: float, tail_mass: float, widest: int) -> tuple[NDArray[np.float64], int]:
    """Probabilities of -K..K and of everything else, and K."""

    def tail(k: int) -> float:  # P(|X| > k), X rounded to an integer
        return math.erfc((k + 0.5) / (scale * math.sqrt(2)))

    reach = 0
    while reach < widest and tail(reach) > tail_mass:
        reach += 1
    # Half the difference of tails: accurate where the distribution function is close to 1.
    side = [(tail(k - 1) - tail(k)) / 2 for k in range(1, reach + 1)]
    pmf = [*side[::-1], 1 - tail(0), *side, tail(reach)]
    return np.array(pmf), reach


def _check_precision(precision: int) -> None:
    if not 1 <= precision <= MAX_PRECISION:
        raise InputError(f"precision must be 1..{MAX_PRECISION} bits, not {precision}")


def _integers(values: ArrayLike, dtype: type[np.integer], name: str) -> NDArray:
    """A flat copy of ``values`` as ``dtype``; InputError if they do not fit."""
    array = np.asarray(values).reshape(-1)
    if array.size == 0:
        return np.empty(0, dtype)
    limits = np.iinfo(dtype)
    if array.dtype.kind not in "iub":
        raise InputError(f"{name} must be integers, not {array.dtype}")
    if array.min() < limits.min or array.max() > limits.max:
        raise InputError(f"{name} exceed {np.dtype(dtype).name}")
    return array.astype(dtype)
