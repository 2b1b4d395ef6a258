"""What is done with one file of a batch, in whichever process on whichever machine."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pycodec.batch.manifest import Record
from pycodec.coding.container import SUFFIX
from pycodec.errors import CodecError, InputError
from pycodec.images import DEFAULT_MAX_PIXELS, PICTURE_SUFFIXES
from pycodec.storage import open_folder

COMMANDS = ("encode", "decode", "eval")

# With these, every other file would fail too.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Job:
    """What a batch does.

    Attributes:
        command: ``encode``, ``decode`` or ``eval``.
        source, destination: folders or fsspec URLs.
        model: name or path; None for the package's own.
        device: of the transforms; None for the CPU.
        threads: of each process.
        max_pixels: larger pictures fail.
        full_names: ``a.png`` becomes ``a.png.lci`` instead of ``a.lci``.
        force: replace files that no batch has written.
        quality, lossless, tile: of ``encode``, as in :func:`pycodec.api.encode_picture`.
        projection: of ``encode``, as there, and of ``eval``, ``none`` or ``erp``; None for
            ``auto`` and ``none``.
        format: of ``decode``, one of :data:`pycodec.images.WRITABLE_FORMATS`.
        qualities, anchors, ms_ssim: of ``eval``, see :mod:`pycodec.evaluation`.
    """

    command: str
    source: str
    destination: str
    model: str | None = None
    device: str | None = None
    threads: int = 1
    max_pixels: int = DEFAULT_MAX_PIXELS
    full_names: bool = False
    force: bool = False
    quality: float = 50.0
    lossless: bool = False
    tile: int | None = None
    projection: str | None = None
    format: str = "png"
    qualities: tuple[float, ...] = ()
    anchors: tuple[str, ...] = ()
    ms_ssim: bool = True

    def __post_init__(self) -> None:
        if self.command not in COMMANDS:
            raise InputError(f"unknown command {self.command!r}, use one of {', '.join(COMMANDS)}")

    @property
    def suffixes(self) -> frozenset[str]:
        """Of the files that are worked on, in lower case."""
        return frozenset((SUFFIX,)) if self.command == "decode" else PICTURE_SUFFIXES

    def target_of(self, source: str) -> str:
        """Path of the result."""
        if self.command == "eval":
            return f"pictures/{source}.json"
        stem = source if self.full_names else os.path.splitext(source)[0]
        return stem + (SUFFIX if self.command == "encode" else f".{self.format}")

    def options(self, fingerprint: str | None) -> str:
        """Hash of all that decides about the results but their sources.

        Args:
            fingerprint: of the model; None if the files name theirs.
        """
        names = {
            "encode": ("quality", "lossless", "tile"),
            "decode": ("format",),
            "eval": ("qualities", "anchors", "ms_ssim"),
        }[self.command]
        chosen = {name: getattr(self, name) for name in ("command", *names)}
        if self.lossless:
            del chosen["quality"]
        if self.projection is not None:
            chosen["projection"] = self.projection
        text = json.dumps({**chosen, "fingerprint": fingerprint}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """One file to do.

    Attributes:
        source, target: paths in their folders.
        size, version: of the source's :class:`~pycodec.storage.FileInfo`.
        options: :meth:`Job.options`.
        record: what an earlier batch made of it with these options, to be checked.
    """

    source: str
    target: str
    size: int
    version: str
    options: str
    record: Record | None = None


@dataclass
class Outcome:
    """What became of a file.

    Attributes:
        task: the task.
        record: of the finished file; None if it failed.
        skipped: it was finished before, and its checksum is right.
        error: what went wrong, one line, without the file's name.
        fatal: the others would fail for the same reason.
        warnings: lines about what was lost.
        bytes_in, bytes_out: sizes of source and result.
        seconds: what it took.
    """

    task: Task
    record: Record | None = None
    skipped: bool = False
    error: str | None = None
    fatal: bool = False
    warnings: list[str] = field(default_factory=list)
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0


class Worker:
    """Does the files of a job one after the other. A process makes one, and keeps it.

    Raises:
        CodecError: the job's folders, model or device cannot be used.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._source = open_folder(job.source)
        self._destination = open_folder(job.destination)
        self._convert = _CONVERTERS[job.command](job)

    def __call__(self, task: Task) -> Outcome:
        """Do a file; whatever is wrong with it is in the outcome."""
        outcome = Outcome(task)
        began = time.perf_counter()
        try:
            self._work(task, outcome)
        except MemoryError:
            outcome.error = "not enough memory"
        except (CodecError, OSError) as error:
            outcome.error = str(error).removeprefix(f"{task.source}: ")
            cause = error if isinstance(error, OSError) else error.__cause__
            outcome.fatal = getattr(cause, "errno", None) in _FATAL
        except Exception as error:  # of one file among thousands, that must not stop the others
            outcome.error = f"unexpected {type(error).__name__}: {error}"
        outcome.seconds = time.perf_counter() - began
        return outcome

    def _work(self, task: Task, outcome: Outcome) -> None:
        data: bytes | None = None
        before = task.record
        if before is not None and before.source_size == task.size:
            result = self._destination.read(task.target)
            if result is not None and _sha256(result) == before.target_sha256:
                if before.source_version != task.version or not task.version:
                    data = self._read(task)
                if data is None or _sha256(data) == before.source_sha256:
                    outcome.skipped = True
                    outcome.record = replace(before, source_version=task.version)
                    outcome.bytes_in, outcome.bytes_out = task.size, len(result)
                    return
        data = self._read(task) if data is None else data
        result = self._convert(task.source, data, outcome.warnings)
        self._destination.write(task.target, result)
        outcome.bytes_in, outcome.bytes_out = len(data), len(result)
        outcome.record = Record(
            source=task.source,
            target=task.target,
            options=task.options,
            source_size=len(data),
            source_version=task.version,
            source_sha256=_sha256(data),
            target_sha256=_sha256(result),
        )

    def _read(self, task: Task) -> bytes:
        data = self._source.read(task.source)
        if data is None:
            raise InputError("it is gone")
        return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Bytes of the source to bytes of the result; what is lost on the way is appended to the warnings.
_Converter = Callable[[str, bytes, list[str]], bytes]


def _encoder(job: Job) -> _Converter:
    from pycodec import api
    from pycodec.images import load_image

    # What cannot be used is reported before the first picture. Which of the package's own models a
    # picture takes is up to the picture, and loaded models are kept.
    api.encoding_model(job.model, job.lossless, job.device)

    def encode(name: str, data: bytes, warnings: list[str]) -> bytes:
        picture = load_image(io.BytesIO(data), max_pixels=job.max_pixels)
        warnings += picture.warnings
        return api.encode_picture(
            picture,
            job.quality,
            lossless=job.lossless,
            model=job.model,
            device=job.device,
            threads=job.threads,
            tile=job.tile,
            projection=job.projection or "auto",
        )[0]

    return encode


def _decoder(job: Job) -> _Converter:
    from pycodec import api
    from pycodec.coding.container import peek, refuse_large
    from pycodec.images import write_image

    model = None if job.model is None else api.load_model(job.model, job.device)

    def decode(name: str, data: bytes, warnings: list[str]) -> bytes:
        refuse_large(peek(data), job.max_pixels)
        picture, _ = api.decode_picture(data, model=model, device=job.device, threads=job.threads)
        file = io.BytesIO()
        warnings += write_image(picture, file, job.format)
        return file.getvalue()

    return decode


def _evaluator(job: Job) -> _Converter:
    from pycodec.evaluation import evaluate

    projection = job.projection or "none"
    options = {"model": job.model, "device": job.device, "threads": job.threads}
    codecs = [evaluate.pycodec_under_test(job.qualities, projection=projection, **options)]
    codecs += [
        evaluate.anchor_under_test(name, projection, job.qualities, **options)
        for name in job.anchors
    ]
    metrics = evaluate.metrics_for(projection, job.ms_ssim)

    def measure(name: str, data: bytes, warnings: list[str]) -> bytes:
        with tempfile.TemporaryDirectory(prefix="pycodec-batch-") as folder:
            path = Path(folder, "picture" + os.path.splitext(name)[1])
            path.write_bytes(data)
            try:
                found = list(evaluate.measure([path], codecs, metrics))
            except CodecError as error:
                raise CodecError(str(error).removeprefix(f"{path}: ")) from error
        rows: list[dict[str, Any]] = [replace(m, picture=name).row() for m in found]
        return (json.dumps(rows, indent=1) + "\n").encode()

    return measure


_CONVERTERS = {"encode": _encoder, "decode": _decoder, "eval": _evaluator}
