"""What widths and gradients do: static 8, static 4, mixed, dynamic; straight-through, modulated.

Every variant starts from the same calibration of the photo model, weights rounded for their inputs,
and is fine-tuned for the same steps on the same crops. Mixed widths have as many bits as the
dynamic ones at the start of their training. Rate (estimated) and distortion are those of pictures
that neither calibration nor training nor the choice of widths saw, cut to their middle. BD-rates
are against the float network. What is done is kept in --work, so that an interrupted run goes on
where it was.

    python benchmarks/quantization/ablation.py PICTURES --work RUN --device cuda --workers 12 \
        --json benchmarks/results/quantization_ablation.json
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycodec.evaluation.bd_rate import bd_rate
from pycodec.models.integer_variants import branch_layers
from pycodec.models.photo import TRANSFORMS, load_photo_model
from pycodec.models.photo_network import PhotoNetwork
from pycodec.models.zoo import DEFAULT_MODEL, WEIGHTS
from pycodec.quantization.bit_width import WIDTHS
from pycodec.quantization.cli import GRADIENTS, SELECTING
from pycodec.quantization.finetune import (
    CropPool,
    FineTuning,
    calibrate_selectors,
    device_of,
    fine_tune,
    start_selectors,
)
from pycodec.quantization.photo import Calibration
from pycodec.quantization.recipe import Plans, assemble, by_layer, middle, plan, start_rounded
from pycodec.quantization.report import (
    RateDistortion,
    rate_distortion,
    sensitivity,
    widths_by_sensitivity,
)
from pycodec.quantization.simulation import SimulatedTransforms
from pycodec.training.data import CropSampler, list_pictures, split_pictures
from pycodec.training.train import load_weights, read_scaled

MEASURED = (5.0, 25.0, 50.0, 75.0, 95.0)
VARIANTS = (
    ("dynamic", "modulated"),
    ("mixed", "modulated"),
    ("dynamic", "straight-through"),
    ("mixed", "straight-through"),
    ("static 4", "modulated"),
    ("static 4", "straight-through"),
    ("static 8", "modulated"),
    ("static 8", "straight-through"),
)


def float_network() -> PhotoNetwork:
    network = PhotoNetwork()
    load_weights(network, WEIGHTS / DEFAULT_MODEL)
    return network.eval()


def stacked(pictures: Sequence[Tensor]) -> list[Tensor]:
    """Those of one shape in one tensor."""
    by_shape = defaultdict(list)
    for picture in pictures:
        by_shape[picture.shape].append(picture)
    return [torch.cat(same) for same in by_shape.values()]


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
        self.training, held_out = split_pictures(list_pictures(args.folder))
        self.work = args.work
        self.work.mkdir(parents=True, exist_ok=True)
        # First: it forks, which must come before any use of a GPU.
        self.plans = kept(self.work / "plans.pt", self._calibrate)
        self.streams = {name: by_width[WIDTHS[-1]].streams for name, by_width in self.plans.items()}
        self.device = device_of(args.device)
        # Of the held-out pictures, some choose widths and the others measure.
        pictures = [middle(x) for x in map(read_scaled, held_out) if min(x.shape[:2]) >= 64]
        pictures = [x.to(self.device) for x in pictures]
        self.choosing = stacked(pictures[: args.choosing])
        measuring = pictures[args.choosing : args.choosing + args.pictures]
        if len(measuring) < args.pictures:
            raise SystemExit(f"only {len(pictures)} held-out pictures are large enough")
        self.measuring = stacked(measuring)
        self.float = kept(
            self.work / "float.pt",
            lambda: rate_distortion(float_network().to(self.device), self.measuring, MEASURED),
        )

    def _calibrate(self) -> Plans:
        step = max(1, len(self.training) // self.args.calibration)
        pictures = [read_scaled(p) for p in self.training[::step]][: self.args.calibration]
        codec = load_photo_model(WEIGHTS / DEFAULT_MODEL, precision="fp32")
        return plan(Calibration(codec, pictures), WIDTHS, workers=self.args.workers)

    @functools.cached_property
    def alone(self) -> dict[float, dict[str, dict[int, float]]]:
        """What each width of each layer loses alone, at some qualities."""

        def measure() -> dict[float, dict[str, dict[int, float]]]:
            model = self.simulated("dynamic")
            names = [name for name in model.branches]
            return {q: sensitivity(model, self.choosing, (q,), names) for q in SELECTING}

        return kept(self.work / "alone.pt", measure)

    @functools.cached_property
    def mixed(self) -> dict[str, int]:
        """Widths of the mixed variant, by layer: with as many bits as dynamic ones begin with."""

        def choose() -> dict[str, int]:
            model = self.start("dynamic")
            bits = rate_distortion(model, self.choosing, MEASURED).bits
            return self.static_widths(model, sum(bits) / len(bits))

        return kept(self.work / "mixed.pt", choose)

    def static_widths(self, model: SimulatedTransforms, mean_bits: float) -> dict[str, int]:
        """Static ones, by what layers lose alone in the mean of the qualities."""
        mean = {
            name: {
                width: sum(by_layer[name][width] for by_layer in self.alone.values())
                / len(self.alone)
                for width in WIDTHS
            }
            for name in model.branches
        }
        return widths_by_sensitivity(mean, model.costs, mean_bits)

    def price(self, bits_cost: float) -> dict:
        """Dynamic widths at a price, and mixed ones of as many bits, both calibrated alone."""

        def measure() -> dict:
            model = self.start("dynamic", bits_cost=bits_cost)
            dynamic = self.against_float(rate_distortion(model, self.measuring, MEASURED))
            widths = self.static_widths(model, dynamic["mean_bits"])
            static = self.simulated({name: (bits,) for name, bits in widths.items()})
            mixed = self.against_float(rate_distortion(static, self.measuring, MEASURED))
            return {"bits_cost": bits_cost, "dynamic": dynamic, "mixed": mixed}

        return kept(self.work / f"price-{bits_cost}.pt", measure)

    def widths(self, kind: str) -> Mapping[str, Sequence[int]]:
        """The widths that each layer has in a variant."""
        if kind == "mixed":
            return {name: (bits,) for name, bits in self.mixed.items()}
        had = WIDTHS if kind == "dynamic" else (int(kind.split()[1]),)
        return {f"{t}.{path}": had for t in TRANSFORMS for path in branch_layers(t)}

    def simulated(
        self, kind: str | Mapping[str, Sequence[int]], rounding: str = "straight-through"
    ) -> SimulatedTransforms:
        """``kind``: of a variant, or the widths of its layers."""
        network, widths = float_network(), self.widths(kind) if isinstance(kind, str) else kind
        start_rounded(network, assemble(self.plans, {n: max(had) for n, had in widths.items()}))
        layers = by_layer(self.plans, widths)
        model = SimulatedTransforms(
            network, layers, self.streams, GRADIENTS[rounding], dynamic=kind == "dynamic"
        )
        return model.to(self.device)

    def start(
        self, kind: str, rounding: str = "straight-through", bits_cost: float | None = None
    ) -> SimulatedTransforms:
        """A variant before its fine-tuning, at a price of its own if one is given."""
        model = self.simulated(kind, rounding)
        if kind == "dynamic":
            calibrate_selectors(model, self.choosing, MEASURED)
            price = self.args.bits_cost if bits_cost is None else bits_cost
            start_selectors(model, self.alone, price)
        return model

    def calibrated(self, kind: str) -> RateDistortion:
        return kept(
            self.work / f"calibrated-{kind}.pt".replace(" ", "-"),
            lambda: rate_distortion(self.start(kind), self.measuring, MEASURED),
        )

    def against_float(self, measured: RateDistortion) -> dict:
        rate = bd_rate(self.float.points, measured.points)
        count = len(measured.bits) // len(MEASURED)
        by_quality = [measured.bits[i : i + count] for i in range(0, len(measured.bits), count)]
        return {
            "bd_rate_percent": None if rate is None else round(rate.percent, 3),
            "loss_percent": round(100 * (measured.cost - self.float.cost), 3),
            "mean_bits": round(sum(measured.bits) / len(measured.bits), 3),
            "mean_bits_by_quality": [round(sum(bits) / len(bits), 2) for bits in by_quality],
            "points": [[round(b, 4), round(p, 3)] for b, p in measured.points],
        }

    def pool(self) -> CropPool:
        """Training crops, the same for all variants."""
        sampler = CropSampler(self.training, self.args.crop, seed=1)
        return CropPool(sampler, self.args.crops, self.device, self.args.workers)

    def options(self) -> FineTuning:
        args = self.args
        return FineTuning(
            steps=args.steps,
            batch=args.batch,
            crop=args.crop,
            learning_rate=args.learning_rate,
            selector_rate=args.selector_rate,
            bits_cost=args.bits_cost,
            graph=args.graph,
            report_every=20,
        )

    def run(self, kind: str, rounding: str, pool: CropPool) -> dict:
        """One variant: before and after its fine-tuning."""
        before = self.calibrated(kind)
        model = self.start(kind, rounding)
        name = f"{kind}-{rounding}".replace(" ", "-")
        checkpoint = self.work / f"{name}.pt"
        began = time.monotonic()

        def report(step: int, loss: float) -> None:
            print(f"{name}: step {step}, loss {loss:.4f}", flush=True)

        fine_tune(model, pool, self.options(), report, checkpoint=checkpoint)
        seconds = time.monotonic() - began
        after = rate_distortion(model, self.measuring, MEASURED)
        total: Counter[int] = Counter()
        for chosen in after.choices.values():
            total += chosen
        result = {"widths": kind, "gradient": rounding, "seconds": round(seconds, 1)}
        if total:
            result["chosen"] = {str(w): n for w, n in sorted(total.items())}
        result["calibrated"] = self.against_float(before)
        result["fine_tuned"] = self.against_float(after)
        checkpoint.unlink(missing_ok=True)
        return result

    def summary(self) -> dict:
        """What is common to all variants."""
        args = {k: v for k, v in vars(self.args).items() if not isinstance(v, Path)}
        device = "cpu"
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        return {
            "settings": args | {"device": device},
            "qualities": MEASURED,
            "float": {"points": [[round(b, 4), round(p, 3)] for b, p in self.float.points]},
            "mixed_widths": self.mixed,
            "calibrated": [
                {"widths": kind, **self.against_float(self.calibrated(kind))}
                for kind in ("static 8", "static 6", "static 4", "mixed", "dynamic")
            ],
            "prices": [self.price(bits_cost) for bits_cost in self.args.prices],
            "fine_tuned": [],
        }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("folder", type=Path, help="training pictures; one in 50 is held out")
    made.add_argument("--steps", type=int, default=300)
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--crop", type=int, default=256)
    made.add_argument("--crops", type=int, default=2048, help="that batches are drawn from")
    made.add_argument("--learning-rate", type=float, default=2e-5)
    made.add_argument("--selector-rate", type=float, default=1e-2)
    made.add_argument("--bits-cost", type=float, default=0.006, help="gamma")
    made.add_argument(
        "--choosing", type=int, default=2, help="held-out pictures that choose widths"
    )
    made.add_argument(
        "--prices", type=float, nargs="*", default=(0.001, 0.003, 0.006, 0.012, 0.025)
    )
    made.add_argument("--pictures", type=int, default=11, help="held-out, that measure")
    made.add_argument("--calibration", type=int, default=32, help="pictures for calibration")
    made.add_argument("--device", default="cpu")
    made.add_argument("--workers", type=int, default=0, help="processes that round and cut crops")
    made.add_argument("--graph", action="store_true", help="steps are a CUDA graph")
    made.add_argument("--work", type=Path, required=True, help="folder of what is done so far")
    made.add_argument("--json", type=Path, required=True, help="results so far and at the end")
    return made


def main() -> None:
    args = parser().parse_args()
    ablation = Ablation(args)
    summary = ablation.summary()
    pool = ablation.pool()
    for kind, rounding in VARIANTS:
        done = ablation.work / f"{kind}-{rounding}.result.pt".replace(" ", "-")
        result = kept(done, lambda k=kind, r=rounding: ablation.run(k, r, pool))
        summary["fine_tuned"].append(result)
        print(json.dumps(result), flush=True)
        args.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
