"""Batches: planning, going on after anything, and every kind of bad file. In this process."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pycodec
from pycodec import CodecError, InputError
from pycodec.batch import Job, run, run_batch
from pycodec.batch.work import Outcome, Worker
from pycodec.coding.container import Codec, peek
from pycodec.models import model_folder
from pycodec.storage import TEMPORARY, LocalFolder

NAMES = ["one.png", "two.jpg", "nested/three.png", "nested/deep/four.PNG", "nested/deep/one.png"]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    def engine(name, job, tasks, workers, address):
        worker = Worker(job)
        for task in tasks:
            yield worker(task)

    monkeypatch.setattr(run, "_engine", engine)


@pytest.fixture(scope="session")
def originals(tmp_path_factory, photograph) -> Path:
    top = tmp_path_factory.mktemp("originals")
    for i, name in enumerate(NAMES):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[10 * i : 10 * i + 40, 100:148]).save(top / name)
    (top / "notes.txt").write_text("no picture")
    return top


@pytest.fixture
def source(tmp_path, originals) -> Path:
    shutil.copytree(originals, tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def encode(source, tmp_path):
    """Runs a batch; returns the report."""

    def call(**options):
        job = Job("encode", str(source), str(tmp_path / "out"), **options)
        return run_batch(job)

    return call


def results(folder: Path) -> dict[str, bytes]:
    found = LocalFolder(str(folder)).list()
    return {info.path: (folder / info.path).read_bytes() for info in found}


def test_folders_are_descended(encode, source, tmp_path):
    report = encode(quality=30)
    assert (report.done, report.skipped, report.failed) == (5, 0, {})
    found = results(tmp_path / "out")
    assert set(found) == {os.path.splitext(name)[0] + ".lci" for name in NAMES}
    for name in NAMES:
        expected = pycodec.encode(Image.open(source / name), 30, threads=1)
        assert found[os.path.splitext(name)[0] + ".lci"] == expected
    assert report.bytes_out == sum(map(len, found.values()))
    assert report.bytes_in == sum((source / name).stat().st_size for name in NAMES)


def test_finished_files_are_skipped(encode, tmp_path, source, monkeypatch):
    encode()
    before = results(tmp_path / "out")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.lci")}
    report = encode()
    assert (report.done, report.skipped) == (0, 5)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    # Untouched sources are not even read.
    monkeypatch.setattr(Worker, "_read", None)
    assert encode().skipped == 5
    assert results(tmp_path / "out") == before


def test_what_is_done_again(encode, tmp_path, source, photograph):
    encode()
    before = results(tmp_path / "out")
    out = tmp_path / "out"
    (out / "one.lci").unlink()
    damaged = bytearray((out / "two.lci").read_bytes())
    damaged[-1] ^= 1
    (out / "two.lci").write_bytes(damaged)
    os.utime(source / "nested/three.png", (1, 1))  # touched, not changed
    report = encode()
    assert (report.done, report.skipped) == (2, 3)
    assert results(out) == before
    assert encode().skipped == 5  # the new time of the touched one is known now

    other = Image.fromarray(photograph[200:230, 200:260])
    other.save(source / "one.png")
    report = encode()
    assert (report.done, report.skipped) == (1, 4)
    assert peek((out / "one.lci").read_bytes()).width == 60

    assert encode(quality=20).done == 5
    assert encode(quality=20).skipped == 5
    assert encode(lossless=True).done == 5
    assert encode(lossless=True, quality=99).skipped == 5  # has no meaning there
    assert {peek(data).quality for data in results(out).values()} == {10000}


def test_a_lost_manifest(encode, tmp_path):
    """Without it the files are someone else's."""
    encode()
    shutil.rmtree(tmp_path / "out" / ".pycodec-batch")
    report = encode()
    assert report.done == 0 and len(report.failed) == 5
    assert encode(force=True).done == 5
    assert encode().skipped == 5


def test_files_of_others_are_not_replaced(encode, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "one.lci").write_bytes(b"mine")
    report = encode()
    assert report.done == 4
    assert set(report.failed) == {"one.png"} and "--force" in report.failed["one.png"]
    assert (out / "one.lci").read_bytes() == b"mine"
    assert encode().skipped == 4
    assert (encode(force=True).done, encode().skipped) == (1, 5)


def test_two_pictures_with_one_name(encode, tmp_path, source):
    shutil.copy(source / "two.jpg", source / "one.jpg")
    report = encode()
    assert report.done == 4
    assert set(report.failed) == {"one.jpg", "one.png"}
    assert all("one.jpg and one.png" in text for text in report.failed.values())
    report = encode(full_names=True)
    assert (report.done, report.failed) == (6, {})
    assert {"one.jpg.lci", "one.png.lci"} <= results(tmp_path / "out").keys()


def test_bad_files_stop_nothing(encode, tmp_path, source, monkeypatch):
    (source / "empty.png").touch()
    (source / "junk.png").write_bytes(b"junk" * 100)
    whole = (source / "one.png").read_bytes()
    (source / "nested/truncated.png").write_bytes(whole[: len(whole) // 2])
    (source / "link.png").symlink_to(source / "missing.png")
    Image.new("RGB", (300, 300)).save(source / "large.png")
    read = Worker._read

    def refuse(self, task):
        if task.source == "two.jpg":
            raise InputError("two.jpg: cannot be read: permission denied")
        if task.source == "nested/three.png":
            raise MemoryError
        if task.source == "nested/deep/one.png":
            raise ZeroDivisionError("a bug")
        return read(self, task)

    monkeypatch.setattr(Worker, "_read", refuse)
    report = encode(max_pixels=299 * 300)
    assert report.done == 2
    assert {name: text for name, text in report.failed.items() if "\n" in text} == {}
    for name, fault in {
        "empty.png": "the file is empty",
        "junk.png": "not a picture",
        "nested/truncated.png": "",
        "link.png": "cannot be read: the link leads nowhere",
        "large.png": "300x300 pixels are more than",
        "two.jpg": "cannot be read: permission denied",
        "nested/three.png": "not enough memory",
        "nested/deep/one.png": "unexpected ZeroDivisionError: a bug",
    }.items():
        assert fault in report.failed.pop(name), name
    assert report.failed == {}
    # They are tried again, and what is repaired succeeds.
    monkeypatch.undo()
    for name in ("empty.png", "junk.png", "nested/truncated.png", "link.png", "large.png"):
        (source / name).unlink()


def test_a_target_that_failed_is_not_ours(encode, tmp_path, source):
    (source / "junk.png").write_bytes(b"junk")
    assert "not a picture" in encode().failed["junk.png"]
    (tmp_path / "out" / "junk.lci").write_bytes(b"mine")
    shutil.copy(source / "one.png", source / "junk.png")
    assert "exists already" in encode().failed["junk.png"]


def test_odd_names(encode, tmp_path, source):
    data = (source / "one.png").read_bytes()
    names = [b"line\nbreak.png", b"\xff\xfe.png", "ü 漢.png".encode(), b"-q.png", b".hidden.png"]
    for name in names:
        with open(os.path.join(os.fsencode(source), name), "wb") as file:
            file.write(data)
    report = encode()
    assert (report.done, report.failed) == (10, {})
    assert encode().skipped == 10
    for name in names:
        assert os.path.exists(os.path.join(os.fsencode(tmp_path), b"out", name[:-3] + b"lci"))


def test_full_disk(encode, tmp_path, monkeypatch):
    calls = 0
    fsync = os.fsync

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls > 3:  # the plan, and two files
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CodecError, match="no space left"):
        encode()
    assert len(results(tmp_path / "out")) == 2
    assert os.listdir(tmp_path / "out" / TEMPORARY) == []
    monkeypatch.setattr(os, "fsync", fsync)
    report = encode()  # the two are ours, though their lines found no room
    assert report.failed == {} and report.done + report.skipped == 5


def test_interrupted(source, tmp_path):
    class Interrupt:
        seen = 0

        def started(self, report, files):
            assert files == 5

        def finished(self, outcome):
            self.seen += 1
            if self.seen == 2:
                raise KeyboardInterrupt

    job = Job("encode", str(source), str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        run_batch(job, watcher=Interrupt())
    assert len(results(tmp_path / "out")) == 2
    report = run_batch(job)
    assert (report.done, report.skipped) == (3, 2)


def test_no_permission(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"):
        run_batch(Job("encode", str(source), str(tmp_path / "file")))
    with pytest.raises(InputError, match="no such folder"):
        run_batch(Job("encode", str(tmp_path / "missing"), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_into_the_same_folder(source):
    job = Job("encode", str(source), str(source))
    assert run_batch(job).done == 5
    assert run_batch(job).skipped == 5
    back = Job("decode", str(source), str(source))
    report = run_batch(back)  # one.png and others exist, two.png does not
    assert report.done == 2 and len(report.failed) == 3  # four.PNG is no four.png
    assert all("exists already" in text for text in report.failed.values())


def test_wrong_arguments(source, tmp_path):
    with pytest.raises(InputError, match="unknown command"):
        Job("encrypt", "a", "b")
    out = str(tmp_path / "out")
    for options, fault in [
        ({"engine": "steam"}, "unknown engine"),
        ({"workers": 0}, "workers"),
    ]:
        with pytest.raises(InputError, match=fault):
            run_batch(Job("encode", str(source), out), **options)
    for options, fault in [
        ({"model": "missing"}, "no model"),
        ({"lossless": True, "model": "photo"}, "not lossless"),
        ({"device": "steam"}, "device"),
    ]:
        with pytest.raises(InputError, match=fault):
            run_batch(Job("encode", str(source), out, **options))
    report = run_batch(Job("encode", str(source), out, quality=101))
    assert len(report.failed) == 5


def test_decode(encode, source, tmp_path):
    encode(lossless=True)
    out = tmp_path / "out"
    (out / "bad.lci").write_bytes((out / "one.lci").read_bytes()[:-1])
    job = Job("decode", str(out), str(tmp_path / "pictures"), format="tif")
    report = run_batch(job)
    assert report.done == 5 and set(report.failed) == {"bad.lci"}
    for name in NAMES:
        decoded = Image.open(tmp_path / "pictures" / (os.path.splitext(name)[0] + ".tif"))
        assert np.array_equal(decoded, Image.open(source / name))
    assert run_batch(job).skipped == 5
    bombs = run_batch(Job("decode", str(out), str(tmp_path / "small"), max_pixels=40 * 48 - 1))
    assert bombs.done == 0 and "--max-pixels" in bombs.failed["one.lci"]


def test_warnings(source, tmp_path):
    for path in source.rglob("*"):
        if path.is_file():
            path.unlink()
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(source / "deep.png")
    seen: list[Outcome] = []

    class Watcher:
        def started(self, report, files):
            pass

        def finished(self, outcome):
            seen.append(outcome)

    run_batch(Job("encode", str(source), str(tmp_path / "out")), watcher=Watcher())
    assert "16-bit" in seen[0].warnings[0]


def test_eval(source, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("bjontegaard")
    (source / "junk.png").write_bytes(b"junk")
    out = tmp_path / "out"
    options = {"qualities": (10.0, 50.0, 90.0), "anchors": ("jpeg",), "ms_ssim": False}
    job = Job("eval", str(source), str(out), **options)
    report = run_batch(job)
    assert report.done == 5 and set(report.failed) == {"junk.png"}
    with open(out / "measurements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["picture"] for row in rows} == set(NAMES)  # with their folders
    assert len(rows) == 5 * (3 + 13)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["pictures"] == 5 and set(summary["curves"]) == {"pycodec", "jpeg"}
    assert (out / "rate_distortion.png").stat().st_size > 1000
    os.unlink(out / "measurements.csv")
    assert run_batch(job).skipped == 5
    assert (out / "measurements.csv").exists()
    with pytest.raises(InputError, match="inside"):
        run_batch(Job("eval", str(source), str(source / "results"), **options))


def test_eval_of_panoramas(tmp_path, photograph):
    """On the sphere, with the codec for it, against the photo codec: as ``pycodec eval`` says."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("bjontegaard")
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    Image.fromarray(photograph[:64, :128]).save(source / "panorama.png")
    options = {"qualities": (20.0, 60.0), "anchors": ("photo",), "ms_ssim": False}
    job = Job("eval", str(source), str(out), projection="erp", **options)
    assert run_batch(job).done == 1
    with open(out / "measurements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["codec"] for row in rows] == ["pycodec"] * 2 + ["photo"] * 2
    assert {"ws_psnr", "s_psnr", "viewport_psnr"} < rows[0].keys() and "psnr" not in rows[0]
    data = pycodec.encode(photograph[:64, :128], 20, projection="erp")
    assert int(rows[0]["bytes"]) == len(data)
    assert int(rows[2]["bytes"]) == len(pycodec.encode(photograph[:64, :128], 20))
    summary = json.loads((out / "summary.json").read_text())
    assert {entry["metric"] for entry in summary["bd_rates"]} == {
        "ws_psnr",
        "s_psnr",
        "viewport_psnr",
    }
    assert (out / "rate_distortion.png").stat().st_size > 1000
    with pytest.raises(InputError, match="unknown anchor 'photo'"):
        run_batch(Job("eval", str(source), str(out), projection="none", **options))


def test_projection_of_encode(encode, tmp_path):
    """Only what the job says, and another file than without."""
    assert encode(quality=60).done == 5
    plain = (tmp_path / "out" / "one.lci").read_bytes()
    assert encode(quality=60, projection="erp").done == 5
    assert peek((tmp_path / "out" / "one.lci").read_bytes()).codec == Codec.SPHERE
    assert encode(quality=60, projection="erp").skipped == 5
    assert encode(quality=60).done == 5
    assert (tmp_path / "out" / "one.lci").read_bytes() == plain


def test_urls(source, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    top = f"memory://{uuid.uuid4()}"
    fs, root = fsspec.core.url_to_fs(top)
    fs.put(f"{source}/", f"{root}/in/", recursive=True)
    job = Job("encode", f"{top}/in", f"{top}/out")
    assert run_batch(job).done == 5
    assert run_batch(job).skipped == 5
    run_batch(Job("encode", str(source), str(tmp_path / "out")))
    for path, data in results(tmp_path / "out").items():
        assert fs.cat_file(f"{root}/out/{path}") == data
    assert run_batch(Job("decode", f"{top}/out", str(tmp_path / "back"))).done == 5


def test_new_weights_for_the_sphere_are_other_options(monkeypatch):
    before, named = (run._fingerprint(Job("encode", "a", "b", model=m)) for m in (None, "photo"))
    monkeypatch.setattr(model_folder, "read_description", lambda folder: {"sha256": "0" * 64})
    after = run._fingerprint(Job("encode", "a", "b"))
    assert after != before and after[:16] == before[:16] == named
    assert run._fingerprint(Job("encode", "a", "b", model="photo")) == named
