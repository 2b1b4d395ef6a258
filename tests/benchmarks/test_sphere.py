"""The benchmark of the codec for the sphere takes up what it measured before."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pycodec.images import load_image

pytest.importorskip("bjontegaard")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "models" / "sphere.py"
COUNT = 5
ERRORS = ("errors of photo", "errors of sphere")


@pytest.fixture
def script(monkeypatch):
    """The script, with measuring replaced by something quick; ``measured`` says what was done."""
    spec = importlib.util.spec_from_file_location("sphere_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.measured = []
    module.fingerprint = b"1"

    def curve(codec, pixels):
        module.measured.append(codec.name)
        factor = 0.5 if codec.name == "sphere" else 1.0
        return [
            {"setting": s, "bpp": factor * 2**s, "ws_psnr": 26 + 3 * s, "viewport_psnr": 27 + 3 * s}
            for s in range(COUNT)
        ]

    def errors(name, pixels):
        module.measured.append(f"errors of {name}")
        near = [4.0] * (2 * module.COLUMNS)
        border = [8.0] * (2 * module.COLUMNS)
        rows = [2.0] * module.LATITUDES
        at_border = border if name == "photo" else near
        return {"quality": 50.0, "latitudes": rows, "border": at_border, "inside": near}

    monkeypatch.setattr(module, "curve", curve)
    monkeypatch.setattr(module, "where_errors_lie", errors)
    monkeypatch.setattr(
        module, "load_model", lambda name: types.SimpleNamespace(fingerprint=module.fingerprint)
    )
    monkeypatch.setattr(module, "anchor", lambda name: types.SimpleNamespace(name=name))
    return module


@pytest.fixture
def run(script, tmp_path, monkeypatch):
    folder = tmp_path / "erp"
    folder.mkdir()
    for name in ("a.png", script.HELD_OUT[0]):
        Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(folder / name)
    results = tmp_path / "results.json"

    def call(*options: str, pictures: bool = True) -> dict:
        del script.measured[:]
        arguments = [str(folder)] * pictures + ["--json", str(results), *options]
        monkeypatch.setattr(sys, "argv", ["sphere.py", *arguments])
        script.main()
        return json.loads(results.read_text())

    return call


def test_results_accumulate(script, run, capsys):
    run("--minutes", "0")
    assert script.measured == [] and "16 of 16 measurements are left" in capsys.readouterr().out
    all_of_one = ["sphere", "photo", "untuned", "jpeg", "webp", "avif", *ERRORS]
    run("--pictures", "a.png")
    assert script.measured == all_of_one
    found = run()
    assert script.measured == all_of_one  # of the other picture
    assert found["bd_rates"]["photo, ws_psnr"] == {
        "held_out": -50.0,
        "all": -50.0,
        "pictures": {"a.png": -50.0, script.HELD_OUT[0]: -50.0},
    }
    assert found["seams_db"]["a.png"] == {"photo": 3.01, "sphere": 0.0}
    assert run() == found and script.measured == []


def test_other_weights_are_measured_anew(script, run):
    run()
    script.fingerprint = b"2"
    run()
    assert script.measured == ["sphere", "photo", "untuned", *ERRORS] * 2


def test_the_plot_needs_no_pictures(script, run, tmp_path):
    pytest.importorskip("matplotlib")
    run()
    run("--plot", str(tmp_path / "plot.png"), pictures=False)
    assert script.measured == []
    assert load_image(tmp_path / "plot.png").pixels.std() > 1
