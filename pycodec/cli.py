"""The command line: encode, decode, view, info, eval, demo, batch, and what makes models.

Exit codes: 0 all went well, 1 an input or a file was at fault, 2 wrong usage, 130 interrupted, 143
ended by SIGTERM. Messages and progress go to standard error; standard output carries only what was
asked for.
"""

from __future__ import annotations

import argparse
import glob
import importlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pycodec import __version__
from pycodec.coding.container import (
    MAGIC,
    MAX_TILE_LOG2,
    MIN_TILE_LOG2,
    SUFFIX,
    Codec,
    peek,
    refuse_large,
    section_sizes,
)
from pycodec.errors import CodecError, InputError, UnsupportedError
from pycodec.images import DEFAULT_MAX_PIXELS, PICTURE_SUFFIXES
from pycodec.projection.metadata import PROJECTIONS
from pycodec.projection.widths import PRESETS as WIDTH_PRESETS

if TYPE_CHECKING:
    from pycodec.evaluation.evaluate import Measurement
    from pycodec.images import Picture
    from pycodec.projection.viewport import Viewport

_PIPE = "-"
_PHOTO_CODEC = "photo"  # as pycodec.evaluation.evaluate says, which takes time to import
_MODULES = {
    "batch": ("pycodec.batch.cli", "encode, decode or evaluate whole folders, on many machines"),
    "sphere-search": (
        "pycodec.models.width_search_cli",
        "widths of the tiles of 360-degree pictures, from a folder of them",
    ),
    "bench": ("pycodec.profiling.bench_cli", "how fast a codec is on this machine, and compare"),
    "profile": ("pycodec.profiling.cli", "where the time of an encoding or decoding goes"),
    "train": ("pycodec.training.cli", "train a photo model on a folder of pictures"),
    "quantize": ("pycodec.quantization.cli", "integers for the transforms of a photo model"),
    "train-lossless": ("pycodec.training.lossless_cli", "train a lossless model"),
    "convert-compressai": (
        "pycodec.integrations.compressai_cli",
        "make a model of a CompressAI checkpoint",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    _replace_closed_streams()
    # What is wrong with a picture is said in our words, or does not matter.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if threading.current_thread() is threading.main_thread():
        # SIGTERM as an exception, so that temporary files are removed on the way out.
        signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(argv)
    except KeyboardInterrupt:
        _message("interrupted")
        return 130
    except BrokenPipeError:
        _abandon_stdout()  # whoever read our output has gone, as `head` does
        return 1
    except OSError as error:
        _abandon_stdout()
        _message(str(error))
        return 1
    except CodecError as error:
        _message(str(error))
        return 1
    except MemoryError:
        _message("not enough memory")
        return 1


def _run(argv: list[str]) -> int:
    try:
        args = _parser(argv[0] if argv else None).parse_args(argv)
        return args.run(args)
    finally:
        sys.stdout.flush()  # here, where a failure can still be reported


def _terminate(signum: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            # Modules in C++ abort where an exception comes through them: wait until they are there.
            again = threading.Timer(0.05, os.kill, (os.getpid(), signum))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    sys.exit(128 + signum)


_closed: set[str] = set()
"""Standard streams that are not there: messages to them are lost, data are refused."""


def _replace_closed_streams() -> None:
    """Give their numbers to something else before a picture's file gets them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            _closed.add(name)
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for the rest of the process)


def _require_open(name: str) -> None:
    if name in _closed:
        raise InputError(f"standard {name.removeprefix('std')}put is closed")


def _abandon_stdout() -> None:
    """Keep Python from flushing, and failing once more, when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message(text: str) -> None:
    print(f"pycodec: {printable(text)}", file=sys.stderr)


def printable(text: str) -> str:
    """One line that any terminal can show: file names may hold line breaks and stray bytes."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# Arguments


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pycodec",
        description="Learned image compression: small files that every machine reads.",
    )
    parser.add_argument("--version", action="version", version=f"pycodec {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_encode(commands)
    _add_decode(commands)
    _add_view(commands)
    _add_info(commands)
    _add_eval(commands)
    _add_demo(commands)
    for name, (path, text) in _MODULES.items():
        subparser = commands.add_parser(name, help=text)
        if command == name:
            # Imported only for its own command: no other one needs, or waits for, this code.
            module = importlib.import_module(path)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _add_encode(commands: Any) -> None:
    parser = commands.add_parser(
        "encode",
        help="pictures to .lci files",
        description="Encode pictures. Several inputs, globs and folders go to a folder OUT; "
        "'-' reads standard input or writes standard output.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="picture, glob, folder or -")
    parser.add_argument("output", metavar="OUT", help=f"{SUFFIX} file, folder or -")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "-q", "--quality", type=quality, default=50.0, metavar="Q", help="1 to 100 (default 50)"
    )
    rate.add_argument(
        "--target-bpp",
        type=positive_float,
        metavar="B",
        help="highest quality of at most B bits a pixel, whole file",
    )
    rate.add_argument(
        "--target-psnr",
        type=positive_float,
        metavar="D",
        help="smallest file of at least D dB",
    )
    rate.add_argument("--lossless", action="store_true", help="keep every pixel as it is")
    parser.add_argument("--model", metavar="NAME", help="name or path of the model")
    parser.add_argument(
        "--tile", type=tile_size, metavar="N", help="side of the tiles: a power of two from 64"
    )
    parser.add_argument(
        "--projection",
        choices=PROJECTIONS,
        default="auto",
        help="erp: an equirectangular picture of the whole sphere (default: what its XMP says)",
    )
    parser.add_argument(
        "--widths",
        metavar="NAME",
        help=f"of the sphere's tiles: {', '.join(WIDTH_PRESETS)} or a file that sphere-search "
        "wrote (default: chosen for each picture)",
    )
    _add_run_options(parser)
    _add_precision(parser, "tell decoders, too, to compute in integers: all get the same pixels")
    _add_output_options(parser)
    parser.set_defaults(run=_encode)


def _add_decode(commands: Any) -> None:
    from pycodec.images import WRITABLE_FORMATS

    parser = commands.add_parser(
        "decode",
        help=".lci files to pictures",
        description="Decode files. Several inputs, globs and folders go to a folder OUT; "
        "'-' reads standard input or writes standard output.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help=f"{SUFFIX} file, glob, folder or -")
    parser.add_argument("output", metavar="OUT", help="picture, folder or -")
    parser.add_argument(
        "--model", metavar="NAME", help="name or path (default: what the file says)"
    )
    parser.add_argument(
        "--format",
        choices=WRITABLE_FORMATS,
        help="kind of picture (default: what OUT ends with; png for folders and pipes)",
    )
    _add_run_options(parser)
    _add_precision(parser, "compute in integers: the same pixels on every machine")
    _add_output_options(parser)
    parser.set_defaults(run=_decode)


def _add_view(commands: Any) -> None:
    from pycodec.images import WRITABLE_FORMATS

    parser = commands.add_parser(
        "view",
        help="what a camera in the middle of a 360-degree picture sees",
        description="Write rectilinear views of equirectangular pictures. Of a file that was "
        "encoded with --projection erp only what the view needs is decoded.",
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="IN", help=f"{SUFFIX} file, picture, glob, folder or -"
    )
    parser.add_argument("output", metavar="OUT", help="picture, folder or -")
    for name, text in (
        ("yaw", "direction, to the right of the middle (default 0)"),
        ("pitch", "direction, upwards, -90 to 90 (default 0)"),
    ):
        parser.add_argument(f"--{name}", type=_finite_float, default=0.0, metavar="DEG", help=text)
    parser.add_argument(
        "--fov",
        type=positive_float,
        default=90.0,
        metavar="DEG",
        help="horizontal field of view, below 180 (default 90)",
    )
    parser.add_argument(
        "--size", type=_size, default=(1024, 768), metavar="WxH", help="pixels (default 1024x768)"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="name or path (default: what the file says)"
    )
    parser.add_argument(
        "--format",
        choices=WRITABLE_FORMATS,
        help="kind of picture (default: what OUT ends with; png for folders and pipes)",
    )
    _add_run_options(parser)
    _add_output_options(parser)
    parser.set_defaults(run=_view)


def _add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="what is in .lci files, without decoding them")
    parser.add_argument("inputs", nargs="+", metavar="IN", help=f"{SUFFIX} file, glob, folder or -")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=_info)


def _add_eval(commands: Any) -> None:
    from pycodec.evaluation.anchors import ANCHOR_NAMES

    parser = commands.add_parser(
        "eval",
        help="rate-distortion curves and BD-rates against JPEG, WebP, AVIF and JPEG XL",
        description="Encode and decode every picture with every codec at every quality; write "
        "measurements.csv, summary.json and rate_distortion.png.",
    )
    parser.add_argument("inputs", nargs="+", metavar="DIR", help="folder, glob or picture")
    parser.add_argument("--out", default="pycodec-eval", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--qualities", type=quality_list, metavar="Q,Q,...", help="default: 1,10,20,...,100"
    )
    parser.add_argument(
        "--anchors",
        type=name_list,
        metavar="NAME,...",
        help=f"some of {','.join(ANCHOR_NAMES)}, of the sphere also {_PHOTO_CODEC}, or none "
        "(default: all that are installed)",
    )
    parser.add_argument(
        "--reuse",
        metavar="CSV",
        help="take the anchors from the measurements.csv of an earlier run on the same pictures",
    )
    parser.add_argument("--pictures", type=positive_int, metavar="N", help="only the first N")
    parser.add_argument(
        "--psnr-range",
        type=positive_float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="BD-rates between these dB (default: 28 40)",
    )
    parser.add_argument(
        "--projection",
        choices=("none", "erp"),
        default="none",
        help="erp: equirectangular pictures; quality is measured on the sphere",
    )
    parser.add_argument(
        "--no-ms-ssim",
        action="store_true",
        help="skip MS-SSIM, which takes time; of the sphere WS-SSIM",
    )
    parser.add_argument("--model", metavar="NAME", help="name or path of the model")
    _add_run_options(parser)
    _add_precision(parser)
    parser.set_defaults(run=_eval)


def _add_demo(commands: Any) -> None:
    from pycodec.evaluation.demo import DEMO_PICTURES

    parser = commands.add_parser(
        "demo", help="encode and decode a photograph, and show the pictures side by side"
    )
    parser.add_argument("--out", default="pycodec-demo", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--photograph", choices=DEMO_PICTURES, default=DEMO_PICTURES[0])
    parser.add_argument(
        "-q", "--quality", type=quality, default=30.0, metavar="Q", help="1 to 100 (default 30)"
    )
    parser.add_argument("--model", metavar="NAME", help="name or path of the model")
    _add_run_options(parser)
    parser.set_defaults(run=_demo)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: cpu)")
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="threads (default: all cores)"
    )


def _add_precision(parser: argparse.ArgumentParser, exact: str | None = None) -> None:
    """With ``exact``, what ``--exact-pixels`` does."""
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8", "mixed"),
        help="what the transforms compute in (default: the faster of fp32 and bf16; of converted "
        "models, which have fp32 and int8, the first)",
    )
    if exact is not None:
        parser.add_argument("--exact-pixels", action="store_true", help=exact)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--max-pixels",
        type=positive_int,
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help="refuse larger pictures (default: %(default)s)",
    )
    verbosity = parser.add_mutually_exclusive_group()
    verbosity.add_argument("--quiet", action="store_true", help="print errors only")
    verbosity.add_argument("-v", "--verbose", action="store_true", help="show where time goes")


def _number(text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def quality(text: str) -> float:
    value = _number(text, float)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not in 1 to 100")
    return round(value, 2)


def quality_list(text: str) -> tuple[float, ...]:
    return tuple(sorted({quality(part) for part in text.split(",")}))


def name_list(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(dict.fromkeys(text.split(",")))


def positive_int(text: str) -> int:
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def positive_float(text: str) -> float:
    value = _number(text, float)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _finite_float(text: str) -> float:
    value = _number(text, float)
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    return positive_int(width), positive_int(height)


def tile_size(text: str) -> int:
    value = _number(text, int)
    if value not in {1 << log2 for log2 in range(MIN_TILE_LOG2, MAX_TILE_LOG2 + 1)}:
        raise argparse.ArgumentTypeError(
            f"{text} is not a power of two from {1 << MIN_TILE_LOG2} to {1 << MAX_TILE_LOG2}"
        )
    return value


# Inputs and outputs


@dataclass(frozen=True)
class _Job:
    """One input and where its result goes; ``-`` stands for the standard streams."""

    source: str
    target: str


def expand(patterns: Iterable[str], suffixes: frozenset[str]) -> list[str]:
    """Files for arguments that may be files, globs or folders; folders are not descended."""
    files: list[str] = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            found = sorted(
                entry.path
                for entry in os.scandir(pattern)
                if entry.is_file() and Path(entry.name).suffix.lower() in suffixes
            )
            if not found:
                raise InputError(f"{pattern}: no files of the right kind in this folder")
        elif not os.path.lexists(pattern) and glob.has_magic(pattern):
            found = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
            if not found:
                raise InputError(f"{pattern}: no file matches")
        else:
            found = [pattern]  # if it does not exist, opening it says so
        files += found
    return list(dict.fromkeys(files))


def _plan(args: argparse.Namespace, suffixes: frozenset[str], result_suffix: str) -> list[_Job]:
    """Pair inputs with outputs, and refuse what would destroy a file, before any work is done."""
    if "" in (*args.inputs, args.output):
        raise InputError("a file name is empty")
    sources = expand(args.inputs, suffixes)
    plain = len(args.inputs) == 1 and sources == args.inputs
    to_folder = os.path.isdir(args.output) or args.output.endswith(os.sep) or not plain
    if not to_folder or args.output == _PIPE:
        if len(sources) > 1:
            raise InputError("standard output takes one picture: give a folder for several")
        jobs = [_Job(sources[0], args.output)]
    else:
        if _PIPE in sources:
            raise InputError("standard input has no name to store under: give a file name")
        if os.path.lexists(args.output) and not os.path.isdir(args.output):
            raise InputError(f"{args.output}: not a folder, and several inputs need one")
        jobs = [
            _Job(source, os.path.join(args.output, Path(source).stem + result_suffix))
            for source in sources
        ]
    _refuse_collisions(jobs)
    for job in jobs:
        _refuse_overwriting(job, force=args.force)
    if to_folder and args.output != _PIPE:
        try:
            os.makedirs(args.output, exist_ok=True)
        except OSError as error:
            raise InputError(f"{args.output}: cannot be made: {_reason(error)}") from error
    return jobs


def _refuse_collisions(jobs: Iterable[_Job]) -> None:
    sources: dict[str, str] = {}
    for job in jobs:
        if job.target in sources:
            raise InputError(
                f"{sources[job.target]} and {job.source} would both become {job.target}: "
                "encode them to different folders"
            )
        sources[job.target] = job.source


def _refuse_overwriting(job: _Job, *, force: bool) -> None:
    if job.target == _PIPE:
        _require_open("stdout")
        if sys.stdout.isatty():
            raise InputError("the result is not text: redirect standard output, or name a file")
        return
    if not os.path.isfile(job.target):
        return
    if os.path.exists(job.source) and os.path.samefile(job.source, job.target):
        raise InputError(f"{job.target}: input and output are the same file")
    if not force:
        raise InputError(f"{job.target}: exists already (use --force to replace it)")


def _read(source: str) -> bytes:
    if source == _PIPE:
        _require_open("stdin")
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {_reason(error)}") from error


def _write(target: str, data: bytes) -> None:
    if target == _PIPE:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    from pycodec.images import atomic_write

    atomic_write(target, data)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _label(name: str, *, standard: str) -> str:
    return standard if name == _PIPE else name


def _for_each(
    items: Sequence[Any],
    name_of: Callable[[Any], str],
    work: Callable[[Any], None],
    *,
    description: str,
    quiet: bool = False,
) -> int:
    """Do all the work there is; what fails is reported, does not stop the rest, and ends in 1."""
    failed = []
    with _progress(quiet or len(items) == 1) as progress:
        for item in progress.track(items, description) if progress else items:
            name = name_of(item)
            try:
                work(item)
            except BrokenPipeError:
                raise
            except (CodecError, MemoryError, OSError) as error:
                text = str(error) if not isinstance(error, MemoryError) else "not enough memory"
                _message(text if text.startswith(name) else f"{name}: {text}")
                failed.append(name)
    if failed and len(items) > 1:
        _message(f"{len(failed)} of {len(items)} failed: {', '.join(failed)}")
    return 1 if failed else 0


def _progress(disabled: bool) -> Any:
    """A progress bar on standard error, or None where no one would see it."""
    if disabled or not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    return Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


# encode and decode


def _encode(args: argparse.Namespace) -> int:
    if Path(args.output).suffix.lower() in PICTURE_SUFFIXES:
        raise InputError(f"{args.output}: encode writes {SUFFIX} files, this is a picture's name")
    jobs = _plan(args, PICTURE_SUFFIXES, SUFFIX)
    return _for_each(
        jobs,
        lambda job: _label(job.source, standard="<stdin>"),
        lambda job: _encode_one(args, job),
        description="encoding",
        quiet=args.quiet,
    )


def _encode_one(args: argparse.Namespace, job: _Job) -> None:
    from pycodec import api
    from pycodec.images import load_image

    start = time.perf_counter()
    source = BytesIO(_read(_PIPE)) if job.source == _PIPE else job.source
    picture = load_image(source, max_pixels=args.max_pixels)
    _warn(job, picture.warnings)
    stats: Any = None

    def encode(quality: float) -> bytes:
        nonlocal stats
        data, stats = api.encode_picture(
            picture,
            quality,
            model=args.model,
            device=args.device,
            threads=args.threads,
            tile=args.tile,
            lossless=args.lossless,
            projection=args.projection,
            precision=args.precision,
            exact_pixels=args.exact_pixels,
            widths=args.widths,
        )
        return data

    def decode(data: bytes) -> Picture:
        return api.decode_picture(
            data,
            model=args.model,
            device=args.device,
            threads=args.threads,
            precision=args.precision,
            exact_pixels=args.exact_pixels,
        )[0]

    data, achieved = _encode_to_target(args, picture, encode, decode)
    _write(job.target, data)
    bpp = 8 * len(data) / (picture.width * picture.height)
    _report(args, job, f"{len(data)} bytes, {bpp:.4f} bpp, {achieved}", start, stats)


def _encode_to_target(
    args: argparse.Namespace,
    picture: Picture,
    encode: Callable[[float], bytes],
    decode: Callable[[bytes], Picture],
) -> tuple[bytes, str]:
    """The file that the arguments ask for, and what it achieves besides its size."""
    from pycodec.rate_control import encode_to_bpp, encode_to_psnr

    if args.target_bpp is not None:
        found = encode_to_bpp(picture, args.target_bpp, encode)
        return found.data, f"quality {found.quality:g}"
    if args.target_psnr is not None:
        found = encode_to_psnr(picture, args.target_psnr, encode, decode)
        return found.data, f"quality {found.quality:g}, {found.reached:.2f} dB"
    return encode(args.quality), "lossless" if args.lossless else f"quality {args.quality:g}"


def _decode(args: argparse.Namespace) -> int:
    return _write_pictures(args, frozenset({SUFFIX}), _decode_one, "decoding")


def _write_pictures(
    args: argparse.Namespace,
    suffixes: frozenset[str],
    work: Callable[[argparse.Namespace, _Job, str], None],
    description: str,
) -> int:
    """Do ``work`` for each input, with the format of its result."""
    from pycodec.images import format_of

    jobs = _plan(args, suffixes, f".{args.format or 'png'}")
    formats = {
        job: args.format or ("png" if job.target == _PIPE else format_of(job.target))
        for job in jobs
    }
    return _for_each(
        jobs,
        lambda job: _label(job.source, standard="<stdin>"),
        lambda job: work(args, job, formats[job]),
        description=description,
        quiet=args.quiet,
    )


def _decode_one(args: argparse.Namespace, job: _Job, format: str) -> None:
    from pycodec import api

    start = time.perf_counter()
    data = _read(job.source)
    refuse_large(peek(data), args.max_pixels)
    picture, stats = api.decode_picture(
        data,
        model=args.model,
        device=args.device,
        threads=args.threads,
        precision=args.precision,
        exact_pixels=args.exact_pixels,
    )
    _write_picture(args, job, picture, format, start, stats)


def _write_picture(
    args: argparse.Namespace, job: _Job, picture: Picture, format: str, start: float, stats: Any
) -> None:
    from pycodec.images import save_image, write_image

    if job.target == _PIPE:
        file = BytesIO()
        lost = write_image(picture, file, format)
        _write(_PIPE, file.getvalue())
    else:
        lost = save_image(picture, job.target, format)
    _warn(job, [*picture.warnings, *lost])
    _report(args, job, f"{picture.width}x{picture.height} pixels", start, stats)


def _view(args: argparse.Namespace) -> int:
    from pycodec.projection.viewport import Viewport

    viewport = Viewport(args.yaw, args.pitch, args.fov, *args.size)
    return _write_pictures(
        args,
        PICTURE_SUFFIXES | {SUFFIX},
        lambda args, job, format: _view_one(args, job, format, viewport),
        "viewing",
    )


def _view_one(args: argparse.Namespace, job: _Job, format: str, viewport: Viewport) -> None:
    from pycodec import api
    from pycodec.images import load_image

    start = time.perf_counter()
    data: Any = _read(job.source)
    if data.startswith(MAGIC):
        refuse_large(peek(data), args.max_pixels)
    else:
        data = load_image(BytesIO(data), max_pixels=args.max_pixels)
        _warn(job, data.warnings)
    picture, stats = api.view(
        data, viewport, model=args.model, device=args.device, threads=args.threads
    )
    _write_picture(args, job, picture, format, start, stats)


def _warn(job: _Job, lines: Iterable[str]) -> None:
    for line in lines:
        _message(f"{_label(job.source, standard='<stdin>')}: warning: {line}")


def _report(args: argparse.Namespace, job: _Job, result: str, start: float, stats: Any) -> None:
    if args.quiet:
        return
    source = _label(job.source, standard="<stdin>")
    target = _label(job.target, standard="<stdout>")
    line = f"{source} -> {target}: {result}, {time.perf_counter() - start:.2f} s"
    if args.verbose:
        split = (f"{name} {seconds * 1000:.1f} ms" for name, seconds in stats.seconds.items())
        line += f" ({', '.join(split)})"
    print(printable(line), file=sys.stderr)


# info


def _info(args: argparse.Namespace) -> int:
    sources = expand(args.inputs, frozenset({SUFFIX}))

    def work(source: str) -> None:
        data = _read(source)
        facts = {"file": _label(source, standard="<stdin>"), **_describe(data)}
        if args.json:
            print(json.dumps(facts))
            return
        sections = facts.pop("sections")
        lines = [f"{key.replace('_', ' '):<13} {value}" for key, value in facts.items()]
        lines += [f"  {name:<11} {size} bytes" for name, size in sections.items()]
        print("\n".join(map(printable, lines)), end="\n\n" if len(sources) > 1 else "\n")

    return _for_each(
        sources,
        lambda source: _label(source, standard="<stdin>"),
        work,
        description="reading",
        quiet=True,
    )


def _describe(data: bytes) -> dict[str, Any]:
    header = peek(data)
    sections = section_sizes(data)
    rows, columns = header.tile_grid
    return {
        "codec": Codec(header.codec).name.lower(),
        "model": _model_name(header.fingerprint),
        "fingerprint": header.fingerprint.hex(),
        "width": header.width,
        "height": header.height,
        "colour": ("gray" if header.gray else "RGB") + (" + alpha" if header.alpha else ""),
        "bit_depth": header.bit_depth,
        "quality": header.quality / 100,
        "tile_size": header.tile_size,
        "tiles": f"{columns}x{rows}",
        "bytes": len(data),
        "bpp": round(8 * len(data) / (header.width * header.height), 4),
        "sections": sections,
    }


def _model_name(fingerprint: bytes) -> str:
    from pycodec import api

    try:
        return api.find_model(fingerprint).name
    except UnsupportedError:
        return "unknown: these weights are not installed"


# eval and demo


def _eval(args: argparse.Namespace) -> int:
    from pycodec.evaluation import evaluate, plots
    from pycodec.evaluation.extras import require

    paths = [Path(path) for path in expand(args.inputs, PICTURE_SUFFIXES)][: args.pictures]
    if len({path.name for path in paths}) < len(paths):
        raise InputError("two pictures have the same name: the table could not tell them apart")
    low, high = args.psnr_range or evaluate.DEFAULT_PSNR_RANGE
    if low >= high:
        raise InputError(f"--psnr-range {low:g} {high:g} is empty")
    metrics = evaluate.metrics_for(args.projection, not args.no_ms_ssim)
    names = evaluate.anchor_names(args.projection) if args.anchors is None else args.anchors
    qualities = args.qualities or evaluate.DEFAULT_QUALITIES
    options = {
        "model": args.model,
        "device": args.device,
        "threads": args.threads,
        "precision": args.precision,
    }
    codecs = [evaluate.pycodec_under_test(qualities, projection=args.projection, **options)]
    if args.reuse:
        reused = _reused_anchors(args.reuse, names, paths, metrics[0].name)
    else:
        reused = []
        codecs += [
            evaluate.anchor_under_test(name, args.projection, qualities, **options)
            for name in names
        ]
    # A missing package shall not be noticed only after all the work.
    needed = ["pytorch_msssim"] * any(metric.name == "ms_ssim" for metric in metrics)
    for module in ["matplotlib", "bjontegaard", *needed]:
        require(module, "eval")
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made: {_reason(error)}") from error

    total = len(paths) * sum(len(codec.settings) for codec in codecs)
    steps = evaluate.measure(paths, codecs, metrics)
    with _progress(disabled=False) as progress:
        measurements = list(
            progress.track(steps, total, description="measuring") if progress else steps
        )
    measurements += reused
    summary = {
        **evaluate.summarize(measurements, metrics, psnr_range=(low, high)),
        "versions": {
            "pycodec": __version__,
            **{package: metadata.version(package) for package in ("pillow", "torch")},
        },
        "cpus": os.cpu_count(),
        "threads": args.threads,
    }
    evaluate.write_csv(measurements, out / "measurements.csv")
    evaluate.write_json(summary, out / "summary.json")
    plots.plot_rate_distortion(summary, out / "rate_distortion.png", metrics)
    print(evaluate.format_summary(summary, metrics))
    files = "measurements.csv, summary.json, rate_distortion.png"
    print(f"\nwritten to {printable(str(out))}: {files}")
    return 0


def _reused_anchors(
    table: str, names: Sequence[str], paths: Sequence[Path], metric: str
) -> list[Measurement]:
    """The anchors' lines of an earlier table, for all of these pictures, with that metric."""
    from pycodec.evaluation.evaluate import read_csv

    pictures = {path.name for path in paths}
    rows = [row for row in read_csv(table) if row.codec in names and row.picture in pictures]
    for name in names:
        missing = pictures - {row.picture for row in rows if row.codec == name}
        if missing:
            raise InputError(f"{table}: has no {name} of {min(missing)}: run without --reuse")
    if any(metric not in row.values for row in rows):
        raise InputError(f"{table}: has no {metric}: run without --reuse")
    return rows


def _demo(args: argparse.Namespace) -> int:
    from pycodec import api
    from pycodec.evaluation.demo import run_demo

    result = run_demo(
        args.out,
        lambda picture: api.encode_picture(
            picture, args.quality, model=args.model, device=args.device, threads=args.threads
        )[0],
        lambda data: api.decode_picture(
            data, model=args.model, device=args.device, threads=args.threads
        )[0],
        photograph=args.photograph,
    )
    print(
        f"pycodec  {result.size:7d} bytes  {8 * result.size / result.pixels:.3f} bpp  "
        f"{result.psnr:.2f} dB  encoded in {result.encode_seconds * 1000:.0f} ms, "
        f"decoded in {result.decode_seconds * 1000:.0f} ms\n"
        f"JPEG     {result.jpeg_size:7d} bytes  {8 * result.jpeg_size / result.pixels:.3f} bpp  "
        f"{result.jpeg_psnr:.2f} dB  (quality {result.jpeg_quality})"
    )
    print(printable(f"written to {args.out}: {', '.join(file.name for file in result.files)}"))
    return 0
