"""What quantization does to each layer: sensitivity, bits, size, time; a table and a plot."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pycodec.evaluation.extras import require
from pycodec.models.integer_transforms import IntegerTransform
from pycodec.models.photo import TRANSFORMS
from pycodec.models.photo_network import PhotoNetwork
from pycodec.quantization.simulation import SimulatedTransforms
from pycodec.training.train import rate_distortion_loss

QUALITIES = (25.0, 50.0, 95.0)


@dataclass
class RateDistortion:
    """Of pictures at several qualities, with estimated bits.

    Attributes:
        points: mean bits a pixel and mean PSNR (dB) at each quality.
        cost: mean over qualities of the logarithm of the mean loss: 0.01 is about 1 % of rate.
        bits: mean width of the branches' weights for each picture and quality; empty if float.
        choices: how many of the pictures and qualities chose each width, by layer.
    """

    points: list[tuple[float, float]]
    cost: float
    bits: list[float] = field(default_factory=list)
    choices: dict[str, Counter[int]] = field(default_factory=dict)


@torch.no_grad()
def rate_distortion(
    model: SimulatedTransforms | PhotoNetwork,
    pictures: Sequence[Tensor],
    qualities: Sequence[float] = QUALITIES,
) -> RateDistortion:
    """Code pictures float [B, 3, H, W] in [0, 1], sides multiples of 16, at each quality.

    They are on the model's device. Those of one size may lie in one tensor, which is faster there.
    """
    # Inputs of 14 bits and weights of 12 need float32, of which a GPU's TF32 is not half.
    exact = torch.backends.cudnn.flags(
        enabled=True, benchmark=torch.backends.cudnn.benchmark, allow_tf32=False
    )
    with exact:
        return _rate_distortion(model.eval(), pictures, qualities)


def _rate_distortion(
    model: SimulatedTransforms | PhotoNetwork,
    pictures: Sequence[Tensor],
    qualities: Sequence[float],
) -> RateDistortion:
    result = RateDistortion([], 0.0)
    for value in qualities:
        losses, rates, psnrs = [], [], []
        for x in pictures:
            quality = torch.full((len(x),), value, device=x.device)
            if isinstance(model, SimulatedTransforms):
                coded = model(x, quality)
                x_hat, bits = coded.x_hat, coded.bits
                result.bits += coded.weight_bits.tolist()
                for name, choice in coded.choices.items():
                    widths = model.layer(name).widths
                    chosen = [widths[index] for index in choice.argmax(1).tolist()]
                    result.choices.setdefault(name, Counter()).update(chosen)
            else:
                x_hat, y_bits, z_bits = model(x, quality)
                bits = y_bits + z_bits
            loss, bpp, mse = rate_distortion_loss(x, x_hat.clamp(0, 1), bits, quality)
            losses += [float(loss)] * len(x)
            rates += bpp.tolist()
            psnrs += (-10 * mse.clamp(min=1e-10).log10()).tolist()
        result.points.append((sum(rates) / len(rates), sum(psnrs) / len(psnrs)))
        result.cost += math.log(sum(losses) / len(losses)) / len(qualities)
    return result


def sensitivity(
    model: SimulatedTransforms,
    pictures: Sequence[Tensor],
    qualities: Sequence[float] = QUALITIES,
    layers: Collection[str] | None = None,
) -> dict[str, dict[int, float]]:
    """The loss, in per cent, when only one layer is quantized, by layer and by width.

    Args:
        model: left as it was.
        pictures, qualities: as of :func:`rate_distortion`.
        layers: to try; by default all.
    """
    state = [(q, q.enabled, q.active) for q in model.quantizers]
    selectors, model.selectors = model.selectors, torch.nn.ModuleDict()
    losses: dict[str, dict[int, float]] = {}
    try:
        for quantizer in model.quantizers:
            quantizer.enabled = False
        base = rate_distortion(model, pictures, qualities).cost
        for name, quantizer in zip(model.names, model.quantizers, strict=True):
            if layers is not None and name not in layers:
                continue
            quantizer.enabled = True
            losses[name] = {}
            for variant, width in enumerate(quantizer.widths):
                quantizer.active = variant
                cost = rate_distortion(model, pictures, qualities).cost
                losses[name][width] = 100 * (math.exp(cost - base) - 1)
            quantizer.enabled = False
    finally:
        model.selectors = selectors
        for quantizer, enabled, active in state:
            quantizer.enabled, quantizer.active = enabled, active
    return losses


def widths_by_sensitivity(
    losses: Mapping[str, Mapping[int, float]], costs: Mapping[str, float], mean_bits: float
) -> dict[str, int]:
    """A width for each layer such that they have ``mean_bits`` in the mean, at little loss.

    Starts from the widest; again and again the layer whose next narrower width costs the least loss
    for the bits that it saves gets it.

    Args:
        losses: of :func:`sensitivity`, of the layers that have a choice.
        costs: multiply-accumulates of each layer.
        mean_bits: the mean width, over multiply-accumulates, that is to be reached.
    """
    total = sum(costs[name] for name in losses)
    chosen = {name: max(by_width) for name, by_width in losses.items()}

    def steps() -> list[tuple[float, str, int]]:
        found = []
        for name, width in chosen.items():
            for narrower in (w for w in losses[name] if w < width):
                saved = costs[name] / total * (width - narrower)
                loss = losses[name][narrower] - losses[name][width]
                found.append((loss / saved, name, narrower))
        return found

    while sum(costs[n] * w for n, w in chosen.items()) / total > mean_bits and steps():
        _, name, width = min(steps())
        chosen[name] = width
    return chosen


@dataclass
class LayerReport:
    """A row of the report.

    Attributes:
        name: of the layer, ``synthesis.blocks8.0.conv``.
        bits: of its weights: how many pictures and qualities have each width.
        loss_percent: when only it is quantized, by width.
        macs: multiply-accumulates for each pixel.
        weights: how many there are.
        bytes: of its weights in the file, all variants.
        milliseconds: of the integer engine, None where it was not timed.
    """

    name: str
    bits: dict[int, int]
    loss_percent: dict[int, float]
    macs: float
    weights: int
    bytes: int
    milliseconds: float | None = None

    @property
    def mean_bits(self) -> float:
        return sum(b * n for b, n in self.bits.items()) / sum(self.bits.values())


def weight_bytes(weights: int, width: int) -> int:
    """Of so many weights in the file: two a byte to 4 bits, two in three bytes from 9 to 12."""
    units = 1 if width <= 4 else 2 if width <= 8 else 3 if width <= 12 else 4
    return -(-weights * units // 2)


def layer_milliseconds(
    tensors: Mapping[str, Tensor], pixels: np.ndarray, repeats: int = 5
) -> dict[str, float]:
    """Time of each layer in the integer engine, the best of ``repeats``, by name.

    Layers run one at a time, with their widest variants, on all threads. (The codec runs a
    transform as one program, which saves the pauses between layers.)

    Args:
        tensors: of ``export``.
        pixels: uint8 [H, W, 3], sides multiples of 64.
        repeats: after one that does not count.
    """
    best: dict[str, float] = {}
    with torch.inference_mode():
        x = torch.tensor(pixels)
        for name in TRANSFORMS:
            prefix = f"{name}."
            part = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            transform = IntegerTransform(name, {k: v for k, v in part.items() if "@" not in k})
            for turn in range(repeats + 1):
                for layer, seconds in transform.time_layers(x, 5000).items():
                    if turn:
                        key = prefix + layer
                        best[key] = min(best.get(key, math.inf), 1e3 * seconds)
            if name == "analysis":
                x = transform(x, 5000)
    return best


def layer_reports(
    model: SimulatedTransforms,
    measured: RateDistortion,
    losses: Mapping[str, Mapping[int, float]],
    milliseconds: Mapping[str, float] | None = None,
) -> list[LayerReport]:
    """The rows, in the order of the layers.

    Args:
        model: that was measured.
        measured: of :func:`rate_distortion`.
        losses: of :func:`sensitivity`.
        milliseconds: of each layer in the integer engine.
    """
    rows = []
    for name, quantizer in zip(model.names, model.quantizers, strict=True):
        count = model.network.get_submodule(name).weight.numel()
        chosen = measured.choices.get(name)
        bits = dict(chosen) if chosen else {quantizer.widths[quantizer.active]: len(measured.bits)}
        rows.append(
            LayerReport(
                name,
                dict(sorted(bits.items())),
                dict(losses[name]),
                model.costs[name],
                count,
                sum(weight_bytes(count, width) for width in quantizer.widths),
                None if milliseconds is None else milliseconds.get(name),
            )
        )
    return rows


def write_report(folder: Path, rows: Sequence[LayerReport]) -> None:
    """Write ``layers.csv``, ``layers.md`` and ``layers.png``.

    Raises:
        CodecError: matplotlib is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    widths = sorted({w for row in rows for w in (*row.bits, *row.loss_percent)})
    header = ["layer", "mean bits"]
    header += [f"chosen {w}" for w in widths] + [f"loss % at {w}" for w in widths]
    header += ["MAC/pixel", "weights", "bytes", "ms"]
    table = []
    for row in rows:
        line = [row.name, f"{row.mean_bits:.2f}"]
        line += [str(row.bits.get(w, 0)) for w in widths]
        line += [f"{row.loss_percent[w]:.3f}" if w in row.loss_percent else "" for w in widths]
        line += [f"{row.macs:.0f}", str(row.weights), str(row.bytes)]
        line += ["" if row.milliseconds is None else f"{row.milliseconds:.3f}"]
        table.append(line)
    with (folder / "layers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *table])
    ruled = [header, ["---", *["---:"] * (len(header) - 1)], *table]
    text = "".join("| " + " | ".join(line) + " |\n" for line in ruled)
    (folder / "layers.md").write_text(text)
    _plot(folder / "layers.png", rows, widths)


def _plot(path: Path, rows: Sequence[LayerReport], widths: Sequence[int]) -> None:
    require("matplotlib", "eval")
    from matplotlib.figure import Figure

    places = range(len(rows))
    figure = Figure(figsize=(0.28 * len(rows) + 2, 8), layout="constrained")
    above, middle, below = figure.subplots(3, 1, sharex=True)
    for width in widths:
        points = [(i, r.loss_percent[width]) for i, r in enumerate(rows) if width in r.loss_percent]
        above.plot(*zip(*points, strict=True), "o", label=f"{width} bits")
    above.set_yscale("symlog", linthresh=0.1)
    above.set_ylabel("loss alone, %")
    above.legend()
    foot = [0.0] * len(rows)
    for width in widths:
        shares = [r.bits.get(width, 0) / sum(r.bits.values()) for r in rows]
        middle.bar(places, shares, bottom=foot, label=f"{width} bits")
        foot = [f + s for f, s in zip(foot, shares, strict=True)]
    middle.set_ylabel("share of pictures")
    timed = all(r.milliseconds is not None for r in rows)
    below.bar(places, [r.milliseconds if timed else r.macs for r in rows])
    below.set_ylabel("ms" if timed else "MAC/pixel")
    below.set_xticks(list(places), [r.name for r in rows], rotation=90, fontsize=6)
    figure.savefig(path, dpi=120)
