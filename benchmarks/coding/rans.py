"""How fast is the rANS coder, and how close to the entropy?

Encodes and decodes symbols of 64 Gaussian tables (scales log-spaced from 0.11 to 20) on one pinned
thread, at each SIMD level and with each number of lanes, and with whichever of its peers is
installed (``pip install compressai constriction torchac``). Rates are the best of several runs;
every result is checked against the symbols. ``x`` is the ratio to ``compressai.ans`` called with
lists that were made before.

    python benchmarks/coding/rans.py [--symbols N] [--repeats R] [--tables T] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pycodec import _cpu
from pycodec.coding import compressai_ans, rans
from pycodec.coding.tables import TableSet
from pycodec.profiling.machine import processor_name

NUM_TABLES = 64
SCALES = np.geomspace(0.11, 20, NUM_TABLES)


@dataclass(frozen=True)
class Workload:
    symbols: np.ndarray  # int32 [n]
    indexes: np.ndarray  # uint8 or uint16 [n]
    scales: np.ndarray  # float64 [tables]
    tables: TableSet  # 12 bits

    @property
    def information_bits(self) -> float:
        """What the symbols cost under the very distributions that they were drawn from."""
        magnitudes = np.abs(self.symbols)
        costs = np.array([gaussian_costs(scale, int(magnitudes.max())) for scale in self.scales])
        return float(costs[self.indexes, magnitudes].sum())


@dataclass(frozen=True)
class Result:
    coder: str
    encode_msym_s: float
    decode_msym_s: float
    bits: int
    over_entropy: float  # relative to the symbols' information under their distributions
    over_tables: float | None  # relative to the tables' own code length, where it is known


def gaussian_costs(scale: float, largest: int) -> list[float]:
    """Bits of 0..largest under a Gaussian rounded to integers."""
    tails = [math.erfc((k + 0.5) / (scale * math.sqrt(2))) / 2 for k in range(largest + 1)]
    p = [1 - 2 * tails[0]] + [tails[k - 1] - tails[k] for k in range(1, largest + 1)]
    return [-math.log2(x) if x > 0 else math.inf for x in p]


def make_workload(count: int, num_tables: int = NUM_TABLES) -> Workload:
    rng = np.random.default_rng(0)
    scales = np.geomspace(SCALES[0], SCALES[-1], num_tables)
    indexes = rng.integers(0, num_tables, count)
    indexes = indexes.astype(np.uint8 if num_tables <= 256 else np.uint16)
    symbols = np.rint(rng.standard_normal(count) * scales[indexes]).astype(np.int32)
    return Workload(symbols, indexes, scales, TableSet.gaussian(scales))


def best_seconds(call: Callable[[], object], repeats: int) -> tuple[float, object]:
    best, value = math.inf, None
    for _ in range(repeats):
        start = time.perf_counter()
        value = call()
        best = min(best, time.perf_counter() - start)
    return best, value


def measure(
    coder: str,
    workload: Workload,
    repeats: int,
    encode: Callable[[], bytes],
    decode: Callable[[bytes], np.ndarray],
    table_bits: float | None = None,
) -> Result:
    encode_seconds, stream = best_seconds(encode, repeats)
    decode_seconds, symbols = best_seconds(lambda: decode(stream), repeats)
    if not np.array_equal(symbols, workload.symbols):
        raise AssertionError(f"{coder} decodes other symbols")
    million = workload.symbols.size / 1e6
    bits = 8 * len(stream)
    return Result(
        coder,
        million / encode_seconds,
        million / decode_seconds,
        bits,
        bits / workload.information_bits - 1,
        None if table_bits is None else bits / table_bits - 1,
    )


def measure_pycodec(workload: Workload, repeats: int) -> Iterator[Result]:
    tables, symbols, indexes = workload.tables, workload.symbols, workload.indexes
    table_bits = tables.cost_bits(symbols, indexes)
    out = np.empty_like(symbols)

    def decode(stream: bytes) -> np.ndarray:
        decoder = rans.RansDecoder(stream, tables)
        decoder.decode(indexes, out)
        decoder.finish()
        return out

    before = _cpu.simd_level()
    for level in _cpu.supported_simd_levels():
        _cpu.set_simd_level(level)
        for lanes in (1, 4, 8, 16, 32, 64):

            def encode(lanes: int = lanes) -> bytes:
                return rans.encode(symbols, indexes, tables, lanes=lanes)

            name = f"pycodec, {level}, {lanes} lanes"
            yield measure(name, workload, repeats, encode, decode, table_bits)
    _cpu.set_simd_level(before)


@dataclass(frozen=True)
class CompressaiTables:
    """The workload's tables as CompressAI's streams have them: 16 bits, CDFs."""

    cdfs: list[list[int]]
    sizes: list[int]
    offsets: list[int]

    @classmethod
    def of(cls, tables: TableSet) -> CompressaiTables:
        cdfs, offsets = [], []
        for index in range(tables.num_tables):
            frequencies, offset, _ = tables.table(index)
            frequencies = 16 * frequencies  # from 12 bits
            cdfs.append([0, *np.cumsum(frequencies).tolist()])
            offsets.append(offset)
        return cls(cdfs, [len(c) for c in cdfs], offsets)

    def __iter__(self):
        return iter((self.cdfs, self.sizes, self.offsets))


def measure_compressai_twin(workload: Workload, repeats: int) -> Iterator[Result]:
    """CompressAI's streams by pycodec: as ``compressai.ans`` is called, and with arrays."""
    tables = CompressaiTables.of(workload.tables)
    symbols, indexes = workload.symbols.tolist(), workload.indexes.tolist()
    bits = workload.tables.cost_bits(workload.symbols, workload.indexes)

    def encode_lists() -> bytes:
        return compressai_ans.RansEncoder().encode_with_indexes(symbols, indexes, *tables)

    def decode_lists(stream: bytes) -> list[int]:
        return compressai_ans.RansDecoder().decode_with_indexes(stream, indexes, *tables)

    yield measure("compressai_ans, lists", workload, repeats, encode_lists, decode_lists, bits)
    array_symbols, array_indexes = workload.symbols, workload.indexes.astype(np.int32)

    def encode() -> bytes:
        encoder = compressai_ans.RansEncoder()
        return encoder.encode_with_indexes(array_symbols, array_indexes, *tables)

    def decode(stream: bytes) -> np.ndarray:
        return compressai_ans.RansDecoder().decode_with_indexes(stream, array_indexes, *tables)

    yield measure("compressai_ans, arrays", workload, repeats, encode, decode, bits)


def measure_compressai(workload: Workload, repeats: int) -> Iterator[Result]:
    """Its native coder through its list interface; making the lists is not counted."""
    from compressai import ans

    tables = CompressaiTables.of(workload.tables)
    symbols, indexes = workload.symbols.tolist(), workload.indexes.tolist()
    bits = workload.tables.cost_bits(workload.symbols, workload.indexes)

    def encode() -> bytes:
        return ans.RansEncoder().encode_with_indexes(symbols, indexes, *tables)

    def decode(stream: bytes) -> list[int]:
        return ans.RansDecoder().decode_with_indexes(stream, indexes, *tables)

    yield measure(PEER, workload, repeats, encode, decode, bits)


def measure_compressai_model(workload: Workload, repeats: int) -> Iterator[Result]:
    """``GaussianConditional.compress`` and ``decompress``: tensors to bytes and back."""
    import torch
    from compressai.entropy_models import GaussianConditional

    model = GaussianConditional(SCALES.tolist())
    model.update_scale_table(SCALES.tolist(), force=True)
    inputs = torch.from_numpy(workload.symbols).float()[None]
    indexes = torch.from_numpy(workload.indexes.astype(np.int32))[None]

    def encode() -> bytes:
        return model.compress(inputs, indexes)[0]

    def decode(stream: bytes) -> np.ndarray:
        return model.decompress([stream], indexes)[0].numpy().astype(np.int32)

    yield measure("compressai, its model", workload, repeats, encode, decode)


def measure_constriction(workload: Workload, repeats: int) -> Iterator[Result]:
    """Its ANS coder with a Gaussian of its own for each symbol."""
    import constriction

    model = constriction.stream.model.QuantizedGaussian(-2000, 2000)
    means = np.zeros(workload.symbols.size)
    scales = SCALES[workload.indexes]

    def encode() -> bytes:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(workload.symbols, model, means, scales)
        return coder.get_compressed().tobytes()

    def decode(stream: bytes) -> np.ndarray:
        coder = constriction.stream.stack.AnsCoder(np.frombuffer(stream, np.uint32))
        return coder.decode(model, means, scales)

    yield measure("constriction", workload, repeats, encode, decode)


def measure_torchac(workload: Workload, repeats: int) -> Iterator[Result]:
    """On at most 2**16 symbols: it wants a whole distribution for each one, in memory."""
    import torch
    import torchac

    count = min(workload.symbols.size, 1 << 16)
    part = Workload(workload.symbols[:count], workload.indexes[:count], SCALES, workload.tables)
    reach = int(np.abs(part.symbols).max())
    edges = np.arange(-reach, reach + 2) - 0.5
    cdfs = np.array([[math.erfc(-e / (s * math.sqrt(2))) / 2 for e in edges] for s in SCALES])
    cdfs[:, 0], cdfs[:, -1] = 0, 1
    cdf = torch.from_numpy(cdfs[part.indexes].astype(np.float32))
    shifted = torch.from_numpy((part.symbols + reach).astype(np.int16))

    def encode() -> bytes:
        return torchac.encode_float_cdf(cdf, shifted)

    def decode(stream: bytes) -> np.ndarray:
        return torchac.decode_float_cdf(cdf, stream).numpy().astype(np.int32) - reach

    yield measure("torchac", part, repeats, encode, decode)


PEER = "compressai.ans, lists"
PEERS = {
    "compressai": (measure_compressai, measure_compressai_model),
    "constriction": (measure_constriction,),
    "torchac": (measure_torchac,),
}


def print_result(result: Result, peer: Result | None) -> None:
    tables = "" if result.over_tables is None else f"{result.over_tables:+.4%}"

    def rate(mine: float, theirs: float | None) -> str:
        return f"{mine:8.1f}" + ("" if theirs is None else f" {mine / theirs:5.1f} x")

    print(
        f"{result.coder:30} {rate(result.encode_msym_s, peer and peer.encode_msym_s)}"
        f" {rate(result.decode_msym_s, peer and peer.decode_msym_s)}"
        f" {result.over_entropy:+10.4%} {tables:>10}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=1 << 22, help="how many (4 Mi)")
    parser.add_argument("--repeats", type=int, default=5, help="runs, of which the best counts")
    parser.add_argument(
        "--tables", type=int, default=NUM_TABLES, help="how many (64; others without the peers)"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    workload = make_workload(arguments.symbols, arguments.tables)
    bits_each = workload.information_bits / arguments.symbols
    print(f"{arguments.symbols} symbols, {bits_each:.4f} bits each")
    peer_columns = 8 if importlib.util.find_spec("compressai") else 0
    columns = [f"{name:>{8 + peer_columns}}" for name in ("encode", "decode")]
    print(f"{'Msym/s':30} {' '.join(columns)} {'to entropy':>10} {'to tables':>10}")
    measures = [m for name, ms in PEERS.items() if importlib.util.find_spec(name) for m in ms]
    if arguments.tables != NUM_TABLES:
        measures = []
    results: list[Result] = []
    peer = None
    for measure_coder in [*measures, measure_compressai_twin, measure_pycodec]:
        try:
            for result in measure_coder(workload, arguments.repeats):
                peer = result if result.coder == PEER else peer
                print_result(result, peer)
                results.append(result)
        except ImportError as error:  # a peer whose own dependencies are missing
            print(f"{measure_coder.__name__}: left out, {error}")
    if arguments.json:
        report = {
            "processor": processor_name(),
            "symbols": arguments.symbols,
            "repeats": arguments.repeats,
            "results": [asdict(r) for r in results],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
