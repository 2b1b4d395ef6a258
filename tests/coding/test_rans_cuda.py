"""The rANS kernels code like the CPU: on a GPU where there is one, and always emulated on the host.

The emulation is the kernels' own source, compiled for the host (``rans_device_emulation.cpp``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec.coding import rans, rans_cuda
from pycodec.coding.tables import TableSet, quantize_pmf
from pycodec.errors import CorruptStreamError, InputError

from ..emulation import build

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
ALL_LANES = [1, 2, 4, 8, 16, 32, 64]


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    source = Path(__file__).with_name("rans_device_emulation.cpp")
    return build(source, "cuda_rans.cpp", tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="module", params=["host", "host, threads backwards", "gpu"])
def device(request):
    """The device whose tensors ``rans_cuda`` takes."""
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        yield torch.device("cuda", torch.cuda.current_device())
        return
    emulation = request.getfixturevalue("emulation")
    emulation.set_backwards(request.param == "host, threads backwards")

    def launch(name, device, **arguments):
        getattr(emulation, name)(**arguments, stream=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans_cuda, "_launch", launch)
        patch.setattr(rans_cuda, "_DEVICE_TYPE", "cpu")
        yield torch.device("cpu")


def random_tables(rng, precision, num_tables=5):
    """Tables of all shapes, with values near zero, where slots are packed, and far from it."""
    frequencies, offsets, escapes = [], [], []
    for _ in range(num_tables):
        size = int(rng.integers(1, min(2**precision, 300) + 1))
        pmf = rng.random(size) ** rng.integers(1, 12) + 1e-12
        frequencies.append(quantize_pmf(pmf, precision))
        escapes.append(bool(rng.integers(2)))
        offsets.append(
            int(rng.choice([INT32_MIN, INT32_MAX - size + 1, -200, 200, -size // 2, -size // 2]))
        )
    return TableSet(frequencies, offsets, precision, escapes)


def tables_of_bits(rng, precision, num_tables=5):
    """Of two values each, which have a short cut."""
    ones = rng.integers(1, 2**precision, num_tables)
    frequencies = [np.array([2**precision - one, one], np.uint32) for one in ones]
    offsets = rng.choice([INT32_MIN, INT32_MAX - 1, 0, 7], num_tables)
    return TableSet(frequencies, offsets.tolist(), precision)


def random_symbols(rng, tables, count, dtype=np.uint8):
    """Symbols as likely as the tables say, except that a part of the escapes are made likelier."""
    indexes = rng.integers(0, tables.num_tables, count).astype(dtype)
    slots = rng.integers(0, 1 << tables.precision, count)
    symbols = np.empty(count, np.int32)
    escape_rate = rng.choice([0, 0.02, 0.5])
    for table in range(tables.num_tables):
        frequencies, offset, escape = tables.table(table)
        values = len(frequencies) - escape
        of_table = np.flatnonzero(indexes == table)
        ranks = np.searchsorted(np.cumsum(frequencies), slots[of_table], side="right")
        escapes = (ranks >= values) | escape & (rng.random(len(ranks)) < escape_rate)
        near = offset + rng.integers(-40, values + 40, len(ranks))
        outside = np.stack([np.full_like(near, v) for v in (INT32_MIN, INT32_MAX, 0)] + [near])
        chosen = outside[rng.integers(0, 4, len(ranks)), np.arange(len(ranks))]
        drawn = np.where(escapes, chosen, offset + ranks)
        symbols[of_table] = np.clip(drawn, INT32_MIN, INT32_MAX)
    return symbols, indexes


def random_counts(rng, count, substreams):
    cuts = np.sort(rng.integers(0, count + 1, substreams - 1))
    return np.diff(np.concatenate([[0], cuts, [count]]))


def to(device, array):
    return torch.from_numpy(np.array(array)).to(device)


def to_bytes(tensor):
    return tensor.cpu().numpy().tobytes()


def check_both_directions(device, symbols, indexes, tables, counts, lanes):
    expected = rans.encode_substreams(symbols, indexes, tables, counts=counts, lanes=lanes)
    encoded = rans_cuda.encode_substreams(
        to(device, symbols), to(device, indexes), tables, counts=counts, lanes=lanes
    )
    assert encoded.device == device
    assert to_bytes(encoded) == expected
    for data in (encoded, expected):
        options = {} if data is encoded else {"device": device}
        decoder = rans_cuda.SubstreamDecoder(data, tables, **options)
        decoded = decoder.decode(to(device, indexes))
        assert decoded.dtype == torch.int32
        np.testing.assert_array_equal(decoded.cpu().numpy(), symbols)
    return decoder


@given(
    seed=st.integers(0, 2**32 - 1),
    precision=st.integers(1, 16),
    lanes=st.sampled_from(ALL_LANES),
    count=st.integers(0, 1500),
    substreams=st.integers(1, 12),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
@settings(max_examples=600)
def test_same_as_the_cpu(device, seed, precision, lanes, count, substreams, dtype):
    rng = np.random.default_rng(seed)
    tables = (random_tables if seed % 4 else tables_of_bits)(rng, precision)
    symbols, indexes = random_symbols(rng, tables, count, dtype)
    counts = random_counts(rng, count, substreams)
    decoder = check_both_directions(device, symbols, indexes, tables, counts, lanes)
    assert len(decoder) == substreams
    assert decoder.lanes == lanes
    np.testing.assert_array_equal(decoder.counts, counts)


@given(
    seed=st.integers(0, 2**32 - 1),
    precision=st.sampled_from([1, 8, 12, 13, 16]),
    lanes=st.sampled_from(ALL_LANES),
    substreams=st.integers(1, 6),
    waves=st.integers(1, 30),
)
@settings(max_examples=150)
def test_waves(device, seed, precision, lanes, substreams, waves):
    """Any split into calls gives the same symbols."""
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, precision)
    symbols, indexes = random_symbols(rng, tables, 1200)
    counts = random_counts(rng, 1200, substreams)
    data = rans.encode_substreams(symbols, indexes, tables, counts=counts, lanes=lanes)
    first = int(rng.integers(0, substreams))
    decoder = rans_cuda.SubstreamDecoder(data, tables, device=device).waves(first)
    ends = np.cumsum(counts)[first:]
    splits = [random_counts(rng, count, waves) for count in counts[first:]]
    position = ends - counts[first:]
    for wave in range(waves):
        lengths = np.array([split[wave] for split in splits])
        parts = np.concatenate(
            [np.arange(p, p + n) for p, n in zip(position, lengths, strict=True)]
        )
        decoded = decoder.decode(to(device, indexes[parts]), lengths)
        np.testing.assert_array_equal(decoded.cpu().numpy(), symbols[parts])
        position += lengths
    decoder.finish()


@pytest.mark.parametrize("lanes", [4, 32, 64])
@pytest.mark.parametrize("substreams", [1, 7, 500, 10_000])
def test_numbers_of_substreams(device, lanes, substreams):
    rng = np.random.default_rng(substreams + lanes)
    scales = np.geomspace(0.11, 20, 64)
    tables = TableSet.gaussian(scales)
    indexes = rng.integers(0, 64, 60_000).astype(np.uint8)
    symbols = np.rint(rng.standard_normal(indexes.size) * scales[indexes]).astype(np.int32)
    counts = -(-indexes.size // substreams)
    check_both_directions(device, symbols, indexes, tables, counts, lanes)


def test_a_part_of_the_substreams(device):
    rng = np.random.default_rng(0)
    tables = random_tables(rng, 12)
    symbols, indexes = random_symbols(rng, tables, 900)
    data = rans.encode_substreams(symbols, indexes, tables, counts=100)
    decoder = rans_cuda.SubstreamDecoder(data, tables, device=device)
    out = torch.empty(300, dtype=torch.int32, device=device)
    assert decoder.decode(to(device, indexes[200:500]), out, first=2, last=5) is out
    np.testing.assert_array_equal(out.cpu().numpy(), symbols[200:500])
    assert decoder.decode(to(device, indexes[:0]), first=4, last=4).numel() == 0


def test_nothing_to_code(device):
    tables = TableSet.gaussian([1.0])
    for counts in ([], 5, [0], [0, 0]):
        empty = np.empty(0, np.int32), np.empty(0, np.uint8)
        check_both_directions(device, *empty, tables, np.array(counts, np.int64), 32)


@pytest.mark.parametrize("lanes", [1, 32, 64])
@pytest.mark.parametrize("offset", [INT32_MIN, -1, INT32_MAX])
def test_escapes_only(device, lanes, offset):
    """They need more room than a word a symbol, and every lane of a warp has one."""
    tables = TableSet([[4096], [1, 4095]], [offset, offset], escape=True)
    powers = 2 ** np.arange(31, dtype=np.int64)
    spread = np.concatenate([powers, -powers, powers - 1, 1 - powers])
    around = np.concatenate([spread, offset + spread, [INT32_MIN, INT32_MAX]])
    symbols = np.clip(around, INT32_MIN, INT32_MAX).astype(np.int32)
    for indexes in (np.zeros(symbols.size, np.uint8), np.arange(symbols.size) % 2):
        check_both_directions(device, symbols, indexes.astype(np.uint8), tables, 100, lanes)


def test_sets_that_are_not_packed(device):
    """Of too many bits or tables; and a set of more than 256 tables."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(0.2, 30, 1100)
    for precision, tables in ((16, 40), (12, 1100)):
        table_set = TableSet.gaussian(scales[:: 1100 // tables], precision)
        arrays, packed, _ = rans_cuda._table_arrays(table_set)
        assert packed is None
        assert len(arrays[-1]) == table_set.num_tables << precision
        symbols, indexes = random_symbols(rng, table_set, 3000, np.uint16)
        check_both_directions(device, symbols, indexes, table_set, 1000, 32)


def outcome(decode):
    """The symbols, or all that an error says."""
    try:
        return np.asarray(decode()).tolist()
    except CorruptStreamError as error:
        return type(error), str(error), error.offset


def check_outcome(device, data, tables, indexes):
    """Returns whether the data were refused."""

    def on_cpu():
        return rans.SubstreamDecoder(data, tables).decode(indexes, threads=1)

    def on_device():
        decoder = rans_cuda.SubstreamDecoder(to(device, np.frombuffer(data, np.uint8)), tables)
        return decoder.decode(to(device, indexes)).cpu()

    try:
        expected = outcome(on_cpu)
    except InputError:  # the damaged index names another number of symbols
        with pytest.raises(InputError):
            on_device()
        return True
    assert outcome(on_device) == expected
    return isinstance(expected, tuple)


@pytest.mark.parametrize("lanes", [1, 4, 64])
def test_damage(device, lanes):
    rng = np.random.default_rng(lanes)
    tables = TableSet(
        [[1, 6, 4089], [256, 512, 2560, 512, 256], [4096], [2000, 2096]], [0, -2, 5, 100],
        escape=[True, True, False, False],
    )  # fmt: skip
    symbols, indexes = random_symbols(rng, tables, 160)
    data = rans.encode_substreams(symbols, indexes, tables, counts=80, lanes=lanes)
    damaged = [data[:size] for size in range(0, len(data), 1 + len(data) // 60)]
    damaged += [data + b"\0", data + b"\0\0"]
    for position in range(len(data)):
        for flip in (1, 0x10, 0x80, int(rng.integers(1, 256))):
            copy = bytearray(data)
            copy[position] ^= flip
            damaged.append(bytes(copy))
    refused = [check_outcome(device, d, tables, indexes) for d in damaged]
    assert sum(refused) > 0.5 * len(refused)


@given(
    seed=st.integers(0, 2**32 - 1),
    precision=st.integers(1, 16),
    lanes=st.sampled_from(ALL_LANES),
    words=st.integers(0, 300),
    zeros=st.sampled_from([0, 0.1, 0.9]),
)
@settings(max_examples=250)
def test_arbitrary_words(device, seed, precision, lanes, words, zeros):
    """Nothing is read outside of the data, nothing hangs, and the outcome is that of the CPU."""
    rng = np.random.default_rng(seed)
    tables = (random_tables if seed % 4 else tables_of_bits)(rng, precision, num_tables=3)
    indexes = rng.integers(0, 3, 400).astype(np.uint8)
    index = rans_cuda._index(np.array([400, 0]), np.array([words, 1]), lanes, precision)
    states = rng.integers(1 << 16, 1 << 32, lanes, dtype=np.uint32)
    body = np.where(rng.random(words) < zeros, 0, rng.integers(0, 1 << 16, words))
    last = np.full(lanes, 1 << 16, np.uint32)
    parts = (index, states, body.astype(np.uint16), last, np.zeros(1, np.uint16))
    check_outcome(device, b"".join(p.tobytes() for p in parts), tables, indexes)


def test_a_failed_wave_leaves_the_decoder_where_it_was(device):
    tables = TableSet([[1, 1]], [0], precision=1)
    rng = np.random.default_rng(0)
    symbols, indexes = rng.integers(0, 2, 1280).astype(np.int32), np.zeros(1280, np.uint8)
    data = rans.encode_substreams(symbols, indexes, tables, counts=640, lanes=2)
    decoder = rans_cuda.SubstreamDecoder(data, tables, device=device).waves()
    first = decoder.decode(to(device, indexes[:22]), [11, 11])
    np.testing.assert_array_equal(first[:11].cpu().numpy(), symbols[:11])
    with pytest.raises(CorruptStreamError, match="substream 1: the rANS stream ends before"):
        decoder.decode(to(device, np.zeros(1005, np.uint8)), [5, 1000])
    with pytest.raises(InputError, match="substream 0: table index 1 in a set of 1"):
        decoder.decode(to(device, np.array([0, 1, 0], np.uint8)), [2, 1])
    with pytest.raises(CorruptStreamError, match="substream 0: the rANS stream goes on"):
        decoder.finish()
    rest = decoder.decode(to(device, indexes[:1258]), [629, 629])
    np.testing.assert_array_equal(rest[629:].cpu().numpy(), symbols[651:])
    decoder.finish()


def test_streams_at_odd_addresses(device):
    rng = np.random.default_rng(0)
    tables = TableSet.gaussian([2.0])
    symbols, indexes = random_symbols(rng, tables, 500)
    data = rans.encode_substreams(symbols, indexes, tables, counts=100)
    shifted = to(device, np.frombuffer(b"\0" + data, np.uint8))[1:]
    decoded = rans_cuda.SubstreamDecoder(shifted, tables).decode(to(device, indexes))
    np.testing.assert_array_equal(decoded.cpu().numpy(), symbols)


@given(
    seed=st.integers(0, 2**32 - 1),
    precision=st.integers(1, 16),
    of_bits=st.booleans(),
    count=st.integers(0, 1500),
    lanes=st.lists(st.sampled_from(ALL_LANES), min_size=1, max_size=6),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
@settings(max_examples=50)
def test_streams_of_their_own(device, seed, precision, of_bits, count, lanes, dtype):
    rng = np.random.default_rng(seed)
    tables = (tables_of_bits if of_bits else random_tables)(rng, precision)
    symbols, indexes = random_symbols(rng, tables, count, dtype)
    counts = random_counts(rng, count, len(lanes))
    ends = np.cumsum(counts)[:-1]
    parts = zip(np.split(symbols, ends), np.split(indexes, ends), lanes, strict=True)
    expected = [rans.encode(s, i, tables, lanes=n) for s, i, n in parts]
    both = to(device, symbols), to(device, indexes)
    assert rans_cuda.encode_streams(*both, tables, counts=counts, lanes=lanes) == expected
    with pytest.raises(InputError, match="lanes of"):
        rans_cuda.encode_streams(*both, tables, counts=counts, lanes=[*lanes, 1])
    with pytest.raises(InputError, match="lanes must be"):
        rans_cuda.encode_streams(*both, tables, counts=counts, lanes=[*lanes[1:], 5])


def test_a_gpu_has_a_number(monkeypatch):
    monkeypatch.setattr(rans_cuda, "_DEVICE_TYPE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert rans_cuda._find_device("cuda") == torch.device("cuda", 2)
    assert rans_cuda._find_device(None) == torch.device("cuda", 2)
    assert rans_cuda._find_device("cuda:1") == torch.device("cuda", 1)


def test_no_streams(device):
    empty = (torch.empty(0, dtype=dtype, device=device) for dtype in (torch.int32, torch.uint8))
    tables = TableSet.gaussian([1.0])
    assert rans_cuda.encode_streams(*empty, tables, counts=[], lanes=[]) == []


def test_tables_are_uploaded_once(device):
    tables = TableSet.gaussian([1.0, 2.0])
    assert rans_cuda._tables_on(tables, device) is rans_cuda._tables_on(tables, device)
    alike = TableSet.gaussian([1.0, 2.0])
    assert rans_cuda._tables_on(tables, device) is not rans_cuda._tables_on(alike, device)


def test_arguments_that_do_not_fit(device):
    tables = TableSet([[4096], [4096]], [0, 0])
    symbols = torch.zeros(4, dtype=torch.int32, device=device)
    indexes = torch.zeros(4, dtype=torch.uint8, device=device)
    encode = rans_cuda.encode_substreams
    for lanes in (0, 3, 128, -1, 2.5, None):
        with pytest.raises(InputError, match="lanes"):
            encode(symbols, indexes, tables, lanes=lanes)
    for counts in ([1, 2], [-1, 5], 0, [[4]], 0.5, [2**32]):
        with pytest.raises(InputError, match=r"counts|substream"):
            encode(symbols, indexes, tables, counts=counts)
    with pytest.raises(InputError, match="symbols must be int32, not int64"):
        encode(symbols.long(), indexes, tables)
    with pytest.raises(InputError, match="symbols must be a CUDA tensor, not ndarray"):
        encode(np.zeros(4, np.int32), indexes, tables)
    with pytest.raises(InputError, match="indexes must be uint8 or uint16, not int32"):
        encode(symbols, symbols, tables)
    with pytest.raises(InputError, match="indexes must be on"):
        encode(symbols, torch.zeros(4, dtype=torch.uint8, device="meta"), tables)
    with pytest.raises(InputError, match="4 symbols with 3"):
        encode(symbols, indexes[:3], tables)
    with pytest.raises(InputError, match="substream 1: table index 2 in a set of 2 tables"):
        encode(symbols, to(device, np.array([0, 0, 0, 2], np.uint8)), tables, counts=2)
    wrong = to(device, np.array([0, 0, 1, 0], np.int32)), to(device, np.array([0, 0, 1, 0], "u1"))
    message = r"substream 0: symbol 1 at position 2 is outside table 1 \(values 0..0\)"
    with pytest.raises(InputError, match=message):
        encode(*wrong, tables)
    decoder = rans_cuda.SubstreamDecoder(encode(symbols, indexes, tables), tables)
    for out in (symbols[:3], symbols.repeat(2)[::2], symbols.long(), np.zeros(4, np.int32)):
        with pytest.raises(InputError, match="out"):
            decoder.decode(indexes, out)
    with pytest.raises(InputError, match="index 255"):
        decoder.decode(to(device, np.array([0, 255, 0, 0], np.uint8)))
    with pytest.raises(InputError, match="4 symbols, but there are 3"):
        decoder.decode(indexes[:3])
    for part in ((0, 2), (1, 0), (-1, 1)):
        with pytest.raises(InputError, match="substreams"):
            decoder.decode(indexes, first=part[0], last=part[1])
    with pytest.raises(InputError, match="counts"):
        decoder.waves().decode(indexes, [2, 2])
    for data in (symbols, indexes[None]):
        with pytest.raises(InputError, match="data"):
            rans_cuda.SubstreamDecoder(data, tables)
    with pytest.raises(CorruptStreamError):
        rans_cuda.SubstreamDecoder(indexes[:0], tables)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_error_says_so():
    tables = TableSet.gaussian([1.0])
    symbols, indexes = torch.zeros(4, dtype=torch.int32), torch.zeros(4, dtype=torch.uint8)
    with pytest.raises(InputError, match="must be on a GPU, not on cpu"):
        rans_cuda.encode_substreams(symbols, indexes, tables)
    data = rans.encode_substreams(symbols, indexes, tables)
    with pytest.raises(InputError, match="sees no GPU"):
        rans_cuda.SubstreamDecoder(data, tables)
    with pytest.raises(InputError, match="device must be a GPU, not cpu"):
        rans_cuda.SubstreamDecoder(data, tables, device="cpu")
