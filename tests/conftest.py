"""Pictures for the tests, and a stand-in for the codec where the codec is not what is tested."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

import pycodec
from pycodec.coding.alpha import decode_alpha, encode_alpha
from pycodec.coding.container import Codec, Container, Header, pack, unpack
from pycodec.errors import InputError, UnsupportedError
from pycodec.images import Picture

# A time limit for a single example measures how busy the machine is, not the code.
settings.register_profile("pycodec", deadline=None)
settings.load_profile("pycodec")


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """A photograph, uint8 [300, 451, 3]."""
    data = pytest.importorskip("skimage.data")
    photograph = data.chelsea()
    photograph.flags.writeable = False
    return photograph


@pytest.fixture(scope="session")
def interpreted(request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """What scripts print that run Triton kernels in its interpreter, by their path from here.

    In processes of their own, as Triton decides at import whether it interprets. Each keeps one
    core busy for up to a minute, so all that this session has tests for, marked with their script,
    begin when the first is asked for.
    """
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}

    def run(script: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, Path(__file__).parent / script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)

    def output(script: str) -> str:
        result = runs[script].result()
        assert result.returncode == 0, result.stderr
        return result.stdout

    marks = (item.get_closest_marker("interpreted") for item in request.session.items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {mark.args[0]: pool.submit(run, mark.args[0]) for mark in marks if mark}
        yield output
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1234)


class StandInCodec(types.ModuleType):
    """Takes the place of ``pycodec.api``: JPEG in an ``.lci`` file, fast and without weights."""

    fingerprint = b"stand-in"

    def __init__(self) -> None:
        super().__init__("pycodec.api")
        self.calls: list[dict] = []

    def encode_picture(
        self,
        picture: Picture,
        quality: float,
        *,
        model: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        tile: int | None = None,
        lossless: bool = False,
        projection: str = "auto",
        precision: str | None = None,
        exact_pixels: bool = False,
        widths: str | None = None,
    ) -> tuple[bytes, types.SimpleNamespace]:
        self.calls.append(
            {
                "quality": quality,
                "model": model,
                "device": device,
                "threads": threads,
                "tile": tile,
                "projection": projection,
                "precision": precision,
                "exact_pixels": exact_pixels,
            }
        )
        if model == "missing":
            raise InputError("no model 'missing'")
        if lossless:
            raise UnsupportedError("lossless coding is not in this version")
        file = io.BytesIO()
        Image.fromarray(picture.pixels).save(
            file, "JPEG", quality=1 + round((quality - 1) * 94 / 99), subsampling=0
        )
        header = Header(
            codec=Codec.PHOTO,
            fingerprint=self.fingerprint,
            width=picture.width,
            height=picture.height,
            gray=picture.gray,
            alpha=picture.alpha is not None,
            bit_depth=8,
            quality=round(quality * 100),
            tile_log2=24,
        )
        data = pack(
            Container(
                header,
                [file.getvalue()],
                icc=picture.icc,
                exif=picture.exif,
                xmp=picture.xmp,
                alpha=None if picture.alpha is None else encode_alpha(picture.alpha),
            )
        )
        return data, types.SimpleNamespace(seconds={"analysis": 0.25}, code_length_bits=0.0)

    def decode_picture(
        self,
        data: bytes,
        *,
        model: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        precision: str | None = None,
        exact_pixels: bool = False,
    ) -> tuple[Picture, types.SimpleNamespace]:
        if model not in (None, "stand-in"):
            raise UnsupportedError(f"the file was not made with model {model}")
        container = unpack(data)
        header = container.header
        with Image.open(io.BytesIO(container.streams[0])) as image:
            pixels = np.array(image)
        alpha = decode_alpha(container.alpha, header.width, header.height) if header.alpha else None
        picture = Picture(pixels, alpha, container.icc, container.exif, container.xmp)
        return picture, types.SimpleNamespace(seconds={"synthesis": 0.5})

    def find_model(self, fingerprint: bytes) -> types.SimpleNamespace:
        if fingerprint != self.fingerprint:
            raise UnsupportedError("these weights are not installed")
        return types.SimpleNamespace(name="stand-in")


@pytest.fixture
def stand_in_codec(monkeypatch) -> StandInCodec:
    codec = StandInCodec()
    monkeypatch.setitem(sys.modules, "pycodec.api", codec)
    monkeypatch.setattr(pycodec, "api", codec, raising=False)
    return codec
