"""Measurements, means and tables."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pycodec.errors import CodecError, InputError
from pycodec.evaluation import plots
from pycodec.evaluation.anchors import JPEG, WEBP, TestedCodec
from pycodec.evaluation.evaluate import (
    Measurement,
    format_summary,
    measure,
    pycodec_under_test,
    read_csv,
    summarize,
    write_csv,
    write_json,
)
from pycodec.evaluation.metrics import PLANE_METRICS, psnr
from pycodec.evaluation.sphere import SPHERE_METRICS, s_psnr, viewport_psnr, ws_psnr, ws_ssim
from pycodec.images import load_image

pytest.importorskip("bjontegaard")

QUICK = PLANE_METRICS[:1]


@pytest.fixture
def pictures(tmp_path, photograph):
    Image.fromarray(photograph[60:228, 100:292]).save(tmp_path / "colour.png")
    Image.fromarray(photograph[60:90, 100:140, 1]).save(tmp_path / "gray.png")
    return [tmp_path / "colour.png", tmp_path / "gray.png"]


def measurement(codec: str, picture: str, setting: float, bpp: float, psnr: float) -> Measurement:
    values = {"psnr": psnr, "ms_ssim": None}
    return Measurement(codec, picture, setting, 8, 8, round(8 * bpp), bpp, 0.2, 0.1, values)


def curve(codec: str, picture: str, factor: float) -> list[Measurement]:
    return [
        measurement(codec, picture, step, factor * 0.2 * 2**step, 28.0 + 3 * step)
        for step in range(5)
    ]


def test_measurements_are_those_of_the_files(pictures):
    pytest.importorskip("pytorch_msssim")
    results = list(measure(pictures, [JPEG]))
    assert len(results) == 2 * len(JPEG.settings)
    for path, group in zip(pictures, (results[:13], results[13:]), strict=True):
        pixels = load_image(path).pixels
        for result, setting in zip(group, JPEG.settings, strict=True):
            data = JPEG.encode(pixels, setting)
            assert (result.codec, result.picture) == ("jpeg", path.name)
            assert (result.setting, result.bytes) == (setting, len(data))
            assert result.bpp == 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
            assert result.values["psnr"] == psnr(pixels, JPEG.decode(data))
            assert (result.values["ms_ssim"] is None) == (path.name == "gray.png")
            assert result.encode_seconds > 0 and result.decode_seconds > 0


def test_gray_pictures_with_a_codec_that_has_only_rgb(pictures):
    pytest.importorskip("pytorch_msssim")
    webp = replace(WEBP, settings=(90,))
    (result,) = measure([pictures[1]], [webp])
    assert result.values["psnr"] > 35


def test_codecs_are_warmed_up_once(pictures):
    calls = []

    def encode(pixels, setting):
        calls.append(setting)
        return JPEG.encode(pixels, setting)

    list(measure(pictures, [TestedCodec("x", (50, 60), encode, JPEG.decode)], QUICK))
    assert calls == [50, 50, 60, 50, 60]


def test_a_decoder_that_changes_the_shape_is_noticed(pictures):
    broken = TestedCodec("x", (50,), JPEG.encode, lambda data: JPEG.decode(data)[:-1])
    with pytest.raises(CodecError, match=r"colour\.png: x returns"):
        list(measure(pictures, [broken], QUICK))


def test_pycodec_under_test(pictures, stand_in_codec):
    codec = pycodec_under_test((20, 80), threads=2)
    assert (codec.name, codec.settings) == ("pycodec", (20, 80))
    results = list(measure(pictures, [codec], QUICK))
    assert results[0].values["psnr"] < results[1].values["psnr"]
    assert all(call["threads"] == 2 for call in stand_in_codec.calls)


def test_mean_curve():
    summary = summarize(
        [
            measurement("a", "1", 10, 0.5, 30.0),
            measurement("a", "2", 10, 1.5, 34.0),
            measurement("a", "1", 20, 1.0, 33.0),
            measurement("a", "2", 20, 2.0, 36.0),
        ]
    )
    assert summary["pictures"] == 2
    assert [(p["setting"], p["bpp"], p["psnr"]) for p in summary["curves"]["a"]] == [
        (10, 1.0, 32.0),
        (20, 1.5, 34.5),
    ]
    assert summary["curves"]["a"][0]["ms_ssim"] is None
    assert summary["bd_rates"] == []


def test_bd_rates_both_ways():
    results = curve("ours", "1", 0.5) + curve("ours", "2", 0.8)
    results += curve("jpeg", "1", 1.0) + curve("jpeg", "2", 1.0)
    rates = {(e["codec"], e["anchor"]): e for e in summarize(results)["bd_rates"]}
    assert rates["ours", "jpeg"]["percent"] == pytest.approx(-35)
    assert rates["ours", "jpeg"]["mean_of_pictures"] == pytest.approx(-35)
    assert rates["ours", "jpeg"]["pictures_compared"] == 2
    assert rates["jpeg", "ours"]["percent"] == pytest.approx((1 / 0.65 - 1) * 100)
    assert rates["jpeg", "ours"]["mean_of_pictures"] == pytest.approx((2 + 1.25) / 2 * 100 - 100)


def test_psnr_range_is_respected():
    results = curve("ours", "1", 0.5) + curve("jpeg", "1", 1.0)
    entry = summarize(results, psnr_range=(30, 35))["bd_rates"][0]
    assert (entry["low"], entry["high"]) == (30, 35)
    nothing = summarize(results, psnr_range=(60, 70))["bd_rates"][0]
    assert (nothing["percent"], nothing["mean_of_pictures"]) == (None, None)
    assert nothing["pictures_compared"] == 0


def test_perfect_copies_do_not_spoil_the_summary(tmp_path):
    results = curve("ours", "1", 0.5) + curve("jpeg", "1", 1.0)
    results.append(measurement("ours", "1", 99, 20.0, math.inf))
    summary = summarize(results)
    assert summary["curves"]["ours"][-1]["psnr"] is None
    assert summary["bd_rates"][0]["percent"] == pytest.approx(-50)
    write_json(summary, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert " -50.00 %" in format_summary(summary)


def test_csv(tmp_path):
    write_csv([measurement("a", "x, y.png", 10, 0.5, 30.25)], tmp_path / "m.csv")
    with open(tmp_path / "m.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["picture"] == "x, y.png"
    assert (float(row["bpp"]), float(row["psnr"]), row["ms_ssim"]) == (0.5, 30.25, "")


def test_csv_round_trip(tmp_path, pictures):
    results = list(measure(pictures, [JPEG], QUICK))
    results.append(measurement("a", "x, y.png", 10, 0.5, math.inf))
    results.append(replace(results[0], values={"psnr": 31.0, "ms_ssim": None}))
    write_csv(results, tmp_path / "m.csv")
    read = read_csv(tmp_path / "m.csv")
    assert [r.values.pop("ms_ssim") for r in read] == [None] * len(read)
    for result in results:
        result.values.pop("ms_ssim", None)
    assert read == results


def test_quality_on_the_sphere(pictures):
    jpeg = replace(JPEG, settings=(30, 80))
    results = list(measure(pictures, [jpeg], SPHERE_METRICS))
    for path, group in zip(pictures, (results[:2], results[2:]), strict=True):
        pixels = load_image(path).pixels
        for result, setting in zip(group, jpeg.settings, strict=True):
            decoded = JPEG.decode(JPEG.encode(pixels, setting))
            assert result.values == {
                "ws_psnr": ws_psnr(pixels, decoded),
                "s_psnr": s_psnr(pixels, decoded),
                "viewport_psnr": viewport_psnr(pixels, decoded),
                "ws_ssim": ws_ssim(pixels, decoded),
            }
    summary = summarize(results + [replace(r, codec="other") for r in results], SPHERE_METRICS)
    point = summary["curves"]["jpeg"][0]
    assert point["ws_ssim_db"] == pytest.approx(
        np.mean([-10 * math.log10(1 - r.values["ws_ssim"]) for r in (results[0], results[2])])
    )
    rates = {(e["codec"], e["metric"]): e["percent"] for e in summary["bd_rates"]}
    for metric in SPHERE_METRICS:
        assert rates["other", metric.name] == pytest.approx(0)
    text = format_summary(summary, SPHERE_METRICS)
    assert "WS-PSNR" in text and "viewport_psnr" in text
    tiny = SPHERE_METRICS[-1].measure(np.zeros((8, 16), np.uint8), np.zeros((8, 16), np.uint8))
    assert tiny is None


@pytest.mark.parametrize(
    "change", [("codec,", "codex,"), ("jpeg,1,2,", "jpeg,1,two,"), (",8,", "")]
)
def test_damaged_csv(tmp_path, change):
    path = tmp_path / "m.csv"
    write_csv([measurement("jpeg", "1", 2, 0.5, 30.0)], path)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=r"m\.csv"):
        read_csv(path)
    with pytest.raises(InputError, match="none"):
        read_csv(tmp_path / "none.csv")


def test_plots_are_pictures(tmp_path, pictures):
    pytest.importorskip("matplotlib")
    summary = summarize(curve("pycodec", "1", 0.5) + curve("jpeg", "1", 1.0))
    plots.plot_rate_distortion(summary, tmp_path / "plot.png")
    two = load_image(tmp_path / "plot.png")
    assert two.pixels.std() > 1
    sphere = [
        replace(m, values={metric.name: 0.9 for metric in SPHERE_METRICS})
        for m in curve("pycodec", "1", 0.5)
    ]
    summary = summarize(sphere, SPHERE_METRICS)
    plots.plot_rate_distortion(summary, tmp_path / "plot.png", SPHERE_METRICS)
    assert load_image(tmp_path / "plot.png").height > 1.5 * two.height
    gray = load_image(pictures[1]).pixels
    panels = [("one", gray), ("two", np.stack([gray] * 3, axis=2))]
    plots.plot_side_by_side(panels, (slice(0, 9), slice(0, 9)), tmp_path / "side.png")
    assert load_image(tmp_path / "side.png").width > load_image(tmp_path / "side.png").height
