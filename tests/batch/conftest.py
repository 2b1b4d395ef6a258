"""Pictures for the tests of whole batches, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pycodec.batch import Job
from pycodec.batch.work import Worker
from pycodec.storage import open_folder

from .album import PICTURES, results, tasks


@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch) -> None:
    """Other processes must import the installed package, not the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def album(tmp_path_factory, photograph) -> Path:
    """A folder of pictures, some in a subfolder."""
    top = tmp_path_factory.mktemp("album")
    for i in range(PICTURES):
        path = top / ("nested" if i % 3 else ".") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photograph[5 * i : 5 * i + 200, 30 * (i % 4) :][:, :300]).save(path)
    return top


@pytest.fixture(scope="session")
def encoded_album(album) -> dict[str, bytes]:
    """What one process makes of it, without any machinery."""
    worker = Worker(Job("encode", str(album), "memory://encoded-album"))
    for task in tasks(album):
        assert worker(task).error is None
    return results(open_folder("memory://encoded-album"))
