from __future__ import annotations

import hashlib
import itertools
import math

import mpmath  # torch needs it
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycodec.coding import rans
from pycodec.coding.tables import TableSet, _Mixture, quantize_pmf
from pycodec.errors import InputError


def divergence(pmf, frequencies) -> float:
    p = np.asarray(pmf, np.float64) / np.sum(pmf)
    q = np.asarray(frequencies) / np.sum(frequencies)
    seen = p > 0
    return float((p[seen] * np.log2(p[seen] / q[seen])).sum())


def test_quantize_pmf_is_optimal():
    """Against every way to share 16 counts among 4 symbols."""
    rng = np.random.default_rng(0)
    shares = [f for f in itertools.product(range(1, 14), repeat=4) if sum(f) == 16]
    for _ in range(50):
        pmf = rng.random(4) ** rng.integers(1, 10)
        best = min(divergence(pmf, f) for f in shares)
        assert divergence(pmf, quantize_pmf(pmf, 4)) == pytest.approx(best, abs=1e-12)


@given(
    weights=st.lists(st.floats(0, 1e300), min_size=1, max_size=60).filter(any),
    precision=st.integers(6, 16),
)
def test_quantize_pmf_is_exact_and_repeatable(weights, precision):
    frequencies = quantize_pmf(weights, precision)
    assert frequencies.dtype == np.uint32
    assert frequencies.sum() == 2**precision
    assert frequencies.min() >= 1
    np.testing.assert_array_equal(frequencies, quantize_pmf(weights, precision))


def test_quantize_pmf_at_its_limits():
    np.testing.assert_array_equal(quantize_pmf([3.0], 16), [65536])
    np.testing.assert_array_equal(quantize_pmf(np.ones(65536), 16), np.ones(65536))
    np.testing.assert_array_equal(quantize_pmf([1.0, 0, 0, 0], 2), [1, 1, 1, 1])
    np.testing.assert_array_equal(quantize_pmf([0.0, 1e-300], 12), [1, 4095])
    np.testing.assert_array_equal(quantize_pmf([1, 1, 1], 2), [2, 1, 1])
    for pmf, precision in (
        ([], 4),
        (np.ones(17), 4),
        ([[0.5, 0.5]], 4),
        ([1.0, -0.1], 4),
        ([1.0, math.nan], 4),
        ([math.inf, 1.0], 4),
        ([0.0, 0.0], 4),
        ([1.0], 0),
        ([1.0], 17),
    ):
        with pytest.raises(InputError):
            quantize_pmf(pmf, precision)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(frequencies=[], offsets=[]), "tables, not 0"),
        (dict(frequencies=[[4096]], offsets=[0, 0]), "one item a table"),
        (dict(frequencies=[[4096]], offsets=[0], escape=[True, False]), "one item a table"),
        (dict(frequencies=[[4095]], offsets=[0]), "add up to 4095, not 2^12"),
        (dict(frequencies=[[4096], [4000, 97]], offsets=[0, 0]), "table 1 add up to 4097"),
        (dict(frequencies=[[4096, 0]], offsets=[0]), "frequency of 0 at 1"),
        (dict(frequencies=[[]], offsets=[0]), "has no frequencies"),
        (dict(frequencies=[[4097, -1]], offsets=[0]), "exceed uint32"),
        (dict(frequencies=[[2.0**12]], offsets=[0]), "must be integers"),
        (dict(frequencies=[[2**32 - 1, 4097]], offsets=[0]), "add up to"),
        (dict(frequencies=[[4095, 1]], offsets=[2**31 - 1]), "exceed int32"),
        (dict(frequencies=[[4096]], offsets=[2**31]), "exceed int32"),
        (dict(frequencies=[[1]], offsets=[0], precision=0), "precision"),
        (dict(frequencies=[[2**17]], offsets=[0], precision=17), "precision"),
        (dict(frequencies=[[65536]] * 1025, offsets=[0] * 1025, precision=16), "1..1024 tables"),
    ],
)
def test_invalid_tables_are_refused(arguments, message):
    with pytest.raises(InputError) as raised:
        TableSet(**arguments)
    assert message in str(raised.value)


def test_the_last_value_may_be_the_last_int32():
    tables = TableSet([[4095, 1]], [2**31 - 1], escape=True)
    assert tables.table(0)[1] == 2**31 - 1


def test_arrays_round_trip():
    tables = TableSet([[1, 4095], [4096], [2, 4000, 94]], [-5, 0, 2**30], escape=[1, 0, 1])
    arrays = tables.to_arrays()
    assert {name: a.dtype.name for name, a in arrays.items()} == {
        "precision": "uint8",
        "frequencies": "uint32",
        "sizes": "uint32",
        "offsets": "int32",
        "escapes": "uint8",
    }
    again = TableSet.from_arrays(arrays)
    assert (again.precision, again.num_tables) == (12, 3)
    for name, array in again.to_arrays().items():
        np.testing.assert_array_equal(array, arrays[name])


def test_arrays_survive_safetensors():
    numpy_io = pytest.importorskip("safetensors.numpy")
    tables = TableSet.gaussian([0.3, 2.0], precision=10)
    again = TableSet.from_arrays(numpy_io.load(numpy_io.save(tables.to_arrays())))
    np.testing.assert_array_equal(again.table(1)[0], tables.table(1)[0])


def test_arrays_that_do_not_fit_are_refused():
    arrays = TableSet([[1, 4095], [4096]], [0, 0]).to_arrays()
    for name in arrays:
        with pytest.raises(InputError, match=name):
            TableSet.from_arrays({k: v for k, v in arrays.items() if k != name})
    for name, value in (
        ("sizes", [2, 2]),
        ("sizes", [4, -1]),
        ("sizes", [3]),
        ("precision", [12, 12]),
        ("precision", []),
        ("frequencies", [1.0, 4095.0, 4096.0]),
        ("escapes", [0]),
    ):
        with pytest.raises(InputError):
            TableSet.from_arrays({**arrays, name: np.array(value)})


def test_cost_bits_by_hand():
    tables = TableSet([[1024, 1024, 1984, 64], [4096]], [-1, 3], escape=[True, False])
    indexes = np.zeros(1, np.uint8)
    assert tables.cost_bits([3], np.ones(1, np.uint8)) == 0
    assert tables.cost_bits([0], indexes) == 2
    # The escape costs 6 bits; 2 is the first value outside, -2 the second, 3 the third.
    assert tables.cost_bits([2], indexes) == 6 + 1
    assert tables.cost_bits([-2], indexes) == 6 + 3
    assert tables.cost_bits([3], indexes) == 6 + 3
    assert tables.cost_bits([2**31 - 1], indexes) == 6 + 2 * 31 + 1
    assert tables.cost_bits([-(2**31)], indexes) == 6 + 2 * 31 + 1
    assert tables.cost_bits([], np.empty(0, np.uint8)) == 0
    for symbols, index in (([2], [1]), ([0], [2]), ([0, 0], [0])):
        with pytest.raises(InputError):
            tables.cost_bits(symbols, np.array(index, np.uint8))


def test_cost_bits_is_what_the_coder_needs():
    rng = np.random.default_rng(1)
    scales = np.array([0.2, 1.0, 9.0])
    tables = TableSet.gaussian(scales)
    indexes = rng.integers(0, 3, 100_000).astype(np.uint8)
    # Heavier tails than the tables expect, so that escapes count.
    symbols = np.rint(rng.standard_t(3, indexes.size) * scales[indexes]).astype(np.int32)
    overhead = 8 * len(rans.encode(symbols, indexes, tables, lanes=1)) - tables.cost_bits(
        symbols, indexes
    )
    # A header byte, 16 to 32 bits of the state that say nothing, and rounding within pushes.
    assert 8 + 16 <= overhead < 8 + 32 + 10


def test_gaussian_tables_are_close_to_the_distribution():
    """Expected code length against entropy: at most 0.004 bits over a scale of 0.11 to 20."""
    scales = np.geomspace(0.11, 20, 12)
    tables = TableSet.gaussian(scales)
    values = np.arange(-200, 201)
    for i, scale in enumerate(scales):
        cdf = [0.5 * math.erfc(-(v + 0.5) / (scale * math.sqrt(2))) for v in (-201, *values)]
        p = np.diff(cdf)
        seen = p > 1e-12
        entropy = -(p[seen] * np.log2(p[seen])).sum()
        index = np.array([i], np.uint8)
        cost = sum(q * tables.cost_bits([v], index) for v, q in zip(values, p, strict=True))
        assert 0 <= cost - entropy < 0.004


def test_gaussian_tables_are_symmetric_and_obey_tail_mass():
    tables = TableSet.gaussian([0.05, 3.0], tail_mass=1e-3)
    narrow, offset, escape = tables.table(0)
    assert (narrow.tolist(), offset, escape) == ([4095, 1], 0, True)
    frequencies, offset, _ = tables.table(1)
    values = len(frequencies) - 1
    assert values == 1 - 2 * offset
    # The quantizer breaks ties by index, so mirrored values may differ by one count.
    inner = frequencies[:values].astype(int)
    assert np.abs(inner - inner[::-1]).max() <= 1

    def tail(k):
        return math.erfc((k + 0.5) / (3 * math.sqrt(2)))

    assert tail(-offset) <= 1e-3 < tail(-offset - 1)


@pytest.mark.parametrize("precision", [1, 2, 3])
def test_gaussian_tables_fit_small_precisions(precision):
    """A scale far too wide for the precision: the escape takes what has no slot."""
    tables = TableSet.gaussian([50.0], precision=precision)
    assert tables.table(0)[0].tolist() == [1] * 2**precision
    symbols = np.arange(-30, 31, dtype=np.int32)
    indexes = np.zeros(symbols.size, np.uint8)
    decoder = rans.RansDecoder(rans.encode(symbols, indexes, tables), tables)
    np.testing.assert_array_equal(decoder.decode(indexes), symbols)


def test_gaussian_integers_stay_what_they_were():
    """Models that were exported long ago and files of other tests depend on them."""
    tables = TableSet.gaussian([0.5, 2.0], precision=8)
    assert tables.table(0)[0].tolist() == [40, 175, 40, 1]
    assert tables.table(1)[0].tolist() == [1, 2, 7, 17, 31, 44, 50, 45, 31, 17, 7, 2, 1, 1]
    frequencies = TableSet.gaussian(np.geomspace(0.11, 20, 64), precision=16).to_arrays()
    digest = hashlib.sha256(frequencies["frequencies"].astype("<u4").tobytes()).hexdigest()
    assert digest.startswith("f9f3df537b5f5e0d")


# P(X < x) at mean 0 and scale 1, in the precision of mpmath.
CDF = {
    "gaussian": lambda x: mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "laplace": lambda x: mpmath.exp(x) / 2 if x < 0 else 1 - mpmath.exp(-x) / 2,
    "logistic": lambda x: 1 / (1 + mpmath.exp(-x)),
}


def exact_pmf(values, weights, means, scales, families, digits=50):
    """Probabilities of unit bins around the values of a mixture."""
    with mpmath.workdps(digits):
        components = list(zip(weights, means, scales, families, strict=True))

        def cdf(x):
            return sum(w * CDF[f]((x - mpmath.mpf(m)) / mpmath.mpf(s)) for w, m, s, f in components)

        return np.array([float(cdf(int(v) + 0.5) - cdf(int(v) - 0.5)) for v in values])


def code_lengths(tables, index, values):
    """Bits of each value, by the description in docs/rans.md."""
    frequencies, first, _ = tables.table(index)
    last = first + len(frequencies) - 2
    inside = (first <= values) & (values <= last)
    g = np.where(values < first, 2 * (first - values), np.maximum(2 * (values - last) - 1, 1))
    rank = np.where(inside, values - first, len(frequencies) - 1)
    gamma = np.where(inside, 0, 2 * np.floor(np.log2(g)) + 1)
    return tables.precision - np.log2(frequencies[rank]) + gamma


def check_against_exact(tables, index, pmf, values):
    """The table is the best for the exact probabilities, and its loss is as claimed."""
    frequencies, first, escape = tables.table(index)
    inside = pmf[first - values[0] :][: len(frequencies) - 1]
    assert escape
    best = quantize_pmf(np.append(inside, 1 - inside.sum()), tables.precision)
    assert np.abs(frequencies.astype(int) - best).max() <= 1  # where two are equally good
    assert divergence([*inside, 1 - inside.sum()], frequencies) == pytest.approx(
        divergence([*inside, 1 - inside.sum()], best), abs=1e-12
    )
    seen = pmf > 0
    cost = (pmf[seen] * (code_lengths(tables, index, values[seen]) + np.log2(pmf[seen]))).sum()
    assert tables.expected_loss[index] == pytest.approx(cost, abs=1e-11)


@pytest.mark.parametrize("family", CDF)
@pytest.mark.parametrize("precision", [6, 12, 16])
def test_families_against_exact_arithmetic(family, precision):
    means, scales = [0, 0.5, -0.3, 7.25], [0.11, 0.6, 2.0, 6.0]
    tables = getattr(TableSet, family)(scales, precision, means=means)
    values = np.arange(-300, 301)
    for i, (mean, scale) in enumerate(zip(means, scales, strict=True)):
        pmf = exact_pmf(values, [1], [mean], [scale], [family])
        check_against_exact(tables, i, pmf, values)


def test_mixtures_against_exact_arithmetic():
    weights = [[0.5, 0.25, 0.25], [0.125, 0.875, 0]]
    means = [[-20.3, 0.4, 6], [0.5, 1.75, 1e6]]
    scales = [[1.5, 0.2, 3.0], [4.0, 0.05, 1.0]]
    families = ["gaussian", "laplace", "logistic"]
    tables = TableSet.mixture(weights, means, scales, 12, families=families)
    values = np.arange(-250, 251)
    for i, row in enumerate(zip(weights, means, scales, strict=True)):
        check_against_exact(tables, i, exact_pmf(values, *row, families), values)


@pytest.mark.parametrize("family", CDF)
def test_tails_keep_their_digits(family):
    """Far out, where one less the distribution function is all rounding error."""
    values = np.arange(20, 50)
    pmf = _Mixture((family,), (1.0,), (0.25,), (1.5,)).pmf(np.arange(20, 51) - 0.5)
    exact = exact_pmf(values, [1], [0.25], [1.5], [family], digits=300)
    np.testing.assert_allclose(pmf, exact, rtol=1e-12)
    mirrored = _Mixture((family,), (1.0,), (-0.25,), (1.5,)).pmf(0.5 - np.arange(20, 51)[::-1])
    np.testing.assert_array_equal(mirrored[::-1], pmf)


@pytest.mark.parametrize("family", CDF)
@pytest.mark.parametrize("mean", [0, 0.5, -3])
def test_families_are_optimal_and_symmetric(family, mean):
    """Against every way to share 16 counts: no other table of these values costs less."""
    tables = getattr(TableSet, family)([0.7], 4, 0.2, means=[mean])
    frequencies, first, _ = tables.table(0)
    inner = frequencies[:-1].astype(int)
    assert 2 * first + inner.size - 1 == 2 * mean
    assert np.abs(inner - inner[::-1]).max() <= 1
    pmf = exact_pmf(first + np.arange(inner.size), [1], [mean], [0.7], [family])
    pmf = np.append(pmf, 1 - pmf.sum())
    shares = itertools.product(range(1, 16), repeat=inner.size)
    best = min(divergence(pmf, [*f, 16 - sum(f)]) for f in shares if sum(f) < 16)
    assert divergence(pmf, frequencies) == pytest.approx(best, abs=1e-12)


def test_mixtures_do_not_depend_on_the_order_of_components():
    rng = np.random.default_rng(2)
    weights, order = rng.dirichlet(np.ones(5), 20), rng.permutation(5)
    means, scales = rng.normal(0, 9, (20, 5)), rng.uniform(0.1, 5, (20, 5))
    families = np.array(["gaussian", "laplace", "logistic", "laplace", "gaussian"])
    one = TableSet.mixture(weights, means, scales, families=families)
    other = TableSet.mixture(
        weights[:, order], means[:, order], scales[:, order], families=families[order]
    )
    for name, array in one.to_arrays().items():
        np.testing.assert_array_equal(other.to_arrays()[name], array)


def test_mixture_of_one_component_is_its_family():
    for family in CDF:
        one = getattr(TableSet, family)([0.3, 40.0], 10, 1e-4, means=[0.1, -70.6])
        weights = [[1.0], [1.0]]
        mixture = TableSet.mixture(
            weights, [[0.1], [-70.6]], [[0.3], [40.0]], 10, 1e-4, families=family
        )
        for name, array in one.to_arrays().items():
            np.testing.assert_array_equal(mixture.to_arrays()[name], array)
        np.testing.assert_array_equal(mixture.expected_loss, one.expected_loss)


@pytest.mark.parametrize("family", CDF)
def test_tail_mass_is_split_between_both_sides(family):
    """No table could start later or end earlier."""
    tables = TableSet.mixture([[0.9, 0.1]], [[0.2, 30]], [[1, 2]], 12, 1e-3, families=family)
    frequencies, first, _ = tables.table(0)
    last = first + len(frequencies) - 2

    def tails(first, last):
        far = np.arange(first - 400, first), np.arange(last + 1, last + 400)
        row = [0.9, 0.1], [0.2, 30], [1, 2], [family] * 2
        return [exact_pmf(values, *row).sum() for values in far]

    assert max(tails(first, last)) <= 0.5e-3 < min(tails(first + 1, last - 1))


@pytest.mark.parametrize("precision", range(1, 17))
@pytest.mark.parametrize("family", CDF)
def test_any_scale_at_any_precision(family, precision):
    scales = [5e-324, 1e-9, 0.3, 30.0, 1e5, 2.0**31]
    means = [0.25, -1e5, 0, 1e6 + 0.5, 2.0**30, 0.0]
    tables = getattr(TableSet, family)(scales, precision, means=means)
    for i, mean in enumerate(means):
        frequencies, first, escape = tables.table(i)
        assert frequencies.sum() == 2**precision
        assert frequencies.min() >= 1
        assert escape
        middle = first + (len(frequencies) - 2) / 2
        assert abs(middle - mean) <= 0.5 + 1e-9
    assert len(tables.table(5)[0]) == 2**precision
    assert np.isfinite(tables.expected_loss).all()
    # A certain value costs no more than the escape's one count takes from it.
    assert tables.expected_loss[0] == pytest.approx(-math.log2(1 - 0.5**precision))


def test_what_does_not_fit_leaves_out_the_least_probable():
    """Components far apart, and 255 values at most: the heavier, narrower one is kept."""
    rows = [[0.4, 0.6]], [[-1000, 1000.2]], [[20, 8]]
    frequencies, first, _ = TableSet.mixture(*rows, precision=8).table(0)
    assert (len(frequencies), first) == (256, 1000 - 127)
    # Between two that overlap is more than around either.
    frequencies, first, _ = TableSet.mixture([[0.5, 0.5]], [[-60, 60]], [[50, 50]], 8).table(0)
    assert abs(first + 127) <= 2


def test_expected_loss_is_what_sampled_symbols_cost():
    rng = np.random.default_rng(3)
    count = 400_000
    weights, means, scales = [0.3, 0.7], [-4.4, 2.0], [2.5, 0.8]
    tables = TableSet.mixture([weights], [means], [scales], precision=6)
    which = rng.choice(2, count, p=weights)
    symbols = np.rint(rng.normal(np.array(means)[which], np.array(scales)[which])).astype(np.int32)
    pmf = exact_pmf(np.arange(-40, 41), weights, means, scales, ["gaussian"] * 2)
    cost = tables.cost_bits(symbols, np.zeros(count, np.uint8)) / count
    # Against the ideal code for the same symbols, so that chance is small beside the loss.
    ideal = -np.log2(pmf[symbols + 40]).mean()
    assert tables.expected_loss[0] > 0.01
    assert cost - ideal == pytest.approx(tables.expected_loss[0], rel=0.05)


def test_expected_loss_sums_wide_distributions_in_bins():
    """Bins of several values against all values one by one."""
    tables = TableSet.laplace([1000.0], precision=10)
    values = np.arange(-45_000, 45_001)
    # q ** abs(v) (1 - q) / (1 + q) but for the value around the kink.
    pmf = np.exp(-np.abs(values) / 1000) * math.sinh(0.5 / 1000)
    pmf[45_000] = -math.expm1(-0.5 / 1000)
    bits = code_lengths(tables, 0, values)
    assert tables.expected_loss[0] == pytest.approx((pmf * (bits + np.log2(pmf))).sum(), abs=1e-5)


def test_expected_loss_of_histograms_and_of_integers():
    tables = TableSet.from_histograms([[3, 0, 1], [0, 0]], [-1, 7], precision=4)
    by_hand = 0.75 * math.log2(0.75 * 16 / 10) + 0.25 * math.log2(0.25 * 16 / 4)
    uniform = math.log2(0.5 * 16 / 7) / 2 + math.log2(0.5 * 16 / 8) / 2
    np.testing.assert_allclose(tables.expected_loss, [by_hand, uniform])
    with pytest.raises(ValueError, match="read-only"):
        tables.expected_loss[0] = 0
    assert TableSet.from_arrays(tables.to_arrays()).expected_loss is None
    assert TableSet([[4096]], [0]).expected_loss is None
    exact = TableSet.from_histograms([[3, 1], [5]], [0, 0], precision=4, escape=False)
    np.testing.assert_allclose(exact.expected_loss, 0, atol=1e-15)


def test_families_refuse_what_is_out_of_range():
    for make in (TableSet.gaussian, TableSet.laplace, TableSet.logistic):
        for scale in (0.0, -1.0, math.nan, math.inf, 2.0**31 + 1):
            with pytest.raises(InputError, match=r"a scale must be positive, at most 2\*\*31, not"):
                make([1.0, scale])
        for mean in (math.nan, math.inf, -1e10):
            with pytest.raises(InputError, match="a mean must be within int32, not"):
                make([1.0], means=[mean])
        for mean in (2.0**31 - 1, -(2.0**31)):
            with pytest.raises(InputError, match="exceed int32"):
                make([1.0], means=[mean])
        for tail_mass in (0.0, 1.0, math.nan):
            with pytest.raises(InputError, match="tail_mass"):
                make([1.0], tail_mass=tail_mass)
        for precision in (0, 17):
            with pytest.raises(InputError, match="precision"):
                make([1.0], precision=precision)
        with pytest.raises(
            InputError, match=r"scales must have the shape \[tables\], not \(1, 1\)"
        ):
            make([[1.0]])
        with pytest.raises(InputError, match="scales must be an array of numbers"):
            make(["wide"])
        with pytest.raises(InputError, match="means and scales must have one shape"):
            make([1.0, 2.0], means=[0.0])
        with pytest.raises(InputError, match="tables, not 0"):
            make([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(weights=[[0.5, 0.4]]), "must add up to 1, not 0.9"),
        (dict(weights=[[0.0, 0.0]]), "must add up to 1, not 0.0"),
        (dict(weights=[[1.5, -0.5]]), "must not be negative, not -0.5"),
        (dict(weights=[[1.0, math.nan]]), "must not be negative, not nan"),
        (dict(weights=[[1.0, math.inf]]), "must add up to 1, not inf"),
        (dict(weights=[0.5, 0.5]), "weights must have the shape [tables, components], not (2,)"),
        (dict(weights=[[1.0]]), "one shape, not (1, 1), (1, 2) and (1, 2)"),
        (dict(weights=[[0.5, 0.5], [1.0]]), "weights must be an array of numbers"),
        (dict(means=[[0.0, 1.0]] * 2), "one shape, not (1, 2), (2, 2) and (1, 2)"),
        (dict(means=[[0.0, math.nan]]), "a mean must be within int32, not nan"),
        (dict(scales=[[1.0, 0.0]]), "a scale must be positive, at most 2**31, not 0.0"),
        (dict(families="cauchy"), "families are gaussian, laplace, logistic, not 'cauchy'"),
        (dict(families=["laplace"]), "1 families for 2 components"),
        (dict(precision=17), "precision"),
        (dict(tail_mass=1.0), "tail_mass"),
    ],
)
def test_mixtures_refuse_what_is_out_of_range(arguments, message):
    valid = dict(weights=[[0.5, 0.5]], means=[[0.0, 1.0]], scales=[[1.0, 2.0]])
    TableSet.mixture(**valid)
    with pytest.raises(InputError) as raised:
        TableSet.mixture(**{**valid, **arguments})
    assert message in str(raised.value)


def test_weights_in_float32_add_up():
    weights = np.random.default_rng(4).dirichlet(np.ones(7), 50).astype(np.float32)
    ones = np.ones_like(weights)
    TableSet.mixture(weights, 0 * ones, ones)


def test_histograms():
    tables = TableSet.from_histograms([[3, 0, 1], [0, 0]], [-1, 7], precision=4)
    assert tables.table(0)[0].tolist() == [10, 1, 4, 1]
    assert tables.table(1)[0].tolist() == [7, 8, 1] or tables.table(1)[0].tolist() == [8, 7, 1]
    assert tables.table(1)[1:] == (7, True)
    closed = TableSet.from_histograms([[3, 1]], [0], precision=4, escape=False)
    assert closed.table(0)[0].tolist() == [12, 4]
    assert closed.table(0)[2] is False
    for histogram in ([-1, 2], np.ones(16), []):
        with pytest.raises(InputError):
            TableSet.from_histograms([histogram], [0], precision=4)
