"""Run by test_wave_network_cuda.py with TRITON_INTERPRET=1: wave decoding, without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from skimage import data

from pycodec.coding import rans
from pycodec.coding.tables import TableSet
from pycodec.context.wave_network import WaveNetwork
from pycodec.models.lossless_network import bit_planes
from pycodec.models.zoo import load_model
from pycodec.triton_kernels.wave_network import WaveDecoder

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: pycodec is the installed one

from tests.context import test_wave_network as cases


def check(network: WaveNetwork, symbols: np.ndarray, tables: TableSet) -> None:
    """Triton writes what C++ does, and reads it back."""
    stream = network.encode(symbols, tables)
    indexes = network.table_indexes(symbols, backend="triton")
    at = tuple(np.concatenate(network.waves(*symbols.shape[1:])).T)
    assert rans.encode(symbols[at], indexes[at], tables) == stream
    decoded = WaveDecoder(network, "cpu").decode(stream, tables, *symbols.shape[1:])
    assert np.array_equal(decoded, symbols)


def main() -> None:
    count = 0
    for order, steps in cases.ORDERS.items():
        for groups, widths, kernels, size in (
            (1, (), (), (2, 3)),
            *([(3, (5, 20, 5), (3, 5, 1), (3, 4))] if order == "slope" else []),
            (2, (17,), (3,), (5, 3)),
        ):
            rng = np.random.default_rng(count)
            network = cases.random_network(rng, steps, groups, widths, kernels)
            try:
                check(network, cases.random_volume(rng, groups, *size), cases.TABLES)
            except AssertionError as error:
                raise SystemExit(f"differs: {order} {groups} {widths} {size}") from error
            count += 1
    # The larger tcae runs the same kernels, and takes the interpreter minutes.
    codec = load_model("tcae-fast")
    pixels = torch.from_numpy(data.camera()[200:203, 200:204])
    symbols = bit_planes(pixels[None])[0].numpy().astype(np.int32)
    check(codec.gray, symbols, codec.tables)
    print(f"{count + 1} streams are written and decoded")


if __name__ == "__main__":
    main()
