"""``pycodec train-lossless``: from a folder of pictures to a network, and to a model folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from pycodec.errors import InputError
from pycodec.models.lossless_network import ORDERS, SIZES
from pycodec.training.lossless import LosslessOptions, LosslessTrainer, export_model
from pycodec.training.options import add_options

_HELP = {
    "steps": "optimizer steps of the whole run",
    "quantize": "last steps, with integer arithmetic simulated; 0: weights are rounded at the end",
    "minutes": "train for so long instead of a number of steps; quantize counts in proportion",
    "batch": "crops a step, a multiple of 4",
    "crop": "side of the training crops in pixels",
    "learning_rate": "of SOAP",
    "warmup": "first steps, over which the learning rate rises",
    "seed": "of all random choices",
    "save_minutes": "time between checkpoints",
    "validate_every": "steps between validations",
    "device": "where it trains, such as cuda",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("folder", type=Path, help="folder of training pictures, searched deeply")
    parser.add_argument(
        "--out", type=Path, required=True, help="run folder: checkpoint (resumed if there), model/"
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="tcae-fast")
    parser.add_argument("--order", choices=ORDERS, default="slope")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--chroma", action="store_true", help="the network of red and blue, not that of gray"
    )
    kind.add_argument(
        "--with-chroma",
        type=Path,
        metavar="RUN",
        help="run, or model, whose chroma network model/ gets too",
    )
    parser.add_argument(
        "--with-gray",
        type=Path,
        metavar="RUN",
        help="with --chroma: run, or model, of the gray network of a model/ that gets both",
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="run or model whose weights a fresh run starts from; may be smaller",
    )
    parser.add_argument(
        "--export-only", action="store_true", help="write model/ from the checkpoint as it is"
    )
    add_options(parser, LosslessOptions, _HELP)


def run(args: argparse.Namespace) -> int:
    """Train, resume or export; returns the exit code."""
    if args.with_gray is not None and not args.chroma:
        raise InputError("--with-gray goes with --chroma")
    options = LosslessOptions(
        size=args.size,
        order=args.order,
        chroma=args.chroma,
        **{name: getattr(args, name) for name in _HELP},
    )

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if not args.export_only:
        torch.backends.cudnn.benchmark = True  # all crops have one size
        LosslessTrainer(args.folder, args.out, options, start=args.start, report=report).run()
    gray, chroma = (args.with_gray, args.out) if args.chroma else (args.out, args.with_chroma)
    if gray is None:
        report(f"finished; --with-chroma {args.out} adds this network to a model")
        return 0
    export_model(args.out / "model", gray, chroma)
    report(f"wrote {args.out / 'model'}; use it with --lossless --model {args.out / 'model'}")
    return 0
