"""``pycodec quantize``: from a model to one whose transforms run in integers."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pycodec.errors import InputError
from pycodec.models import hyperprior_codec, lossless
from pycodec.models.integer_variants import branch_layers
from pycodec.models.model_folder import read_model_folder, write_model_folder
from pycodec.models.photo import KIND, TRANSFORMS, load_photo_model, save_integers
from pycodec.models.photo_network import PhotoNetwork
from pycodec.models.zoo import model_folder, model_kind
from pycodec.quantization import hyperprior_cli
from pycodec.quantization.bit_width import WIDTHS
from pycodec.quantization.calibration import METHODS, round_weights
from pycodec.quantization.fake_quant import round_ste
from pycodec.quantization.finetune import (
    CropPool,
    FineTuning,
    calibrate_selectors,
    device_of,
    fine_tune,
    start_selectors,
)
from pycodec.quantization.gradient_modulator import round_modulated
from pycodec.quantization.photo import Calibration
from pycodec.quantization.recipe import (
    assemble,
    by_layer,
    calibration_pictures,
    middle,
    plan,
    start_rounded,
)
from pycodec.quantization.report import (
    RateDistortion,
    layer_milliseconds,
    layer_reports,
    rate_distortion,
    sensitivity,
    widths_by_sensitivity,
    write_report,
)
from pycodec.quantization.simulation import SimulatedTransforms, drop_unused_variants, export
from pycodec.quantization.transforms import model_bytes
from pycodec.training.data import CropSampler, list_pictures
from pycodec.training.options import add_options
from pycodec.training.train import load_weights

GRADIENTS = {"modulated": round_modulated, "straight-through": round_ste}
QUALITIES = (25.0, 75.0, 95.0)
SELECTING = (5.0, 35.0, 65.0, 95.0)
"""Qualities at which each width of each layer is tried before selectors are trained."""

POOL = 4096
"""Crops that are cut for a fine-tuning on a GPU, at most."""

_HELP = {
    "batch": "crops a step of the fine-tuning",
    "crop": "side of its crops in pixels",
    "learning_rate": "of its weights",
    "scale_rate": "learning rate of scales and offsets",
    "seconds": "fine-tune no longer than this; 0: for all steps",
    "bits_cost": "with --dynamic: what a bit of the mean width costs in the loss",
    "seed": "of all random choices",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", help="name or folder of a photo model, or of a converted one")
    parser.add_argument(
        "--calibrate", type=Path, required=True, metavar="DIR", help="pictures, searched deeply"
    )
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument(
        "--mean-bits",
        type=float,
        metavar="B",
        help="weights of 4, 6 and 8 bits, B in the mean over the residual branches (default: 8)",
    )
    parser.add_argument(
        "--dynamic",
        action="store_true",
        help="weights of 4, 6 or 8 bits by a selector that is trained; needs --finetune",
    )
    parser.add_argument(
        "--finetune", type=int, default=0, metavar="N", help="steps of training with rounding"
    )
    parser.add_argument(
        "--gradient",
        choices=tuple(GRADIENTS),
        default="modulated",
        help="of rounding, in fine-tuning (default: %(default)s)",
    )
    parser.add_argument("--method", choices=METHODS, default="mse", help="of calibration")
    parser.add_argument(
        "--pictures", type=int, default=20, metavar="N", help="at most, for calibration"
    )
    parser.add_argument(
        "--device", default="cpu", help="of the fine-tuning: cpu, cuda ... (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that cut crops for a GPU (default: a thread)",
    )
    parser.add_argument("--report", type=Path, metavar="OUT", help="folder of a report per layer")
    add_options(parser, FineTuning, _HELP)


def run(args: argparse.Namespace) -> int:
    """Quantize and write the model folder; returns the exit code.

    Raises:
        InputError: an option or the model is at fault.
    """
    folder = model_folder(args.model)
    kind = model_kind(args.model)
    if kind == hyperprior_codec.KIND:
        hyperprior_cli.run(args, folder)
        return 0
    if kind == lossless.KIND:
        raise InputError(f"the model {folder.name} is lossless: it computes in integers as it is")
    _check(args)
    device = device_of(args.device)
    torch.manual_seed(args.seed)
    codec = load_photo_model(folder, precision="fp32")
    calibration = Calibration(codec, calibration_pictures(args.calibrate, args.pictures))
    network = PhotoNetwork(codec.config)
    load_weights(network, folder)
    network.eval()
    pictures = [middle(picture) for picture in calibration_pictures(args.calibrate, 4)]
    before = rate_distortion(network, pictures, QUALITIES)

    several = args.dynamic or args.mean_bits is not None
    # A dynamic model has all variants, so weights are rounded for each width.
    plans = plan(
        calibration,
        WIDTHS if several else (8,),
        args.method,
        rounded=None if args.dynamic else (),
    )
    widths: dict[str, tuple[int, ...]] = {
        f"{name}.{path}": WIDTHS if args.dynamic else (8,)
        for name in TRANSFORMS
        for path in branch_layers(name)
    }
    streams = {name: by_width[8].streams for name, by_width in plans.items()}
    rounding = GRADIENTS[args.gradient]
    if args.mean_bits is not None:
        model = SimulatedTransforms(network, by_layer(plans, WIDTHS), streams)
        losses = sensitivity(model, pictures[:2], (75.0,), widths)
        found = widths_by_sensitivity(losses, model.costs, args.mean_bits)
        widths = {name: (bits,) for name, bits in found.items()}
    chosen = assemble(plans, {name: max(had) for name, had in widths.items()})
    for name, module in calibration.modules.items():
        if not args.dynamic:
            round_weights(name, module, calibration.observers[name], chosen[name])
    start_rounded(network, chosen)
    model = SimulatedTransforms(
        network, by_layer(plans, widths), streams, rounding, dynamic=args.dynamic
    )
    model.to(device).eval()
    pictures = [picture.to(device) for picture in pictures]
    if args.dynamic:
        calibrate_selectors(model, pictures, QUALITIES)
        alone = {q: sensitivity(model, pictures[:2], (q,), widths) for q in SELECTING}
        start_selectors(model, alone, args.bits_cost)
    measured = rate_distortion(model, pictures, QUALITIES)
    _say(f"calibrated: {_loss(before, measured)}")
    if args.finetune:
        _fine_tune(args, model)
        measured = rate_distortion(model, pictures, QUALITIES)
        _say(f"fine-tuned: {_loss(before, measured)}")
    model.to("cpu")
    pictures = [picture.cpu() for picture in pictures]
    if args.dynamic:
        seen = rate_distortion(model, pictures, (*SELECTING, *QUALITIES))
        drop_unused_variants(model, seen.choices)
    tensors = export(model)
    _write(folder, args.out, "mixed" if several else "int8", tensors)
    if args.report is not None:
        losses = sensitivity(model, pictures[:2], QUALITIES)
        times = layer_milliseconds(tensors, _pixels(pictures[0]))
        write_report(args.report, layer_reports(model, measured, losses, times))
        _say(f"wrote the report to {args.report}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.dynamic and args.mean_bits is not None:
        raise InputError("--dynamic chooses widths by --bits-cost: leave --mean-bits out")
    if args.dynamic and args.finetune < 1:
        raise InputError("--dynamic trains a selector: say for how many steps with --finetune")
    if args.finetune < 0 or args.pictures < 1 or args.workers < 0:
        raise InputError("--finetune, --pictures and --workers are counts")
    if args.mean_bits is not None and not WIDTHS[0] <= args.mean_bits <= WIDTHS[-1]:
        raise InputError(f"--mean-bits must be {WIDTHS[0]} to {WIDTHS[-1]}, not {args.mean_bits:g}")


def _fine_tune(args: argparse.Namespace, model: SimulatedTransforms) -> None:
    options = FineTuning(
        steps=args.finetune, report_every=50, **{name: getattr(args, name) for name in _HELP}
    )
    sampler = CropSampler(list_pictures(args.calibrate), args.crop, seed=args.seed)
    if args.device != "cpu":
        count = min(POOL, args.finetune * args.batch)
        sampler = CropPool(sampler, count, args.device, args.workers)

    def report(step: int, loss: float) -> None:
        _say(f"step {step} of {args.finetune}: loss {loss:.4f}")

    fine_tune(model, sampler, options, report)


def _write(folder: Path, out: Path, precision: str, tensors: dict[str, Tensor]) -> None:
    """Add integers to a copy of the model, or to the model itself."""
    if out.resolve() != folder.resolve():
        description, weights = read_model_folder(folder, KIND)
        write_model_folder(out, KIND, weights, description["config"], base=description.get("base"))
    save_integers(out, precision, tensors)
    load_photo_model(out, precision=precision)  # what does not load is not to be announced
    _say(f"{model_bytes(tensors)} bytes of integers")
    _say(f"wrote {out}; use it with --model {out} --precision {precision}")


def _pixels(picture: Tensor) -> np.ndarray:
    return (picture[0].permute(1, 2, 0) * 255).round().byte().contiguous().numpy()


def _loss(before: RateDistortion, after: RateDistortion) -> str:
    percent = 100 * math.expm1(after.cost - before.cost)
    bits = sum(after.bits) / len(after.bits)
    return f"loss {percent:+.2f} % on {len(after.bits)} codings, {bits:.2f} bits in the mean"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
