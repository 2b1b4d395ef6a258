"""Interleaved rANS streams: symbols to bytes and back, each symbol under a table of its own.

The coder itself is C++ (``csrc/rans/``; ``rans.hpp`` explains it on one page) and releases the GIL.
``docs/rans.md`` has the stream byte by byte.
"""

from __future__ import annotations

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
    if lanes is not None and lanes not in (1, 2, 4, 8, 16, 32, 64):
        raise InputError(f"lanes must be a power of two, 1..{MAX_LANES}, not {lanes!r}")
    return _cpu.rans_encode(
        np.ascontiguousarray(symbols), np.ascontiguousarray(indexes), tables.native, lanes or 0
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

    @property
    def lanes(self) -> int:
        """Number of interleaved states."""
        return self._native.lanes

    def decode(self, indexes: ArrayLike, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Decodes the next symbols, one for each index.

        Args:
            indexes: uint8 or uint16, any shape: the table of each symbol.
            out: contiguous int32 array of as many items to write to.

        Returns:
            int32 symbols in the shape of ``indexes``, or ``out``.

        Raises:
            InputError: for other dtypes, an ``out`` that does not fit, an index without table.
            CorruptStreamError: the stream is damaged or ends too early. The decoder stays where it
                was before the call; ``out`` holds nothing of use.
        """
        indexes = np.ascontiguousarray(indexes)
        if out is None:
            out = np.empty(indexes.shape, np.int32)
        elif not isinstance(out, np.ndarray):
            raise InputError(f"out must be a NumPy array, not {type(out).__name__}")
        self._native.decode(indexes, out)
        return out

    def finish(self) -> None:
        """Checks that the symbols decoded so far are all that the stream holds.

        Raises:
            CorruptStreamError: words are left, or a lane is not back at its initial state. This
                finds lost and surplus data for certain and most other damage, but flips of raw
                bits or between alike symbols go unnoticed: files need a checksum besides.
        """
        self._native.finish()
