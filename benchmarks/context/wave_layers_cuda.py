"""What does each layer add to the time of a wave on a GPU?

Networks that grow by a layer at a time, decoded by the persistent kernel of
``wave_network_cuda.py``: the first two are the first layer and the head alone, with as many lanes
as a stream has and with fewer, so that what the draw takes can be told from what layers take. What
was decoded is checked.

Peer: each network of the one before it; nothing to install.

    python benchmarks/context/wave_layers_cuda.py [--size 768x512] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from wave_network import TABLES, kmac_per_pixel, make_layers, steps_of
from wave_network_cuda import LANES, launch_seconds

from pycodec.context.wave_network import WaveNetwork
from pycodec.context.wave_network_cuda import CudaWaveNetwork, Launch
from pycodec.models.lossless_network import PLANES, SIZES, LosslessConfig

NETWORKS = {
    "first, head": LosslessConfig(hidden=(), blocks=(), head=1),
    "+ 1x1": LosslessConfig(hidden=(1,), blocks=(), head=1),
    "+ 3x3": LosslessConfig(hidden=(3,), blocks=(), head=1),
    "+ 3x3, 3x3": LosslessConfig(hidden=(3, 3), blocks=(), head=1),
    "+ 5x5": LosslessConfig(hidden=(5,), blocks=(), head=1),
    "+ 5x5, 5x5": LosslessConfig(hidden=(5, 5), blocks=(), head=1),
    **SIZES,
}
LAUNCHES = [
    Launch(threads=threads, blocks_per_multiprocessor=blocks)
    for threads, blocks in ((64, 1), (128, 1), (256, 1), (128, 2))
]
FEW_LANES = 16


@dataclass(frozen=True)
class Result:
    device: str
    network: str
    height: int
    width: int
    kmac_per_pixel: float
    lanes: int
    threads: int
    blocks: int
    meetings: int  # of all blocks, in a wave
    us_per_wave: float


def measure(name: str, lanes: int, height: int, width: int, repeats: int) -> Iterator[Result]:
    layers = make_layers(NETWORKS[name], "slope")
    network = WaveNetwork(layers, steps_of(layers, "slope", height, width))
    on_gpu = CudaWaveNetwork(network)
    symbols = np.random.default_rng(1).integers(0, 2, (PLANES, height, width)).astype(np.int32)
    stream = on_gpu.encode(symbols, TABLES, lanes=lanes)
    for launch in LAUNCHES:

        def queue(launch: Launch = launch):
            return on_gpu.queue_decode(stream, TABLES, height, width, launch=launch)

        if not np.array_equal(queue().wait().cpu().numpy(), symbols):
            raise AssertionError(f"{launch} decoded other symbols")
        yield Result(
            torch.cuda.get_device_name(),
            name,
            height,
            width,
            kmac_per_pixel(layers),
            lanes,
            launch.threads,
            on_gpu.grid(launch, lanes, TABLES)[0],
            len(on_gpu.stages) + 1,
            1e6 * launch_seconds(queue, repeats) / network.num_waves(height, width),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="768x512")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    width, height = map(int, options.size.split("x"))
    results = []
    for name, lanes in [("first, head", FEW_LANES), *((name, LANES) for name in NETWORKS)]:
        for r in measure(name, lanes, height, width, options.repeats):
            print(
                f"{r.network:12} {r.kmac_per_pixel:6.1f} kMAC {r.lanes:3} lanes {r.blocks:4} x "
                f"{r.threads:3} {r.meetings:3} meetings {r.us_per_wave:8.2f} us a wave",
                flush=True,
            )
            results.append(r)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
