"""``pycodec train``: from a folder of photographs to a model folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pycodec.errors import InputError
from pycodec.ops.backends import BACKENDS
from pycodec.projection.grid import TABLES
from pycodec.training.options import add_options
from pycodec.training.sphere import PARTS, SphereTrainer
from pycodec.training.train import Trainer, TrainingOptions

_HELP = {
    "steps": "optimizer steps of the whole run",
    "decay": "last steps, over which the learning rate falls to zero",
    "quantize": "last steps, in which integer arithmetic is simulated",
    "warmup": "first steps, over which the learning rate rises",
    "batch": "pictures a step",
    "crop": "side of the training crops in pixels",
    "learning_rate": "of Adam",
    "clip": "largest norm of the gradient",
    "seed": "of all random choices",
    "save_minutes": "time between checkpoints",
    "validate_every": "steps between validations",
    "minutes": "if not 0, the run takes so long: of the steps only the proportions count",
    "average": "if not 0, decay a step of the average of the weights, which is what is exported",
    "device": "where the network is trained, as PyTorch names it: cuda",
    "workers": "processes that cut crops, for a GPU; 0: a thread",
}

_SPHERE = ("photos", "rate_only", "tilt", "padding", "freeze")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("folder", type=Path, help="folder of training pictures, searched deeply")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="run folder: checkpoint (resumed if there), log.csv, and at the end model/",
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="model folder or checkpoint whose weights a fresh run starts from",
    )
    parser.add_argument(
        "--projection",
        choices=("none", "erp"),
        default="none",
        help="erp: fine-tune for the sphere; the folder holds equirectangular pictures, and the "
        "run needs --start (default: %(default)s)",
    )
    parser.add_argument(
        "--photos", type=Path, help="with --projection erp: folder of ordinary pictures to use too"
    )
    parser.add_argument(
        "--rate-only",
        action="store_true",
        help="with --projection erp: train only the prediction of the latents, which is faster",
    )
    parser.add_argument(
        "--panorama-share",
        type=float,
        default=0.5,
        help="with --photos: of the pieces, how many are of panoramas (default: %(default)s)",
    )
    parser.add_argument(
        "--tilt",
        type=float,
        default=0.0,
        metavar="DEGREES",
        help="with --projection erp: by up to how much the horizon of every other panorama is "
        "tilted (default: %(default)s)",
    )
    parser.add_argument(
        "--freeze",
        nargs="+",
        default=(),
        choices=PARTS,
        help="with --projection erp: parts of the network that stay as they are",
    )
    parser.add_argument(
        "--padding",
        choices=(TABLES, *BACKENDS),
        help="with --projection erp: what pads the tiles; default: native on the CPU, else tables",
    )
    parser.add_argument(
        "--refit",
        type=int,
        metavar="PIECES",
        help="with --projection erp: no steps, but fit the last layers of the entropy model to so "
        "many pieces, twice, which takes minutes",
    )
    parser.add_argument(
        "--float32", action="store_true", help="train in float32 instead of mixed bfloat16"
    )
    parser.add_argument(
        "--export-only", action="store_true", help="write model/ from the checkpoint as it is"
    )
    add_options(parser, TrainingOptions, _HELP)


def run(args: argparse.Namespace) -> int:
    """Train, resume or export; returns the exit code."""
    options = TrainingOptions(
        bfloat16=not args.float32, **{name: getattr(args, name) for name in _HELP}
    )
    if args.projection == "erp":
        trainer = SphereTrainer(
            args.folder,
            args.out,
            options,
            args.start,
            photos=args.photos,
            rate_only=args.rate_only,
            panorama_share=args.panorama_share,
            tilt=args.tilt,
            padding=args.padding,
            freeze=args.freeze,
        )
    elif any(getattr(args, name) for name in _SPHERE) or args.refit is not None:
        raise InputError(
            "--photos, --rate-only, --tilt, --padding, --freeze, --refit need --projection erp"
        )
    else:
        trainer = Trainer(args.folder, args.out, options, start=args.start)
    if args.refit is not None and not args.export_only:
        trainer.refit(args.refit)
    elif not args.export_only:
        trainer.run()
    folder = trainer.export(args.out / "model", report=lambda line: print(line, file=sys.stderr))
    print(f"wrote {folder}; use it with --model {folder}", file=sys.stderr)
    return 0
