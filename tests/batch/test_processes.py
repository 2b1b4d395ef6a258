"""Batches on real processes: the same result, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pycodec import CodecError
from pycodec.batch import Job, run_batch
from pycodec.batch.processes import run_on_processes
from pycodec.storage import TEMPORARY, LocalFolder

from .album import PICTURES, Poison, results, start, tasks, wait_for_a_file


def test_same_result(album, encoded_album, tmp_path):
    pytest.importorskip("fsspec")
    report = run_batch(Job("encode", str(album), f"file://{tmp_path}/out"), workers=2)
    assert (report.done, report.failed) == (PICTURES, {})
    assert results(LocalFolder(str(tmp_path / "out"))) == encoded_album
    report = run_batch(Job("encode", str(album), f"file://{tmp_path}/out"), workers=1)
    assert (report.done, report.skipped) == (0, PICTURES)
    run_batch(Job("encode", str(album), str(tmp_path / "two"), threads=2), workers=1)
    assert results(LocalFolder(str(tmp_path / "two"))) == encoded_album


def test_who_kills_its_process_fails_alone(album, encoded_album, tmp_path):
    job = Job("encode", str(album), str(tmp_path / "out"))
    todo = tasks(album)
    todo.insert(3, Poison("poison.png", "poison.lci", 0, "", ""))
    outcomes = list(run_on_processes(job, todo, 2))
    assert {o.task.source for o in outcomes} == {task.source for task in todo}
    assert len(outcomes) == len(todo)
    failed = [o for o in outcomes if o.record is None]
    assert [o.task.source for o in failed] == ["poison.png"]
    assert "died 2 times (SIGKILL" in failed[0].error
    assert results(LocalFolder(str(tmp_path / "out"))) == encoded_album


def test_no_worker_can_start(album, tmp_path):
    job = Job("encode", str(album), str(tmp_path / "out"), model="missing")
    with pytest.raises(CodecError, match="no model"):
        list(run_on_processes(job, tasks(album), 1))


def test_ctrl_c_and_on(album, encoded_album, tmp_path):
    out = tmp_path / "out"
    process = start("encode", album, out, "--workers", 2)
    wait_for_a_file(out, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "interrupted" in said and "goes on" in said
    folder = LocalFolder(str(out))
    assert folder.names(TEMPORARY) == []
    done = results(folder)
    assert 0 < len(done) < PICTURES
    assert done.items() <= encoded_album.items()  # none is half-written

    process = start("encode", album, out, "--workers", 2, "--quiet")
    _, said = process.communicate(timeout=240)
    assert (process.returncode, said) == (0, "")
    assert results(folder) == encoded_album


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to look into")
def test_all_workers_are_deaf_to_ctrl_c(album, tmp_path):
    """The first one too, in a process that has started no other yet."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pycodec.batch import Job\n"
        "from pycodec.batch.processes import _start\n"
        "for _ in range(2):\n"
        "    worker = _start(Job('encode', sys.argv[1], sys.argv[2]))\n"
        "    lines = Path(f'/proc/{worker.process.pid}/status').read_text().splitlines()\n"
        "    print(next(line.split()[1] for line in lines if line.startswith('SigBlk')))\n"
        "    worker.process.terminate()\n"
    )
    command = [sys.executable, "-c", code, str(album), str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    masks = [int(line, 16) for line in said.split()]
    assert len(masks) == 2 and all(mask >> (signal.SIGINT - 1) & 1 for mask in masks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_on(album, encoded_album, tmp_path, number):
    """Even kill -9 of the first process, which cannot say good-bye to the others."""
    out = tmp_path / "out"
    process = start("encode", album, out, "--workers", 1)
    wait_for_a_file(out, process)
    process.send_signal(number)
    process.communicate(timeout=120)  # the pipe closes when the last of them has gone
    folder = LocalFolder(str(out))
    done = results(folder)
    assert 0 < len(done) < PICTURES and done.items() <= encoded_album.items()
    report = run_batch(Job("encode", str(album), str(out)), workers=1)
    assert report.failed == {} and report.done + report.skipped == PICTURES
    assert results(folder) == encoded_album
    assert folder.names(TEMPORARY) == []
