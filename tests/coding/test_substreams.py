from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycodec.coding import rans
from pycodec.coding.tables import TableSet
from pycodec.errors import CorruptStreamError, InputError

RECORDED = "b0020301010000000100000005a0aa02"
SCALES = np.array([0.3, 2.0, 40.0])
TABLES = TableSet.gaussian(SCALES)


def random_symbols(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    indexes = rng.integers(0, len(SCALES), count).astype(np.uint8)
    return np.rint(rng.standard_normal(count) * SCALES[indexes]).astype(np.int32), indexes


@given(
    counts=st.lists(st.integers(0, 400), max_size=20),
    lanes=st.sampled_from([None, 1, 4, 32, 64]),
    threads=st.integers(1, 4),
)
def test_round_trip(counts, lanes, threads):
    symbols, indexes = random_symbols(sum(counts))
    data = rans.encode_substreams(
        symbols, indexes, TABLES, counts=np.array(counts, int), lanes=lanes, threads=threads
    )
    decoder = rans.SubstreamDecoder(data, TABLES)
    assert len(decoder) == len(counts) and decoder.counts.tolist() == counts
    np.testing.assert_array_equal(decoder.decode(indexes, threads=threads), symbols)


def test_threads_do_not_change_the_bytes():
    symbols, indexes = random_symbols(50_000)
    streams = {
        rans.encode_substreams(symbols, indexes, TABLES, counts=1000, threads=threads)
        for threads in (1, 2, 5, None)
    }
    assert len(streams) == 1


def test_substreams_are_streams_without_header_byte():
    """The layout of docs/rans.md, read by hand."""
    symbols, indexes = random_symbols(1000)
    data = rans.encode_substreams(symbols, indexes, TABLES, counts=[700, 0, 300], lanes=4)
    streams = [
        rans.encode(symbols[part], indexes[part], TABLES, lanes=4)
        for part in (slice(0, 700), slice(0, 0), slice(700, 1000))
    ]
    words = [(len(stream) - 17) // 2 for stream in streams]
    index = [streams[0][0], 3]
    for count, number in zip((700, 0, 300), words, strict=True):
        for value in (count, number):
            index += [value] if value < 128 else [value & 127 | 128, value >> 7]
    index += [0] * (len(index) % 2)
    assert data == bytes(index) + b"".join(stream[1:] for stream in streams)


def test_recorded_substreams():
    symbols, indexes = np.array([0, -1, 90, 1], np.int32), np.array([0, 1, 2, 0], np.uint8)
    tables = TableSet([[1, 6, 4089], [256, 3840], [4096]], [0, -1, 90], escape=[True, False, False])
    data = rans.encode_substreams(symbols, indexes, tables, counts=3, lanes=1)
    assert data.hex() == RECORDED
    np.testing.assert_array_equal(rans.SubstreamDecoder(data, tables).decode(indexes), symbols)


def test_random_access():
    symbols, indexes = random_symbols(10_000)
    data = rans.encode_substreams(symbols, indexes, TABLES, counts=1500)
    decoder = rans.SubstreamDecoder(bytearray(data), TABLES)
    assert decoder.counts.tolist() == [1500] * 6 + [1000]
    part = slice(3000, 6000)
    np.testing.assert_array_equal(decoder.decode(indexes[part], first=2, last=4), symbols[part])
    assert decoder.decode(indexes[:0], first=3, last=3).size == 0
    last = decoder.substream(6)
    assert last.lanes == decoder.lanes
    wave = [last.decode(indexes[9000 + n : 9100 + n]) for n in range(0, 1000, 100)]
    last.finish()
    np.testing.assert_array_equal(np.concatenate(wave), symbols[9000:])


def test_a_substream_outlives_its_decoder():
    symbols, indexes = random_symbols(3000)
    data = rans.encode_substreams(symbols, indexes, TABLES, counts=1000)
    one = rans.SubstreamDecoder(bytearray(data), TABLES).substream(1)
    np.testing.assert_array_equal(one.decode(indexes[1000:2000]), symbols[1000:2000])


def test_lanes_suit_the_substreams():
    symbols, indexes = random_symbols(1 << 18)
    for counts, lanes in ((100, 1), (1 << 18, 64)):
        data = rans.encode_substreams(symbols, indexes, TABLES, counts=counts)
        assert rans.SubstreamDecoder(data, TABLES).lanes == lanes


def test_damage_is_refused():
    symbols, indexes = random_symbols(600)
    data = rans.encode_substreams(symbols, indexes, TABLES, counts=200, lanes=2)
    for size in range(len(data)):
        with pytest.raises(CorruptStreamError):
            rans.SubstreamDecoder(data[:size], TABLES)
    with pytest.raises(CorruptStreamError, match="after the last"):
        rans.SubstreamDecoder(data + b"\0\0", TABLES)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x5A
        try:
            decoder = rans.SubstreamDecoder(damaged, TABLES)
            other = decoder.decode(np.zeros(int(decoder.counts.sum()), np.uint8))
        except CorruptStreamError as error:
            assert error.offset is None or 0 <= error.offset <= len(data)
        else:
            assert other.size != symbols.size or (other != symbols).any()


def test_errors_name_the_substream():
    symbols, indexes = random_symbols(600)
    data = rans.encode_substreams(symbols, indexes, TABLES, counts=200, lanes=1)
    damaged = bytearray(data)
    damaged[-1] ^= 1
    with pytest.raises(CorruptStreamError, match="substream 2: ") as raised:
        rans.SubstreamDecoder(damaged, TABLES).decode(indexes)
    assert raised.value.offset > len(data) // 2
    np.testing.assert_array_equal(
        rans.SubstreamDecoder(damaged, TABLES).decode(indexes[:400], last=2), symbols[:400]
    )


@pytest.mark.parametrize(
    "index",
    [
        b"\xff\xff\xff\xff\x0f",  # 2**32 - 1 substreams
        b"\xff\xff\xff\xff\x1f",  # beyond 32 bits
        b"\xff\xff\xff\xff\xff\xff",
        b"\x81\x00",  # not the shortest form
        b"",
    ],
)
def test_invalid_indexes(index):
    data = struct.pack("B", 0xB0) + index
    with pytest.raises(CorruptStreamError):
        rans.SubstreamDecoder(data, TABLES)
    with pytest.raises(CorruptStreamError):
        rans.SubstreamDecoder(data + bytes(30), TABLES)


def test_nothing_at_all():
    empty = np.empty(0, np.int32), np.empty(0, np.uint8)
    data = rans.encode_substreams(*empty, TABLES)
    assert len(data) == 2
    assert rans.SubstreamDecoder(data, TABLES).decode(empty[1]).size == 0


def test_arguments_that_do_not_fit():
    symbols, indexes = random_symbols(100)
    for counts in (0, -1, [[]], 2**32, [50, 40], [[100]], [-1, 101], 2.5, [2**32, 0]):
        with pytest.raises(InputError):
            rans.encode_substreams(symbols, indexes, TABLES, counts=counts)
    for threads in (0, -1, 5000):
        with pytest.raises(InputError, match="threads"):
            rans.encode_substreams(symbols, indexes, TABLES, threads=threads)
    with pytest.raises(InputError, match="lanes"):
        rans.encode_substreams(symbols, indexes, TABLES, lanes=3)
    with pytest.raises(InputError, match="outside table"):
        rans.encode_substreams(symbols, indexes, TableSet([[4096]] * 3, [0] * 3), counts=10)
    decoder = rans.SubstreamDecoder(
        rans.encode_substreams(symbols, indexes, TABLES, counts=30), TABLES
    )
    with pytest.raises(InputError, match="hold 100 symbols"):
        decoder.decode(indexes[:90])
    for first, last in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(InputError, match="substreams"):
            decoder.decode(indexes, first=first, last=last)
    for index in (-1, 4):
        with pytest.raises(InputError, match="substream"):
            decoder.substream(index)
