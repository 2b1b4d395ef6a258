"""``pycodec batch``: arguments, progress, and what is said at the end."""

from __future__ import annotations

import pytest
from PIL import Image

from pycodec import cli
from pycodec.batch import Report
from pycodec.batch import cli as batch_cli
from pycodec.batch.work import Outcome, Task


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line on a stand-in for the batch; returns code, text and what was asked."""
    asked = {}
    outcomes = []

    def run_batch(job, *, watcher, **options):
        asked.update(job=job, **options)
        report = Report()
        watcher.started(report, len(outcomes))
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome.error:
                report.failed[outcome.task.source] = outcome.error
            elif outcome.skipped:
                report.skipped += 1
            else:
                report.done += 1
            watcher.finished(outcome)
        return report

    monkeypatch.setattr(batch_cli, "run_batch", run_batch)

    def call(*arguments, results=()):
        outcomes[:] = results
        try:
            code = cli.main(["batch", *map(str, arguments)])
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        assert captured.out == ""
        return code, captured.err, asked

    return call


def outcome(name: str, **options) -> Outcome:
    return Outcome(Task(name, name, 1, "", ""), **options)


def test_arguments(call):
    _, _, asked = call("encode", "a", "b")
    job = asked["job"]
    assert (job.command, job.source, job.destination, job.quality) == ("encode", "a", "b", 50)
    assert (asked["engine"], asked["address"], asked["workers"]) == ("processes", None, None)
    options = "--lossless --tile 256 --threads 2 --workers 3 --model m -f --full-names --device cpu"
    job = call("encode", "s3://a", "b", *options.split(), "--max-pixels", 9)[2]["job"]
    assert (job.lossless, job.tile, job.threads, job.model, job.force) == (True, 256, 2, "m", True)
    assert (job.full_names, job.device, job.max_pixels) == (True, "cpu", 9)
    asked = call("decode", "a", "b", "--format", "webp", "--engine", "ray", "--address", "auto")[2]
    assert (asked["job"].format, asked["engine"], asked["address"]) == ("webp", "ray", "auto")
    job = call("eval", "a", "b", "--qualities", "9,50", "--anchors", "jpeg", "--no-ms-ssim")[2][
        "job"
    ]
    assert (job.qualities, job.anchors, job.ms_ssim) == ((9.0, 50.0), ("jpeg",), False)
    assert job.projection is None
    job = call("encode", "a", "b", "--projection", "auto")[2]["job"]
    assert job.projection == "auto"
    arguments = ("eval", "a", "b", "--no-ms-ssim", "--projection", "erp")
    job = call(*arguments)[2]["job"]
    assert job.projection == "erp" and job.anchors[:2] == ("photo", "jpeg")
    job = call(*arguments, "--anchors", "photo,webp")[2]["job"]
    assert job.anchors == ("photo", "webp")


def test_wrong_usage(call):
    for arguments in [[], ["encode"], ["encode", "a"], ["encode", "a", "b", "-q", "101"]]:
        assert call(*arguments)[0] == 2
    assert call("encode", "a", "b", "--engine", "steam")[0] == 2
    code, said, _ = call("encode", "a", "b", "--address", "auto")
    assert code == 1 and "--engine ray" in said
    code, said, _ = call("eval", "a", "b", "--anchors", "gif")
    assert code == 1 and "unknown anchor" in said
    code, said, _ = call("eval", "a", "b", "--anchors", "photo")
    assert code == 1 and "unknown anchor" in said
    assert call("decode", "a", "b", "--projection", "erp")[0] == 2


def test_what_is_said(call):
    code, said, _ = call("encode", "a", "b", results=[outcome("x"), outcome("y", skipped=True)])
    assert code == 0 and said.startswith("1 done, 1 finished before, 0 failed")
    assert call("encode", "a", "b", "--quiet", results=[outcome("x")])[:2] == (0, "")
    results = [outcome("z\n.png", error="is bad"), outcome("y", error="too"), outcome("x")]
    for quiet in ([], ["--quiet"]):
        code, said, _ = call("encode", "a", "b", *quiet, results=results)
        assert code == 1
        lines = said.splitlines()
        assert lines[:2] == ["pycodec: y: too", "pycodec: z\\n.png: is bad"]
        assert lines[2].startswith("1 done, 0 finished before, 2 failed") and len(lines) == 3
    code, said, _ = call("encode", "a", "b", results=[outcome("x", warnings=["16 bits"])])
    assert code == 0 and said.startswith("x: warning: 16 bits\n")


def test_nothing_to_do(call):
    code, said, _ = call("encode", "a", "b")
    assert code == 1 and "no files of the right kind" in said


def test_interrupted(call):
    code, said, _ = call("encode", "a", "b", results=[outcome("x"), KeyboardInterrupt()])
    assert code == 130
    assert "1 done" in said and "goes on from here" in said
    code, said, _ = call("encode", "a", "b", results=[KeyboardInterrupt()])
    assert code == 130 and "goes on from here" in said


def test_lines_of_progress(call, monkeypatch):
    monkeypatch.setattr(batch_cli, "_SECONDS_BETWEEN_LINES", 0)
    said = call("encode", "a", "b", results=[outcome("x"), outcome("y", error="bad")])[1]
    first, second, *_ = said.splitlines()
    assert first.startswith("1 of 2 files, ") and "files/s, 0:00:0" in first and "left" in first
    assert second.startswith("2 of 2 files, ") and second.endswith("left, 1 failed")


def test_bar_on_terminals(call, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    results = [outcome("x", warnings=["[odd] markup"]), outcome("y", error="bad")]
    code, said, _ = call("encode", "a", "b", results=results)
    assert code == 1 and "[odd] markup" in said and "pycodec: y: bad" in said


def test_the_whole_of_it(tmp_path, capsys):
    Image.new("RGB", (20, 10), "teal").save(tmp_path / "a.png")
    assert cli.main(["batch", "encode", str(tmp_path), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "a.lci").exists()
    assert "1 done" in capsys.readouterr().err
