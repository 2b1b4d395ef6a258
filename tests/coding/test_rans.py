from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycodec.coding import rans
from pycodec.coding.tables import TableSet, quantize_pmf
from pycodec.errors import CorruptStreamError, InputError

from ..levels import LEVELS, simd_level
from . import rans_reference

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
ALL_LANES = [1, 2, 4, 8, 16, 32, 64]


def reference_tables(tables: TableSet):
    result = []
    for i in range(tables.num_tables):
        frequencies, offset, escape = tables.table(i)
        result.append((frequencies.tolist(), offset, escape))
    return result


def reference_encode(symbols, indexes, tables: TableSet, lanes: int) -> bytes:
    return rans_reference.encode(
        symbols.tolist(), indexes.tolist(), reference_tables(tables), tables.precision, lanes
    )


def encode(symbols, indexes, tables, lanes=None) -> bytes:
    """The stream, which is the same at every SIMD level."""
    streams = []
    for level in LEVELS:
        with simd_level(level):
            streams.append(rans.encode(symbols, indexes, tables, lanes=lanes))
    assert all(stream == streams[0] for stream in streams)
    return streams[0]


def decode_all(stream, tables, indexes):
    """The symbols, or the error, which are the same at every SIMD level."""
    outcomes = []
    for level in LEVELS:
        with simd_level(level):
            try:
                decoder = rans.RansDecoder(stream, tables)
                symbols = decoder.decode(indexes)
                decoder.finish()
                outcomes.append(symbols)
            except CorruptStreamError as error:
                outcomes.append(error)
    first = outcomes[0]
    if isinstance(first, CorruptStreamError):
        assert [str(error) for error in outcomes] == [str(first)] * len(LEVELS)
        raise first
    for symbols in outcomes[1:]:
        np.testing.assert_array_equal(symbols, first)
    return first


def random_tables(rng, precision: int, num_tables: int = 5) -> TableSet:
    """Tables of all shapes: one value, escape only, flat, and one value with nearly everything."""
    frequencies, offsets, escapes = [], [], []
    for _ in range(num_tables):
        size = int(rng.integers(1, min(2**precision, 300) + 1))
        pmf = rng.random(size) ** rng.integers(1, 12) + 1e-12
        frequencies.append(quantize_pmf(pmf, precision))
        escapes.append(bool(rng.integers(2)))
        lowest = INT32_MIN if rng.integers(2) else -200
        highest = INT32_MAX - size + 1 if rng.integers(2) else 200
        offsets.append(int(rng.choice([lowest, highest, -size // 2])))
    return TableSet(frequencies, offsets, precision, escapes)


def random_symbols(rng, tables: TableSet, count: int, escape_rate: float = 0.05):
    indexes = rng.integers(0, tables.num_tables, count).astype(np.uint8)
    symbols = np.empty(count, np.int32)
    for n, index in enumerate(indexes):
        frequencies, offset, escape = tables.table(index)
        values = len(frequencies) - escape
        if escape and (values == 0 or rng.random() < escape_rate):
            near = np.clip(offset + rng.integers(-40, values + 40), INT32_MIN, INT32_MAX)
            symbols[n] = rng.choice([INT32_MIN, INT32_MAX, 0, near])
        else:
            p = frequencies[:values] / frequencies[:values].sum()
            symbols[n] = offset + rng.choice(values, p=p)
    return symbols, indexes


@given(
    seed=st.integers(0, 2**32 - 1),
    precision=st.integers(1, 16),
    lanes=st.sampled_from(ALL_LANES),
    count=st.integers(0, 300),
)
def test_streams_equal_the_reference_and_round_trip(seed, precision, lanes, count):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, precision)
    symbols, indexes = random_symbols(rng, tables, count)
    stream = encode(symbols, indexes, tables, lanes=lanes)
    assert stream == reference_encode(symbols, indexes, tables, lanes)
    np.testing.assert_array_equal(decode_all(stream, tables, indexes), symbols)


@given(
    seed=st.integers(0, 2**32 - 1),
    lanes=st.sampled_from(ALL_LANES),
    cuts=st.lists(st.integers(0, 500), max_size=12),
)
def test_any_split_into_calls_gives_the_same_symbols(seed, lanes, cuts):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, 12)
    symbols, indexes = random_symbols(rng, tables, 500)
    stream = encode(symbols, indexes, tables, lanes)
    for level in LEVELS:
        with simd_level(level):
            decoder = rans.RansDecoder(stream, tables)
            parts = [decoder.decode(part) for part in np.split(indexes, sorted(cuts))]
            decoder.finish()
        np.testing.assert_array_equal(np.concatenate(parts), symbols)


@pytest.mark.parametrize("lanes", ALL_LANES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_long_streams(lanes, dtype):
    """Long enough for runs of the encoder's buffer and for escapes amid full groups."""
    rng = np.random.default_rng(lanes)
    scales = np.geomspace(0.11, 20, 64)
    tables = TableSet.gaussian(scales)
    indexes = rng.integers(0, 64, 200_003).astype(dtype)
    symbols = np.rint(rng.standard_normal(indexes.size) * scales[indexes]).astype(np.int32)
    stream = encode(symbols, indexes, tables, lanes=lanes)
    np.testing.assert_array_equal(decode_all(stream, tables, indexes), symbols)
    overhead = len(stream) * 8 - tables.cost_bits(symbols, indexes)
    # A lane costs 16 to 32 bits; what rounding within a push costs is below 0.01 %.
    assert 0 < overhead < 8 + 32 * lanes + 1e-4 * len(stream) * 8


@pytest.mark.parametrize("precision", range(1, 17))
def test_one_value_costs_nothing(precision):
    tables = TableSet([[2**precision]], [-7], precision)
    symbols, indexes = np.full(10_000, -7, np.int32), np.zeros(10_000, np.uint8)
    for lanes in ALL_LANES:
        stream = encode(symbols, indexes, tables, lanes=lanes)
        states = (1 << 16).to_bytes(4, "little") * lanes
        assert stream == bytes([lanes.bit_length() - 1 | (precision - 1) << 4]) + states
        np.testing.assert_array_equal(decode_all(stream, tables, indexes), symbols)


@pytest.mark.parametrize("offset", [INT32_MIN, -1, 0, INT32_MAX])
@pytest.mark.parametrize("frequencies", [[1, 4095], [4095, 1], [4096]])
def test_escapes_reach_every_int32(offset, frequencies):
    """[4096] is an escape and nothing else: all values are coded by their distance."""
    tables = TableSet([frequencies], [offset], escape=True)
    powers = 2 ** np.arange(31, dtype=np.int64)
    spread = np.concatenate([powers, -powers, powers - 1, 1 - powers])
    around = np.concatenate([spread, offset + spread, [INT32_MIN, INT32_MAX]])
    symbols = np.clip(around, INT32_MIN, INT32_MAX).astype(np.int32)
    indexes = np.zeros(symbols.size, np.uint8)
    stream = encode(symbols, indexes, tables, lanes=4)
    assert stream == reference_encode(symbols, indexes, tables, 4)
    np.testing.assert_array_equal(decode_all(stream, tables, indexes), symbols)


def test_alphabet_of_65536():
    tables = TableSet([np.ones(65536, np.uint32)], [-32768], precision=16)
    symbols = np.arange(-32768, 32768, dtype=np.int32)
    indexes = np.zeros(symbols.size, np.uint8)
    stream = encode(symbols, indexes, tables, lanes=8)
    assert len(stream) == 1 + 4 * 8 + 2 * 65536
    np.testing.assert_array_equal(decode_all(stream, tables, indexes), symbols)


def test_more_than_256_tables():
    tables = TableSet([[1 + i, 255 - i] for i in range(255)] * 3, [*range(765)], precision=8)
    indexes = np.arange(765, dtype=np.uint16)
    symbols = indexes.astype(np.int32) + indexes % 2
    stream = rans.encode(symbols, indexes, tables)
    np.testing.assert_array_equal(decode_all(stream, tables, indexes), symbols)


@pytest.mark.parametrize(("precision", "num_tables"), [(12, 600), (16, 40)])
def test_compact_tables(precision, num_tables):
    """So many slots that the decoder keeps buckets of them instead."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(0.05, 300, num_tables)
    tables = TableSet.gaussian(scales, precision)
    indexes = rng.integers(0, num_tables, 20_000).astype(np.uint16)
    symbols = np.rint(rng.standard_t(4, indexes.size) * scales[indexes]).astype(np.int32)
    for lanes in (1, 4, 64):
        stream = encode(symbols, indexes, tables, lanes)
        np.testing.assert_array_equal(decode_all(stream, tables, indexes), symbols)
        head = symbols[:300], indexes[:300]
        assert encode(*head, tables, lanes) == reference_encode(*head, tables, lanes)


def test_very_many_tables():
    """More than are packed."""
    tables = TableSet([[1, 3], [2, 2], [3, 1]] * 4000, [*range(12_000)], precision=2)
    indexes = np.arange(12_000, dtype=np.uint16)
    symbols = indexes.astype(np.int32) + indexes % 2
    stream = encode(symbols, indexes, tables, 64)
    np.testing.assert_array_equal(decode_all(stream, tables, indexes), symbols)


# The format may not drift: these bytes are for ever.
GOLDEN_TABLES = TableSet(
    [[1, 6, 4089], [256, 512, 2560, 512, 256], [4096], [2000, 2096]], [0, -2, 5, 100],
    escape=[True, True, False, False],
)  # fmt: skip
GOLDEN_SYMBOLS = np.array(
    [0, -1, 5, 100, 1, 0, 5, 101, 2, 3, 5, 100, -9, 70_000, 5, 101, INT32_MAX, INT32_MIN, 5, 100],
    np.int32,
)
GOLDEN_INDEXES = np.tile(np.arange(4, dtype=np.uint8), 5)
GOLDEN_STREAMS = {
    1: "b000b00f0151b1f4aa02f0768bee580080fbffff7f000f0080fcffff7f0006",
    2: "b100500055d4912d03a0a286958e18768b60d10080fbffff7f0080fcffff7f0006",
    8: "b300800e1006723c2000000100b07308000350050000e6cc000000010060de0300"
    "b9e08e18768b00000080fbffff7f00000080fcffff7f",
}


@pytest.mark.parametrize("lanes", GOLDEN_STREAMS)
def test_recorded_streams(lanes):
    stream = bytes.fromhex(GOLDEN_STREAMS[lanes])
    encoded = encode(GOLDEN_SYMBOLS, GOLDEN_INDEXES, GOLDEN_TABLES, lanes=lanes)
    assert encoded.hex() == stream.hex()
    decoded = decode_all(stream, GOLDEN_TABLES, GOLDEN_INDEXES)
    np.testing.assert_array_equal(decoded, GOLDEN_SYMBOLS)


def outcome_of(stream, tables, indexes):
    """The symbols, or None if the stream is refused."""
    try:
        return decode_all(stream, tables, indexes).tolist()
    except CorruptStreamError:
        return None


def reference_outcome_of(stream, tables, indexes):
    try:
        decoder = rans_reference.Decoder(stream, reference_tables(tables), tables.precision)
        symbols = [decoder.decode_one(i) for i in indexes.tolist()]
        decoder.finish()
    except rans_reference.CorruptError:
        return None
    return symbols


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_damage_is_refused_or_gives_other_symbols(lanes):
    stream = bytes.fromhex(GOLDEN_STREAMS[lanes])
    damaged = [stream[:size] for size in range(len(stream))]
    damaged += [stream + b"\0", stream + b"\0\0"]
    for position in range(len(stream)):
        for flip in range(1, 256):
            copy = bytearray(stream)
            copy[position] ^= flip
            damaged.append(bytes(copy))
    refused = 0
    for data in damaged:
        outcome = outcome_of(data, GOLDEN_TABLES, GOLDEN_INDEXES)
        assert outcome == reference_outcome_of(data, GOLDEN_TABLES, GOLDEN_INDEXES)
        if outcome is None:
            refused += 1
            continue
        # Raw bits carry no redundancy, so other symbols may come out, but never the same ones:
        # coding is a bijection.
        assert len(data) == len(stream)
        again = rans.encode(
            np.array(outcome, np.int32), GOLDEN_INDEXES, GOLDEN_TABLES, lanes=1 << (data[0] & 7)
        )
        assert again == data
    assert refused > 0.5 * len(damaged)


@given(data=st.binary(max_size=400), precision=st.integers(1, 16), seed=st.integers(0, 99))
def test_arbitrary_bytes_give_what_the_reference_gives(data, precision, seed):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, precision, num_tables=3)
    indexes = rng.integers(0, 3, 200).astype(np.uint8)
    # Mostly valid headers and states: others are refused at once.
    data = bytearray(data)
    if data:
        data[0] = seed % 3 | (precision - 1) << 4
    data[4:20:4] = b"\x7f" * len(data[4:20:4])
    decoder = reference = None
    try:
        decoder = rans.RansDecoder(bytes(data), tables)
    except CorruptStreamError:
        with pytest.raises(rans_reference.CorruptError):
            rans_reference.Decoder(bytes(data), reference_tables(tables), precision)
        return
    reference = rans_reference.Decoder(bytes(data), reference_tables(tables), precision)
    for index in indexes:
        try:
            expected = reference.decode_one(int(index))
        except rans_reference.CorruptError:
            with pytest.raises(CorruptStreamError):
                decoder.decode(index[None])
            return
        assert decoder.decode(index[None])[0] == expected


def test_a_failed_call_leaves_the_decoder_where_it_was():
    tables = TableSet([[1, 1]], [0], precision=1)
    rng = np.random.default_rng(0)
    symbols, indexes = rng.integers(0, 2, 640).astype(np.int32), np.zeros(640, np.uint8)
    decoder = rans.RansDecoder(rans.encode(symbols, indexes, tables, lanes=2), tables)
    np.testing.assert_array_equal(decoder.decode(indexes[:11]), symbols[:11])
    with pytest.raises(CorruptStreamError):
        decoder.decode(np.zeros(1000, np.uint8))
    with pytest.raises(InputError):
        decoder.decode(np.array([0, 1], np.uint8))
    np.testing.assert_array_equal(decoder.decode(indexes[11:]), symbols[11:])
    decoder.finish()


def test_finish_finds_missing_symbols_and_errors_say_where():
    decoder = rans.RansDecoder(bytes.fromhex(GOLDEN_STREAMS[2]), GOLDEN_TABLES)
    decoder.decode(GOLDEN_INDEXES[:-2])
    with pytest.raises(CorruptStreamError):
        decoder.finish()
    stream = bytes.fromhex(GOLDEN_STREAMS[2])[:-2]
    with pytest.raises(CorruptStreamError, match="ends before") as raised:
        rans.RansDecoder(stream, GOLDEN_TABLES).decode(GOLDEN_INDEXES)
    assert raised.value.offset == len(stream)
    with pytest.raises(CorruptStreamError, match="precision"):
        rans.RansDecoder(stream, TableSet([[2]], [0], precision=1))
    small_state = stream[:5] + b"\xff\xff\0\0" + stream[9:]
    with pytest.raises(CorruptStreamError, match="lane 1") as raised:
        rans.RansDecoder(small_state, GOLDEN_TABLES)
    assert raised.value.offset == 5


@pytest.mark.parametrize("bits_per_symbol", [0.05, 3.0])
@pytest.mark.parametrize("count", [0, 10, 3_000, 20_000, 400_000])
def test_lanes_stay_cheap(count, bits_per_symbol):
    rng = np.random.default_rng(0)
    scale = {0.05: 0.18, 3.0: 2.0}[bits_per_symbol]
    tables = TableSet.gaussian([scale])
    symbols = np.rint(rng.standard_normal(count) * scale).astype(np.int32)
    indexes = np.zeros(count, np.uint8)
    stream = rans.encode(symbols, indexes, tables)
    lanes = rans.RansDecoder(stream, tables).lanes
    payload = tables.cost_bits(symbols, indexes) / 8
    assert lanes == 1 or 3 * lanes <= 0.0026 * payload
    assert lanes == 64 or 3 * 2 * lanes > 0.0024 * payload


def test_arguments_that_do_not_fit():
    tables = TableSet([[4096], [4096]], [0, 0])
    symbols, indexes = np.zeros(4, np.int32), np.zeros(4, np.uint8)
    for lanes in (0, 3, 128, -1, 2.5):
        with pytest.raises(InputError, match="lanes"):
            rans.encode(symbols, indexes, tables, lanes=lanes)
    with pytest.raises(InputError, match="symbols"):
        rans.encode(symbols.astype(np.int64), indexes, tables)
    with pytest.raises(InputError, match="indexes"):
        rans.encode(symbols, indexes.astype(np.int32), tables)
    with pytest.raises(InputError, match="4 symbols with 3"):
        rans.encode(symbols, indexes[:3], tables)
    with pytest.raises(InputError, match="index 2"):
        rans.encode(symbols, indexes + np.uint8(2), tables)
    with pytest.raises(InputError, match="symbol 1 at position 2 is outside table 1"):
        rans.encode(np.array([0, 0, 1, 0], np.int32), np.array([0, 0, 1, 0], np.uint8), tables)
    stream = rans.encode(symbols, indexes, tables)
    decoder = rans.RansDecoder(stream, tables)
    read_only = np.zeros(4, np.int32)
    read_only.flags.writeable = False
    for out in (symbols[:3].copy(), symbols[::2], symbols.astype(np.int64), read_only, [0] * 4):
        with pytest.raises(InputError, match="out"):
            decoder.decode(indexes, out)
    for index in (2, 255):
        with pytest.raises(InputError, match=f"index {index}"):
            decoder.decode(np.array([0, index], np.uint8))
    with pytest.raises(InputError, match="bytes"):
        rans.RansDecoder(np.zeros(8, np.uint16), tables)
    with pytest.raises(CorruptStreamError):
        rans.RansDecoder(b"", tables)


def test_buffers_of_all_kinds():
    torch = pytest.importorskip("torch")
    tables = TableSet.gaussian([1.0, 4.0])
    rng = np.random.default_rng(0)
    indexes = rng.integers(0, 2, (6, 50)).astype(np.uint8)
    symbols = rng.integers(-9, 9, (6, 50)).astype(np.int32)
    stream = rans.encode(symbols, indexes, tables)
    assert stream == rans.encode(torch.from_numpy(symbols), torch.from_numpy(indexes), tables)
    transposed = np.ascontiguousarray(symbols.T).T  # the same items, other strides
    assert stream == rans.encode(transposed, indexes, tables)
    for data in (bytearray(stream), memoryview(stream), np.frombuffer(stream, np.uint8)):
        np.testing.assert_array_equal(decode_all(data, tables, indexes), symbols)
    out = np.empty((6, 50), np.int32)
    assert rans.RansDecoder(stream, tables).decode(torch.from_numpy(indexes), out) is out
    np.testing.assert_array_equal(out, symbols)
    tensor = torch.empty((6, 50), dtype=torch.int32)
    assert rans.RansDecoder(stream, tables).decode(torch.from_numpy(indexes), tensor) is tensor
    np.testing.assert_array_equal(tensor.numpy(), symbols)
    for unfit in (tensor.float(), tensor[:, ::2], torch.empty(300, dtype=torch.int32).to("meta")):
        with pytest.raises(InputError, match="out"):
            rans.RansDecoder(stream, tables).decode(indexes, unfit)


def test_a_decoder_keeps_its_stream_and_tables_alive():
    def make():
        tables = TableSet([[1, 4095]], [0])
        stream = bytes(rans.encode(np.arange(2, dtype=np.int32), np.zeros(2, np.uint8), tables))
        return rans.RansDecoder(bytearray(stream), tables)

    decoder = make()
    np.testing.assert_array_equal(decoder.decode(np.zeros(2, np.uint8)), [0, 1])
    decoder.finish()


def test_the_gil_is_released():
    """While one thread encodes, this one goes on; with the GIL held it could not."""
    tables = TableSet.gaussian([2.0])
    symbols = np.tile(np.arange(-4, 5, dtype=np.int32), 2_000_000)
    indexes = np.zeros(symbols.size, np.uint8)
    done = threading.Event()

    def work():
        stream = rans.encode(symbols, indexes, tables)
        rans.RansDecoder(stream, tables).decode(indexes)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    wakeups = 0
    while not done.wait(0.001):
        wakeups += 1
    thread.join()
    assert wakeups > 5
