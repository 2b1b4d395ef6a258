"""Profiles of whole calls: sums, shares of the ceilings, the command line, the page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from pycodec import _cpu, api
from pycodec.cli import main
from pycodec.images import Picture
from pycodec.models.photo import PhotoCodec
from pycodec.profiling import machine, profile, report, spans
from pycodec.profiling.cli import profile_call
from pycodec.profiling.machine import Ceilings
from pycodec.profiling.spans import KERNEL, LAYER, STAGE, WAVE, Span

from ..networks import random_codec
from .browser import opened

CEILINGS = Ceilings(10.0, {"int8": 400.0, "float32": 100.0}, 1)


@pytest.fixture(scope="module")
def codec() -> PhotoCodec:
    return random_codec(5)


@pytest.fixture(scope="module")
def encoded(codec) -> profile.Profile:
    pixels = np.random.default_rng(1).integers(0, 256, (80, 112, 3), dtype=np.uint8)
    return profile_call(
        lambda: api.encode_picture(Picture(pixels), 50, model=codec), codec, "<title> & </script>"
    )


def test_rows_add_up():
    lane = "thread 1"
    recorded = [
        Span("stage", STAGE, 0, 1000, lane),
        Span("conv", KERNEL, 100, 400, lane, 1000, 24_000, "int8", "first"),
        Span("conv", KERNEL, 500, 600, lane, 1000, 16_000, "int8", "second"),
        Span("copy", KERNEL, 700, 900, lane, 1600),
        Span("wave", WAVE, 0, 500, "waves", 10, 100, "int8", None, 3),
        Span("wave", WAVE, 500, 900, "waves", 10, 100, "int8", None, 4),
    ]
    rows = {(row.kind, row.name): row for row in profile.make_rows(recorded, CEILINGS)}
    assert next(iter(rows)) == (STAGE, "stage")
    assert rows[STAGE, "stage"].seconds == pytest.approx(1e-6)
    assert rows[STAGE, "stage"].own_seconds == pytest.approx(4e-7)
    conv = rows[KERNEL, "conv"]
    assert (conv.calls, conv.bytes, conv.operations) == (2, 2000, 40_000)
    assert conv.gb_s == pytest.approx(5.0)
    assert conv.gop_s == pytest.approx(100.0)
    assert conv.share_of_copy == pytest.approx(0.5)
    assert conv.share_of_peak == pytest.approx(0.25)
    # 20 operations a byte: at 10 GB/s the memory allows half of the peak.
    assert conv.share_of_roof == pytest.approx(0.5)
    copy = rows[KERNEL, "copy"]
    assert (copy.gop_s, copy.share_of_peak) == (None, None)
    assert copy.share_of_roof == copy.share_of_copy == pytest.approx(0.8)
    assert rows[LAYER, "first (conv)"].operations == 24_000
    assert rows[WAVE, "wave"].calls == 2


def test_a_profile_covers_the_call(encoded, codec):
    assert encoded.kernel_seconds <= encoded.total_seconds <= encoded.wall_seconds
    rows = {(row.kind, row.name): row for row in encoded.rows}
    for stage in ("analysis", "entropy", "container"):
        assert rows[STAGE, stage].calls == 1
    # Every convolution of the transforms has its layer, with all of its work.
    for name, module in (("analysis", codec.analysis), ("hyper_analysis", codec.hyper_analysis)):
        for path, layer in module.named_modules():
            if isinstance(layer, torch.nn.Conv2d):
                assert rows[LAYER, f"{name}.{path} (torch.conv2d)"].operations > 0
    stem = rows[LAYER, "analysis.stem (torch.conv2d)"]
    assert stem.operations == 2 * (80 // 4) * (112 // 4) * codec.analysis.stem.weight.numel()
    assert rows[LAYER, "stage3.head (quantized_conv2d)"].calls == 1
    assert rows[KERNEL, "rans_encode"].calls == 1
    assert encoded.dropped == 0
    assert encoded.machine["simd_level"] == _cpu.simd_level()


def test_ceilings_are_measured():
    found = machine.measure_ceilings(threads=1)
    assert found.copy_gb_s > 0
    assert {"float32", "bfloat16"} <= set(found.gop_s)
    assert all(value > 0 for value in found.gop_s.values())
    assert found.roof("float32", 1e-9) == pytest.approx(1e-9 * found.copy_gb_s)
    assert found.roof("float32", 1e9) == found.gop_s["float32"]
    assert found.roof("decimal", 1.0) is None


@pytest.mark.parametrize("level", _cpu.supported_simd_levels())
def test_peaks_of_registers(level):
    before = _cpu.simd_level()
    _cpu.set_simd_level(level)
    try:
        peaks = [_cpu.arithmetic_peak(name) for name in ("float32", "int8", "int16")]
        tiles = _cpu.arithmetic_peak("int8 tiles")
    finally:
        _cpu.set_simd_level(before)
    if level in ("avx2", "avx512vnni", "amx"):
        assert all(peak > 1e8 for peak in peaks)
    else:
        assert peaks == [None] * 3
    assert tiles > peaks[1] if level == "amx" else tiles is None


def test_machine_names_are_file_names():
    facts = machine.describe_machine()
    json.dumps(facts)
    assert re.fullmatch(r"[\w-]+", machine.machine_name(facts))
    assert machine.machine_name({"gpu": "NVIDIA H100 80GB HBM3"}) == "nvidia-h100-80gb-hbm3"


def test_the_trace_holds_every_span(encoded):
    trace = json.loads(report.to_trace(encoded))
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(encoded.spans)
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in events)
    names = [event for event in trace["traceEvents"] if event["ph"] == "M"]
    assert {event["args"]["name"] for event in names} == set(spans.by_lane(encoded.spans))
    conv = next(event for event in events if event["name"] == "quantized_conv2d")
    assert conv["args"]["operations"] > 0


def test_the_table_has_every_row(encoded):
    lines = report.to_table(encoded).splitlines()
    assert lines[0] == "<title> & </script>"
    assert sum(line.startswith(("stage", "kernel", "layer", "wave")) for line in lines) == len(
        encoded.rows
    )


def test_the_page_in_a_browser(encoded, tmp_path):
    path = tmp_path / "profile.html"
    path.write_text(report.to_html(encoded), encoding="utf-8")
    with opened(path.as_uri(), tmp_path) as page:
        assert page.evaluate("document.getElementById('title').textContent") == encoded.title
        assert page.evaluate("performance.getEntriesByType('resource').length") == 0
        points = sum(1 for row in encoded.rows if row.gop_s and row.bytes)
        assert page.evaluate("document.querySelectorAll('#roofline circle').length") == points > 5
        assert page.evaluate("document.querySelectorAll('#roofline .roof').length") == len(
            encoded.ceilings.gop_s
        )
        colours = """
            (() => {
              const canvas = document.getElementById('timeline');
              const context = canvas.getContext('2d');
              const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
              return new Set(new Uint32Array(data.buffer)).size;
            })()"""
        assert page.evaluate(colours) > 3
        column = (
            "[...document.querySelectorAll('#spans tbody tr')].map(r => r.cells[{}].textContent)"
        )
        calls = page.evaluate(column.format(2))
        assert calls == [str(row.calls) for row in encoded.rows]
        button = "document.querySelectorAll('#spans th button')[{}]"
        page.click(button.format(2))
        falling = sorted(map(int, calls), reverse=True)
        assert list(map(int, page.evaluate(column.format(2)))) == falling
        page.click(button.format(2))
        assert list(map(int, page.evaluate(column.format(2)))) == falling[::-1]
        page.click(button.format(1))
        names = page.evaluate(column.format(1))
        assert sorted(names, key=str.casefold) == sorted(
            (row.name for row in encoded.rows), key=str.casefold
        )
        assert names[0].casefold() == min(names, key=str.casefold).casefold()


def test_the_command_line(tmp_path, capsys, photograph):
    picture, file = tmp_path / "a.png", tmp_path / "a.lci"
    Image.fromarray(photograph[:64, :96]).convert("L").save(picture)
    assert main(["encode", str(picture), str(file), "--lossless", "--quiet"]) == 0
    out = tmp_path / "report"
    assert main(["profile", "decode", str(file), "--out", str(out), "--runs", "1"]) == 0
    text = capsys.readouterr().out
    assert "wave_network_decode" in text
    assert "wall clock" in text
    assert (out / "profile.html").read_text().startswith("<!doctype html>")
    lanes = {
        event["args"]["name"]
        for event in json.loads((out / "trace.json").read_text())["traceEvents"]
        if event["ph"] == "M"
    }
    assert "waves" in lanes
    assert main(["profile", "encode", str(picture), "--lossless", "--runs", "1"]) == 0
    assert "adaptation" in capsys.readouterr().out


def test_the_command_line_refuses(tmp_path, capsys):
    assert main(["profile", "decode", str(tmp_path / "none.lci")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "bad.lci").write_bytes(b"nothing")
    assert main(["profile", "decode", str(tmp_path / "bad.lci")]) == 1
    assert main(["profile", "encode", str(tmp_path / "none.png")]) == 1


def test_layers_of_integers_have_names(tmp_path, capsys):
    """Of transforms that run in C++ without a stop; decoders take the precision that is asked."""
    picture, file = tmp_path / "a.png", tmp_path / "a.lci"
    pixels = np.random.default_rng(1).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    for projection in ("none", "erp"):
        arguments = [str(picture), "--runs", "1", "--projection", projection]
        assert main(["profile", "encode", *arguments, "--precision", "mixed"]) == 0
        table = capsys.readouterr().out
        assert table.count(" analysis.") == 18 and "torch.conv2d" not in table
        stem = next(
            line for line in table.splitlines() if "analysis.stem (quantized_conv2d)" in line
        )
        assert float(stem.split()[6]) > 0  # operations
    arguments = ["--projection", "erp", "--exact-pixels", "--quiet"]
    assert main(["encode", str(picture), str(file), *arguments]) == 0
    assert main(["profile", "decode", str(file), "--runs", "1"]) == 0
    assert "synthesis.tail (quantized_conv2d)" in capsys.readouterr().out
