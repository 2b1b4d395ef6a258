"""Batches on real processes: the same result, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pycodec import CodecError
from pycodec.batch import Job, run_batch
from pycodec.batch.processes import run_on_processes
from pycodec.batch.work import Task, Worker
from pycodec.storage import TEMPORARY, LocalFolder, open_folder


class Poison(Task):
    """Kills the process that receives it."""

    def __reduce__(self):
        return eval, ("__import__('os').kill(__import__('os').getpid(), 9)",)


@pytest.fixture(scope="module")
def source(tmp_path_factory, photograph) -> Path:
    top = tmp_path_factory.mktemp("source")
    for i in range(12):
        path = top / ("nested" if i % 3 else ".") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photograph[5 * i : 5 * i + 200, 30 * (i % 4) :][:, :300]).save(path)
    return top


@pytest.fixture(scope="module")
def expected(source) -> dict[str, bytes]:
    """What one process makes, without any machinery."""
    worker = Worker(Job("encode", str(source), "memory://expected"))
    folder = open_folder("memory://expected")
    for task in tasks(source):
        assert worker(task).error is None
    return results(folder)


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


def test_same_result(source, expected, tmp_path):
    pytest.importorskip("fsspec")
    report = run_batch(Job("encode", str(source), f"file://{tmp_path}/out"), workers=2)
    assert (report.done, report.failed) == (12, {})
    assert results(LocalFolder(str(tmp_path / "out"))) == expected
    report = run_batch(Job("encode", str(source), f"file://{tmp_path}/out"), workers=1)
    assert (report.done, report.skipped) == (0, 12)
    run_batch(Job("encode", str(source), str(tmp_path / "two"), threads=2), workers=1)
    assert results(LocalFolder(str(tmp_path / "two"))) == expected


def test_who_kills_its_process_fails_alone(source, expected, tmp_path):
    job = Job("encode", str(source), str(tmp_path / "out"))
    todo = tasks(source)
    todo.insert(3, Poison("poison.png", "poison.lci", 0, "", ""))
    outcomes = list(run_on_processes(job, todo, 2))
    assert {o.task.source for o in outcomes} == {task.source for task in todo}
    assert len(outcomes) == len(todo)
    failed = [o for o in outcomes if o.record is None]
    assert [o.task.source for o in failed] == ["poison.png"]
    assert "died 2 times (SIGKILL" in failed[0].error
    assert results(LocalFolder(str(tmp_path / "out"))) == expected


def test_no_worker_can_start(source, tmp_path):
    job = Job("encode", str(source), str(tmp_path / "out"), model="missing")
    with pytest.raises(CodecError, match="no model"):
        list(run_on_processes(job, tasks(source), 1))


def test_ctrl_c_and_on(source, expected, tmp_path):
    out = tmp_path / "out"
    process = start("encode", source, out, "--workers", 2)
    wait_for_a_file(out, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "interrupted" in said and "goes on" in said
    folder = LocalFolder(str(out))
    assert folder.names(TEMPORARY) == []
    done = results(folder)
    assert 0 < len(done) < 12
    assert done.items() <= expected.items()  # none is half-written

    process = start("encode", source, out, "--workers", 2, "--quiet")
    _, said = process.communicate(timeout=240)
    assert (process.returncode, said) == (0, "")
    assert results(folder) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_on(source, expected, tmp_path, number):
    """Even kill -9 of the first process, which cannot say good-bye to the others."""
    out = tmp_path / "out"
    process = start("encode", source, out, "--workers", 1)
    wait_for_a_file(out, process)
    process.send_signal(number)
    process.communicate(timeout=120)  # the pipe closes when the last of them has gone
    folder = LocalFolder(str(out))
    done = results(folder)
    assert 0 < len(done) < 12 and done.items() <= expected.items()
    report = run_batch(Job("encode", str(source), str(out)), workers=1)
    assert report.failed == {} and report.done + report.skipped == 12
    assert results(folder) == expected
    assert folder.names(TEMPORARY) == []
