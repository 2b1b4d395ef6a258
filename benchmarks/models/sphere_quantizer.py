"""Would another quantizer than rounding to the nearest step serve the codec for the sphere?

On equirectangular (ERP) pictures, with the model as it is, by the mean over qualities of the
logarithm of bpp + lambda 255^2 MSE, the error weighted by area:

- points of reconstruction: symbols of a scale level and magnitude are reconstructed, in the loop,
  at the mean of the latents that they stand for, or a part of the way there (negative: away);
- rate-distortion optimized thresholds: magnitude k + 1 is chosen over k if the squared error that
  it saves, at the slope of a uniform quantizer at high rate (lambda step^2 = 6 / ln 2), is worth
  more than a share of the bits that it costs under the level's table (negative: it is a gain).

Codec and steps are those of pycodec, quantization and reconstruction the PyTorch definitions here,
rates those of the tables. To be run on training pictures: it fits what it measures.

    python benchmarks/models/sphere_quantizer.py ERP --json benchmarks/results/sphere_quantizer.json
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from pycodec.context import integer_entropy_model
from pycodec.evaluation.sphere import row_weights
from pycodec.images import load_image
from pycodec.models import sphere
from pycodec.models.photo_network import quality_lambda
from pycodec.models.zoo import load_model
from pycodec.ops.quadtree_stage import LATENT_LIMIT, ROUNDING_ONE, SCALE_LEVELS, stage_group

QUALITIES = (5.0, 35.0, 65.0, 95.0)
MAGNITUDES = 4
"""Tables distinguish magnitudes 0 to 3, of which the last stands for all above."""

FRACTIONS = (1.0, 0.15, -0.15)
SHARES = (0.5, 0.25, 0.1, -0.1)


@dataclass
class Quantizer:
    """Both steps, with tables by scale level and magnitude.

    Attributes:
        rounding: int64 [64, 4], of ROUNDING_ONE: what is added to the fraction above a magnitude.
        offsets: int64 [64, 4], of ROUNDING_ONE: added to a magnitude in the reconstruction.
        count, total: flat, of the symbols, and by how much their latents exceed them in magnitude.
    """

    rounding: Tensor
    offsets: Tensor = field(
        default_factory=lambda: torch.zeros((SCALE_LEVELS, MAGNITUDES), dtype=torch.int64)
    )
    count: Tensor = field(default_factory=lambda: torch.zeros(SCALE_LEVELS * MAGNITUDES))
    total: Tensor = field(default_factory=lambda: torch.zeros(SCALE_LEVELS * MAGNITUDES))

    def quantize(
        self, latents, stage, mean, index, step, rounding, *, threads=1, backend="native"
    ) -> Tensor:
        """Instead of ``quantize_residuals``; its own ``rounding`` is not used."""
        where = channels_of(stage, latents)
        difference = latents.long().gather(2, where) - mean.long()
        size, level = step.long()[where], index.long()
        floor = difference.abs() // size
        offset = self.rounding[level, floor.clamp(max=MAGNITUDES - 1)]
        magnitude = (ROUNDING_ONE * difference.abs() + offset * size) // (ROUNDING_ONE * size)
        magnitude = torch.where(self.rounding[level, 0] < 0, 0, magnitude)
        flat = (level * MAGNITUDES + magnitude.clamp(max=MAGNITUDES - 1)).flatten()
        excess = torch.where(magnitude == 0, 0, difference.abs() / size - magnitude).flatten()
        self.count.index_add_(0, flat, torch.ones_like(excess))
        self.total.index_add_(0, flat, excess)
        self._level = level  # of the symbols that are reconstructed next
        return (difference.sign() * magnitude).int()

    def reconstruct(
        self,
        symbols,
        stage,
        mean,
        step,
        multiplier,
        shift,
        latents,
        context,
        *,
        threads=1,
        backend="native",
    ) -> None:
        """Instead of ``reconstruct_stage``."""
        where = channels_of(stage, latents)
        size, symbols = step.long()[where], symbols.long()
        offset = self.offsets[self._level, symbols.abs().clamp(max=MAGNITUDES - 1)]
        moved = symbols.sign() * ((offset * size + ROUNDING_ONE // 2) // ROUNDING_ONE)
        value = (mean.long() + symbols * size + moved).clamp(-LATENT_LIMIT, LATENT_LIMIT)
        latents.scatter_(2, where, value.int())
        seen = (value * multiplier.long()[where] + (1 << (shift - 1))) >> shift
        context.scatter_(2, where, seen.clamp(-127, 127).to(torch.int8))

    def centroids(self) -> Tensor:
        """Where the latents of what was quantized so far lie: [64, 4], in steps."""
        return (self.total / self.count.clamp(min=1)).view(SCALE_LEVELS, MAGNITUDES)


def channels_of(stage: int, latents: Tensor) -> Tensor:
    height, width, channels = latents.shape
    group = torch.from_numpy(stage_group(stage, height, width))
    return (group * (channels // 4))[..., None] + torch.arange(channels // 4)


@dataclass(frozen=True)
class Analysed:
    """A picture at one quality, up to the quantizer."""

    pixels: np.ndarray
    multiplier: float
    latents: Tensor
    hyperlatents: Tensor
    grid: sphere.SphereGrid
    qualities: list[int]


def analyse(codec: sphere.SphereCodec, pixels: np.ndarray, quality: float) -> Analysed:
    _, full = sphere.grid_size(*pixels.shape[:2])
    code = round(100 * quality)
    grid = sphere.SphereGrid(tuple(sphere._widths_for(pixels, code)))
    qualities = sphere._qualities(grid, code, full)
    y = torch.cat(list(codec._analysed(pixels, grid, qualities)))
    latents, hyperlatents = codec._to_be_coded(y, grid, qualities)
    multiplier = float(quality_lambda(torch.tensor(quality)))
    return Analysed(pixels, multiplier, latents, hyperlatents, grid, qualities)


def measure(
    codec: sphere.SphereCodec, pictures: dict[float, list[Analysed]], quantizer: Quantizer
) -> dict[float, tuple[float, float]]:
    """Mean bpp and mean squared error by quality."""
    model = codec.photo.entropy_model
    patches = {"quantize_residuals": quantizer.quantize, "reconstruct_stage": quantizer.reconstruct}
    found = {}
    with mock.patch.multiple(integer_entropy_model, **patches):
        for quality, group in pictures.items():
            rates, errors = [], []
            for p in group:
                height, width = p.pixels.shape[:2]
                coded = model.encode_sphere(
                    p.latents, p.hyperlatents, p.grid, p.qualities, torch.get_num_threads()
                )
                rates.append(
                    model.tables.cost_bits(coded.symbols, coded.indexes) / (height * width)
                )
                tiles, full = sphere.grid_size(height, width)
                x = codec._synthesize(coded.latents, p.grid, p.qualities, full, 0, tiles)
                x = sphere._to_rows(x, 0, sphere.UNIT * tiles, height, 0, height)
                x = sphere._to_width(x, width)
                decoded = (x[0] * 255).round().clamp(0, 255).permute(1, 2, 0).numpy()
                rows = np.square(decoded - p.pixels).mean((1, 2))
                errors.append(float(np.average(rows, weights=row_weights(height))))
            found[quality] = (float(np.mean(rates)), float(np.mean(errors)))
    return found


def costs(found: dict[float, tuple[float, float]]) -> dict[float, float]:
    """Logarithm of the cost by quality."""
    return {
        quality: math.log(rate + float(quality_lambda(torch.tensor(quality))) * error)
        for quality, (rate, error) in found.items()
    }


def thresholds(codec: sphere.SphereCodec, rounding: Tensor, share: float) -> Tensor:
    """Rounding offsets, int64 [64, 4], that charge a share of what the next magnitude costs."""
    tables = codec.photo.entropy_model.tables
    result = rounding.clone()
    for level in range(SCALE_LEVELS):
        if rounding[level, 0] < 0:
            continue  # zeros for certain
        bits = [
            tables.cost_bits(np.array([k], np.int32), np.array([level], np.uint8))
            for k in range(MAGNITUDES + 1)
        ]
        more = share * np.diff(bits) * math.log(2) / 12
        result[level] = torch.from_numpy(
            np.rint(ROUNDING_ONE * (0.5 - more)).clip(0, ROUNDING_ONE - 1).astype(np.int64)
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    paths = sorted(p for p in args.folder.iterdir() if p.is_file())
    codec = sphere.SphereCodec(load_model(args.model))
    rounding = codec.photo.entropy_model._rounding[:SCALE_LEVELS].long()
    rounding = rounding[:, None].repeat(1, MAGNITUDES)
    with torch.inference_mode():
        pixels = [load_image(path).pixels for path in paths]
        pictures = {q: [analyse(codec, p, q) for p in pixels] for q in QUALITIES}
        nearest = Quantizer(rounding)
        base = measure(codec, pictures, nearest)
        centroids = nearest.centroids()
        trials = {
            f"reconstruction, {fraction:g} of the way": Quantizer(
                rounding, torch.round(ROUNDING_ONE * fraction * centroids).long()
            )
            for fraction in FRACTIONS
        }
        trials |= {
            f"thresholds, {share:g} of the bits": Quantizer(thresholds(codec, rounding, share))
            for share in SHARES
        }
        print(f"{len(paths)} pictures; cost against rounding to nearest at {QUALITIES}, mean")
        report = {}
        for name, quantizer in trials.items():
            found = measure(codec, pictures, quantizer)
            before, after = costs(base), costs(found)
            percent = [100 * (after[q] - before[q]) for q in QUALITIES]
            report[name] = {
                "cost_percent": dict(zip(map(str, QUALITIES), np.round(percent, 2), strict=True)),
                "mean": round(float(np.mean(percent)), 2),
                "rate_percent": [round(100 * (found[q][0] / base[q][0] - 1), 2) for q in QUALITIES],
                "error_db": [
                    round(10 * math.log10(found[q][1] / base[q][1]), 3) for q in QUALITIES
                ],
            }
            line = "  ".join(f"{value:+6.2f}" for value in percent)
            print(f"{name:32} {line}  mean {np.mean(percent):+.2f} %", flush=True)
    shown = {
        str(level): [round(v, 3) for v in centroids[level, 1:].tolist()]
        for level in range(3, 45, 6)
    }
    print("centroids of magnitudes 1, 2, 3 and more, in steps, by level:", shown)
    if args.json:
        args.json.write_text(
            json.dumps({"pictures": len(paths), "trials": report, "centroids": shown}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
