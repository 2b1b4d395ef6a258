"""Integer probability tables for the rANS coder.

A table gives each of a run of consecutive values a frequency in units of 2**-precision. Tables are
made in floating point once, when a model is exported, and stored with it as integers: encoder and
decoder read the same integers and never rebuild them, for the last bit of exp and erfc may differ
between two machines' math libraries.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycodec import _cpu
from pycodec.errors import InputError

MAX_PRECISION = 16
MAX_SCALE = 2.0**31


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
        self._ideals: Sequence[_Mixture | _Histogram] | None = None

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

    @functools.cached_property
    def expected_loss(self) -> NDArray[np.float64] | None:
        """What each table costs beyond the entropy of the distribution that it was made for.

        The expected code length under the table, escapes with their Elias gamma codes included,
        less the entropy of the distribution as it was given: integrated over unit bins, but not
        cut off and not rounded; for a histogram, the observed frequencies. It is never negative,
        as it is the Kullback-Leibler divergence of the table's code from the distribution.
        Components that spread over more than 2**14 values (Gaussians of a scale above 900, others
        above 195) are summed in bins of several values: right to 1e-5 bits.

        Returns:
            float64 [T], bits per symbol; read only. None for a set that was made from integers
            (by the constructor or :meth:`from_arrays`): they do not tell what they stand for.
        """
        if self._ideals is None:
            return None
        loss = np.empty(self.num_tables)
        for i, ideal in enumerate(self._ideals):
            first = int(self._offsets[i])
            edges, p = ideal.bins(first, first + int(self._num_values[i]) - 1)
            some = p > 0
            p, width = p[some], np.diff(edges)[some]
            values = (edges[:-1] + 0.5)[some].astype(np.int64)
            bits = self._code_lengths(values, np.full(values.size, i))
            loss[i] = (p * (bits + np.log2(p) - np.log2(width))).sum()
        loss = np.maximum(loss, 0)  # rounding may take a loss of nothing below it
        loss.flags.writeable = False
        return loss

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
        return float(self._code_lengths(values, index).sum())

    def _code_lengths(
        self, values: NDArray[np.int64], index: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Bits of each value under the table of its index; values may exceed int32."""
        num_values = self._num_values[index]
        rank = values - self._offsets[index]
        outside = (rank < 0) | (rank >= num_values)
        if not self._escapes[index[outside]].all():
            raise InputError("a symbol is outside its table, which has no escape")
        entry = self._starts[index] + np.where(outside, num_values, rank)
        bits = self._precision - np.log2(self._frequencies[entry])
        below, above = -rank[outside], rank[outside] - num_values[outside] + 1
        code = np.where(below > 0, 2 * below, 2 * above - 1)
        # frexp counts the bits of an integer exactly: code < 2**53.
        bits[outside] += 2 * (np.frexp(code.astype(np.float64))[1] - 1) + 1
        return bits

    @classmethod
    def gaussian(
        cls,
        scales: ArrayLike,
        precision: int = 12,
        tail_mass: float | None = None,
        *,
        means: ArrayLike | None = None,
    ) -> TableSet:
        """Gaussians integrated over unit steps, with an escape for the tails.

        Args:
            scales: [T], one standard deviation a table, in steps, positive, at most 2**31.
            precision: 1..16 bits.
            tail_mass: at most this probability, half of it on each side, is left to the escape,
                where the alphabet has room for it; None takes 2**-precision, the probability that
                the escape costs anyway. Wide tables lose less with more: see ``expected_loss``.
            means: [T], in steps, may be fractional; None is zero.

        Returns:
            Tables over as many values as ``tail_mass`` asks for, the escape last: -K..K around a
            mean of zero.

        Raises:
            InputError: if an argument is out of its range, or the values exceed int32.
        """
        return cls._from_family("gaussian", scales, means, precision, tail_mass)

    @classmethod
    def laplace(
        cls,
        scales: ArrayLike,
        precision: int = 12,
        tail_mass: float | None = None,
        *,
        means: ArrayLike | None = None,
    ) -> TableSet:
        """Laplace distributions, density exp(-abs(x - mean) / scale) / (2 scale).

        The standard deviation is sqrt(2) times the scale; all else is as in :meth:`gaussian`.
        """
        return cls._from_family("laplace", scales, means, precision, tail_mass)

    @classmethod
    def logistic(
        cls,
        scales: ArrayLike,
        precision: int = 12,
        tail_mass: float | None = None,
        *,
        means: ArrayLike | None = None,
    ) -> TableSet:
        """Logistic distributions, P(X < x) = 1 / (1 + exp((mean - x) / scale)).

        The standard deviation is pi / sqrt(3) times the scale; all else is as in :meth:`gaussian`.
        """
        return cls._from_family("logistic", scales, means, precision, tail_mass)

    @classmethod
    def mixture(
        cls,
        weights: ArrayLike,
        means: ArrayLike,
        scales: ArrayLike,
        precision: int = 12,
        tail_mass: float | None = None,
        *,
        families: str | Sequence[str] = "gaussian",
    ) -> TableSet:
        """Mixtures integrated over unit steps, with an escape for the tails.

        For example the Gaussian mixtures of Cheng et al. 2020 (arXiv 2001.01568) and the logistic
        mixtures of PixelCNN++ (arXiv 1701.05517). The order of components does not matter.

        Args:
            weights: [T, K], the shares of each table's components, non-negative, adding up to 1
                (within 1e-5; they are normalized).
            means: [T, K], in steps, may be fractional.
            scales: [T, K], in steps, as :meth:`gaussian`, :meth:`laplace` and :meth:`logistic`
                define them.
            precision: 1..16 bits.
            tail_mass: as in :meth:`gaussian`.
            families: "gaussian", "laplace" or "logistic": one for all or one for each component.

        Returns:
            Tables over all values but the tails, the escape last. If the alphabet is too small
            for that, over the run of values that holds most.

        Raises:
            InputError: if an argument is out of its range, the shapes differ, or the values exceed
                int32.
        """
        weight, mean, scale = (
            _floats(a, name, 2)
            for a, name in ((weights, "weights"), (means, "means"), (scales, "scales"))
        )
        if not weight.shape == mean.shape == scale.shape:
            raise InputError(
                "weights, means and scales must have one shape, "
                f"not {weight.shape}, {mean.shape} and {scale.shape}"
            )
        components = weight.shape[1]
        names = (families,) * components if isinstance(families, str) else tuple(families)
        if len(names) != components:
            raise InputError(f"{len(names)} families for {components} components")
        for name in names:
            if name not in _SURVIVAL:
                raise InputError(f"families are {', '.join(_SURVIVAL)}, not {name!r}")
        _check(weight, weight >= 0, "a weight must not be negative")
        sums = np.array([math.fsum(row) for row in weight])
        _check(sums, np.abs(sums - 1) <= 1e-5, "the weights of a table must add up to 1")
        _check(mean, np.abs(mean) <= 2.0**31, "a mean must be within int32")
        _check(scale, (scale > 0) & (scale <= MAX_SCALE), "a scale must be positive, at most 2**31")
        _check_precision(precision)
        if tail_mass is None:
            tail_mass = 2.0**-precision
        if not 0 < tail_mass < 1:
            raise InputError(f"tail_mass must be between 0 and 1, not {tail_mass}")
        rows = zip((weight / sums[:, None]).tolist(), mean.tolist(), scale.tolist(), strict=True)
        mixtures = [_Mixture(names, *map(tuple, row)) for row in rows]
        frequencies, offsets = [], []
        for ideal in mixtures:
            first, last = ideal.window(tail_mass, 2**precision - 1)  # the escape needs a slot
            outside = ideal.below(first - 0.5) + ideal.above(last + 0.5)
            pmf = np.append(ideal.pmf(np.arange(first, last + 2) - 0.5), outside)
            frequencies.append(quantize_pmf(pmf, precision))
            offsets.append(first)
        tables = cls(frequencies, offsets, precision, escape=True)
        tables._ideals = mixtures
        return tables

    @classmethod
    def _from_family(
        cls,
        family: str,
        scales: ArrayLike,
        means: ArrayLike | None,
        precision: int,
        tail_mass: float | None,
    ) -> TableSet:
        scale = _floats(scales, "scales", 1)
        mean = np.zeros_like(scale) if means is None else _floats(means, "means", 1)
        ones = np.ones((scale.size, 1))
        return cls.mixture(
            ones, mean[:, None], scale[:, None], precision, tail_mass, families=family
        )

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
        frequencies, ideals = [], []
        for counts in histograms:
            pmf = np.asarray(counts, np.float64)
            if not pmf.any():
                pmf = np.ones_like(pmf)
            frequencies.append(quantize_pmf(np.append(pmf, 0.0) if escape else pmf, precision))
            ideals.append(_Histogram(_normalize(pmf)))
        tables = cls(frequencies, offsets, precision, escape)
        tables._ideals = ideals
        return tables


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
    return _allocate_counts(_normalize(weights), total)


def _allocate_counts(p: NDArray[np.float64], total: int) -> NDArray[np.uint32]:
    value = _values_of_a_count()
    start = np.maximum(1, np.floor(p * total + 0.5)).astype(np.int64)
    # The optimum is within low..high. In it there is a v such that no symbol's next count is worth
    # more, p log(1 + 1/f), and none's last is worth less. As 1/(f + 1) < log(1 + 1/f) < 1/f, then
    # p/v - 1 < f <= p/v + 1; summed over n symbols, 1/v is between total - n and total + n.
    low = np.maximum(1, np.ceil(p * (total - p.size)) - 1).astype(np.int64)
    high = np.minimum(total, np.floor(p * (total + p.size)) + 1).astype(np.int64)
    # All counts that may be added or removed, the best first; in doubt the lower index.
    add, f = _runs(np.maximum(high - start, 0))
    gain = p[add] * value[start[add] + f]
    order = np.argsort(-gain, kind="stable")
    add, gain = add[order], gain[order]
    remove, f = _runs(np.maximum(start - low, 0))
    loss = p[remove] * value[start[remove] - 1 - f]
    order = np.argsort(loss, kind="stable")
    remove, loss = remove[order], loss[order]
    missing = total - int(start.sum())
    added, removed = max(missing, 0), max(-missing, 0)
    pairs = min(gain.size - added, loss.size - removed)
    moved = np.count_nonzero(gain[added : added + pairs] > loss[removed : removed + pairs])
    counts = start + np.bincount(add[: added + moved], minlength=p.size)
    return (counts - np.bincount(remove[: removed + moved], minlength=p.size)).astype(np.uint32)


def _runs(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index i ``lengths[i]`` times for each i, and 0, 1, ... for each run of them."""
    index = np.repeat(np.arange(lengths.size), lengths)
    return index, np.arange(index.size) - (np.cumsum(lengths) - lengths)[index]


@functools.cache
def _values_of_a_count() -> NDArray[np.float64]:
    """log(1 + 1/f) for f = 0..2**16: what one more count than f is worth, per unit of p."""
    # By math.log1p since NumPy's own differs from it, and by processor, in the last bit.
    return np.array([math.inf] + [math.log1p(1 / f) for f in range(1, 2**MAX_PRECISION + 1)])


def _normalize(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled = weights / weights.max()  # so that their sum cannot overflow
    return scaled / scaled.sum()


# P(X > x) for a mean of 0 and x >= 0, given x and the scale.
_SURVIVAL: dict[str, Callable[[float, float], float]] = {
    "gaussian": lambda x, scale: 0.5 * math.erfc(x / (scale * math.sqrt(2))),
    "laplace": lambda x, scale: 0.5 * math.exp(-x / scale),
    "logistic": lambda x, scale: (e := math.exp(-x / scale)) / (1 + e),
}

# Beyond so many scales a family has less than 2**-60 left.
_REACH = {"gaussian": 9, "laplace": 42, "logistic": 42}


@dataclass(frozen=True)
class _Mixture:
    """A mixture of distributions that are symmetric around their means.

    All is computed from the tails P(X > x) on the far side of a mean: no digits are lost where
    the distribution function comes close to 1, and what is symmetric stays so to the last bit.
    """

    families: tuple[str, ...]
    weights: tuple[float, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]

    def _components(self) -> zip[tuple[Callable[[float, float], float], float, float, float]]:
        tails = (_SURVIVAL[family] for family in self.families)
        return zip(tails, self.weights, self.means, self.scales, strict=True)

    def below(self, x: float) -> float:
        """P(X < x)."""
        return math.fsum(
            w * (tail(mean - x, scale) if x <= mean else 1 - tail(x - mean, scale))
            for tail, w, mean, scale in self._components()
        )

    def above(self, x: float) -> float:
        """P(X > x)."""
        return math.fsum(
            w * (tail(x - mean, scale) if x >= mean else 1 - tail(mean - x, scale))
            for tail, w, mean, scale in self._components()
        )

    def pmf(self, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability between each edge and the next."""
        parts = []
        for tail, w, mean, scale in self._components():
            beyond = np.array([tail(x, scale) for x in np.abs(edges - mean).tolist()])
            left, right = beyond[:-1], beyond[1:]
            around = (edges[:-1] < mean) & (mean < edges[1:])
            parts.append(w * np.where(around, 1 - (left + right), np.abs(left - right)))
        # Sorted, the sum cannot depend on the order of the components.
        return np.sort(parts, axis=0).sum(axis=0)

    def window(self, tail_mass: float, size: int) -> tuple[int, int]:
        """The first and last value: half of ``tail_mass`` is outside on each side.

        If more than ``size`` values lie between, the run of ``size`` (odd) among them that has
        most of the probability: of those centred at a component or at one of 257 other places.
        """
        # Survival functions underflow to 0 within 800 scales.
        start = min(math.floor(m - 800 * s) for m, s in zip(self.means, self.scales, strict=True))
        stop = max(math.ceil(m + 800 * s) for m, s in zip(self.means, self.scales, strict=True))
        values, half = range(start - 1, stop + 2), tail_mass / 2
        first = values[bisect.bisect_right(values, half, key=lambda k: self.below(k - 0.5)) - 1]
        last = values[bisect.bisect_left(values, -half, key=lambda k: -self.above(k + 0.5))]
        if last - first < size:
            return first, last
        centers = np.sort(self.means)
        if centers.size > 1:
            centers = np.append(centers, np.linspace(first, last, 257))
        firsts = [math.floor(c + 0.5) - size // 2 for c in centers]
        outside = [self.below(f - 0.5) + self.above(f + size - 0.5) for f in firsts]
        # Rounded, so that the last bits do not decide; of equals, a component.
        best = firsts[int(np.argmin(np.round(outside, 9)))]
        return best, best + size - 1

    def bins(self, first: int, last: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Edges that divide all but 2**-60 into bins, and their probabilities.

        A bin is one value for first..last and for components of up to 2**14 values. Of any other
        bin all values have about the same probability, and a gamma code of the same length.
        """
        powers = 2.0 ** np.arange(42)
        edges = [np.arange(first, last + 2) - 0.5, first + 0.5 - powers, last + 0.5 + powers]
        for family, mean, scale in zip(self.families, self.means, self.scales, strict=True):
            low = math.floor(mean - _REACH[family] * scale)
            high = math.ceil(mean + _REACH[family] * scale) + 1
            count = min(high - low + 1, 2**14)
            edges.append(np.rint(np.linspace(low, high, count)) - 0.5)
        merged = np.unique(np.concatenate(edges))
        return merged, self.pmf(merged)


@dataclass(frozen=True)
class _Histogram:
    """Observed frequencies of the values of a table."""

    p: NDArray[np.float64]

    def bins(self, first: int, last: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The edges around the values first..last, and their probabilities."""
        return np.arange(first, last + 2) - 0.5, self.p


def _check_precision(precision: int) -> None:
    if not 1 <= precision <= MAX_PRECISION:
        raise InputError(f"precision must be 1..{MAX_PRECISION} bits, not {precision}")


def _check(values: NDArray[np.float64], valid: NDArray[np.bool_], rule: str) -> None:
    if not valid.all():
        raise InputError(f"{rule}, not {values[~valid][0]}")


def _floats(values: ArrayLike, name: str, dimensions: int) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers") from None
    if array.ndim != dimensions:
        axes = "[tables]" if dimensions == 1 else "[tables, components]"
        raise InputError(f"{name} must have the shape {axes}, not {array.shape}")
    return array


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
