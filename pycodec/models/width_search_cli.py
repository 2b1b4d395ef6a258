"""``pycodec sphere-search``: widths for the tiles of 360-degree pictures, from a folder of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pycodec import cli
from pycodec.errors import InputError
from pycodec.images import PICTURE_SUFFIXES, load_image, require_folder
from pycodec.models.width_search import search_widths

DEFAULT_QUALITIES = (15.0, 30.0, 45.0, 60.0, 75.0, 90.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("inputs", nargs="+", metavar="DIR", help="folder, glob or picture")
    parser.add_argument(
        "--out",
        default="widths.json",
        metavar="FILE",
        help="for encode --widths (default: %(default)s)",
    )
    parser.add_argument(
        "--qualities",
        type=cli.quality_list,
        default=DEFAULT_QUALITIES,
        metavar="Q,Q,...",
        help="for which the widths are (default: 15,30,...,90)",
    )
    parser.add_argument(
        "--tiles",
        type=cli.positive_int,
        default=32,
        metavar="N",
        help="an even number (default: %(default)s)",
    )
    parser.add_argument(
        "--step",
        type=cli.positive_int,
        default=4,
        metavar="N",
        help="widths are multiples of so many 64ths of the picture's (default: %(default)s)",
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace a file that exists")


def run(args: argparse.Namespace) -> int:
    """Search, write the widths, print them; returns the exit code."""
    paths = cli.expand(args.inputs, PICTURE_SUFFIXES)
    if os.path.lexists(args.out) and not args.force:
        raise InputError(f"{args.out}: exists already (use --force to replace it)")
    require_folder(args.out)

    def pictures() -> Iterator[np.ndarray]:
        for path in paths:
            print(cli.printable(path), file=sys.stderr)
            yield load_image(path).pixels

    found = search_widths(pictures(), args.qualities, tiles=args.tiles, step=args.step)
    found.widths.save(
        args.out,
        pictures=[Path(path).name for path in paths],
        qualities=list(args.qualities),
        step=args.step,
        objective=found.objective,
    )
    print(*found.widths.sixty_fourths)
    print(
        f"the objective falls by {100 * (1 - found.objective):.2f} % in {found.steps} steps; "
        f"written to {cli.printable(args.out)}",
        file=sys.stderr,
    )
    return 0
