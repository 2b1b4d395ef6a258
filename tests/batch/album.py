"""What the tests of whole batches share: doing, watching and killing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from pycodec.batch.work import Task
from pycodec.storage import LocalFolder

PICTURES = 12


class Poison(Task):
    """Kills the process that receives it."""

    def __reduce__(self):
        return eval, ("__import__('os').kill(__import__('os').getpid(), 9)",)


def tasks(source: Path) -> list[Task]:
    return [
        Task(info.path, info.path[:-4] + ".lci", info.size, info.version, "")
        for info in LocalFolder(str(source)).list()
    ]


def results(folder) -> dict[str, bytes]:
    return {info.path: folder.read(info.path) for info in folder.list()}


def start(*arguments: object) -> subprocess.Popen:
    """The command line in a session of its own, as in a terminal of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pycodec", "batch", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_a_file(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not any(folder.rglob("*.lci")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
