"""``pycodec quantize`` writes folders that encode and decode, and reports what it did."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from skimage import data

from pycodec import api
from pycodec.cli import main
from pycodec.models.model_folder import WEIGHTS, read_description
from pycodec.models.photo import save_photo_model
from pycodec.quantization.cli import _write
from pycodec.quantization.export import export_entropy_model
from pycodec.quantization.report import (
    LayerReport,
    weight_bytes,
    widths_by_sensitivity,
    write_report,
)

from ..networks import quantized_network


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    network = quantized_network(2)
    tensors = {
        name: tensor.detach()
        for name, tensor in network.state_dict().items()
        if not name.startswith("entropy_model.")
    }
    entropy = export_entropy_model(network.entropy_model)
    folder = tmp_path_factory.mktemp("model")
    save_photo_model(
        folder, tensors | {f"entropy.{k}": v for k, v in entropy.items()}, network.config
    )
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(data.astronaut()[:100, :100]).save(folder / "0.png")
    return folder


def quantize(model: Path, pictures: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    arguments = ["quantize", str(model), "--calibrate", str(pictures), "--out", str(out), *options]
    assert main(arguments) == 0
    (file,) = (out / f"{name}.safetensors" for name in ("int8", "mixed") if name in _files(out))
    return safetensors.torch.load_file(file)


def _files(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.safetensors")}


def check_codes(folder: Path, precision: str) -> None:
    pixels = data.coffee()[:96, :128]
    file = api.encode(pixels, 60, model=folder, precision=precision)
    picture, _ = api.decode_picture(file, model=folder, precision=precision)
    plain, _ = api.decode_picture(file, model=folder, precision="fp32")
    difference = np.abs(picture.pixels.astype(int) - plain.pixels.astype(int))
    spread = plain.pixels.std()
    assert picture.pixels.shape == pixels.shape and difference.mean() < 0.25 * spread


def test_eight_bits(model, pictures, tmp_path):
    tensors = quantize(model, pictures, tmp_path / "out")
    assert _files(tmp_path / "out") == {"model", "int8"}
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()
    assert tensors["synthesis.blocks8.0.conv.weight"].dtype == torch.int8
    check_codes(tmp_path / "out", "int8")


def test_mixed_widths_and_report(model, pictures, tmp_path):
    report = tmp_path / "report"
    tensors = quantize(
        *(model, pictures, tmp_path / "out"), "--mean-bits", "5.5", "--report", str(report)
    )
    four = {k for k, v in tensors.items() if k.endswith(".weight") and v.dtype == torch.uint8}
    assert four  # two weights a byte
    check_codes(tmp_path / "out", "mixed")
    with (report / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    chosen = {row["layer"]: float(row["mean bits"]) for row in rows}
    assert {k.removesuffix(".weight") for k in four} == {n for n, b in chosen.items() if b == 4}
    branches = {row["layer"]: float(row["MAC/pixel"]) for row in rows if ".block" in row["layer"]}
    total = sum(branches.values())
    assert sum(chosen[n] * macs for n, macs in branches.items()) / total <= 5.5
    assert all(float(row["ms"]) > 0 for row in rows)
    assert Image.open(report / "layers.png").size[0] > 500
    assert len((report / "layers.md").read_text().splitlines()) == len(rows) + 2


def test_dynamic_widths(model, pictures, tmp_path):
    options = ("--dynamic", "--finetune", "2", "--crop", "64", "--batch", "2", "--bits-cost", "9")
    tensors = quantize(model, pictures, tmp_path / "out", *options)
    assert tensors["selector.synthesis.allowed"].shape == (17, 3)
    for name in tensors:
        if "@" in name and name.endswith("@4.weight"):
            assert tensors[name].dtype == torch.uint8
            assert name.replace("@4", "") in tensors
    check_codes(tmp_path / "out", "mixed")  # with the widest variants


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dynamic"], "--finetune"),
        (["--dynamic", "--finetune", "1", "--mean-bits", "6"], "--mean-bits"),
        (["--mean-bits", "3"], "must be 4 to 8"),
        (["--pictures", "0"], "counts"),
        (["--workers", "-1"], "counts"),
        (["--device", "nowhere"], "nowhere"),
    ],
)
def test_options_that_do_not_go_together(model, pictures, tmp_path, capsys, options, message):
    out = tmp_path / "out"
    arguments = ["quantize", str(model), "--calibrate", str(pictures), "--out", str(out), *options]
    assert main(arguments) == 1
    assert message in capsys.readouterr().err and not out.exists()


def test_no_pictures(model, tmp_path, capsys):
    arguments = ["quantize", str(model), "--calibrate", str(tmp_path), "--out", str(tmp_path / "o")]
    assert main(arguments) == 1
    assert "calibration needs pictures" in capsys.readouterr().err


def test_widths_by_sensitivity_spends_bits_where_they_count():
    losses = {
        "tender": {4: 9.0, 6: 3.0, 8: 0.1},
        "tough": {4: 0.2, 6: 0.1, 8: 0.1},
        "small": {4: 0.3, 6: 0.1, 8: 0.1},
    }
    costs = {"tender": 100.0, "tough": 100.0, "small": 2.0}
    assert widths_by_sensitivity(losses, costs, 8) == {"tender": 8, "tough": 8, "small": 8}
    assert widths_by_sensitivity(losses, costs, 6.1) == {"tender": 8, "tough": 4, "small": 6}
    assert widths_by_sensitivity(losses, costs, 4) == {"tender": 4, "tough": 4, "small": 4}
    for bits in (7.5, 7, 6, 5, 4.2):
        widths = widths_by_sensitivity(losses, costs, bits)
        assert sum(costs[n] * w for n, w in widths.items()) / 202 <= bits


def test_report_of_layers_with_and_without_times(tmp_path):
    assert [weight_bytes(5, width) for width in (4, 6, 8, 12)] == [3, 5, 5, 8]
    rows = [
        LayerReport("a", dict(Counter({4: 3, 8: 1})), {4: 1.5, 8: -0.01}, 20.0, 40, 60, 0.5),
        LayerReport("b", {12: 4}, {12: 0.02}, 3.0, 9, 14, 0.25),
    ]
    assert rows[0].mean_bits == 5
    write_report(tmp_path, rows)
    lines = (tmp_path / "layers.csv").read_text().splitlines()
    assert lines[0].startswith("layer,mean bits,chosen 4,chosen 8,chosen 12,loss % at 4")
    assert lines[1] == "a,5.00,3,1,0,1.500,-0.010,,20,40,60,0.500"
    assert lines[2] == "b,12.00,0,0,4,,,0.020,3,9,14,0.250"


def test_a_model_that_completes_another_stays_one(tmp_path):
    """Its integers are complete; its float tensors are still those that differ."""
    folder, out = WEIGHTS / "photo-sphere", tmp_path / "mine"
    tensors = safetensors.torch.load_file(folder / "int8.safetensors")
    _write(folder, out, "int8", tensors)
    description = read_description(out)
    assert description["base"] == "photo" and list(description["files"]) == ["int8"]
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert api.load_model(out, precision="int8").fingerprint == api.load_model(folder).fingerprint
