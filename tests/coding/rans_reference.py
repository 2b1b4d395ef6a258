"""The rANS stream in plain Python integers: slow, obvious, and what the C++ coder is held to.

Written from docs/rans.md: divisions are divisions, symbols are looked up by a search, and every
symbol is one step.
"""

from __future__ import annotations

LOWER_BOUND = 1 << 16
WORD = 1 << 16


class CorruptError(Exception):
    """The stream cannot have been written by :func:`encode`."""


def _gamma_chunks(code: int) -> list[tuple[int, int]]:
    """An Elias gamma code as (bits, count) in the order in which they are decoded."""
    n = code.bit_length() - 1
    chunks = [(0, 16)] * (n // 16) + [(1 << n % 16, n % 16 + 1)]
    tail = code - (1 << n)
    if n > 0:
        chunks.append((tail % WORD, min(n, 16)))
    if n > 16:
        chunks.append((tail // WORD, n - 16))
    return chunks


def _steps(symbol, frequencies, offset, escape, precision):
    """(start, frequency, bits) of each push that a symbol takes, in decoding order."""
    values = len(frequencies) - escape
    first, last = offset, offset + values - 1
    inside = first <= symbol <= last
    if not inside and not escape:
        raise ValueError(f"{symbol} is outside {first}..{last}")
    rank = symbol - first if inside else values
    steps = [(sum(frequencies[:rank]), frequencies[rank], precision)]
    if not inside:
        code = 2 * (symbol - last) - 1 if symbol > last else 2 * (first - symbol)
        steps += [(bits, 1, count) for bits, count in _gamma_chunks(code)]
    return steps


def encode(symbols, indexes, tables, precision, lanes) -> bytes:
    """``tables``: a list of (frequencies, offset, escape)."""
    states = [LOWER_BOUND] * lanes
    words = []
    for n in reversed(range(len(symbols))):
        x = states[n % lanes]
        for start, frequency, bits in reversed(_steps(symbols[n], *tables[indexes[n]], precision)):
            if x >= frequency << (32 - bits):
                words.append(x % WORD)
                x //= WORD
            x = ((x // frequency) << bits) + start + x % frequency
        states[n % lanes] = x
    header = (lanes.bit_length() - 1) | (precision - 1) << 4
    return (
        bytes([header])
        + b"".join(x.to_bytes(4, "little") for x in states)
        + b"".join(w.to_bytes(2, "little") for w in reversed(words))
    )


class Decoder:
    """Decodes a symbol at a time."""

    def __init__(self, data: bytes, tables, precision: int) -> None:
        self.tables, self.precision = tables, precision
        if not data or data[0] & 8 or data[0] & 7 > 6 or (data[0] >> 4) + 1 != precision:
            raise CorruptError("header")
        self.lanes = 1 << (data[0] & 7)
        prefix = 1 + 4 * self.lanes
        if len(data) < prefix or (len(data) - prefix) % 2:
            raise CorruptError("length")
        self.states = [
            int.from_bytes(data[1 + 4 * i : 5 + 4 * i], "little") for i in range(self.lanes)
        ]
        if min(self.states) < LOWER_BOUND:
            raise CorruptError("state")
        self.words = [
            int.from_bytes(data[i : i + 2], "little") for i in range(prefix, len(data), 2)
        ]
        self.words.reverse()
        self.position = 0

    def _pop(self, frequencies, bits: int) -> int:
        """Pops a symbol and returns its rank; ``frequencies`` None: all ranks alike."""
        lane = self.position % self.lanes
        x = self.states[lane]
        slot = x % (1 << bits)
        rank, start, frequency = slot, slot, 1
        if frequencies is not None:
            rank = start = 0
            while start + frequencies[rank] <= slot:
                start += frequencies[rank]
                rank += 1
            frequency = frequencies[rank]
        x = frequency * (x >> bits) + slot - start
        if x < LOWER_BOUND:
            if not self.words:
                raise CorruptError("too short")
            x = x * WORD + self.words.pop()
        self.states[lane] = x
        return rank

    def _pop_gamma(self) -> int:
        n = 0
        while True:
            low = self.states[self.position % self.lanes] % WORD
            zeros = (low & -low).bit_length() - 1 if low else 16
            n += zeros
            if n > 32:
                raise CorruptError("escape")
            self._pop(None, min(zeros + 1, 16))
            if low:
                break
        code = 1 << n
        if n > 0:
            code += self._pop(None, min(n, 16))
        if n > 16:
            code += self._pop(None, n - 16) * WORD
        return code

    def decode_one(self, index: int) -> int:
        frequencies, offset, escape = self.tables[index]
        rank = self._pop(frequencies, self.precision)
        values = len(frequencies) - escape
        symbol = offset + rank
        if rank == values:
            code = self._pop_gamma()
            distance = (code + 1) // 2
            symbol = offset + values - 1 + distance if code % 2 else offset - distance
            if not -(2**31) <= symbol < 2**31:
                raise CorruptError("int32")
        self.position += 1
        return symbol

    def finish(self) -> None:
        if self.words or any(x != LOWER_BOUND for x in self.states):
            raise CorruptError("end")
