"""Folders of this machine and of fsspec: the same behaviour, and nothing half-written."""

from __future__ import annotations

import os
import pickle
import uuid

import pytest

from pycodec import CodecError, InputError
from pycodec.storage import STATE_FOLDER, TEMPORARY, LocalFolder, open_folder, read_file

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["path", "file", "memory"])
def folder(request, tmp_path):
    url = {
        "path": str(tmp_path / "top"),
        "file": f"file://{tmp_path}/top",
        "memory": f"memory://{uuid.uuid4()}/top",
    }[request.param]
    return open_folder(url)


def paths(folder, below: str = "") -> list[str]:
    return [info.path for info in folder.list(below)]


def test_there_and_back(folder):
    assert not folder.exists()
    folder.write("b/c/one.lci", b"1")
    folder.write("a.lci", b"22")
    folder.write("b/two.lci", b"")
    assert folder.exists()
    assert paths(folder) == ["a.lci", "b/c/one.lci", "b/two.lci"]
    assert paths(folder, "b") == ["b/c/one.lci", "b/two.lci"]
    assert [info.size for info in folder.list()] == [2, 1, 0]
    assert folder.read("b/c/one.lci") == b"1"
    assert read_file(folder.location("b/c/one.lci")) == b"1"
    assert folder.read("missing") is None and folder.read("a.lci/below") is None
    folder.remove("a.lci")
    folder.remove("a.lci")
    assert paths(folder) == ["b/c/one.lci", "b/two.lci"]


def test_versions_tell_changes(folder):
    folder.write("a", b"1")
    (before,) = folder.list()
    folder.write("a", b"2")
    (after,) = folder.list()
    assert before.version and before.version != after.version
    assert folder.read("a") == b"2"


def test_state_is_not_listed(folder):
    folder.write("a", b"")
    folder.write(f"{STATE_FOLDER}/manifest.jsonl", b"{}")
    assert paths(folder) == ["a"]
    assert "manifest.jsonl" in folder.names(STATE_FOLDER)
    assert folder.names("missing") == []


def test_failures_leave_nothing(folder):
    folder.write("a/b", b"")
    with pytest.raises(CodecError):
        folder.write("a/b/c", b"a file is no folder")
    if "memory" not in folder.url:
        with pytest.raises(CodecError, match="a: "):
            folder.write("a", b"a folder is no file")
    assert paths(folder) == ["a/b"]
    assert folder.names(TEMPORARY) == []


def test_other_processes(folder):
    folder.write("a", b"1")
    assert pickle.loads(pickle.dumps(folder)).read("a") == b"1"


def test_unusable_urls(tmp_path):
    with pytest.raises(InputError, match="nonsense://"):
        open_folder("nonsense://bucket/a")
    with pytest.raises(InputError, match="cannot be read"):
        read_file(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot be read"):
        read_file(f"file://{tmp_path}/missing")


def test_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"1")
    (tmp_path / "file").symlink_to(tmp_path / "a" / "one")
    (tmp_path / "around").symlink_to(tmp_path)  # followed, it would never end
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    errors = {}
    found = LocalFolder(str(tmp_path)).list(on_error=lambda path, error: errors.update({path: 1}))
    assert [info.path for info in found] == ["a/one", "file"]
    assert errors == {"nowhere": 1}
    with pytest.raises(FileNotFoundError):
        list(LocalFolder(str(tmp_path)).list())


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"1")
    scandir = os.scandir

    def refuse(path):  # root may read everything
        if os.path.basename(path) == "a":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    errors = {}
    found = LocalFolder(str(tmp_path)).list(on_error=lambda path, error: errors.update({path: 1}))
    assert [info.path for info in found] == ["b/file"]
    assert errors == {"a": 1}
