"""``pycodec bench``: arguments, tables, files of results."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from pycodec.errors import InputError
from pycodec.images import atomic_write, load_image, require_folder
from pycodec.models.tiling import MAX_THREADS
from pycodec.profiling import bench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pycodec bench``."""
    # The converters of the main command line, which imports this module on demand.
    from pycodec import cli

    parser.add_argument(
        "picture", nargs="?", metavar="PICTURE", help="default: a made one, the same everywhere"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="compare two files of --json, measure nothing",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="S",
        help=f"of {', '.join(bench.LADDER)} or WIDTHxHEIGHT; pictures are scaled to cover them "
        "(default: all of these, or a given picture as it is)",
    )
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("-q", "--quality", type=cli.quality, default=50.0, metavar="Q")
    rate.add_argument("--lossless", action="store_true", help="keep every pixel as it is")
    parser.add_argument("--model", metavar="NAME", help="name or path of the model")
    parser.add_argument("--batch", type=cli.positive_int, nargs="+", default=[1], metavar="N")
    parser.add_argument(
        "--threads",
        type=cli.positive_int,
        nargs="+",
        default=[torch.get_num_threads()],
        metavar="N",
        help="(default: all cores)",
    )
    parser.add_argument("--precision", nargs="+", default=[None], metavar="P", help="of the codec")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda ...")
    parser.add_argument(
        "--seconds",
        type=cli.positive_float,
        default=3.0,
        metavar="S",
        help="of each direction, at least (default: 3)",
    )
    parser.add_argument(
        "--runs", type=cli.positive_int, default=5, metavar="N", help="at least (default: 5)"
    )
    parser.add_argument(
        "--warm-up", type=int, default=1, metavar="N", help="runs that do not count (default: 1)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results to this file too")


def run(args: argparse.Namespace) -> int:
    """What the arguments ask for; the exit code."""
    if args.compare:
        return _compare(*args.compare)
    if args.warm_up < 0:
        raise InputError("--warm-up cannot be negative")
    if max(args.threads) > MAX_THREADS:
        raise InputError(f"threads must be 1 to {MAX_THREADS}, not {max(args.threads)}")
    picture = None if args.picture is None else load_image(args.picture)
    sizes = args.sizes
    if sizes is None:
        own = None if picture is None else f"{picture.width}x{picture.height}"
        sizes = list(bench.LADDER) if own is None else [own]
    for size in sizes:
        bench.parse_size(size)  # before any work is done
    for precision in args.precision:
        bench.precision_option(precision)
    cases = bench.all_cases(sizes, args.batch, args.threads, args.precision, args.device)
    settings: dict[str, Any] = {
        "picture": "made" if args.picture is None else args.picture,
        "quality": None if args.lossless else args.quality,
        "lossless": args.lossless,
        "seconds": args.seconds,
        "runs": args.runs,
        "warm_up": args.warm_up,
    }
    if args.json:
        require_folder(args.json)
    results: list[bench.Result] = []
    complete = False
    try:
        for result in bench.measure(
            cases,
            picture=picture,
            quality=args.quality,
            lossless=args.lossless,
            model=args.model,
            seconds=args.seconds,
            least_runs=args.runs,
            warm_up=args.warm_up,
        ):
            results.append(result)
            print(
                f"{len(results)} of {2 * len(cases)}: {result.direction} {result.size}: "
                f"{result.ms_median:.1f} ms",
                file=sys.stderr,
            )
        complete = True
    finally:  # interrupted or failed, what was measured is kept
        if results:
            print(bench.to_table(results))
        if args.json and results:
            text = bench.to_document(results, args.device, settings, complete=complete)
            atomic_write(args.json, text.encode())
    return 0


def _compare(first: str, second: str) -> int:
    (machine_a, a), (machine_b, b) = map(bench.read_document, (first, second))
    for name in sorted(machine_a.keys() | machine_b.keys()):
        if machine_a.get(name) != machine_b.get(name):
            print(f"{name} differs: {machine_a.get(name)} and {machine_b.get(name)}")
    print(bench.compare(a, b))
    return 0
