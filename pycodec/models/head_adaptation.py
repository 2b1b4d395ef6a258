"""A head of the context network for each picture: the last layer, fitted to what is coded.

A trained network knows pictures in general. Its last layer is a logistic regression on the
features below it, and convex: the encoder fits it to the picture by Newton's method, in
milliseconds, and writes what changed, some 200 bytes. The features stay, so the decoder's network
costs what it did.

What may change is a plane's weight for each channel that it sees at its own position, and a bias,
as the weight of one more channel that is always 64. Each change, in units of the integer layer, is
d 2^s and d is written as a Rice code: u = 2d for d >= 0 and -2d - 1 otherwise, u >> k ones, a zero,
and the k low bits of u. A first byte is 8 s + k; bits fill bytes from the most significant; planes
come in order, a plane's channels in theirs, its bias last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pycodec.coding.tables import TableSet
from pycodec.context.wave_network import IntegerLayer, WaveNetwork
from pycodec.errors import CorruptStreamError

BIAS_UNIT = 64
MAX_RICE, MAX_SHIFT = 7, 4
_MAX_CHANGE = 1 << 12
_LEAST_PIXELS = 1 << 14  # smaller pictures gain less than the change costs
_BAND, _MARGIN, _SHARE = 32, 4, 3  # rows that count, rows around them, one row in so many
_ITERATIONS = 3
_PRIOR = 1000.0  # pixels that speak for the trained head

Change = list[NDArray[np.int64]]
"""For each plane, of the channels that it sees and of its bias."""


def fit_head(
    network: WaveNetwork,
    symbols: NDArray[np.int32],
    side: Sequence[NDArray[np.int8]],
    tables: TableSet,
) -> bytes:
    """What :func:`with_head` needs for the head that suits a picture; empty if none is worth it.

    Args:
        network: its last layer makes indexes of tables of a bit.
        symbols: bits, int32 [G, H, W].
        side: as of :meth:`WaveNetwork.order`.
        tables: of a bit, the middle one for even odds.
    """
    area = symbols[0].size
    if area < _LEAST_PIXELS:
        return b""
    features, bits, base = _examples(network, symbols, side)
    head = network.layers[-1]
    step = _logit_step(tables)
    middle = len(tables.to_arrays()["sizes"]) // 2
    # Of a unit of the accumulator, in log odds.
    units = head.multiplier.astype(np.float64) * 2.0**-head.shift * step
    changes: list[Change] = [[] for _ in range(MAX_SHIFT + 1)]
    saved = np.zeros(MAX_SHIFT + 1)
    for plane, channels in enumerate(_seen(head)):
        x = np.empty((len(features), len(channels) + 1), np.float32)
        x[:, :-1] = features[:, channels]
        x[:, -1] = BIAS_UNIT
        x *= np.float32(units[plane])
        logits = (base[:, plane] * units[plane] - middle * step).astype(np.float32)
        change = _newton(x, bits[:, plane], logits)
        old = _weights(head, plane, channels)
        before = _cost(logits, bits[:, plane])
        for shift in range(MAX_SHIFT + 1):
            whole = np.rint(change / (1 << shift)).astype(np.int64)
            whole[:-1] = np.clip(whole[:-1], -((127 + old) >> shift), (127 - old) >> shift)
            whole = np.clip(whole, -_MAX_CHANGE, _MAX_CHANGE)
            after = _cost(logits + x @ (whole << shift).astype(np.float32), bits[:, plane])
            changes[shift].append(whole)
            saved[shift] += before - after
    blobs = [_pack(change, shift) for shift, change in enumerate(changes)]
    net = saved * area / len(features) - [8 * len(blob) for blob in blobs]
    best = int(np.argmax(net))
    return blobs[best] if net[best] > 0 else b""


def with_head(network: WaveNetwork, blob: bytes) -> WaveNetwork:
    """The network with the head that :func:`fit_head` described.

    Raises:
        CorruptStreamError: the description is damaged.
    """
    if not blob:
        return network
    head = network.layers[-1]
    seen = _seen(head)
    weight, bias = head.weight.copy(), head.bias.astype(np.int64)
    middle = weight.shape[1] // 2
    for plane, (channels, change) in enumerate(
        zip(seen, _unpack(blob, [len(c) + 1 for c in seen]), strict=True)
    ):
        values = _weights(head, plane, channels) + change[:-1]
        if np.abs(values).max(initial=0) > 127:
            raise CorruptStreamError("a changed weight exceeds 127", section="tiles")
        weight[plane, middle, middle, channels] = values
        bias[plane] += BIAS_UNIT * change[-1]
    reach = 128 * np.abs(weight.astype(np.int64)).sum((1, 2, 3)) + np.abs(bias)
    if reach.max() >= 1 << 31:
        raise CorruptStreamError("a changed bias exceeds the accumulator", section="tiles")
    head = replace(head, weight=weight, bias=bias.astype(np.int32))
    return replace(network, layers=[*network.layers[:-1], head])


def _seen(head: IntegerLayer) -> list[NDArray[np.int64]]:
    """For each plane the channels that it sees at its own position."""
    middle = head.mask.shape[2] // 2
    groups = head.mask[:, :, middle, middle]
    return [np.flatnonzero(np.repeat(seen, head.in_width)) for seen in groups]


def _weights(head: IntegerLayer, plane: int, channels: NDArray[np.int64]) -> NDArray[np.int64]:
    middle = head.weight.shape[1] // 2
    return head.weight[plane, middle, middle, channels].astype(np.int64)


def _logit_step(tables: TableSet) -> float:
    """Difference in log odds between neighbouring tables."""
    arrays = tables.to_arrays()
    zero, one = arrays["frequencies"].reshape(-1, 2).astype(np.float64).T
    odds = np.log(one / zero)
    quarter = len(odds) // 4
    return float(odds[-quarter] - odds[quarter]) / (len(odds) - 2 * quarter)


def _examples(
    network: WaveNetwork, symbols: NDArray[np.int32], side: Sequence[NDArray[np.int8]]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Of some pixels: what the head sees at their position, bits, accumulators of the head."""
    height = symbols.shape[1]
    count = max(1, height // (_BAND * _SHARE))
    features, bits, base = [], [], []
    for top in np.linspace(0, max(0, height - _BAND), count).astype(int).tolist():
        # Further rows, since a band has no border where it is cut out.
        first, last = max(0, top - _MARGIN), top + _BAND + _MARGIN
        part = np.ascontiguousarray(symbols[:, first:last])
        planes = [np.ascontiguousarray(plane[:, first:last]) for plane in side]
        below, sums = network.head_input(part, planes, backend="native")
        rows = slice(top - first, top - first + _BAND)
        for parts, values in ((features, below), (bits, part), (base, sums)):
            parts.append(values[:, rows].reshape(len(values), -1).T)
    stacked = [np.concatenate(parts) for parts in (features, bits, base)]
    return stacked[0].astype(np.float32), stacked[1].astype(np.float32), stacked[2]


def _newton(
    x: NDArray[np.float32], bits: NDArray[np.float32], logits: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Changes of the weights of ``x`` [n, d] that make ``bits`` more likely."""
    prior = _PRIOR * np.maximum(np.square(x).mean(0), 1e-9).astype(np.float64)
    change = np.zeros(x.shape[1])
    for _ in range(_ITERATIONS):
        one = _sigmoid(logits + x @ change.astype(np.float32))
        gradient = (x.T @ (one - bits)).astype(np.float64) + prior * change
        curvature = (x.T @ (x * (one * (1 - one))[:, None])).astype(np.float64)
        change -= np.linalg.solve(curvature + np.diag(prior), gradient)
    return change


def _sigmoid(z: NDArray[np.float32]) -> NDArray[np.float32]:
    return 0.5 * (1 + np.tanh(0.5 * z))


def _cost(logits: NDArray[np.float32], bits: NDArray[np.float32]) -> float:
    """Code length in bits."""
    return float(np.logaddexp(0, logits * (1 - 2 * bits)).sum(dtype=np.float64) / np.log(2))


def _pack(changes: Change, shift: int) -> bytes:
    values = np.concatenate(changes)
    unsigned = np.where(values >= 0, 2 * values, -2 * values - 1)
    sizes = [int(((unsigned >> k) + 1 + k).sum()) for k in range(MAX_RICE + 1)]
    k = int(np.argmin(sizes))
    bits: list[int] = []
    for value in unsigned.tolist():
        bits += [1] * (value >> k) + [0] + [value >> i & 1 for i in reversed(range(k))]
    return bytes([shift << 3 | k]) + np.packbits(np.array(bits, np.uint8)).tobytes()


def _unpack(blob: bytes, counts: Sequence[int]) -> Change:
    shift, k = blob[0] >> 3, blob[0] & MAX_RICE
    if shift > MAX_SHIFT:
        raise CorruptStreamError(f"the shift {shift} is out of range", section="tiles")
    bits = np.unpackbits(np.frombuffer(blob, np.uint8, offset=1))
    # A code's zero comes before its low bits, which may be zeros themselves.
    zeros = np.flatnonzero(bits == 0).tolist()
    values, at, next_zero = [], 0, 0
    for _ in range(sum(counts)):
        while next_zero < len(zeros) and zeros[next_zero] < at:
            next_zero += 1
        end = zeros[next_zero] + 1 + k if next_zero < len(zeros) else len(bits) + 1
        if end > len(bits):
            raise CorruptStreamError("the head's changes end too soon", section="tiles")
        high = zeros[next_zero] - at
        low = int("".join(map(str, bits[end - k : end].tolist())) or "0", 2)
        unsigned = (high << k) + low
        values.append(unsigned >> 1 if unsigned % 2 == 0 else -(unsigned + 1 >> 1))
        at = end
    if at + 8 <= len(bits) or bits[at:].any():
        raise CorruptStreamError("there are bytes after the head's changes", section="tiles")
    if max(map(abs, values), default=0) > _MAX_CHANGE:
        raise CorruptStreamError("a change of the head is out of range", section="tiles")
    return np.split(np.array(values, np.int64) << shift, np.cumsum(counts)[:-1])
