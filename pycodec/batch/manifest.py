"""What a batch has done in a folder, so that the next run goes on where this one ended.

The folder's ``.pycodec-batch/`` holds JSON lines, in files that are only ever written whole, so
that they work on object stores too: ``manifest.jsonl`` and, until they are merged into it at the
end of a run, ``manifest-RUN-NUMBER.jsonl``. A line is one of

- ``{"planned": [target, ...]}``: these did not exist when a batch set out to write them, so they
  are ours;
- ``{"target": ..., "source": ..., ...}``, a :class:`Record`: finished.

A finished file whose line is lost is done again, nothing more.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from pycodec.errors import CodecError, InputError
from pycodec.storage import STATE_FOLDER, TEMPORARY, Folder, LocalFolder

_MANIFEST = "manifest.jsonl"
_SEGMENT = re.compile(r"manifest-[0-9a-f]{16}-\d{6}\.jsonl")
_FLUSH_SECONDS = 5.0
_FLUSH_LINES = 1000


@dataclass(frozen=True)
class Record:
    """A finished file.

    Attributes:
        source, target: paths in their folders.
        options: hash of all that decides about the result but the source.
        source_size, source_version: of the :class:`~pycodec.storage.FileInfo`.
        source_sha256, target_sha256: of the contents, in hexadecimal digits.
    """

    source: str
    target: str
    options: str
    source_size: int
    source_version: str
    source_sha256: str
    target_sha256: str


class Manifest:
    """The manifest of a folder; a context manager that holds a lock where there can be one.

    Attributes:
        records: by target.
        ours: targets that batches wrote, or were about to write.
    """

    def __init__(self, folder: Folder) -> None:
        self.records: dict[str, Record] = {}
        self.ours: set[str] = set()
        self._folder = folder
        self._run = secrets.token_hex(8)
        self._segments: list[str] = []
        self._lines: list[str] = []
        self._flushed = time.monotonic()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Manifest:
        if isinstance(self._folder, LocalFolder):
            self._stack.enter_context(_lock(self._folder))
        try:
            self._remove_temporaries()
            self._load()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            try:
                self._remove_temporaries()
                self._flush()
                self._merge()
            except CodecError:
                if kind is None:  # else it is no news: the disk is full, the network gone
                    raise

    def plan(self, targets: Iterable[str]) -> None:
        """Note, before any is written, that these targets are ours."""
        new = [target for target in targets if target not in self.ours]
        self.ours.update(new)
        self._lines += _planned(new)
        self._flush()

    def add(self, record: Record) -> None:
        """Note that a file is finished."""
        self.records[record.target] = record
        self.ours.add(record.target)
        self._lines.append(json.dumps(asdict(record)))
        late = time.monotonic() - self._flushed > _FLUSH_SECONDS
        if late or len(self._lines) >= _FLUSH_LINES:
            self._flush()

    def forget(self, target: str) -> None:
        """Note that nothing was written: what is there some day is not ours."""
        if target not in self.records:
            self.ours.discard(target)

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if self._lines:
            name = f"{STATE_FOLDER}/manifest-{self._run}-{len(self._segments):06}.jsonl"
            self._folder.write(name, _join(self._lines))
            self._segments.append(name)
            self._lines = []

    def _merge(self) -> None:
        lines = _planned(sorted(self.ours - self.records.keys()))
        lines += [json.dumps(asdict(record)) for _, record in sorted(self.records.items())]
        self._folder.write(f"{STATE_FOLDER}/{_MANIFEST}", _join(lines))
        for name in self._segments:
            self._folder.remove(name)

    def _load(self) -> None:
        for name in self._folder.names(STATE_FOLDER):
            path = f"{STATE_FOLDER}/{name}"
            if _SEGMENT.fullmatch(name):
                self._segments.append(path)  # of a run that did not come to its end
            elif name != _MANIFEST:
                continue
            for line in (self._folder.read(path) or b"").splitlines():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if "planned" in entry:
                self.ours.update(map(str, entry["planned"]))
                return
            record = Record(**entry)
            if any(
                type(getattr(record, field.name)).__name__ != field.type for field in fields(Record)
            ):
                return
        except (ValueError, TypeError):
            return  # damaged: that file is done again
        self.records[record.target] = record
        self.ours.add(record.target)

    def _remove_temporaries(self) -> None:
        """What killed processes left; where there is no lock it may be someone else's work."""
        if isinstance(self._folder, LocalFolder):
            for name in self._folder.names(TEMPORARY):
                self._folder.remove(f"{TEMPORARY}/{name}")


def _planned(targets: list[str]) -> list[str]:
    return [json.dumps({"planned": targets[i : i + 1000]}) for i in range(0, len(targets), 1000)]


def _join(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


@contextlib.contextmanager
def _lock(folder: LocalFolder) -> Iterator[None]:
    """Keep a second batch out of the folder; the kernel lets go when the process ends."""
    path = folder.full_path(f"{STATE_FOLDER}/lock")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 (closed below)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{folder.url}: cannot be written to: {reason}") from error
    with file:
        if not _try_lock(file):
            raise CodecError(f"{folder.url}: another batch is writing to this folder")
        yield


def _try_lock(file: Any) -> bool:
    try:
        import fcntl
    except ImportError:  # not Unix
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks: there it is up to the user.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
