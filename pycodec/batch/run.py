"""Runs a batch: lists, plans, hands out, keeps the manifest, sums up."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pycodec.batch.manifest import Manifest
from pycodec.batch.processes import run_on_processes
from pycodec.batch.work import Job, Outcome, Task
from pycodec.errors import CodecError, InputError
from pycodec.storage import FileInfo, Folder, open_folder


@dataclass
class Report:
    """What a batch has done.

    Attributes:
        done, skipped: numbers of files that were made, and that an earlier batch had made.
        failed: what was wrong, by source; one that has no name of its own counts too.
        bytes_in, bytes_out: of the files that were made or skipped.
    """

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def files(self) -> int:
        return self.done + self.skipped + len(self.failed)


class Watcher(Protocol):
    """Is told what happens, as it happens."""

    def started(self, report: Report, files: int) -> None:
        """So many files are to be done; the report will grow, and may hold failed ones already."""

    def finished(self, outcome: Outcome) -> None:
        """Of one file."""


def run_batch(
    job: Job,
    *,
    workers: int | None = None,
    engine: str = "processes",
    address: str | None = None,
    watcher: Watcher | None = None,
) -> Report:
    """Do all files of a folder and its subfolders.

    Files of the destination that an earlier batch has finished are kept, after their checksums were
    compared, if source and options are the same. A file that fails stops nothing.

    Args:
        job: what to do.
        workers: processes; None: as many as the machine, or the Ray cluster, has room for.
        engine: ``processes`` or ``ray``.
        address: of the Ray cluster, such as ``auto``; None starts one on this machine.
        watcher: is told of every file.

    Raises:
        InputError: the source does not exist, the destination cannot be written to, or an option
            makes no sense.
        CodecError: nothing more can be done: the disk is full, or no worker starts. What is
            finished by then is finished: the next batch goes on from there.
    """
    if engine not in ("processes", "ray"):
        raise InputError(f"unknown engine {engine!r}, use processes or ray")
    if workers is not None and workers < 1:
        raise InputError(f"workers must be positive, not {workers}")
    source, destination = open_folder(job.source), open_folder(job.destination)
    if not source.exists():
        raise InputError(f"{job.source}: no such folder")
    if job.command == "eval" and _is_inside(destination, source):
        raise InputError(
            f"{job.destination} is inside of {job.source}: the next run would measure its plots"
        )
    job = _absolute(job)
    options = job.options(_fingerprint(job))
    report = Report()
    with Manifest(destination) as manifest:
        files = _list(job, source, report.failed)
        tasks = _plan(job, files, destination, manifest, options, report.failed)
        if watcher is not None:
            watcher.started(report, len(tasks))
        # Closed, workers and all, before the manifest is, whatever happens here.
        with closing(_engine(engine, job, tasks, workers, address)) as outcomes:
            for outcome in outcomes:
                if outcome.fatal:
                    raise CodecError(f"{outcome.task.source}: {outcome.error}")
                _note(outcome, manifest, report)
                if watcher is not None:
                    watcher.finished(outcome)
        if job.command == "eval":
            done = [task for task in tasks if task.source not in report.failed]
            _summarize(destination, done, job.projection or "none")
    return report


def _is_inside(inner: Folder, outer: Folder) -> bool:
    return f"{inner.full_path('')}/".startswith(outer.full_path("").rstrip("/") + "/")


def _absolute(job: Job) -> Job:
    """The job without relative paths: workers may have another current folder."""
    from pycodec.models.zoo import model_names

    model = job.model
    if model is not None and model not in model_names():
        model = os.path.abspath(model)
    folders = {
        name: url if "://" in url else os.path.abspath(url)
        for name, url in (("source", job.source), ("destination", job.destination))
    }
    return replace(job, model=model, **folders)


def _fingerprint(job: Job) -> str | None:
    """Of the job's model; loading it tells at once if it cannot be used."""
    from pycodec import api
    from pycodec.models.model_folder import WEIGHTS, read_description
    from pycodec.models.zoo import DEFAULT_SPHERE_MODEL

    if job.command == "decode":
        return None if job.model is None else api.load_model(job.model).fingerprint.hex()
    fingerprint = api.encoding_model(job.model, job.lossless, None).fingerprint.hex()
    if job.model is None and not job.lossless:
        # Pictures that their metadata calls panoramas are coded with a model of their own.
        fingerprint += read_description(WEIGHTS / DEFAULT_SPHERE_MODEL)["sha256"][:16]
    return fingerprint


def _list(job: Job, source: Folder, failed: dict[str, str]) -> list[FileInfo]:
    def cannot_be_read(path: str, error: OSError) -> None:
        failed[path] = f"cannot be read: {(error.strerror or str(error)).lower()}"

    return [
        file
        for file in source.list(on_error=cannot_be_read)
        if os.path.splitext(file.path)[1].lower() in job.suffixes
    ]


def _plan(
    job: Job,
    files: Sequence[FileInfo],
    destination: Folder,
    manifest: Manifest,
    options: str,
    failed: dict[str, str],
) -> list[Task]:
    """The files to do; those whose results may not be written are put among the failed ones."""
    by_target: dict[str, list[FileInfo]] = defaultdict(list)
    for file in files:
        by_target[job.target_of(file.path)].append(file)
    foreign: set[str] = set()
    if not job.force and by_target.keys() - manifest.ours:
        foreign = {file.path for file in _existing(destination)} - manifest.ours
    tasks = []
    for target, candidates in by_target.items():
        names = [file.path for file in candidates]
        if len(candidates) > 1:
            fault = f"{' and '.join(names)} would both become {target}: use --full-names"
            failed.update(dict.fromkeys(names, fault))
        elif target in foreign:
            failed[names[0]] = f"{target} exists already (use --force to replace it)"
        else:
            file = candidates[0]
            record = manifest.records.get(target)
            if record and (record.source, record.options) != (file.path, options):
                record = None
            tasks.append(Task(file.path, target, file.size, file.version, options, record))
    manifest.plan(task.target for task in tasks)
    return tasks


def _existing(destination: Folder) -> Iterator[FileInfo]:
    if destination.exists():
        yield from destination.list(on_error=lambda path, error: None)


def _engine(
    name: str, job: Job, tasks: Sequence[Task], workers: int | None, address: str | None
) -> Iterator[Outcome]:
    if name == "ray":
        from pycodec.batch.ray_engine import run_on_ray

        return run_on_ray(job, tasks, workers, address)
    return run_on_processes(job, tasks, workers or max(1, _cores() // job.threads))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _note(outcome: Outcome, manifest: Manifest, report: Report) -> None:
    if outcome.record is None:
        report.failed[outcome.task.source] = outcome.error or "unknown"
        manifest.forget(outcome.task.target)
        return
    manifest.add(outcome.record)
    report.skipped += outcome.skipped
    report.done += not outcome.skipped
    report.bytes_in += outcome.bytes_in
    report.bytes_out += outcome.bytes_out


def _summarize(destination: Folder, tasks: Sequence[Task], projection: str) -> None:
    """``measurements.csv``, ``summary.json`` and ``rate_distortion.png`` of all pictures."""
    from pycodec.evaluation import evaluate, plots

    rows: list[dict[str, Any]] = []
    for task in sorted(tasks, key=lambda task: task.source):
        rows += json.loads(destination.read(task.target) or b"[]")
    if not rows:
        return
    measurements = [evaluate.Measurement.from_row(row) for row in rows]
    metrics = evaluate.metrics_for(projection)
    summary = evaluate.summarize(measurements, metrics)
    with tempfile.TemporaryDirectory(prefix="pycodec-batch-") as name:
        folder = Path(name)
        evaluate.write_csv(measurements, folder / "measurements.csv")
        evaluate.write_json(summary, folder / "summary.json")
        plots.plot_rate_distortion(summary, folder / "rate_distortion.png", metrics)
        for path in sorted(folder.iterdir()):
            destination.write(path.name, path.read_bytes())
