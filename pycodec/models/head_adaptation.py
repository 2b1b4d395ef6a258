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
import torch
from numpy.typing import NDArray

from pycodec.coding.tables import TableSet
from pycodec.context.wave_network import EncodingPass, IntegerLayer, WaveNetwork
from pycodec.errors import CorruptStreamError

BIAS_UNIT = 64
MAX_RICE, MAX_SHIFT = 7, 4
_MAX_CHANGE = 1 << 12
_LEAST_PIXELS = 1 << 14  # smaller pictures gain less than the change costs
_SHARE = 8  # one row in so many speaks for all
_ITERATIONS = 2  # the trained head is near
_CURVATURE_SHARE = 8  # one pixel in so many for the second derivatives
_PRIOR = 1000.0  # pixels that speak for the trained head

Change = list[NDArray[np.int64]]
"""For each plane, of the channels that it sees and of its bias."""


def fit_head(encoding: EncodingPass, tables: TableSet) -> bytes:
    """What :func:`with_head` needs for the head that suits a picture; empty if none is worth it.

    Args:
        encoding: of bits; the last layer makes indexes of tables of a bit.
        tables: of a bit, the middle one for even odds.
    """
    area = encoding.symbols[0].size
    if area < _LEAST_PIXELS:
        return b""
    x, bits, base = _examples(encoding)
    head = encoding.network.layers[-1]
    step = _logit_step(tables)
    middle = len(tables.to_arrays()["sizes"]) // 2
    # Of a unit of the accumulator, in log odds.
    units = head.multiplier.astype(np.float64) * 2.0**-head.shift * step
    logits = base * units.astype(np.float32) - np.float32(middle * step)
    seen = np.pad(_seen(head), ((0, 0), (0, 1)), constant_values=True)
    change, curvature = _newton(x, bits, logits, seen, units)
    whole, loss = [], np.zeros(MAX_SHIFT + 1)
    for shift in range(MAX_SHIFT + 1):
        rounded = np.rint(change / (1 << shift)).astype(np.int64)
        old = _weights(head)
        rounded[:, :-1] = np.clip(rounded[:, :-1], -((127 + old) >> shift), (127 - old) >> shift)
        rounded = np.clip(rounded, -_MAX_CHANGE, _MAX_CHANGE)
        whole.append(rounded)
        # Around the minimum the code length is quadratic.
        error = change - (rounded << shift)
        loss[shift] = np.einsum("gi,gij,gj->", error, curvature, error) / 2 / np.log(2)
    blobs = [
        _pack([row[plane] for row, plane in zip(rounded, seen, strict=True)], shift)
        for shift, rounded in enumerate(whole)
    ]
    scale = area / len(x)
    best = int(np.argmin(scale * loss + [8 * len(blob) for blob in blobs]))
    changed = logits + _product(x, units[:, None] * (whole[best] << best))
    saved = _cost(logits, bits) - _cost(changed, bits)
    return blobs[best] if saved * scale > 8 * len(blobs[best]) else b""


def with_head(network: WaveNetwork, blob: bytes) -> WaveNetwork:
    """The network with the head that :func:`fit_head` described.

    Raises:
        CorruptStreamError: the description is damaged.
    """
    if not blob:
        return network
    head = network.layers[-1]
    seen, old = _seen(head), _weights(head)
    weight, bias = head.weight.copy(), head.bias.astype(np.int64)
    middle = weight.shape[1] // 2
    counts = (seen.sum(1) + 1).tolist()
    for plane, change in enumerate(_unpack(blob, counts)):
        values = old[plane, seen[plane]] + change[:-1]
        if np.abs(values).max(initial=0) > 127:
            raise CorruptStreamError("a changed weight exceeds 127", section="tiles")
        weight[plane, middle, middle, seen[plane]] = values
        bias[plane] += BIAS_UNIT * change[-1]
    reach = 128 * np.abs(weight.astype(np.int64)).sum((1, 2, 3)) + np.abs(bias)
    if reach.max() >= 1 << 31:
        raise CorruptStreamError("a changed bias exceeds the accumulator", section="tiles")
    head = replace(head, weight=weight, bias=bias.astype(np.int32))
    return replace(network, layers=[*network.layers[:-1], head])


def _seen(head: IntegerLayer) -> NDArray[np.bool_]:
    """Whether a plane sees a channel at its own position, [G, C]."""
    middle = head.mask.shape[2] // 2
    return np.repeat(head.mask[:, :, middle, middle] != 0, head.in_width, axis=1)


def _weights(head: IntegerLayer) -> NDArray[np.int64]:
    """Of a plane for a channel at its own position, [G, C]."""
    middle = head.weight.shape[1] // 2
    return head.weight[:, middle, middle].astype(np.int64)


def _logit_step(tables: TableSet) -> float:
    """Difference in log odds between neighbouring tables."""
    arrays = tables.to_arrays()
    zero, one = arrays["frequencies"].reshape(-1, 2).astype(np.float64).T
    odds = np.log(one / zero)
    quarter = len(odds) // 4
    return float(odds[-quarter] - odds[quarter]) / (len(odds) - 2 * quarter)


def _examples(
    encoding: EncodingPass,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Of n pixels: what the head sees at their position and BIAS_UNIT, [n, C + 1], bits, [n, G],
    and accumulators of the head, [n, G]."""
    height = encoding.symbols.shape[1]
    count = max(1, height // _SHARE)
    rows = ((np.arange(count) + 0.5) * height / count).astype(int)
    features, sums = encoding.head_input(rows.tolist())
    x = np.empty((*features.shape[:2], features.shape[2] + 1), np.float32)
    x[..., :-1], x[..., -1] = features, BIAS_UNIT
    bits = encoding.symbols[:, rows].transpose(1, 2, 0).astype(np.float32)
    groups = bits.shape[2]
    base = sums.reshape(-1, groups).astype(np.float32)
    return x.reshape(-1, x.shape[2]), bits.reshape(-1, groups), base


def _newton(
    x: NDArray[np.float32],
    bits: NDArray[np.float32],
    logits: NDArray[np.float32],
    seen: NDArray[np.bool_],
    units: NDArray[np.float64],
    iterations: int = _ITERATIONS,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Changes of the weights for ``x``, [G, C + 1], that make ``bits`` more likely, and the
    curvature of the code length in nats, [G, C + 1, C + 1]."""
    some = np.ascontiguousarray(x[::_CURVATURE_SHARE])
    energy = np.maximum(np.square(some).mean(0, dtype=np.float64), 1e-9)
    change = np.zeros(seen.shape)
    curvature = np.zeros((*seen.shape, seen.shape[1]))
    for iteration in range(iterations):
        one = _sigmoid(logits + _product(x, units[:, None] * change))
        gradient = units[:, None] * _product((one - bits).T, x.T)
        for plane, channels in enumerate(seen):
            block = np.ix_(channels, channels)
            prior = _PRIOR * units[plane] ** 2 * energy[channels]
            if iteration == 0:  # it changes little
                p = one[::_CURVATURE_SHARE, plane, None]
                part = some[:, channels]
                inner = _product((part * (p * (1 - p))).T, part.T) * (len(x) / len(some))
                curvature[plane][block] = inner * units[plane] ** 2 + np.diag(prior)
            change[plane, channels] -= np.linalg.solve(
                curvature[plane][block], gradient[plane, channels] + prior * change[plane, channels]
            )
    return change, curvature


def _product(a: NDArray[np.float32], b: NDArray[np.floating]) -> NDArray[np.float32]:
    """a b^T, by torch, which keeps to the number of threads that was asked for."""
    return (torch.from_numpy(a) @ torch.from_numpy(b.astype(np.float32, copy=False)).T).numpy()


def _sigmoid(z: NDArray[np.float32]) -> NDArray[np.float32]:
    return 0.5 * (1 + np.tanh(0.5 * z))


def _cost(logits: NDArray[np.float32], bits: NDArray[np.float32]) -> float:
    """Code length in bits."""
    z = logits * (1 - 2 * bits)
    # The logarithm of 1 + exp(z).
    nats = np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))
    return float(nats.sum(dtype=np.float64) / np.log(2))


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
    longest = sum(counts) * (2 * _MAX_CHANGE + 1 + MAX_RICE)  # bits
    if len(blob) > 2 + longest // 8:
        raise CorruptStreamError("the head's changes are too long", section="tiles")
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
