"""The entropy coder of CompressAI: ``compressai.ans`` call for call, its streams byte for byte.

A model written for CompressAI codes with this module in place of its own (``import
pycodec.coding.compressai_ans as ans``) and reads and writes the same files. Arguments may be NumPy
arrays and CPU tensors besides lists; contiguous int32 is read in place. What CompressAI asserts,
or does not check at all, raises :class:`InputError` (arguments) or :class:`CorruptStreamError`
(streams) here. ``docs/rans.md`` has the format and every difference.

Threads that share one coder get its calls one after the other; the GIL is released while coding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycodec import _cpu
from pycodec.errors import InputError

# Enough for the faster search, which takes a while to set up.
_MANY_SYMBOLS = 2**62


class CdfTables:
    """CDFs that are checked and laid out once, for use in many calls; immutable.

    Args:
        cdfs: integers [tables, items], rows padded at the end (``EntropyModel._quantized_cdf``),
            or a list of rows of any length. A CDF starts with 0, increases strictly and ends with
            65536; its last symbol is the escape, after which any other value is coded in raw bits.
        cdfs_sizes: integers [tables]: the items of each row that are its CDF, 2..65537
            (``EntropyModel._cdf_length``).
        offsets: int32 [tables]: the value of each CDF's first symbol (``EntropyModel._offset``).

    Raises:
        InputError: if the above does not hold or a table's values exceed int32.
    """

    def __init__(
        self,
        cdfs: ArrayLike | Sequence[ArrayLike],
        cdfs_sizes: ArrayLike,
        offsets: ArrayLike,
    ) -> None:
        self._native = _cpu.CompressAICdfTables(cdfs, cdfs_sizes, offsets, _MANY_SYMBOLS)

    def __len__(self) -> int:
        """Number of tables; valid indexes are below it."""
        return len(self._native)

    @property
    def native(self) -> _cpu.CompressAICdfTables:
        """The tables as the C++ coder uses them."""
        return self._native


class BufferedRansEncoder:
    """Collects symbols call by call and codes them on :meth:`flush`, in one stream."""

    def __init__(self) -> None:
        self._native = _cpu.CompressAIEncoder()

    def encode_with_indexes(
        self,
        symbols: ArrayLike,
        indexes: ArrayLike,
        cdfs: ArrayLike | Sequence[ArrayLike] | CdfTables,
        cdfs_sizes: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
    ) -> None:
        """Adds symbols behind those of the calls before; every call may have tables of its own.

        Args:
            symbols: integers in int32, any shape.
            indexes: integers, the same number of items: the table of each symbol.
            cdfs, cdfs_sizes, offsets: as :class:`CdfTables` has them; or one such object and
                nothing more.

        Raises:
            InputError: for items that are no integers or exceed int32, unequal sizes, tables that
                are invalid, an index without table, a symbol more than 31 bits away from its
                table's values. The encoder then holds what it held before the call.
        """
        self._native.add(symbols, indexes, _native_tables(cdfs, cdfs_sizes, offsets, 0))

    def flush(self) -> bytes:
        """The stream of all symbols since the last flush; the encoder is empty afterwards."""
        return self._native.flush()


class RansEncoder:
    """Codes every call in a stream of its own."""

    def encode_with_indexes(
        self,
        symbols: ArrayLike,
        indexes: ArrayLike,
        cdfs: ArrayLike | Sequence[ArrayLike] | CdfTables,
        cdfs_sizes: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
    ) -> bytes:
        """The stream of ``symbols``; arguments and errors are those of
        :meth:`BufferedRansEncoder.encode_with_indexes`."""
        encoder = BufferedRansEncoder()
        encoder.encode_with_indexes(symbols, indexes, cdfs, cdfs_sizes, offsets)
        return encoder.flush()


class RansDecoder:
    """Decodes whole streams, or one stream call by call."""

    def __init__(self) -> None:
        self._native: _cpu.CompressAIDecoder | None = None

    def decode_with_indexes(
        self,
        encoded: bytes | bytearray | memoryview,
        indexes: ArrayLike,
        cdfs: ArrayLike | Sequence[ArrayLike] | CdfTables,
        cdfs_sizes: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
    ) -> list[int] | NDArray[np.int32]:
        """The first symbols of a stream. The stream of :meth:`set_stream` stays where it is.

        Args:
            encoded: the stream, bytes or a contiguous buffer of them. Bytes behind the last word
                that the symbols need are ignored.
            indexes: integers, any shape: the table of each symbol.
            cdfs, cdfs_sizes, offsets: as :class:`CdfTables` has them; or one such object and
                nothing more.

        Returns:
            The symbols: a list if ``indexes`` is a list or tuple, else an int32 array of its shape.

        Raises:
            InputError: for what :class:`CdfTables` refuses, indexes that are no integers, an index
                without table, a stream that is no buffer of bytes.
            CorruptStreamError: the stream is damaged or ends too early.
        """
        return self._decode(_cpu.CompressAIDecoder(encoded), indexes, cdfs, cdfs_sizes, offsets)

    def set_stream(self, encoded: bytes | bytearray | memoryview) -> None:
        """Begins a stream, whatever was left of the one before; it is referred to, not copied.

        Raises:
            InputError: ``encoded`` is no buffer of bytes.
            CorruptStreamError: the stream has no valid state. The one before then stays.
        """
        self._native = _cpu.CompressAIDecoder(encoded)

    def decode_stream(
        self,
        indexes: ArrayLike,
        cdfs: ArrayLike | Sequence[ArrayLike] | CdfTables,
        cdfs_sizes: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
    ) -> list[int] | NDArray[np.int32]:
        """The next symbols of the stream that :meth:`set_stream` began.

        Arguments, result and errors are those of :meth:`decode_with_indexes`; after an error the
        decoder is where it was before the call.
        """
        if self._native is None:
            raise InputError("decode_stream has no stream: call set_stream first")
        return self._decode(self._native, indexes, cdfs, cdfs_sizes, offsets)

    @staticmethod
    def _decode(
        native: _cpu.CompressAIDecoder,
        indexes: ArrayLike,
        cdfs: ArrayLike | Sequence[ArrayLike] | CdfTables,
        cdfs_sizes: ArrayLike | None,
        offsets: ArrayLike | None,
    ) -> list[int] | NDArray[np.int32]:
        is_list = isinstance(indexes, (list, tuple))
        num_symbols = len(indexes) if is_list else math.prod(np.shape(indexes))
        return native.decode(indexes, _native_tables(cdfs, cdfs_sizes, offsets, num_symbols))


def _native_tables(
    cdfs: ArrayLike | Sequence[ArrayLike] | CdfTables,
    cdfs_sizes: ArrayLike | None,
    offsets: ArrayLike | None,
    num_symbols: int,
) -> _cpu.CompressAICdfTables:
    """The tables of a call that decodes ``num_symbols`` with them."""
    if isinstance(cdfs, CdfTables):
        if cdfs_sizes is not None or offsets is not None:
            raise InputError("CdfTables have their sizes and offsets: give no others")
        return cdfs.native
    if cdfs_sizes is None or offsets is None:
        raise InputError("cdfs need cdfs_sizes and offsets")
    return _cpu.CompressAICdfTables(cdfs, cdfs_sizes, offsets, num_symbols)
