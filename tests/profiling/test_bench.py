"""``pycodec bench``: cases, results, comparisons, and what is left when it is stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pycodec import api
from pycodec.cli import main
from pycodec.errors import CodecError, InputError
from pycodec.images import Picture
from pycodec.profiling import bench

QUICK = {"seconds": 0.0, "least_runs": 2, "warm_up": 1}


def test_results_of_a_case():
    cases = bench.all_cases(["48x32"], [1, 2], [1], [None], "cpu")
    results = list(bench.measure(cases, lossless=True, **QUICK))
    assert [(r.batch, r.direction) for r in results] == [
        *((1, "encode"), (1, "decode")),
        *((2, "encode"), (2, "decode")),
    ]
    for result in results:
        assert result.model == "tcae-fast"
        assert result.runs == 2
        assert result.ms_median <= result.ms_p95
        assert result.fps == pytest.approx(1e3 * result.batch / result.ms_median, rel=1e-2)
        assert result.gpu_memory_mib is None
        assert "gpu_memory_mib" not in result.to_json()
    expected = len(api.encode_picture(bench.made_picture(48, 32), 50, lossless=True)[0])
    assert [r.bytes for r in results] == [expected, expected, 2 * expected, 2 * expected]


def test_sizes():
    assert bench.parse_size("4K") == (3840, 2160)
    assert bench.parse_size("20x10") == (20, 10)
    for text in ("big", "20", "20x", "0x5", "1x2x3"):
        with pytest.raises(InputError):
            bench.parse_size(text)
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, 15:25] = 255
    cut = bench.fitted(Picture(pixels), 10, 10)
    assert cut.pixels.shape == (10, 10, 3)
    assert cut.pixels.min() == 255
    assert bench.fitted(Picture(pixels[..., 0]), 60, 30).pixels.shape == (30, 60)


def test_made_pictures_are_like_photographs():
    picture = bench.made_picture(96, 64).pixels
    assert picture.shape == (64, 96, 3)
    assert np.array_equal(picture, bench.made_picture(96, 64).pixels)
    value = picture.astype(float)
    assert value.std() > 20
    assert np.abs(np.diff(value, axis=1)).mean() < value.std() / 2  # neighbours are alike


def test_a_precision_that_the_api_does_not_know(monkeypatch):
    def picky(picture, quality, *, precision=None):
        """An API that knows precisions."""

    assert bench.precision_option(None) == {}
    monkeypatch.setattr(api, "encode_picture", picky)
    monkeypatch.setattr(api, "decode_picture", picky)
    assert bench.precision_option("int8") == {"precision": "int8"}
    monkeypatch.setattr(api, "decode_picture", lambda data: None)
    with pytest.raises(InputError, match="precision"):
        bench.precision_option("int8")


def test_too_little_memory_is_an_error_with_a_name(monkeypatch):
    def greedy(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(api, "encode_picture", greedy)
    cases = bench.all_cases(["48x32"], [3], [1], [None], "cpu")
    with pytest.raises(CodecError, match="encode 3 x 48x32"):
        list(bench.measure(cases, lossless=True, **QUICK))


def run_bench(path, *more: str) -> int:
    options = ["--lossless", "--seconds", "0.001", "--runs", "1", "--threads", "1"]
    return main(["bench", *options, "--json", str(path), *more])


def test_the_command_line_and_comparisons(tmp_path, capsys):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert run_bench(a, "--sizes", "32x32", "48x32") == 0
    assert "48x32" in capsys.readouterr().out
    document = json.loads(a.read_text())
    assert document["complete"] is True
    assert document["machine"]["torch"] == torch.__version__
    assert document["settings"]["lossless"] is True
    assert [row["size"] for row in document["results"]] == ["32x32"] * 2 + ["48x32"] * 2
    document["results"] = document["results"][:2]
    document["results"][0]["ms_median"] /= 2
    document["machine"]["cores"] = 12345
    b.write_text(json.dumps(document))
    assert main(["bench", "--compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "cores differs" in text
    assert "2.000 x" in text and "1.000 x" in text
    assert "2 results are in one of the files only" in text


def test_comparisons_of_what_cannot_be_compared(tmp_path, capsys):
    good = tmp_path / "good.json"
    assert run_bench(good, "--sizes", "32x32") == 0
    other = json.loads(good.read_text())
    for row in other["results"]:
        row["size"] = "64x64"
    for text in ("no json", "[]", '{"format": "else"}', json.dumps(other)):
        bad = tmp_path / "bad.json"
        bad.write_text(text)
        assert main(["bench", "--compare", str(good), str(bad)]) == 1
    assert main(["bench", "--compare", str(good), str(tmp_path / "none.json")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_a_users_picture_is_measured_as_it_is(tmp_path, capsys):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(picture)
    out = tmp_path / "a.json"
    assert run_bench(out, str(picture)) == 0
    document = json.loads(out.read_text())
    assert {row["size"] for row in document["results"]} == {"30x20"}
    assert document["settings"]["picture"] == str(picture)


def test_ctrl_c_leaves_what_was_measured(tmp_path, monkeypatch, capsys):
    real, calls = api.encode_picture, []

    def interrupted(picture, *args, **kwargs):
        calls.append(picture)
        if picture.width == 48:
            raise KeyboardInterrupt
        return real(picture, *args, **kwargs)

    monkeypatch.setattr(api, "encode_picture", interrupted)
    out = tmp_path / "a.json"
    assert run_bench(out, "--sizes", "32x32", "48x32") == 130
    document = json.loads(out.read_text())
    assert document["complete"] is False
    assert [row["size"] for row in document["results"]] == ["32x32"] * 2
    assert "32x32" in capsys.readouterr().out


def test_a_missing_folder_is_noticed_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", lambda *a, **k: pytest.fail("measured in vain"))
    assert run_bench(tmp_path / "none" / "a.json", "--sizes", "32x32") == 1
    assert "folder does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    (
        ["--sizes", "huge"],
        ["--threads", "100000"],
        ["--precision", "no-such-precision"],
        ["--device", "no-such-device"],
        ["--warm-up", "-1"],
    ),
)
def test_wrong_options(tmp_path, options, capsys):
    assert run_bench(tmp_path / "a.json", *options) == 1
    assert "pycodec:" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_energy_is_absent_or_counted(tmp_path):
    cpu = torch.device("cpu")
    assert bench.EnergyMeter(cpu, tmp_path).joules() is None
    for name, value in (("intel-rapl:0", 900), ("intel-rapl:1", 50), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("999\n")
    meter = bench.EnergyMeter(cpu, tmp_path)
    before = meter.joules()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100\n")  # over its end
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("80\n")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("900\n")  # a part of package 0
    assert meter.joules() - before == pytest.approx(230e-6)
