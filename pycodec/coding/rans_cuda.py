"""Interleaved rANS substreams on a GPU: a warp a substream, the same bytes as on the CPU.

The names and laws are those of :mod:`pycodec.coding.rans`; symbols, indexes and streams are CUDA
tensors. The kernels are in ``csrc/cuda/rans.cu``, what they compute in ``csrc/rans/device.hpp`` and
``csrc/rans/warp.hpp``. Calls queue their work on the current stream and wait for it, to see
whether it succeeded.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycodec import _cpu
from pycodec.coding.rans import substream_lengths
from pycodec.coding.tables import TableSet
from pycodec.errors import CorruptStreamError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# As in csrc/rans/rans.hpp and kernels.hpp.
_STATE_BYTES, _WORD_BYTES = 4, 2
_MAX_WORDS_PER_ESCAPE = 6
_PACKED_BITS, _PACKED_VALUES, _MAX_PACKED_SLOTS = 12, 255, 1 << 22
_UNPACKED = 0xFF << 24

_RANKS = 5  # of DeviceTables in csrc/rans/device.hpp

# enum class Failure in csrc/rans/device.hpp
_NO_TABLE, _NOT_COVERED, _OUT_OF_SPACE = 7, 8, 9
_STATE_TOO_SMALL = 4
_DAMAGE = {
    1: "the rANS stream ends before its last symbol",
    2: "a rANS escape has more than 32 bits",
    3: "an escaped rANS symbol exceeds int32",
    _STATE_TOO_SMALL: "the state of rANS lane {lane} is too small",
    5: "the rANS stream goes on after its last symbol",
    6: "rANS lane {lane} did not return to its start",
}

_DEVICE_TYPE = "cuda"


def encode_substreams(
    symbols: Tensor,
    indexes: Tensor,
    tables: TableSet,
    *,
    counts: ArrayLike | int = 1 << 16,
    lanes: int = 32,
) -> Tensor:
    """Encodes symbols to independent substreams with an index, on the symbols' device.

    Args:
        symbols: int32 CUDA tensor, any shape. All int32 values can be coded where the table has an
            escape.
        indexes: uint8 or uint16, the same number of items on the same device: the table of each
            symbol.
        tables: the set that ``indexes`` points into.
        counts: symbols in each substream, one number a substream; or the number for all of them,
            the last of which takes what is left. On the CPU.
        lanes: interleaved states of each substream, a power of two up to 64. They cost 3 bytes
            each on average; fewer than 32 leave threads idle.

    Returns:
        uint8 [n] on the same device: the bytes of :func:`pycodec.coding.rans.encode_substreams`.

    Raises:
        InputError: for other dtypes or devices, unequal sizes, an index without table, a symbol
            that its table cannot code, a lane count that is none, or ``counts`` that do not add up
            to the number of symbols.
    """
    import torch

    encoded = _encode(symbols, indexes, tables, counts, lanes)
    index = _index(encoded.rows[:, 1], encoded.words, lanes, tables.precision)
    begin, size = encoded.place_bodies(len(index))
    data = torch.empty(size, dtype=torch.uint8, device=symbols.device)
    data[: len(index)] = _upload(index, data.device)
    encoded.copy_to(data, begin)
    return data


def encode_streams(
    symbols: Tensor,
    indexes: Tensor,
    tables: TableSet,
    *,
    counts: ArrayLike,
    lanes: ArrayLike,
) -> list[bytes]:
    """Encodes streams that have nothing to do with each other, side by side, a warp each.

    Args:
        symbols, indexes, tables: as of :func:`encode_substreams`; those of the first stream first.
        counts: symbols of each stream, on the CPU.
        lanes: of each stream. A warp takes a turn of all lanes at a time, so many make it faster.

    Returns:
        On the host: for each the bytes of :func:`pycodec.coding.rans.encode`.

    Raises:
        InputError: as of :func:`encode_substreams`.
    """
    import torch

    encoded = _encode(symbols, indexes, tables, counts, lanes)
    begin, size = encoded.place_bodies(0)
    data = torch.empty(size, dtype=torch.uint8, device=symbols.device)
    encoded.copy_to(data, begin)
    bodies = data.cpu().numpy()
    return [
        bytes([_header(n, tables.precision)]) + bodies[first:end].tobytes()
        for n, first, end in zip(encoded.lanes.tolist(), begin, [*begin[1:], size], strict=False)
    ]


@dataclass(frozen=True)
class _Encoded:
    """Substreams that still are in pieces: states, and words in scratch memory."""

    rows: NDArray[np.int64]  # [S, 4]: RansSubstream in csrc/cuda/rans.hpp
    lanes: NDArray[np.int32]  # [S]
    words: NDArray[np.int64]  # [S]
    states: Tensor
    scratch: Tensor
    words_per_symbol: int

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each body."""
        return _STATE_BYTES * self.lanes + _WORD_BYTES * self.words

    def place_bodies(self, first: int) -> tuple[NDArray[np.int64], int]:
        """Where each begins if they lie one after the other from ``first`` on, and the end."""
        return first + np.cumsum(self.sizes) - self.sizes, first + int(self.sizes.sum())

    def copy_to(self, data: Tensor, begin: NDArray[np.int64]) -> None:
        """Copy the bodies to their places; ``begin`` is even."""
        rows = self.rows.copy()
        rows[:, 2], rows[:, 3] = begin, self.sizes
        substreams, lanes = (_upload(array, data.device) for array in (rows, self.lanes))
        _launch(
            "rans_copy",
            data.device,
            substreams=substreams.data_ptr(),
            num_substreams=len(rows),
            lanes=lanes.data_ptr(),
            most_lanes=self.states.shape[1],
            words_per_symbol=self.words_per_symbol,
            scratch=self.scratch.data_ptr(),
            states=self.states.data_ptr(),
            data=data.data_ptr(),
        )


def _encode(
    symbols: Tensor,
    indexes: Tensor,
    tables: TableSet,
    counts: ArrayLike,
    lanes: ArrayLike,
) -> _Encoded:
    """Checks arguments as of :func:`encode_substreams` and runs the coder.

    ``lanes`` are of all streams, or of each.
    """
    import torch

    _check_tensor("symbols", symbols, (torch.int32,))
    _check_tensor("indexes", indexes, (torch.uint8, torch.uint16), symbols.device)
    if symbols.numel() != indexes.numel():
        raise InputError(f"{symbols.numel()} symbols with {indexes.numel()} indexes")
    for number in np.array(lanes, object).reshape(-1).tolist():
        if number not in (1, 2, 4, 8, 16, 32, 64):
            raise InputError(f"lanes must be a power of two, 1..64, not {number!r}")
    rows = _rows(substream_lengths(counts, symbols.numel()))
    if np.ndim(lanes) and np.shape(lanes) != (len(rows),):
        raise InputError(f"lanes of {np.size(lanes)} streams, but counts of {len(rows)}")
    lanes = np.full(len(rows), lanes, np.int32)
    symbols, indexes = symbols.contiguous(), indexes.contiguous()
    device = symbols.device
    device_tables = _tables_on(tables, device)
    streams = len(rows)
    most_lanes = int(lanes.max(initial=1))
    states = torch.empty((streams, most_lanes), dtype=torch.int32, device=device)
    num_words = torch.empty(streams, dtype=torch.int64, device=device)
    failures = torch.empty(streams, dtype=torch.int64, device=device)
    substreams, device_lanes = (_upload(array, device) for array in (rows, lanes))
    # Without escapes a symbol is at most a word; with them too nearly always, on average.
    for words_per_symbol in (1, _MAX_WORDS_PER_ESCAPE):
        scratch = torch.empty(words_per_symbol * symbols.numel(), dtype=torch.int16, device=device)
        _launch(
            "rans_encode",
            device,
            tables=device_tables.addresses,
            symbols=symbols.data_ptr(),
            indexes=indexes.data_ptr(),
            index_bytes=indexes.element_size(),
            substreams=substreams.data_ptr(),
            num_substreams=streams,
            lanes=device_lanes.data_ptr(),
            most_lanes=most_lanes,
            words_per_symbol=words_per_symbol,
            scratch=scratch.data_ptr(),
            states=states.data_ptr(),
            num_words=num_words.data_ptr(),
            failures=failures.data_ptr(),
        )
        failure = _first_failure(failures)
        if failure is None or failure.kind != _OUT_OF_SPACE:
            break
    if failure is not None:
        _raise_encode_failure(failure, symbols, indexes, tables, rows)
    words = num_words.cpu().numpy()
    return _Encoded(rows, lanes, words, states, scratch, words_per_symbol)


class SubstreamDecoder:
    """Decodes on a GPU what ``encode_substreams`` made, here or on the CPU.

    Args:
        data: uint8 CUDA tensor [n], referred to; or bytes or a contiguous buffer of them, copied
            to the GPU.
        tables: the set that the encoder used.
        device: where to decode, if ``data`` is not a tensor; None is the current CUDA device.

    Raises:
        CorruptStreamError: the index is damaged, or does not fit the size of ``data``.
        InputError: ``data`` is a tensor of another kind, or there is no such GPU.
    """

    def __init__(
        self,
        data: Tensor | bytes | bytearray | memoryview,
        tables: TableSet,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        import torch

        if isinstance(data, torch.Tensor):
            _check_tensor("data", data, (torch.uint8,))
            if data.dim() != 1:
                raise InputError(f"data must have one dimension, not {data.dim()}")
            native = _cpu.RansSubstreams(_host_index(data), tables.native)
            data = data.contiguous()
            # Words are read as such, so they must lie at even addresses.
            self._data = data.clone() if data.data_ptr() % _WORD_BYTES else data
        else:
            native = _cpu.RansSubstreams(data, tables.native)
            self._data = _upload(np.frombuffer(data, np.uint8).copy(), _find_device(device))
        self._tables = tables
        self._lanes = native.lanes
        self._layout = native.layout().astype(np.int64)

    def __len__(self) -> int:
        """Number of substreams."""
        return len(self._layout)

    @property
    def counts(self) -> NDArray[np.uint64]:
        """Symbols in each substream, uint64 [S]."""
        return self._layout[:, 1].astype(np.uint64)

    @property
    def lanes(self) -> int:
        """Number of interleaved states of each substream."""
        return self._lanes

    def decode(
        self, indexes: Tensor, out: Tensor | None = None, *, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Decodes substreams ``first`` to ``last - 1``, each to its end, side by side.

        Args:
            indexes: uint8 or uint16, any shape, on the decoder's device: the table of each symbol
                of these substreams.
            out: contiguous int32 tensor of as many items to write to, on the same device.
            first, last: which substreams; all of them unless given.

        Returns:
            int32 symbols in the shape of ``indexes``, or ``out``.

        Raises:
            InputError: no such substreams, another number of indexes than they have symbols, other
                dtypes or devices, an ``out`` that does not fit, an index without table.
            CorruptStreamError: a substream is damaged, ends too early, or goes on after its last
                symbol. ``out`` then holds nothing of use.
        """
        rows = self._rows_of(first, last)
        if rows[:, 1].sum() != indexes.numel():
            raise InputError(
                f"the substreams hold {rows[:, 1].sum()} symbols, but there are "
                f"{indexes.numel()} indexes"
            )
        return _Decoding(self._data, self._tables, self._lanes, first).run(rows, indexes, out)

    def waves(self, first: int = 0, last: int | None = None) -> WaveDecoder:
        """A decoder of substreams ``first`` to ``last - 1`` that keeps its state between calls.

        Raises:
            InputError: there are no such substreams.
        """
        rows = self._rows_of(first, last)
        return WaveDecoder(_Decoding(self._data, self._tables, self._lanes, first), rows)

    def _rows_of(self, first: int, last: int | None) -> NDArray[np.int64]:
        last = len(self) if last is None else last
        if not 0 <= first <= last <= len(self):
            raise InputError(f"substreams {first} to {last} of {len(self)}")
        rows = self._layout[first:last].copy()
        rows[:, 0] -= rows[:1, 0]  # symbols and indexes are those of these substreams alone
        return rows


class WaveDecoder:
    """Decodes substreams side by side, any number of symbols of each at a time.

    A context model can so decode wave by wave; every split into calls gives the same symbols.
    Made by :meth:`SubstreamDecoder.waves`.
    """

    def __init__(self, decoding: _Decoding, rows: NDArray[np.int64]) -> None:
        self._decoding = decoding
        self._rows = rows
        self._checkpoints: Tensor | None = None

    def __len__(self) -> int:
        """Number of substreams."""
        return len(self._rows)

    def decode(self, indexes: Tensor, counts: ArrayLike, out: Tensor | None = None) -> Tensor:
        """Decodes the next ``counts[i]`` symbols of each substream i.

        Args:
            indexes: uint8 or uint16, any shape, on the decoder's device: the table of each symbol,
                those of the first substream first.
            counts: integers [S], on the CPU.
            out: contiguous int32 tensor of as many items to write to, on the same device.

        Returns:
            int32 symbols in the shape of ``indexes``, or ``out``.

        Raises:
            InputError: ``counts`` do not fit the substreams or the number of indexes, or what
                :meth:`SubstreamDecoder.decode` refuses.
            CorruptStreamError: a substream is damaged or ends too early. The decoder stays where it
                was before the call; ``out`` holds nothing of use.
        """
        lengths = np.asarray(counts)
        if lengths.shape != (len(self),):
            raise InputError(f"counts must be a row of {len(self)} integers")
        rows = self._rows.copy()
        rows[:, :2] = _rows(substream_lengths(lengths, indexes.numel()))[:, :2]
        after = self._decoding.new_checkpoints(len(self))
        out = self._decoding.run(rows, indexes, out, self._checkpoints, after)
        self._checkpoints = after
        return out

    def finish(self) -> None:
        """Checks that the symbols decoded so far are all that the substreams hold.

        Raises:
            CorruptStreamError: words are left, or a lane is not back at its initial state.
        """
        import torch

        rows = self._rows.copy()
        rows[:, :2] = 0
        none = torch.empty(0, dtype=torch.uint8, device=self._decoding.data.device)
        self._decoding.run(rows, none, None, self._checkpoints)


@dataclass(frozen=True)
class _Decoding:
    """What all launches of a decoder share."""

    data: Tensor  # uint8 [n], at an even address
    tables: TableSet
    lanes: int
    first: int  # number of the first of the substreams, for messages

    def new_checkpoints(self, count: int) -> Tensor:
        """Room for the states between two calls, int32 [count, lanes + 2]."""
        import torch

        shape = (count, self.lanes + 2)
        return torch.empty(shape, dtype=torch.int32, device=self.data.device)

    def run(
        self,
        rows: NDArray[np.int64],
        indexes: Tensor,
        out: Tensor | None,
        before: Tensor | None = None,
        after: Tensor | None = None,
    ) -> Tensor:
        """Decodes ``rows[:, 1]`` symbols of the substreams and returns them.

        From ``before``, or the start; to ``after``, or the end.
        """
        import torch

        device = self.data.device
        _check_tensor("indexes", indexes, (torch.uint8, torch.uint16), device)
        indexes = indexes.contiguous()
        if out is None:
            out = torch.empty(indexes.shape, dtype=torch.int32, device=device)
        else:
            _check_tensor("out", out, (torch.int32,), device)
            if not out.is_contiguous():
                raise InputError("out must be contiguous")
            if out.numel() != indexes.numel():
                raise InputError(f"{indexes.numel()} indexes, but out has {out.numel()} items")
        failures = self.queue(_upload(rows, device), indexes, out, before, after)
        failure = _first_failure(failures)
        if failure is not None:
            self._raise(failure, rows[failure.substream], indexes)
        return out

    def queue(
        self,
        substreams: Tensor,
        indexes: Tensor,
        out: Tensor,
        before: Tensor | None = None,
        after: Tensor | None = None,
    ) -> Tensor:
        """Launches the kernel on checked arguments; returns its failures, int64 [S]."""
        import torch

        device = self.data.device
        failures = torch.empty(len(substreams), dtype=torch.int64, device=device)
        _launch(
            "rans_decode",
            device,
            tables=_tables_on(self.tables, device).addresses,
            indexes=indexes.data_ptr(),
            index_bytes=indexes.element_size(),
            symbols=out.data_ptr(),
            data=self.data.data_ptr(),
            substreams=substreams.data_ptr(),
            num_substreams=len(substreams),
            lanes=self.lanes,
            before=0 if before is None else before.data_ptr(),
            after=0 if after is None else after.data_ptr(),
            failures=failures.data_ptr(),
        )
        return failures

    def _raise(self, failure: _Failure, row: NDArray[np.int64], indexes: Tensor) -> None:
        where = f"substream {self.first + failure.substream}: "
        first_symbol, _, body, _ = row.tolist()
        if failure.kind == _NO_TABLE:
            index = _item(indexes, first_symbol + failure.position)
            raise InputError(f"{where}{_no_table(index, self.tables)}")
        offset = body + _STATE_BYTES * self.lanes + _WORD_BYTES * failure.position
        if failure.kind == _STATE_TOO_SMALL:
            offset = body + _STATE_BYTES * failure.lane
        message = _DAMAGE[failure.kind].format(lane=failure.lane)
        raise CorruptStreamError(where + message, offset=offset)


@dataclass(frozen=True)
class _Failure:
    """failure_report() in csrc/rans/device.hpp."""

    substream: int
    kind: int
    lane: int
    position: int


def _first_failure(failures: Tensor) -> _Failure | None:
    """Of the failed substream with the lowest number; waits for the kernel."""
    if not failures.any():
        return None
    reports = failures.cpu().numpy().view(np.uint64)
    substream = int(np.flatnonzero(reports)[0])
    report = int(reports[substream])
    return _Failure(substream, report & 0xFF, report >> 8 & 0xFF, report >> 32)


def _raise_encode_failure(
    failure: _Failure, symbols: Tensor, indexes: Tensor, tables: TableSet, rows: NDArray[np.int64]
) -> None:
    where = f"substream {failure.substream}: "
    if failure.kind == _OUT_OF_SPACE:  # beyond 2**32 words
        raise InputError(f"{where}too many symbols in one substream")
    place = int(rows[failure.substream, 0]) + failure.position
    index = _item(indexes, place)
    if failure.kind == _NO_TABLE:
        raise InputError(where + _no_table(index, tables))
    frequencies, offset, _ = tables.table(index)
    raise InputError(
        f"{where}symbol {_item(symbols, place)} at position {failure.position} is outside table "
        f"{index} (values {offset}..{offset + len(frequencies) - 1}), which has no escape"
    )


def _no_table(index: int, tables: TableSet) -> str:
    return f"table index {index} in a set of {tables.num_tables} tables"


def _item(tensor: Tensor, position: int) -> int:
    return int(tensor.reshape(-1)[position])


def _rows(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [S, 4]: a RansSubstream of csrc/cuda/rans.hpp each, the bodies left open."""
    rows = np.zeros((len(lengths), 4), np.int64)
    rows[:, 0] = np.cumsum(lengths) - lengths
    rows[:, 1] = lengths
    return rows


def _header(lanes: int, precision: int) -> int:
    """First byte of a stream."""
    return (lanes.bit_length() - 1) | (precision - 1) << 4


def _index(
    counts: NDArray[np.int64], words: NDArray[np.int64], lanes: int, precision: int
) -> NDArray[np.uint8]:
    """All that comes before the bodies of the substreams, uint8 [n], n even."""
    numbers = np.concatenate([[len(counts)], np.stack([counts, words], axis=1).reshape(-1)])
    # LEB128: seven bits a byte, the lowest first; the top bit says that more follow.
    groups = numbers.astype(np.uint64)[:, None] >> np.arange(0, 35, 7, dtype=np.uint64)
    lengths = np.maximum((groups > 0).sum(axis=1), 1)[:, None]
    place = np.arange(5)
    varints = (groups & 0x7F | np.where(place < lengths - 1, 0x80, 0).astype(np.uint64)).astype(
        np.uint8
    )[place < lengths]
    padding = [0] * ((1 + len(varints)) % 2)
    return np.concatenate([[_header(lanes, precision)], varints, padding]).astype(np.uint8)


def _host_index(data: Tensor) -> NDArray[np.uint8]:
    """An array as long as ``data`` that holds the same index; what follows it is not copied."""
    head = data[:6].cpu().numpy()
    count = 0
    for place, byte in enumerate(head[1:].tolist()):
        count |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            break
    size = min(len(data), 1 + 5 + 10 * count + 1)  # at most: header, varints, padding
    host = np.empty(len(data), np.uint8)  # pages that nobody touches cost nothing
    host[:size] = data[:size].cpu().numpy()
    return host


def _check_tensor(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], device: torch.device | None = None
) -> None:
    import torch

    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} must be a CUDA tensor, not {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        raise InputError(f"{name} must be {names}, not {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.device.type != _DEVICE_TYPE:
        raise InputError(f"{name} must be on a GPU, not on {tensor.device}")
    if device is not None and tensor.device != device:
        raise InputError(f"{name} must be on {device}, not on {tensor.device}")


def _find_device(device: torch.device | str | None) -> torch.device:
    import torch

    found = torch.device(_DEVICE_TYPE if device is None else device)
    if found.type != _DEVICE_TYPE:
        raise InputError(f"device must be a GPU, not {found}")
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError("torch sees no GPU; pycodec.coding.rans decodes on the CPU")
        if found.index is None:  # tensors name theirs, and are compared with it
            return torch.device("cuda", torch.cuda.current_device())
    return found


def _upload(array: NDArray, device: torch.device) -> Tensor:
    """A copy on the device; unsigned numbers of 4 and 8 bytes become signed ones."""
    import torch

    signed = {"u4": np.int32, "u8": np.int64}.get(array.dtype.str[1:])
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if signed is None else array.view(signed)).to(device)


def _launch(name: str, device: torch.device, **arguments: object) -> None:
    """Queues a kernel of ``pycodec._cuda`` on the device's current stream."""
    from pycodec.ops.backends import check_backend, launch_cuda

    check_backend("cuda")
    launch_cuda(name, device, **arguments)


@dataclass(frozen=True)
class _DeviceTables:
    """A set in device memory: DeviceTables in csrc/rans/device.hpp."""

    addresses: tuple[int, ...]
    tensors: tuple[Tensor, ...]  # what the addresses point to

    @property
    def are_of_two(self) -> bool:
        """Whether there are no ranks, which tables of two values do without."""
        return self.addresses[_RANKS] == 0


_uploaded: weakref.WeakKeyDictionary[TableSet, dict[torch.device, _DeviceTables]] = (
    weakref.WeakKeyDictionary()
)


def _tables_on(tables: TableSet, device: torch.device) -> _DeviceTables:
    """The set on a device; uploaded once for as long as it lives."""
    devices = _uploaded.setdefault(tables, {})
    if device not in devices:
        arrays, packed_slots, packed_base = _table_arrays(tables)
        tensors = [_upload(array, device) for array in arrays]
        addresses = [tensor.data_ptr() for tensor in tensors]
        if packed_slots is not None:
            tensors.append(_upload(packed_slots, device))
        addresses.append(0 if packed_slots is None else tensors[-1].data_ptr())
        devices[device] = _DeviceTables(
            (tables.precision, tables.num_tables, *addresses, packed_base), tuple(tensors)
        )
    return devices[device]


def _table_arrays(
    tables: TableSet,
) -> tuple[tuple[NDArray, ...], NDArray[np.uint32] | None, int]:
    """Infos, encode entries, decode entries and ranks; packed slots, if any; their base.

    Laid out as ``csrc/rans/kernels.hpp`` and ``device.hpp`` say.
    """
    arrays = tables.to_arrays()
    precision, total = tables.precision, 1 << tables.precision
    frequencies = arrays["frequencies"].astype(np.int64)
    sizes, escapes = arrays["sizes"].astype(np.int64), arrays["escapes"].astype(np.int64)
    first_entries = np.cumsum(sizes) - sizes
    infos = np.stack([arrays["offsets"], sizes - escapes, first_entries, escapes], axis=1)

    # Every table adds up to `total`, so the sum over all that is before, modulo it, is the start.
    starts = (np.cumsum(frequencies) - frequencies) % total
    one = frequencies == 1
    layout = [("reciprocal", "<u8"), ("bias", "<u4"), ("complement", "<u2"), ("limit", "<u2")]
    encode = np.empty(len(frequencies), layout)
    most = np.uint64(2**64 - 1)
    # Of f = 1 the sum wraps to 0, which where() does not take.
    reciprocals = most // frequencies.astype(np.uint64) + np.uint64(1)
    encode["reciprocal"] = np.where(one, most, reciprocals)
    encode["bias"] = np.where(one, starts + total - 1, starts)
    encode["complement"] = total - frequencies
    encode["limit"] = (frequencies << (16 - precision)) - 1
    decode = (starts | (frequencies - 1) << 16).astype(np.uint32)

    ranks = np.arange(len(frequencies)) - np.repeat(first_entries, sizes)
    of_slots = np.repeat(np.arange(len(frequencies), dtype=np.int32), frequencies)
    rank_slots = ranks.astype(np.uint16)[of_slots]
    if (sizes == 2).all() and not escapes.any():  # no array, address 0: they need no look-up
        rank_slots = rank_slots[:0]
        return (infos.astype(np.int32), encode.view(np.uint64), decode, rank_slots), None, 0
    flat = (infos.astype(np.int32), encode.view(np.uint64), decode, rank_slots)
    if precision > _PACKED_BITS or tables.num_tables << precision > _MAX_PACKED_SLOTS:
        return flat, None, 0

    base = max(int(arrays["offsets"].min()), -(_PACKED_VALUES // 2))
    codes = np.repeat(arrays["offsets"].astype(np.int64), sizes) + ranks - base
    is_escape = (ranks == np.repeat(sizes - 1, sizes)) & (np.repeat(escapes, sizes) == 1)
    packs = (codes >= 0) & (codes < _PACKED_VALUES) & ~is_escape
    biases = np.tile(np.arange(total), tables.num_tables) - starts[of_slots]
    entries = frequencies - 1 | np.where(packs, codes, 0) << 2 * _PACKED_BITS
    packed = np.where(packs[of_slots], entries[of_slots] | biases << _PACKED_BITS, _UNPACKED)
    return flat, packed.astype(np.uint32), base
