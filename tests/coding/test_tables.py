from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycodec.coding import rans
from pycodec.coding.tables import TableSet, quantize_pmf
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


def test_gaussian_refuses_what_is_no_scale():
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="scale"):
            TableSet.gaussian([scale])
    for tail_mass in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="tail_mass"):
            TableSet.gaussian([1.0], tail_mass=tail_mass)
    with pytest.raises(InputError, match="precision"):
        TableSet.gaussian([1.0], precision=0)


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
