"""Run by test_wave_network_cuda.py with TRITON_INTERPRET=1: wave decoding, without a GPU."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np

from pycodec.triton_kernels.wave_network import WaveDecoder


def helpers():
    """test_wave_network.py, which is a part of a package."""
    package = types.ModuleType("tests")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["tests"] = package
    return importlib.import_module("tests.context.test_wave_network")


def main() -> None:
    cases = helpers()
    count = 0
    for order, steps in cases.ORDERS.items():
        for groups, widths, kernels, size in (
            (1, (), (), (2, 3)),
            (3, (5, 20, 5), (3, 5, 1), (3, 4)),
            (2, (17,), (3,), (5, 3)),
        ):
            rng = np.random.default_rng(count)
            network = cases.random_network(rng, steps, groups, widths, kernels)
            symbols = cases.random_volume(rng, groups, *size)
            stream = network.encode(symbols, cases.TABLES)
            decoded = WaveDecoder(network, "cpu").decode(stream, cases.TABLES, *size)
            if not np.array_equal(decoded, symbols):
                raise SystemExit(f"differs: {order} {groups} {widths} {size}")
            count += 1
    print(f"{count} streams are decoded")


if __name__ == "__main__":
    main()
