"""Interleaved rANS streams: symbols to bytes and back, each symbol under a table of its own.

The coder itself is C++ (``csrc/rans/``; ``rans.hpp`` explains it on one page) and releases the GIL.
``docs/rans.md`` has the stream byte by byte.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycodec import _cpu
from pycodec.coding.tables import TableSet
from pycodec.errors import InputError

MAX_LANES = 64


def encode(
    symbols: ArrayLike, indexes: ArrayLike, tables: TableSet, *, lanes: int | None = None
) -> bytes:
    """Encodes symbols to one rANS stream.

    NumPy arrays and CPU tensors are read in place where they are contiguous.

    Args:
        symbols: int32, any shape. All int32 values can be coded where the table has an escape.
        indexes: uint8 or uint16, the same number of items: the table of each symbol.
        tables: the set that ``indexes`` points into.
        lanes: interleaved states, a power of two up to 64. More decode faster and cost 3 bytes
            each on average; None takes as many as stay within 0.25 % of the stream.

    Returns:
        The stream: a header byte, the lanes' states, the words.

    Raises:
        InputError: for other dtypes, unequal sizes, an index without table, a symbol that its
            table cannot code, or a lane count that is none.
    """
    return _cpu.rans_encode(
        np.ascontiguousarray(symbols),
        np.ascontiguousarray(indexes),
        tables.native,
        _native_lanes(lanes),
    )


class RansDecoder:
    """Decodes a stream of :func:`encode`, any number of symbols at a time.

    The state is kept between calls, so a context model can decode wave by wave; every split into
    calls gives the same symbols. One decoder must not be used by two threads at once.

    Args:
        data: the stream, bytes or a contiguous buffer of them; referred to, not copied.
        tables: the set that the encoder used.

    Raises:
        CorruptStreamError: the stream is too short, its header is invalid, or it was coded with
            another precision.
    """

    def __init__(self, data: bytes | bytearray | memoryview, tables: TableSet) -> None:
        self._native = _cpu.RansDecoder(data, tables.native)

    @classmethod
    def _of(cls, native: _cpu.RansDecoder) -> RansDecoder:
        decoder = cls.__new__(cls)
        decoder._native = native
        return decoder

    @property
    def lanes(self) -> int:
        """Number of interleaved states."""
        return self._native.lanes

    def decode(self, indexes: ArrayLike, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Decodes the next symbols, one for each index.

        Args:
            indexes: uint8 or uint16, any shape: the table of each symbol.
            out: contiguous int32 array or CPU tensor of as many items to write to.

        Returns:
            int32 symbols in the shape of ``indexes``, or ``out``.

        Raises:
            InputError: for other dtypes, an ``out`` that does not fit, an index without table.
            CorruptStreamError: the stream is damaged or ends too early. The decoder stays where it
                was before the call; ``out`` holds nothing of use.
        """
        indexes, symbols = _decode_arguments(indexes, out)
        self._native.decode(indexes, symbols)
        return symbols if out is None else out

    def finish(self) -> None:
        """Checks that the symbols decoded so far are all that the stream holds.

        Raises:
            CorruptStreamError: words are left, or a lane is not back at its initial state. This
                finds lost and surplus data for certain and most other damage, but flips of raw
                bits or between alike symbols go unnoticed: files need a checksum besides.
        """
        self._native.finish()


def encode_substreams(
    symbols: ArrayLike,
    indexes: ArrayLike,
    tables: TableSet,
    *,
    counts: ArrayLike | int = 1 << 16,
    lanes: int | None = None,
    threads: int | None = None,
) -> bytes:
    """Encodes symbols to independent substreams with an index, side by side on several threads.

    The bytes depend on ``counts`` and ``lanes``, not on ``threads``.

    Args:
        symbols, indexes, tables: as for :func:`encode`.
        counts: symbols in each substream, one number a substream; or the number for all of them,
            the last of which takes what is left.
        lanes: as for :func:`encode`, in each substream; None looks at their mean size.
        threads: None takes as many as the process may use.

    Returns:
        The header byte, the index, the substreams; ``docs/rans.md`` has the bytes.

    Raises:
        InputError: as for :func:`encode`; or ``counts`` do not add up to the number of symbols.
    """
    symbols, indexes = np.ascontiguousarray(symbols), np.ascontiguousarray(indexes)
    lengths = substream_lengths(counts, symbols.size)
    return _cpu.rans_encode_substreams(
        symbols,
        indexes,
        tables.native,
        lengths.astype(np.uint32),
        _native_lanes(lanes),
        _native_threads(threads),
    )


class SubstreamDecoder:
    """Decodes what :func:`encode_substreams` made: all of it, a part, or one wave by wave.

    Args:
        data: bytes or a contiguous buffer of them; referred to, not copied.
        tables: the set that the encoder used.

    Raises:
        CorruptStreamError: the index is damaged, or does not fit the size of ``data``.
    """

    def __init__(self, data: bytes | bytearray | memoryview, tables: TableSet) -> None:
        self._native = _cpu.RansSubstreams(data, tables.native)
        self._layout = self._native.layout()

    def __len__(self) -> int:
        """Number of substreams."""
        return len(self._layout)

    @property
    def counts(self) -> NDArray[np.uint64]:
        """Symbols in each substream, uint64 [S]."""
        return self._layout[:, 1].copy()

    @property
    def lanes(self) -> int:
        """Number of interleaved states of each substream."""
        return self._native.lanes

    def decode(
        self,
        indexes: ArrayLike,
        out: NDArray[np.int32] | None = None,
        *,
        first: int = 0,
        last: int | None = None,
        threads: int | None = None,
    ) -> NDArray[np.int32]:
        """Decodes substreams ``first`` to ``last - 1``, each to its end, side by side.

        Args:
            indexes: uint8 or uint16, any shape: the table of each symbol of these substreams.
            out: contiguous int32 array or CPU tensor of as many items to write to.
            first, last: which substreams; all of them unless given.
            threads: None takes as many as the process may use.

        Returns:
            int32 symbols in the shape of ``indexes``, or ``out``.

        Raises:
            InputError: no such substreams, another number of indexes than they have symbols, or
                what :meth:`RansDecoder.decode` refuses.
            CorruptStreamError: a substream is damaged, ends too early, or goes on after its last
                symbol. ``out`` then holds nothing of use.
        """
        last = len(self) if last is None else last
        if not 0 <= first <= last <= len(self):
            raise InputError(f"substreams {first} to {last} of {len(self)}")
        indexes, symbols = _decode_arguments(indexes, out)
        self._native.decode(first, last, indexes, symbols, _native_threads(threads))
        return symbols if out is None else out

    def substream(self, index: int) -> RansDecoder:
        """A decoder of one substream, which keeps its state between calls.

        Raises:
            InputError: there is no such substream.
            CorruptStreamError: its states are damaged.
        """
        if not 0 <= index < len(self):
            raise InputError(f"substream {index} of {len(self)}")
        return RansDecoder._of(self._native.decoder(index))


def _native_lanes(lanes: int | None) -> int:
    if lanes is not None and lanes not in (1, 2, 4, 8, 16, 32, 64):
        raise InputError(f"lanes must be a power of two, 1..{MAX_LANES}, not {lanes!r}")
    return lanes or 0


def _native_threads(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not 1 <= threads <= 1024:
        raise InputError(f"threads must be 1 to 1024, not {threads!r}")
    return threads


def _decode_arguments(
    indexes: ArrayLike, out: NDArray[np.int32] | None
) -> tuple[NDArray, NDArray[np.int32]]:
    indexes = np.ascontiguousarray(indexes)
    if out is None:
        out = np.empty(indexes.shape, np.int32)
    elif hasattr(out, "numpy"):  # a tensor: the array shares its memory
        try:
            out = out.numpy()
        except (RuntimeError, TypeError) as error:
            raise InputError(f"out must be a plain CPU tensor: {error}") from error
    elif not isinstance(out, np.ndarray):
        raise InputError(f"out must be a NumPy array or a CPU tensor, not {type(out).__name__}")
    return indexes, out


def substream_lengths(counts: ArrayLike | int, size: int) -> NDArray[np.int64]:
    """Symbols of each substream, as :func:`encode_substreams` reads ``counts``; int64 [S]."""
    lengths = np.asarray(counts)
    if lengths.size and (lengths.dtype.kind not in "iu" or lengths.ndim > 1):
        raise InputError("counts must be an integer or a row of integers")
    if lengths.ndim == 0:
        if not 1 <= lengths < 2**32:
            raise InputError(f"a substream must have 1 to 2**32 - 1 symbols, not {lengths}")
        whole, rest = divmod(size, int(lengths))
        return np.array([int(lengths)] * whole + [rest] * (rest > 0), np.int64)
    if lengths.size and not (lengths.min() >= 0 and lengths.max() < 2**32):
        raise InputError("counts must be 0 to 2**32 - 1")
    if int(lengths.sum(dtype=np.uint64)) != size:
        raise InputError(f"counts add up to {lengths.sum()}, but there are {size} symbols")
    return lengths.astype(np.int64)
