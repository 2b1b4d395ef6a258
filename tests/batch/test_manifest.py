"""The manifest: what survives, what is locked, what is cleaned up."""

from __future__ import annotations

import subprocess
import sys
import uuid

import pytest

from pycodec import CodecError, InputError
from pycodec.batch.manifest import Manifest, Record
from pycodec.storage import STATE_FOLDER, TEMPORARY, LocalFolder, open_folder


def record(i: int) -> Record:
    return Record(f"{i}.png", f"{i}.lci", "options", i, "version", "a" * 64, "b" * 64)


@pytest.fixture(params=["path", "memory"])
def folder(request, tmp_path):
    if request.param == "path":
        return LocalFolder(str(tmp_path))
    pytest.importorskip("fsspec")
    return open_folder(f"memory://{uuid.uuid4()}")


def test_what_is_added_is_there_next_time(folder):
    with Manifest(folder) as manifest:
        manifest.plan(["0.lci", "1.lci", "2.lci", "odd\udcff\n.lci"])
        manifest.add(record(0))
        manifest.add(record(1))
        manifest.forget("1.lci")  # it is finished: no
        manifest.forget("2.lci")
    assert [n for n in folder.names(STATE_FOLDER) if "jsonl" in n] == ["manifest.jsonl"]
    for _ in range(2):
        with Manifest(folder) as manifest:
            assert manifest.records == {"0.lci": record(0), "1.lci": record(1)}
            assert manifest.ours == {"0.lci", "1.lci", "odd\udcff\n.lci"}


def test_a_run_that_did_not_end(folder, monkeypatch):
    monkeypatch.setattr("pycodec.batch.manifest._FLUSH_SECONDS", -1)
    manifest = Manifest(folder)
    manifest.plan(["0.lci", "1.lci"])
    manifest.add(record(0))  # and then it was killed
    assert any("manifest-" in name for name in folder.names(STATE_FOLDER))
    with Manifest(folder) as manifest:
        assert manifest.records == {"0.lci": record(0)}
        assert manifest.ours == {"0.lci", "1.lci"}
    assert not any("manifest-" in name for name in folder.names(STATE_FOLDER))
    with Manifest(folder) as manifest:
        assert manifest.ours == {"0.lci", "1.lci"}


def test_damaged_lines_cost_their_files_only(folder):
    with Manifest(folder) as manifest:
        manifest.add(record(0))
        manifest.add(record(1))
    path = f"{STATE_FOLDER}/manifest.jsonl"
    lines = folder.read(path).splitlines()
    junk = [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"target": "x"}', b'{"planned": 3}']
    wrong = lines[1].replace(b'"source_size": 1', b'"source_size": "1"')
    folder.write(path, b"\n".join([lines[0], *junk, wrong]))
    with Manifest(folder) as manifest:
        assert manifest.records == {"0.lci": record(0)}


def test_one_batch_at_a_time(tmp_path):
    folder = LocalFolder(str(tmp_path))
    with Manifest(folder):
        with pytest.raises(CodecError, match="another batch"), Manifest(folder):
            pass
        code = (
            "import sys; from pycodec.batch.manifest import Manifest\n"
            "from pycodec.storage import LocalFolder\n"
            "with Manifest(LocalFolder(sys.argv[1])): pass"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "another batch" in result.stderr
    subprocess.run(command, check=True, timeout=120)


def test_temporaries_of_the_killed_are_removed(tmp_path):
    folder = LocalFolder(str(tmp_path))
    folder.write(f"{TEMPORARY}/.pycodec-dead.tmp", b"half")
    with Manifest(folder):
        assert folder.names(TEMPORARY) == []
        folder.write(f"{TEMPORARY}/.pycodec-dead.tmp", b"half")
    assert folder.names(TEMPORARY) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"):
        Manifest(LocalFolder(str(tmp_path / "file"))).__enter__()
