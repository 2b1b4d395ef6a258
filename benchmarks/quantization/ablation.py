"""What widths and gradients do: static 8, static 4, mixed, dynamic; straight-through, modulated.

Every variant starts from the same calibration of the photo model and is fine-tuned for the same
steps. Rate (estimated) and distortion are those of pictures that neither calibration nor training
saw, cut to their middle. BD-rates are against the float network. What is done is kept in --work, so
that an interrupted run goes on where it was.

    python benchmarks/quantization/ablation.py PICTURES --work RUN \
        --json benchmarks/results/quantization_ablation.json
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycodec.evaluation.bd_rate import bd_rate
from pycodec.models.photo import load_photo_model
from pycodec.models.photo_network import PhotoNetwork
from pycodec.models.zoo import DEFAULT_MODEL, WEIGHTS
from pycodec.quantization.bit_width import WIDTHS
from pycodec.quantization.fake_quant import round_ste
from pycodec.quantization.finetune import FineTuning, calibrate_selectors, fine_tune
from pycodec.quantization.gradient_modulator import round_modulated
from pycodec.quantization.photo import Calibration
from pycodec.quantization.recipe import Plans, by_layer, plan
from pycodec.quantization.report import (
    RateDistortion,
    rate_distortion,
    sensitivity,
    widths_by_sensitivity,
)
from pycodec.quantization.simulation import SimulatedTransforms
from pycodec.training.data import CropSampler, list_pictures, split_pictures
from pycodec.training.train import load_weights, read_scaled, read_whole

ROUNDINGS = {"straight-through": round_ste, "modulated": round_modulated}
MEASURED = (5.0, 25.0, 50.0, 75.0, 95.0)
VARIANTS = (
    ("static 4", "straight-through"),
    ("static 4", "modulated"),
    ("dynamic", "modulated"),
    ("mixed", "modulated"),
    ("static 8", "modulated"),
    ("static 8", "straight-through"),
    ("mixed", "straight-through"),
    ("dynamic", "straight-through"),
)


def float_network() -> PhotoNetwork:
    network = PhotoNetwork()
    load_weights(network, WEIGHTS / DEFAULT_MODEL)
    return network.eval()


def middles(paths: list[Path], side: int) -> list[Tensor]:
    pictures = []
    for path in paths:
        x = read_whole(path)
        top, left = ((s - side) // 2 for s in x.shape[2:])
        if top >= 0 and left >= 0:
            pictures.append(x[:, :, top : top + side, left : left + side].contiguous())
    return pictures


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` returns; from ``path`` if it is there."""
    if path.exists():
        return torch.load(path, weights_only=False)
    value = make()
    temporary = path.with_suffix(".tmp")
    torch.save(value, temporary)
    os.replace(temporary, path)
    return value


class Ablation:
    """The common ground of all variants."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        training, held_out = split_pictures(list_pictures(args.folder))
        # Of the held-out pictures, some choose widths and the others measure.
        pictures = middles(held_out, args.side)
        self.choosing, self.measuring = pictures[:2], pictures[2 : 2 + args.pictures]
        if len(self.measuring) < args.pictures:
            raise SystemExit(
                f"{len(pictures)} held-out pictures are large enough: try a smaller --side"
            )
        self.training = training
        self.work = args.work
        self.work.mkdir(parents=True, exist_ok=True)

        def calibrated() -> Plans:
            step = max(1, len(training) // args.calibration)
            pictures = [read_scaled(path) for path in training[::step]][: args.calibration]
            codec = load_photo_model(WEIGHTS / DEFAULT_MODEL, precision="fp32")
            return plan(Calibration(codec, pictures), WIDTHS, rounded=())

        self.plans = kept(self.work / "plans.pt", calibrated)
        self.streams = {name: by_width[8].streams for name, by_width in self.plans.items()}
        self.float = kept(
            self.work / "float.pt",
            lambda: rate_distortion(float_network(), self.measuring, MEASURED),
        )

    @functools.cached_property
    def mixed(self) -> dict[str, int]:
        """Widths of the mixed variant, by layer."""
        return kept(self.work / "mixed.pt", self._choose_widths)

    def _choose_widths(self) -> dict[str, int]:
        model = self._simulated(WIDTHS)
        losses = sensitivity(model, self.choosing, (75.0,))
        branches = {n: losses[n] for n in losses if len(losses[n]) > 1}
        return widths_by_sensitivity(branches, model.costs, self.args.mean_bits)

    def _simulated(
        self,
        widths: Mapping[str, Sequence[int]] | Sequence[int],
        rounding: str = "straight-through",
        dynamic: bool = False,
    ) -> SimulatedTransforms:
        network = float_network()
        layers = by_layer(self.plans, widths)
        return SimulatedTransforms(network, layers, self.streams, ROUNDINGS[rounding], dynamic)

    def _widths(self, kind: str) -> Mapping[str, Sequence[int]] | Sequence[int]:
        if kind == "mixed":
            return {name: (bits,) for name, bits in self.mixed.items()}
        return WIDTHS if kind == "dynamic" else (int(kind.split()[1]),)

    def calibrated(self, kind: str) -> RateDistortion:
        """Of a kind of static widths, before any fine-tuning."""
        return kept(
            self.work / f"calibrated-{kind}.pt".replace(" ", "-"),
            lambda: rate_distortion(self._simulated(self._widths(kind)), self.measuring, MEASURED),
        )

    def against_float(self, measured: RateDistortion) -> dict:
        rate = bd_rate(self.float.points, measured.points)
        return {
            "bd_rate_percent": None if rate is None else round(rate.percent, 3),
            "loss_percent": round(100 * (measured.cost - self.float.cost), 3),
            "points": [[round(b, 4), round(p, 3)] for b, p in measured.points],
        }

    def run(self, kind: str, rounding: str) -> dict:
        """One variant: before and after its fine-tuning."""
        args = self.args
        model = self._simulated(self._widths(kind), rounding, dynamic=kind == "dynamic")
        # Before it is trained a selector chooses 8 bits.
        before = self.calibrated("static 8" if kind == "dynamic" else kind)
        calibrate_selectors(model, self.choosing, MEASURED)
        options = FineTuning(
            steps=args.steps,
            batch=args.batch,
            crop=args.crop,
            learning_rate=args.learning_rate,
            selector_rate=args.selector_rate,
            bits_cost=args.bits_cost,
        )
        sampler = CropSampler(self.training[::4], args.crop, seed=1)
        name = f"{kind}-{rounding}".replace(" ", "-")
        checkpoint = self.work / f"{name}.pt"
        began = time.process_time()
        fine_tune(model, sampler, options, self._report(name), checkpoint=checkpoint)
        seconds = time.process_time() - began
        after = rate_distortion(model, self.measuring, MEASURED)
        total: Counter[int] = Counter()
        for chosen in after.choices.values():
            total += chosen
        result = {
            "widths": kind,
            "gradient": rounding,
            "mean_bits": round(sum(after.bits) / len(after.bits), 3),
            "bits_range": [round(min(after.bits), 3), round(max(after.bits), 3)],
            "cpu_seconds": round(seconds, 1),
        }
        if total:
            result["chosen"] = {str(w): n for w, n in sorted(total.items())}
        result["calibrated"] = self.against_float(before)
        result["fine_tuned"] = self.against_float(after)
        checkpoint.unlink(missing_ok=True)
        return result

    def _report(self, name: str) -> Callable[[int, float], None]:
        def report(step: int, loss: float) -> None:
            if step % 20 == 0:
                print(f"{name}: step {step}, loss {loss:.3f}", flush=True)

        return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="training pictures; one in 50 is held out")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=5e-6)
    parser.add_argument("--selector-rate", type=float, default=0.1)
    parser.add_argument("--bits-cost", type=float, default=0.02, help="gamma")
    parser.add_argument("--mean-bits", type=float, default=6.0, help="of the mixed variant")
    parser.add_argument("--pictures", type=int, default=8, help="that measure")
    parser.add_argument("--side", type=int, default=192, help="of what is measured of a picture")
    parser.add_argument("--calibration", type=int, default=16, help="pictures for calibration")
    parser.add_argument("--work", type=Path, required=True, help="folder of what is done so far")
    parser.add_argument("--json", type=Path, required=True, help="results so far and at the end")
    args = parser.parse_args()
    ablation = Ablation(args)
    settings = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
    summary = {
        "settings": settings,
        "qualities": MEASURED,
        "float": {"points": [[round(b, 4), round(p, 3)] for b, p in ablation.float.points]},
        "mixed_widths": ablation.mixed,
        "calibrated": [
            {
                "widths": kind,
                "mean_bits": round(ablation.calibrated(kind).bits[0], 3),
                **ablation.against_float(ablation.calibrated(kind)),
            }
            for kind in ("static 8", "static 6", "mixed", "static 4")
        ],
        "fine_tuned": [],
    }
    for kind, rounding in VARIANTS:
        done = ablation.work / f"{kind}-{rounding}.result.pt".replace(" ", "-")
        result = kept(done, lambda k=kind, r=rounding: ablation.run(k, r))
        summary["fine_tuned"].append(result)
        print(json.dumps(result), flush=True)
        args.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
