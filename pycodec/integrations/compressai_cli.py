"""``pycodec convert-compressai``: from a CompressAI checkpoint to a model folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pycodec.integrations.compressai import convert_checkpoint, read_pictures
from pycodec.models.hyperprior_network import ARCHITECTURES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("architecture", choices=ARCHITECTURES, metavar="ARCH", help="%(choices)s")
    parser.add_argument("checkpoint", type=Path, help=".pth or .pth.tar with a state dict")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model folder")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="pictures that the ranges of integer activations are chosen by (default: made ones)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert; returns the exit code."""
    pictures = None if args.calibrate is None else read_pictures(args.calibrate)
    convert_checkpoint(args.architecture, args.checkpoint, args.out, pictures)
    print(f"wrote {args.out}; use it with --model {args.out}", file=sys.stderr)
    return 0
