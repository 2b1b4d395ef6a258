"""``pycodec batch``: arguments, progress, and the list of what failed."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import timedelta
from typing import Any

from pycodec.batch.run import Report, run_batch
from pycodec.batch.work import COMMANDS, Job, Outcome
from pycodec.errors import InputError
from pycodec.images import DEFAULT_MAX_PIXELS, WRITABLE_FORMATS
from pycodec.projection.metadata import PROJECTIONS

_SECONDS_BETWEEN_LINES = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pycodec batch encode``, ``decode`` and ``eval``."""
    # The converters of the main command line, which imports this module on demand.
    from pycodec import cli

    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = commands.add_parser(name, help=_HELP[name], description=_HELP[name])
        command.add_argument("source", metavar="SRC", help="folder or fsspec URL; is descended")
        command.add_argument("destination", metavar="DST", help="folder or fsspec URL")
        command.add_argument("--model", metavar="NAME", help="name or path of the model")
        if name == "encode":
            rate = command.add_mutually_exclusive_group()
            rate.add_argument("-q", "--quality", type=cli.quality, default=50.0, metavar="Q")
            rate.add_argument("--lossless", action="store_true", help="keep every pixel as it is")
            command.add_argument(
                "--projection",
                choices=PROJECTIONS,
                help="erp: all pictures are equirectangular; default: those that say so",
            )
            command.add_argument(
                "--tile", type=cli.tile_size, metavar="N", help="side of the tiles"
            )
        if name == "decode":
            command.add_argument("--format", choices=WRITABLE_FORMATS, default="png")
        if name == "eval":
            command.add_argument("--qualities", type=cli.quality_list, metavar="Q,Q,...")
            command.add_argument("--anchors", type=cli.name_list, metavar="NAME,...")
            command.add_argument(
                "--projection",
                choices=("none", "erp"),
                help="erp: equirectangular pictures; quality is measured on the sphere",
            )
            command.add_argument("--no-ms-ssim", dest="ms_ssim", action="store_false")
        else:
            command.add_argument(
                "--full-names", action="store_true", help="a.png.lci instead of a.lci"
            )
        command.add_argument(
            "-f", "--force", action="store_true", help="replace files that no batch has written"
        )
        command.add_argument(
            "--max-pixels",
            type=cli.positive_int,
            default=DEFAULT_MAX_PIXELS,
            metavar="N",
            help="larger pictures fail (default: %(default)s)",
        )
        command.add_argument("--device", metavar="NAME", help="cpu, cuda ... (default: cpu)")
        command.add_argument(
            "--threads",
            type=cli.positive_int,
            default=1,
            metavar="N",
            help="of each worker (default: 1)",
        )
        command.add_argument(
            "--workers",
            type=cli.positive_int,
            metavar="N",
            help="processes or Ray actors (default: as many as there is room for)",
        )
        command.add_argument(
            "--engine",
            choices=("processes", "ray"),
            default="processes",
            help="processes of this machine, or a Ray cluster (default: %(default)s)",
        )
        command.add_argument(
            "--address", metavar="A", help="of the Ray cluster, such as auto (default: a new one)"
        )
        command.add_argument("--quiet", action="store_true", help="print errors only")
        command.set_defaults(run=run, batch_command=name)


_HELP = {
    "encode": "encode all pictures of a folder and its subfolders",
    "decode": "decode all .lci files of a folder and its subfolders",
    "eval": "rate-distortion curves over all pictures of a folder and its subfolders",
}


def run(args: argparse.Namespace) -> int:
    """What the arguments ask for; the exit code."""
    if args.address is not None and args.engine != "ray":
        raise InputError("--address is that of a Ray cluster: add --engine ray")
    options = {
        name: getattr(args, name)
        for name in Job.__dataclass_fields__
        if getattr(args, name, None) is not None
    }
    if args.batch_command == "eval":
        options.update(_evaluation_options(args))
    job = Job(args.batch_command, **options)
    watcher = _Watcher(quiet=args.quiet)
    try:
        report = run_batch(
            job, workers=args.workers, engine=args.engine, address=args.address, watcher=watcher
        )
    except BaseException:
        watcher.conclude(complete=False)
        raise
    watcher.conclude(complete=True)
    if not report.files:
        raise InputError(f"{args.source}: no files of the right kind in this folder")
    return 1 if report.failed else 0


def _evaluation_options(args: argparse.Namespace) -> dict[str, Any]:
    from pycodec.evaluation import evaluate
    from pycodec.evaluation.extras import require

    projection = args.projection or "none"
    needed = {metric.name for metric in evaluate.metrics_for(projection, args.ms_ssim)}
    # A missing package shall not be noticed only after all the work.
    for module in ["matplotlib", "bjontegaard"] + ["pytorch_msssim"] * ("ms_ssim" in needed):
        require(module, "eval")
    names = evaluate.anchor_names(projection) if args.anchors is None else args.anchors
    for name in names:
        evaluate.anchor_under_test(name, projection)
    return {"qualities": args.qualities or evaluate.DEFAULT_QUALITIES, "anchors": tuple(names)}


class _Watcher:
    """Progress on standard error: a bar on terminals, elsewhere a line every ten seconds."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._report: Report | None = None
        self._total = self._finished = self._worked = 0
        self._began = self._said = time.monotonic()
        self._bar: Any = None

    def started(self, report: Report, files: int) -> None:
        self._report, self._total = report, files
        self._began = self._said = time.monotonic()
        if self._quiet or not files or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.add_task("", total=files)
        self._bar.start()

    def finished(self, outcome: Outcome) -> None:
        self._finished += 1
        self._worked += not outcome.skipped
        if self._quiet:
            return
        for warning in outcome.warnings:
            self._say(f"{outcome.task.source}: warning: {warning}")
        if self._bar is not None:
            self._bar.update(0, completed=self._finished, description=self._rate())
        elif time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            self._say(f"{self._finished} of {self._total} files, {self._rate()}")

    def _rate(self) -> str:
        """Files a second and the time left, from the files that took work: skipped ones do not."""
        seconds = time.monotonic() - self._began
        if not self._worked or seconds <= 0:
            return ""
        rate = self._worked / seconds
        left = timedelta(seconds=round((self._total - self._finished) / rate))
        failed = f", {len(self._report.failed)} failed" if self._report.failed else ""
        return f"{rate:.1f} files/s, {left} left{failed}"

    def _say(self, text: str) -> None:
        from pycodec.cli import printable

        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False)
        else:
            print(printable(text), file=sys.stderr)

    def conclude(self, *, complete: bool) -> None:
        """The summary, and what failed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        report = self._report
        if report is None or (complete and not report.files):
            return
        for source, error in sorted(report.failed.items()):
            self._say(f"pycodec: {source}: {error}")
        if self._quiet and complete and not report.failed:
            return
        seconds = time.monotonic() - self._began
        self._say(
            f"{report.done} done, {report.skipped} finished before, {len(report.failed)} failed"
            f" in {seconds:.1f} s: {report.bytes_in} bytes -> {report.bytes_out} bytes"
        )
        if not complete:
            self._say("stopped: the same command goes on from here")
