from __future__ import annotations

import itertools
import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycodec.coding import compressai_ans as ours
from pycodec.errors import CorruptStreamError, InputError

from .record_compressai_streams import RECORDED, gaussian_case, load_compressai_ans, random_case

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
CASES = json.loads(RECORDED.read_text())

CDFS = [[0, 20_000, 60_000, 65_536], [0, 1, 2, 65_535, 65_536]]
SIZES, OFFSETS = [4, 5], [0, -1]
TABLES = (CDFS, SIZES, OFFSETS)
SYMBOLS = [0, 1, 2, -1, -70_000, 0, 1, 2_000_000, 0, -2, 1, 1]
INDEXES = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1]


def encode(symbols, indexes, *tables) -> bytes:
    return ours.RansEncoder().encode_with_indexes(symbols, indexes, *tables)


def decode(stream, indexes, *tables):
    return ours.RansDecoder().decode_with_indexes(stream, indexes, *tables)


def buffered(module, case) -> bytes:
    encoder = module.BufferedRansEncoder()
    for call in case["calls"]:
        encoder.encode_with_indexes(call["symbols"], call["indexes"], *tables_of(case))
    return encoder.flush()


def decoded_by_calls(module, case, stream) -> list[list[int]]:
    decoder = module.RansDecoder()
    decoder.set_stream(stream)
    return [decoder.decode_stream(call["indexes"], *tables_of(case)) for call in case["calls"]]


def tables_of(case):
    return case["cdfs"], case["cdfs_sizes"], case["offsets"]


def joined(case, key) -> list[int]:
    return [item for call in case["calls"] for item in call[key]]


@pytest.fixture(scope="module")
def theirs():
    module = load_compressai_ans()
    return pytest.skip("CompressAI is not installed") if module is None else module


@pytest.mark.parametrize("case", CASES)
def test_recorded_streams(case):
    stream = bytes.fromhex(case["stream"])
    symbols, indexes = joined(case, "symbols"), joined(case, "indexes")
    assert encode(symbols, indexes, *tables_of(case)) == stream
    assert buffered(ours, case) == stream
    assert decode(stream, indexes, *tables_of(case)) == symbols
    assert decoded_by_calls(ours, case, stream) == [call["symbols"] for call in case["calls"]]
    # The same through arrays and through tables that are kept: other code paths.
    tables = ours.CdfTables(*tables_of(case))
    assert encode(np.array(symbols), np.array(indexes), tables) == stream
    np.testing.assert_array_equal(decode(stream, np.array(indexes), tables), symbols)


def test_10000_random_cases_equal_compressai(theirs):
    rng = np.random.default_rng(1)
    for _ in range(10_000):
        case = random_case(rng, most_symbols=24)
        stream = buffered(ours, case)
        assert stream == buffered(theirs, case)
        assert decoded_by_calls(ours, case, stream) == decoded_by_calls(theirs, case, stream)
        symbols, indexes = joined(case, "symbols"), joined(case, "indexes")
        assert stream == encode(symbols, indexes, *tables_of(case))
        assert decode(stream, indexes, *tables_of(case)) == symbols


def test_long_streams_equal_compressai(theirs):
    rng = np.random.default_rng(2)
    case = gaussian_case(rng)
    call = case["calls"][0]
    indexes = call["indexes"] * 20
    symbols = rng.permutation(np.array(call["symbols"] * 20).reshape(20, -1)).ravel().tolist()
    stream = encode(symbols, indexes, *tables_of(case))
    assert stream == theirs.RansEncoder().encode_with_indexes(symbols, indexes, *tables_of(case))
    assert decode(stream, indexes, *tables_of(case)) == symbols
    assert theirs.RansDecoder().decode_with_indexes(stream, indexes, *tables_of(case)) == symbols


def test_arbitrary_bytes_decode_as_in_compressai(theirs):
    """Enough bytes that CompressAI stays inside of them."""
    rng = np.random.default_rng(3)
    equal = 0
    for _ in range(1000):
        case = random_case(rng)
        stream = bytearray(rng.bytes(2048))
        stream[7] = stream[7] & 0x7F | 0x40  # a valid state
        indexes = joined(case, "indexes")
        try:
            symbols = decode(stream, indexes, *tables_of(case))
        except CorruptStreamError:
            continue
        # CompressAI takes raw values for signed: those of 32 bits come out wrong.
        if all(abs(v - case["offsets"][i]) < 2**30 for v, i in zip(symbols, indexes, strict=True)):
            equal += 1
            assert symbols == theirs.RansDecoder().decode_with_indexes(
                bytes(stream), indexes, *tables_of(case)
            )
    assert equal > 300


def test_what_compressai_cannot_encode_it_decodes(theirs):
    symbols = [2**30, -(2**30), 2**28 + 1]
    stream = encode(symbols, [0, 0, 0], *TABLES)
    assert theirs.RansDecoder().decode_with_indexes(stream, [0, 0, 0], *TABLES) == symbols
    escape_only = ([[0, 65536]], [2], [5])
    stream = encode([7, 5, -9], [0, 0, 0], *escape_only)
    assert theirs.RansDecoder().decode_with_indexes(stream, [0, 0, 0], *escape_only) == [7, 5, -9]
    stream = encode([1], [0], *TABLES)
    assert theirs.RansDecoder().decode_with_indexes(stream, [0], *TABLES) == [1]


@st.composite
def coded(draw):
    cdfs, offsets = [], []
    for _ in range(draw(st.integers(1, 3))):
        inner = draw(st.sets(st.integers(1, 65535), max_size=20))
        cdfs.append([0, *sorted(inner), 65536])
        offsets.append(draw(st.sampled_from([0, -5, INT32_MIN, INT32_MAX - 20])))
    indexes = draw(st.lists(st.integers(0, len(cdfs) - 1), max_size=30))
    symbols = []
    for index in indexes:
        near = st.integers(offsets[index] - 3, offsets[index] + 30)
        far = st.integers(offsets[index] - 2**31, offsets[index] + 2**31 - 1)
        symbols.append(min(max(draw(near | far), INT32_MIN), INT32_MAX))
    return symbols, indexes, (cdfs, [len(cdf) for cdf in cdfs], offsets)


@given(case=coded(), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_round_trip(case, cuts):
    symbols, indexes, tables = case
    encoder, decoder = ours.BufferedRansEncoder(), ours.RansDecoder()
    cuts = [0, *sorted(cuts), len(symbols)]
    parts = [slice(*cut) for cut in itertools.pairwise(cuts)]
    for part in parts:
        encoder.encode_with_indexes(symbols[part], indexes[part], *tables)
    stream = encoder.flush()
    assert stream == encode(symbols, indexes, ours.CdfTables(*tables))
    decoder.set_stream(stream)
    for part in parts:
        assert decoder.decode_stream(indexes[part], *tables) == symbols[part]
    assert decode(stream, indexes, ours.CdfTables(*tables)) == symbols


@given(data=st.binary(min_size=0, max_size=200), seed=st.integers(0, 99))
def test_arbitrary_bytes_decode_or_are_refused(data, seed):
    case = random_case(np.random.default_rng(seed))
    indexes, results = joined(case, "indexes"), []
    for tables in (tables_of(case), (ours.CdfTables(*tables_of(case)),)):
        try:
            results.append(decode(data, indexes, *tables))
        except CorruptStreamError as error:
            assert 0 <= error.offset <= len(data)
            results.append(error.offset)
    assert results[0] == results[1]


@pytest.mark.parametrize("frequency", [1, 2, 3, 255, 256, 257, 32_767, 32_768, 65_535])
def test_every_quotient_is_exact(frequency):
    """Long runs of one symbol walk through states of all sizes; an inexact division shows."""
    tables = ([[0, frequency, 65_536]], [3], [0])
    symbols = [0] * 3000 + [1] + [0] * 3000
    stream = encode(symbols, [0] * len(symbols), *tables)
    x = 2**31
    words = []

    def push(start, f, bits):
        nonlocal x
        if x >= f << (63 - bits):
            words.append(x & 0xFFFFFFFF)
            x >>= 32
        x = (x // f << bits) + start + x % f

    for symbol in reversed(symbols):
        if symbol == 1:
            push(0, 1, 4)  # no nibbles
            push(frequency, 65_536 - frequency, 16)
        else:
            push(0, frequency, 16)
    expected = x.to_bytes(8, "little") + b"".join(w.to_bytes(4, "little") for w in words[::-1])
    assert stream == expected
    assert decode(stream, [0] * len(symbols), *tables) == symbols


def test_escapes_reach_every_int32():
    powers = 2 ** np.arange(31, dtype=np.int64)
    spread = np.concatenate([powers, -powers, powers - 1, 1 - powers, [INT32_MIN, INT32_MAX]])
    tables = (CDFS, SIZES, [0, 0])
    symbols = spread.astype(np.int32)
    indexes = np.arange(symbols.size) % 2
    stream = encode(symbols, indexes, *tables)
    np.testing.assert_array_equal(decode(stream, indexes, *tables), symbols)


def test_largest_cdf():
    tables = ([list(range(65_537))], [65_537], [-32_768])
    symbols = np.arange(-32_768, 32_767, dtype=np.int32)
    indexes = np.zeros(symbols.size, np.int32)
    stream = encode(symbols, indexes, *tables)
    assert len(stream) == 8 + 4 * (symbols.size // 2)
    np.testing.assert_array_equal(decode(stream, indexes, *tables), symbols)
    np.testing.assert_array_equal(decode(stream, indexes[:9], *tables), symbols[:9])


def test_no_symbols():
    initial = (2**31).to_bytes(8, "little")
    assert encode([], [], *TABLES) == initial
    assert ours.BufferedRansEncoder().flush() == initial
    assert decode(initial, [], *TABLES) == []
    nothing = decode(initial, np.zeros((3, 0), np.int32), *TABLES)
    assert nothing.shape == (3, 0)
    with pytest.raises(CorruptStreamError, match="ends before") as raised:
        decode(initial, [0], *TABLES)
    assert raised.value.offset == 8


def test_flush_resets_and_calls_may_have_tables_of_their_own():
    encoder = ours.BufferedRansEncoder()
    one, two = ([CDFS[0]], [4], [7]), (CDFS[1:], [5], [-3])
    for _ in range(2):
        encoder.encode_with_indexes([7, 8], [0, 0], *one)
        encoder.encode_with_indexes([-3, 99], [0, 0], *two)
        encoder.encode_with_indexes([], [], *two)
        stream = encoder.flush()
        both = ([CDFS[0], CDFS[1]], [4, 5], [7, -3])
        assert stream == encode([7, 8, -3, 99], [0, 0, 1, 1], *both)
        decoder = ours.RansDecoder()
        decoder.set_stream(stream)
        assert decoder.decode_stream([0, 0], *one) == [7, 8]
        assert decoder.decode_stream([0, 0], *two) == [-3, 99]


def test_a_failed_call_changes_nothing():
    encoder = ours.BufferedRansEncoder()
    # More than a block, so that part of the failed call was taken already.
    symbols, indexes = [1] * 3000, [0] * 3000
    encoder.encode_with_indexes(SYMBOLS, INDEXES, *TABLES)
    with pytest.raises(InputError, match="index 2 at position 2999, but there are 2 cdfs"):
        encoder.encode_with_indexes(symbols, [*indexes[:-1], 2], *TABLES)
    encoder.encode_with_indexes(symbols, indexes, *TABLES)
    stream = encoder.flush()
    assert stream == encode(SYMBOLS + symbols, INDEXES + indexes, *TABLES)

    decoder = ours.RansDecoder()
    decoder.set_stream(stream)
    assert decoder.decode_stream(INDEXES[:5], *TABLES) == SYMBOLS[:5]
    with pytest.raises(CorruptStreamError):
        decoder.decode_stream([0] * 100_000, *TABLES)
    with pytest.raises(InputError, match="index -1 at position 1"):
        decoder.decode_stream([1, -1], *TABLES)
    with pytest.raises(CorruptStreamError):
        decoder.set_stream(stream[:7])
    assert decoder.decode_with_indexes(stream, INDEXES, *TABLES) == SYMBOLS
    assert decoder.decode_stream(INDEXES[5:], *TABLES) == SYMBOLS[5:]
    assert decoder.decode_stream(indexes, *TABLES) == symbols
    with pytest.raises(CorruptStreamError, match="ends before") as raised:
        decoder.decode_stream([0], *TABLES)
    assert raised.value.offset == len(stream)


def test_set_stream_begins_again():
    stream, other = encode(SYMBOLS, INDEXES, *TABLES), encode([1, 0], [1, 1], *TABLES)
    decoder = ours.RansDecoder()
    with pytest.raises(InputError, match="set_stream"):
        decoder.decode_stream([0], *TABLES)
    for _ in range(2):
        decoder.set_stream(stream)
        assert decoder.decode_stream(INDEXES[:7], *TABLES) == SYMBOLS[:7]
        decoder.set_stream(other)
        assert decoder.decode_stream([1, 1], *TABLES) == [1, 0]


def test_truncated_streams():
    stream = encode(SYMBOLS, INDEXES, *TABLES)
    for size in range(len(stream)):
        with pytest.raises(CorruptStreamError, match="ends") as raised:
            decode(stream[:size], INDEXES, *TABLES)
        assert raised.value.offset == (size if size < 8 else size // 4 * 4)
    # Like CompressAI: what follows is not looked at.
    for tail in (b"\0", b"\xff" * 9):
        assert decode(stream + tail, INDEXES, *TABLES) == SYMBOLS


def test_damaged_streams():
    stream = encode(SYMBOLS, INDEXES, *TABLES)
    refused = 0
    for position in range(len(stream)):
        for flip in range(1, 256):
            damaged = bytearray(stream)
            damaged[position] ^= flip
            try:
                symbols = decode(damaged, INDEXES, *TABLES)
            except CorruptStreamError as error:
                assert 0 <= error.offset <= len(stream)
                refused += 1
            else:
                # Even the same: what the last symbol leaves of the state is not looked at.
                assert len(symbols) == len(SYMBOLS)
    assert refused > 0
    for state in (0, 2**31 - 1, 2**63, 2**64 - 1):
        with pytest.raises(CorruptStreamError, match="state") as raised:
            decode(state.to_bytes(8, "little") + bytes(40), INDEXES, *TABLES)
        assert raised.value.offset == 0


def stream_of_nibbles(*nibbles) -> bytes:
    """An escape of a table that is nothing else, then up to 9 nibbles: a state holds 8."""
    state = 2**62 + sum(nibble << 4 * i for i, nibble in enumerate(nibbles[:8]))
    words = bytes(nibbles[8:]) + bytes(8)
    return state.to_bytes(8, "little") + words[: len(words) // 4 * 4]


def test_escapes_that_no_encoder_writes():
    table = ([[0, 65_536]], [2], [0])
    assert decode(stream_of_nibbles(2, 3, 1), [0], *table) == [-10]
    # More nibbles than needed: read as CompressAI reads them.
    assert decode(stream_of_nibbles(3, 3, 1, 0), [0], *table) == [-10]
    for count in range(9, 16):
        with pytest.raises(CorruptStreamError, match="more than 32 bits"):
            decode(stream_of_nibbles(count), [0], *table)
    largest = stream_of_nibbles(8, *[15] * 8)
    assert decode(largest, [0], *table) == [INT32_MIN]
    with pytest.raises(CorruptStreamError, match="exceeds int32"):
        decode(largest, [0], [[0, 65_536]], [2], [-1])
    with pytest.raises(CorruptStreamError, match="exceeds int32"):
        decode(stream_of_nibbles(8, 14, *[15] * 7), [0], [[0, 65_536]], [2], [1])


@pytest.mark.parametrize(
    ("cdfs", "sizes", "offsets", "message"),
    [
        ([], [], [], "no rows"),
        ([[0, 65_536]], [2, 2], [0], "cdfs_sizes has 2 items, cdfs 1 rows"),
        ([[0, 65_536]], [2], [], "offsets has 0 items, cdfs 1 rows"),
        ([[0, 65_536]], [1], [0], "size of cdf 0 must be 2..65537, not 1"),
        ([[0, 65_536]], [0], [0], "must be 2..65537"),
        ([[0, 65_536]], [-5], [0], "must be 2..65537"),
        ([[0, 65_536]], [65_538], [0], "must be 2..65537"),
        ([[0, 65_536]], [3], [0], "cdf 0 has 2 items, its size says 3"),
        ([[0, 65_536], []], [2, 2], [0, 0], "cdf 1 has 0 items"),
        ([[1, 65_536]], [2], [0], "from 0 to 65536, not from 1 to 65536"),
        ([[0, 65_535]], [2], [0], "from 0 to 65536"),
        ([[0, 5, 5, 65_536]], [4], [0], "cdf 0 must increase"),
        ([[0, 9, 5, 65_536]], [4], [0], "must increase"),
        ([[0, -9, 5, 65_536]], [4], [0], "must increase"),
        ([[0, 70_000, 65_536]], [3], [0], "must increase"),
        ([[0, 1, 2, 65_536]], [4], [INT32_MAX], "values of cdf 0 exceed int32"),
        ([[0, 2**31]], [2], [0], "items of cdfs exceed int32"),
        ([[0, 65_536]], [2], [2**31], "offsets exceed int32"),
        ([[0, 65_536]], [2**64], [0], "cdfs_sizes exceed int32"),
        ([[0, 6.5, 65_536]], [3], [0], "items of cdfs must be integers, not float"),
        ([[0, 65_536]], [2], ["0"], "offsets must be integers, not str"),
        ([0, 65_536], [2, 2], [0, 0], "items of cdfs must be integers in an array or a list"),
        (np.array([0, 65_536]), [2], [0], "2-D"),
        (np.array([[0, 65_536.0]]), [2], [0], "cdfs must be integers, not float64"),
        (None, [2], [0], "cdfs must be integers"),
        ([[0, 65_536]], None, [0], "cdfs need cdfs_sizes and offsets"),
        ([[0, 65_536]], [2], None, "cdfs need cdfs_sizes and offsets"),
        (ours.CdfTables(*TABLES), [2], None, "give no others"),
    ],
)
def test_tables_that_are_refused(cdfs, sizes, offsets, message):
    stream = encode(SYMBOLS, INDEXES, *TABLES)
    decoder = ours.RansDecoder()
    decoder.set_stream(stream)
    for call in (
        lambda: encode([0], [0], cdfs, sizes, offsets),
        lambda: ours.BufferedRansEncoder().encode_with_indexes([0], [0], cdfs, sizes, offsets),
        lambda: decode(stream, [0], cdfs, sizes, offsets),
        lambda: decoder.decode_stream([0], cdfs, sizes, offsets),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_arguments_that_are_refused():
    with pytest.raises(InputError, match="2 symbols with 3 indexes"):
        encode([0, 0], [0, 0, 0], *TABLES)
    for index in (-1, 2, INT32_MAX, INT32_MIN):
        with pytest.raises(InputError, match=f"index {index} at position 1"):
            encode([0, 0], [0, index], *TABLES)
        with pytest.raises(InputError, match=f"index {index} at position 1"):
            decode(encode(SYMBOLS, INDEXES, *TABLES), np.array([0, index]), *TABLES)
    far = ([CDFS[0]], [4], [2**30])
    for symbol in (INT32_MIN, -(2**30) - 1):
        with pytest.raises(InputError, match=f"symbol {symbol} at position 1 is too far"):
            encode([0, symbol], [0, 0], *far)
    assert decode(encode([-(2**30), 0], [0, 0], *far), [0, 0], *far) == [-(2**30), 0]
    for symbols in (
        [2**31],
        [INT32_MIN - 1],
        [2**70],
        np.array([2**31]),
        np.array([2**64 - 1], np.uint64),
        np.array([2**32 - 1], np.uint32),
    ):
        with pytest.raises(InputError, match="symbols exceed int32"):
            encode(symbols, [0], *TABLES)
    for symbols in ([1.0], ["1"], [None], [[1]], np.array([1.0]), np.array(["1"]), "1", object()):
        with pytest.raises(InputError, match="symbols must be integers"):
            encode(symbols, [0], *TABLES)
        with pytest.raises(InputError, match="indexes must be integers"):
            decode(bytes(7) + b"\1", symbols, *TABLES)
    stream = encode(SYMBOLS, INDEXES, *TABLES)
    for data in (stream.hex(), None, 5, list(stream), memoryview(stream)[::2]):
        with pytest.raises(InputError, match="the stream must be bytes"):
            decode(data, INDEXES, *TABLES)
        with pytest.raises(InputError, match="the stream must be bytes"):
            ours.RansDecoder().set_stream(data)
    with pytest.raises(CorruptStreamError, match="ends inside its state"):
        ours.RansDecoder().set_stream(b"")


def test_buffers_of_all_kinds():
    torch = pytest.importorskip("torch")
    stream = encode(SYMBOLS, INDEXES, *TABLES)
    padded = np.zeros((2, 8), np.int32)
    for row, cdf in zip(padded, CDFS, strict=True):
        row[: len(cdf)] = cdf
    symbols, indexes = np.array(SYMBOLS), np.array(INDEXES)
    for dtype in (np.int32, np.int64, ">i4", np.dtype("<i8")):
        tables = (padded.astype(dtype), np.array(SIZES, dtype), np.array(OFFSETS, dtype))
        assert encode(symbols.astype(dtype), indexes.astype(dtype), *tables) == stream
    for dtype in (np.uint8, np.int8, np.uint16, np.uint32, np.uint64, bool):
        assert encode(SYMBOLS, indexes.astype(dtype), *TABLES) == stream
        decoded = decode(stream, indexes.astype(dtype).reshape(3, 4), *TABLES)
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded, symbols.reshape(3, 4))
    strided = np.repeat(symbols.astype(np.int32), 2)[::2]
    fortran = np.asfortranarray(padded)
    assert encode(strided, tuple(INDEXES), fortran, SIZES, tuple(OFFSETS)) == stream
    assert encode(SYMBOLS, INDEXES, [CDFS[0], padded[1]], SIZES, OFFSETS) == stream
    assert encode([np.int32(s) for s in SYMBOLS], torch.tensor(INDEXES), *TABLES) == stream
    tensors = (torch.from_numpy(padded), torch.tensor(SIZES).int(), torch.tensor(OFFSETS).int())
    assert encode(torch.tensor(SYMBOLS).int(), torch.tensor(INDEXES).int(), *tensors) == stream
    decoded = decode(stream, torch.tensor(INDEXES).reshape(2, 2, 3), *tensors)
    np.testing.assert_array_equal(decoded, symbols.reshape(2, 2, 3))
    assert isinstance(decode(stream, tuple(INDEXES), *tensors), list)
    for data in (bytearray(stream), memoryview(stream), np.frombuffer(stream, np.uint8)):
        assert decode(data, INDEXES, *TABLES) == SYMBOLS
    assert len(ours.CdfTables(*tensors)) == 2


def test_the_stream_outlives_its_caller():
    decoder = ours.RansDecoder()
    data = bytearray(encode(SYMBOLS, INDEXES, *TABLES))
    decoder.set_stream(data)
    with pytest.raises(BufferError):
        data.clear()
    del data
    assert decoder.decode_stream(INDEXES, *TABLES) == SYMBOLS


def test_an_item_that_changes_its_list():
    class Shrinks:
        def __index__(self):
            symbols.clear()
            return 1

    symbols = [Shrinks(), *range(100)]
    with pytest.raises(InputError, match="1 symbols with 101 indexes"):
        encode(symbols, [0] * 101, *TABLES)


def test_threads_share_coders():
    """Calls on one coder wait for each other; between coders nothing is shared but the tables."""
    rng = np.random.default_rng(0)
    tables = ours.CdfTables(*TABLES)
    symbols = rng.integers(-3, 5, 50_000).astype(np.int32)
    indexes = rng.integers(0, 2, symbols.size).astype(np.int32)
    expected = encode(symbols, indexes, tables)
    shared, results = ours.BufferedRansEncoder(), []

    def work():
        stream = encode(symbols, indexes, tables)
        shared.encode_with_indexes(symbols, indexes, tables)
        results.append(stream == expected and (decode(stream, indexes, tables) == symbols).all())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6
    assert shared.flush() == encode(np.tile(symbols, 6), np.tile(indexes, 6), tables)
