"""Records what compressai.ans makes of random cases, for test_compressai_ans.py.

    python tests/coding/record_compressai_streams.py

writes compressai_streams.json beside this file. CompressAI must be installed; the recorded streams
were made by its version 1.2.8.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np

RECORDED = Path(__file__).with_name("compressai_streams.json")


def load_compressai_ans() -> ModuleType | None:
    """compressai.ans, or None where CompressAI is not installed.

    The extension alone is loaded: ``import compressai`` needs all of its requirements.
    """
    package = importlib.util.find_spec("compressai")
    for folder in (package and package.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("ans.*")):
            spec = importlib.util.spec_from_file_location("compressai.ans", file)
            if spec is not None:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    return None


def random_cdf(rng: np.random.Generator, size: int) -> list[int]:
    """A CDF of up to ``size`` items, at least 3; a few symbols have most of the probability."""
    cuts = rng.random(size - 2) ** rng.integers(1, 9) * 65534
    if rng.integers(2):
        cuts = 65534 - cuts
    return [0, *np.unique(cuts.astype(np.int64) + 1).tolist(), 65536]


def gaussian_cdf(scale: float) -> tuple[list[int], int]:
    """The CDF of a discretized Gaussian with an escape, and its offset."""
    reach = math.ceil(6 * scale)
    pmf = [math.exp(-0.5 * (k / scale) ** 2) for k in range(-reach, reach + 1)]
    frequencies = [max(1, int(p / sum(pmf) * 65000)) for p in pmf]
    cdf = np.cumsum([0, *frequencies]).tolist()
    return [*cdf, 65536], -reach


def random_symbols(
    rng: np.random.Generator,
    sizes: np.ndarray,
    offsets: np.ndarray,
    count: int,
    escape_rate: float,
) -> tuple[list[int], list[int]]:
    """Symbols and indexes. Escapes stay below 28 bits: from there on CompressAI does not end."""
    indexes = rng.integers(0, len(sizes), count)
    num_values = sizes[indexes] - 2
    rank = (rng.random(count) * num_values).astype(np.int64)
    distance = np.exp2(rng.random(count) * 27).astype(np.int64) - 1
    escaped = np.where(rng.integers(0, 2, count) == 1, num_values + distance, -1 - distance)
    rank = np.where(rng.random(count) < escape_rate, escaped, rank)
    return (offsets[indexes] + rank).tolist(), indexes.tolist()


def random_case(rng: np.random.Generator, most_symbols: int = 40) -> dict:
    """Tables and the calls of one stream; CompressAI writes past its buffer for less than 3."""
    cdfs = [random_cdf(rng, int(rng.integers(3, 40))) for _ in range(rng.integers(1, 5))]
    sizes = np.array([len(cdf) for cdf in cdfs])
    if rng.integers(2):  # rows of one length, as EntropyModel has them
        cdfs = [cdf + [0] * (int(sizes.max()) - len(cdf)) for cdf in cdfs]
    offsets = rng.integers(-40, 10, len(cdfs)) + int(rng.choice([0, 0, 2**30, -(2**30)]))
    escape_rate = rng.choice([0, 0.05, 1])
    count = int(rng.integers(3, most_symbols))
    symbols, indexes = random_symbols(rng, sizes, offsets, count, escape_rate)
    cut = int(rng.integers(0, count + 1))
    return {
        "cdfs": cdfs,
        "cdfs_sizes": sizes.tolist(),
        "offsets": offsets.tolist(),
        "calls": [
            {"symbols": symbols[:cut], "indexes": indexes[:cut]},
            {"symbols": symbols[cut:], "indexes": indexes[cut:]},
        ],
    }


def gaussian_case(rng: np.random.Generator) -> dict:
    """As GaussianConditional codes a latent: padded rows, scales in geometric steps."""
    scales = np.geomspace(0.11, 30, 12)
    cdfs, offsets = zip(*(gaussian_cdf(scale) for scale in scales), strict=True)
    width = max(map(len, cdfs))
    indexes = rng.integers(0, len(scales), 1500)
    symbols = np.rint(rng.standard_normal(indexes.size) * scales[indexes] * 1.3).astype(int)
    return {
        "cdfs": [cdf + [0] * (width - len(cdf)) for cdf in cdfs],
        "cdfs_sizes": [len(cdf) for cdf in cdfs],
        "offsets": list(offsets),
        "calls": [{"symbols": symbols.tolist(), "indexes": indexes.tolist()}],
    }


def main() -> None:
    ans = load_compressai_ans()
    if ans is None:
        raise SystemExit("CompressAI is not installed")
    rng = np.random.default_rng(0)
    cases = [random_case(rng, most_symbols=100) for _ in range(60)] + [gaussian_case(rng)]
    for case in cases:
        encoder = ans.BufferedRansEncoder()
        for call in case["calls"]:
            encoder.encode_with_indexes(
                call["symbols"], call["indexes"],
                case["cdfs"], case["cdfs_sizes"], case["offsets"],
            )  # fmt: skip
        case["stream"] = encoder.flush().hex()
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    RECORDED.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
