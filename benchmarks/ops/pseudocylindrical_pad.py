"""The padding of pseudocylindrical tiles against copying, grid_sample and a loop over the tiles.

Question: how close does the padding come to what memory allows? It reads every pixel of the tiles
once and writes the padded tiles, zeros included; over its time these bytes are compared with those
of PyTorch's copy of a tensor as large as the result, measured in turns with it. All take their turn
after a rest, when what they read and write is no longer in the caches, nor their own code: of the
smallest layers a part of the time is that of Python. ``grid_sample``
takes the whole representation as one picture and samples it where the definition says, from a grid
that was made before; the loop concatenates, tile by tile, rows that were resampled by indexing, as
one would write it in plain PyTorch. Results are checked against each other.

Layers are those of a network on a picture of 512 x 1024: its levels, with the padding of 5 x 5
kernels; on a GPU most of them stay in its second-level cache, copies too. On the CPU memory is kept
from call to call (M_MMAP_MAX, M_TRIM_THRESHOLD), for the copy as for the others: otherwise the
system's clearing of fresh pages is most of what is measured.

Peer: PyTorch's own operations; nothing to install.

    python benchmarks/ops/pseudocylindrical_pad.py [--threads 1 2] [--device cuda] [--layers 64x8]
                                                   [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import graph_seconds, keep_memory, time_side_by_side
from torch import Tensor
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.ops import pseudocylindrical_pad
from pycodec.ops.backends import cuda_kernels
from pycodec.ops.pseudocylindrical_pad import read_positions
from pycodec.projection.widths import TileWidths

LAYERS = (
    # channels, rows of a tile, width, padding, dtype, channels last
    (3, 16, 1024, 2, torch.float32, False),
    (64, 8, 512, 2, torch.float32, False),
    (192, 8, 512, 2, torch.float32, False),
    (192, 4, 256, 2, torch.float32, False),
    (192, 2, 128, 2, torch.float32, False),
    (192, 1, 64, 2, torch.float32, False),
    (192, 8, 512, 1, torch.float32, False),
    (192, 4, 256, 1, torch.float32, False),
    (192, 4, 256, 2, torch.float32, True),
    (192, 4, 256, 2, torch.bfloat16, False),
    (192, 4, 256, 2, torch.float16, False),
    (192, 4, 256, 2, torch.int8, True),
    (192, 8, 512, 2, torch.int8, True),
)


def layer_name(
    channels: int, height: int, width: int, pad: int, dtype: torch.dtype, channels_last: bool
) -> str:
    layout = "NHWC" if channels_last else "NCHW"
    element = str(dtype).removeprefix("torch.")
    return f"{channels}x{height}x{width} pad {pad} {element} {layout}"


@dataclass(frozen=True)
class Row:
    """One implementation of one layer."""

    layer: str
    threads: int
    implementation: str
    median_ms: float
    gb_s: float
    share_of_copy: float


class GridSample:
    """The definition's positions as a grid over the tiles, stacked, with a column around."""

    def __init__(self, widths: tuple[int, ...], height: int, width: int, pad: int) -> None:
        g, position, _, inside = read_positions(widths, height, width, (pad, pad))
        tiles = len(widths)
        double = torch.tensor(widths)[:, None, None] * 2
        # A column before the first and one behind the last make rows go around.
        column = torch.from_numpy(position.copy()) / double + 1
        x = (column + 0.5) / (width + 2) * 2 - 1
        y = (torch.from_numpy(g.copy()) + 0.5) / (tiles * height) * 2 - 1
        self.grid = torch.stack([x, y], -1).float().flatten(0, 1)[None]
        self.inside = torch.from_numpy(inside.copy()).float().unsqueeze(1)
        self.widths, self.pad = widths, pad

    def to(self, device: str) -> GridSample:
        self.grid, self.inside = self.grid.to(device), self.inside.to(device)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        tiles, channels, height, width = x.shape
        around = x.new_zeros(tiles, channels, height, width + 2)
        around[..., 1:-1] = x
        for tile, w in enumerate(self.widths):
            around[tile, ..., 0] = x[tile, ..., w - 1]
            around[tile, ..., w + 1] = x[tile, ..., 0]
        picture = around.transpose(0, 1).reshape(1, channels, tiles * height, width + 2)
        sampled = F.grid_sample(picture, self.grid, mode="bilinear", align_corners=False)
        padded = sampled.view(channels, tiles, -1, width + 2 * self.pad).transpose(0, 1)
        return (padded * self.inside).contiguous()


class TileLoop:
    """Plain PyTorch, a padded tile at a time; indices and weights are made before."""

    def __init__(self, widths: tuple[int, ...], height: int, width: int, pad: int) -> None:
        g, position, source, _ = read_positions(widths, height, width, (pad, pad))
        self.pieces: list[list[tuple[int, int, Tensor, Tensor, Tensor]]] = []
        for tile, w in enumerate(widths):
            self.pieces.append([])
            for r in range(height + 2 * pad):
                columns = slice(0, w + 2 * pad)
                place = torch.from_numpy(position[tile, r, columns].copy())
                left = place // (2 * w)
                right = (left + 1) % int(source[tile, r, 0])
                weight = (place % (2 * w)).float() / (2 * w)
                row = int(g[tile, r, 0])
                self.pieces[-1].append((row // height, row % height, left, right, weight))
        self.width, self.pad = width, pad

    def to(self, device: str) -> TileLoop:
        self.pieces = [
            [(t, r, *(v.to(device) for v in rest)) for t, r, *rest in rows] for rows in self.pieces
        ]
        return self

    def __call__(self, x: Tensor) -> Tensor:
        tiles = []
        for pieces in self.pieces:
            rows = []
            for tile, row, left, right, weight in pieces:
                source = x[tile, :, row]
                rows.append(torch.lerp(source[:, left], source[:, right], weight))
            padded = torch.stack(rows, 1)
            tiles.append(F.pad(padded, (0, self.width + 2 * self.pad - padded.shape[2])))
        return torch.stack(tiles)


def make_runs(
    x: Tensor, widths: tuple[int, ...], pad: int, channels_last: bool, backends: list[str]
) -> dict[str, Callable[[], Tensor]]:
    """The implementations that take the layer."""
    runs = {
        backend: lambda b=backend: pseudocylindrical_pad(
            x, widths, pad, channels_last=channels_last, backend=b
        )
        for backend in backends
    }
    if x.dtype == torch.float32 and not channels_last:
        _, _, height, width = x.shape
        for make in (GridSample, TileLoop):
            baseline = make(widths, height, width, pad).to(x.device)
            runs[make.__name__] = lambda b=baseline: b(x)
    return runs


def check(runs: dict[str, Callable[[], Tensor]]) -> Tensor:
    """All implementations give the same, up to rounding; returns it."""
    results = [run().float() for run in runs.values()]
    for name, result in zip(runs, results, strict=True):
        # grid_sample computes positions in float32, to about 1e-4 of a column.
        error = float((result - results[0]).abs().max() / results[0].abs().max())
        if error > 1e-3:
            raise AssertionError(f"{name} differs by {error:.1e}")
    return next(iter(runs.values()))()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7, help="at least")
    parser.add_argument("--seconds", type=float, default=3, help="for a layer, at least")
    parser.add_argument(
        "--layers", default="", metavar="TEXT", help="only those with it in the name"
    )
    parser.add_argument("--widths", default="optimized", help="a preset")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    torch.manual_seed(0)
    on_gpu = options.device == "cuda"
    if not on_gpu:
        keep_memory()
    if on_gpu:
        backends = [*(["cuda"] if cuda_kernels() else []), "triton"]
        device = torch.cuda.get_device_name()
    else:
        backends, device = ["native"], f"cpu, {_cpu.simd_level()}"
    print(device)
    print(f"{'layer':>36} {'threads':>7}  {'implementation':<16} {'ms':>9} {'GB/s':>7} of copy")
    rows = []
    for threads in [1] if on_gpu else options.threads:
        torch.set_num_threads(threads)
        for layer in LAYERS:
            name, (channels, height, width, pad, dtype, channels_last) = layer_name(*layer), layer
            if options.layers not in name:
                continue
            preset = TileWidths.preset(options.widths)
            widths = preset.pixels(width)
            shape = (height, width, channels) if channels_last else (channels, height, width)
            x = (50 * torch.randn(preset.tiles, *shape)).to(options.device, dtype)
            runs = make_runs(x, widths, pad, channels_last, backends)
            with torch.inference_mode():
                out = check(runs)
                other = torch.empty_like(out)
                runs = {"copy": lambda a=out, b=other: b.copy_(a), **runs}
                if on_gpu:
                    medians = {n: graph_seconds(run, options.rounds) for n, run in runs.items()}
                else:
                    medians = time_side_by_side(runs, options.rounds, options.seconds)
            moved = out.nbytes + x.nbytes * sum(widths) // (len(widths) * width)
            copied = 2 * out.nbytes / medians["copy"]
            for implementation, median in medians.items():
                speed = copied if implementation == "copy" else moved / median
                row = Row(
                    name,
                    threads,
                    implementation,
                    round(median * 1e3, 3),
                    round(speed / 1e9, 2),
                    round(speed / copied, 3),
                )
                print(
                    f"{name:>36} {threads:>7}  {implementation:<16} {row.median_ms:9.3f}"
                    f" {row.gb_s:7.2f} {row.share_of_copy:7.2f}",
                    flush=True,
                )
                rows.append(row)
    if options.json:
        document = {
            "torch": torch.__version__,
            "device": device,
            "widths": options.widths,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
