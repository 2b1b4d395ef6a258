"""``pycodec profile``: what one encoding or decoding spends its time on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pycodec import api
from pycodec.coding.container import peek, refuse_large, unpack
from pycodec.errors import InputError
from pycodec.images import DEFAULT_MAX_PIXELS, atomic_write, load_image
from pycodec.models.photo import PRECISIONS, PhotoCodec
from pycodec.models.zoo import DEFAULT_SPHERE_MODEL
from pycodec.profiling.machine import describe_machine, measure_ceilings
from pycodec.profiling.profile import Profile, make_profile, record
from pycodec.profiling.report import to_html, to_table, to_trace

_TRANSFORMS = ("analysis", "hyper_analysis", "synthesis")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pycodec profile``."""
    # The converters of the main command line, which imports this module on demand.
    from pycodec import cli

    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, what in (("encode", "a picture"), ("decode", "an .lci file")):
        command = commands.add_parser(name, help=f"profile the {name[:-1]}ing of {what}")
        command.add_argument("file", metavar="FILE", help=what)
        command.add_argument(
            "--out", metavar="DIR", help="write profile.html and trace.json (for Perfetto) there"
        )
        command.add_argument(
            "--runs",
            type=cli.positive_int,
            default=3,
            metavar="N",
            help="recorded, of which the fastest is shown; one goes before (default: 3)",
        )
        if name == "encode":
            rate = command.add_mutually_exclusive_group()
            rate.add_argument("-q", "--quality", type=cli.quality, default=50.0, metavar="Q")
            rate.add_argument("--lossless", action="store_true", help="keep every pixel as it is")
            command.add_argument(
                "--tile", type=cli.tile_size, metavar="N", help="side of the tiles"
            )
            command.add_argument("--projection", choices=api.PROJECTIONS, default="auto")
        command.add_argument("--model", metavar="NAME", help="name or path of the model")
        command.add_argument(
            "--precision",
            choices=PRECISIONS,
            help="of the transforms (default: what encode and decode take)",
        )
        command.add_argument("--device", metavar="NAME", help="cpu, cuda ... (default: cpu)")
        command.add_argument("--threads", type=cli.positive_int, metavar="N")
        command.add_argument(
            "--max-pixels", type=cli.positive_int, default=DEFAULT_MAX_PIXELS, metavar="N"
        )
        command.set_defaults(run=run, profile_command=name)


def run(args: argparse.Namespace) -> int:
    """What the arguments ask for; the exit code."""
    call, model, title = (_encoding if args.profile_command == "encode" else _decoding)(args)
    out = None if args.out is None else Path(args.out)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{out}: cannot be made: {error.strerror}") from error
    profile = profile_call(call, model, title, runs=args.runs, threads=args.threads)
    print(to_table(profile))
    if out is not None:
        atomic_write(str(out / "profile.html"), to_html(profile).encode())
        atomic_write(str(out / "trace.json"), to_trace(profile).encode())
        print(f"\nwritten to {out}: profile.html, trace.json")
    return 0


def _encoding(args: argparse.Namespace) -> tuple[Callable[[], Any], Any, str]:
    picture = load_image(args.file, max_pixels=args.max_pixels)
    model = api.encoding_model(args.model, args.lossless, args.device, args.precision)
    if args.model is None and api.is_sphere(picture, args.projection, model):
        model = api.load_model(DEFAULT_SPHERE_MODEL, args.device, args.precision)

    def call() -> Any:
        return api.encode_picture(
            picture,
            args.quality,
            lossless=args.lossless,
            model=model,
            device=args.device,
            threads=args.threads,
            tile=args.tile,
            projection=args.projection,
            precision=args.precision,
        )

    how = "lossless" if args.lossless else f"quality {args.quality:g}"
    title = f"Encoding {Path(args.file).name}, {picture.width}x{picture.height}, {how}"
    return call, model, title


def _decoding(args: argparse.Namespace) -> tuple[Callable[[], Any], Any, str]:
    try:
        data = Path(args.file).read_bytes()
    except OSError as error:
        raise InputError(f"{args.file}: cannot be read: {error.strerror}") from error
    header, precision = peek(data), args.precision
    refuse_large(header, args.max_pixels)
    asked = unpack(memoryview(data)).precision
    if precision is None and asked is not None:
        precision, _ = api.unpack_precision(asked)
    if args.model is None:
        model = api.find_model(header.fingerprint, args.device, precision)
    else:
        model = api.load_model(args.model, args.device, precision)

    def call() -> Any:
        return api.decode_picture(
            data,
            model=model,
            device=args.device,
            threads=args.threads,
            precision=precision,
        )

    return call, model, f"Decoding {Path(args.file).name}, {header.width}x{header.height}"


def profile_call(
    call: Callable[[], Any],
    model: Any,
    title: str,
    *,
    runs: int = 3,
    threads: int | None = None,
) -> Profile:
    """Profiles a call on a loaded model: the fastest of ``runs`` after one that does not count.

    Args:
        threads: that the call uses; None for all of torch's.
    """
    modules, device = {}, torch.device("cpu")
    if isinstance(model, PhotoCodec):
        modules = {name: getattr(model, name) for name in _TRANSFORMS}
        device = model.device
    ceilings = measure_ceilings(device, threads)
    record(call, modules, device)
    recorded = (record(call, modules, device)[1:] for _ in range(runs))
    seconds, recorder = min(recorded, key=lambda pair: pair[0])
    return make_profile(title, seconds, recorder, ceilings, describe_machine(device))
