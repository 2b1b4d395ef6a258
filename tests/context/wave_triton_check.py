"""Run by test_wave_network_cuda.py with TRITON_INTERPRET=1: wave decoding, without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pycodec.triton_kernels.wave_network import WaveDecoder

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: pycodec is the installed one

from tests.context import test_wave_network as cases


def main() -> None:
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
