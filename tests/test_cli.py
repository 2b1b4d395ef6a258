"""The command line: what is read, written, said and returned. The codec is a stand-in."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pycodec import cli
from pycodec.coding.container import peek
from pycodec.errors import CodecError
from pycodec.images import load_image

pytestmark = pytest.mark.usefixtures("stand_in_codec")


@pytest.fixture
def folder(tmp_path, monkeypatch, photograph):
    """A current folder with a photograph, photo.png."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photograph[100:164, 100:196]).save("photo.png")
    return tmp_path


@pytest.fixture
def run(capsys):
    """Runs the command line; returns exit code, standard output and standard error."""

    def call(*arguments) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


class Pipe:
    """A standard stream that carries bytes."""

    def __init__(self, data: bytes = b"", *, terminal: bool = False) -> None:
        self.buffer = io.BytesIO(data)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        pass


def fails(result: tuple[int, str, str], *words: str) -> None:
    """One line on standard error that says what is wrong, nothing else, and exit code 1."""
    code, out, err = result
    assert code == 1
    assert out == ""
    assert err.startswith("pycodec: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


# encode and decode


def test_there_and_back(folder, run):
    code, out, err = run("encode", "photo.png", "photo.lci", "-q", "90")
    assert (code, out) == (0, "")
    assert "photo.png -> photo.lci" in err and "quality 90" in err and " bpp" in err
    assert peek((folder / "photo.lci").read_bytes()).quality == 9000

    code, out, err = run("decode", "photo.lci", "again.png")
    assert (code, out) == (0, "")
    assert "96x64 pixels" in err
    difference = load_image("again.png").pixels.astype(int) - load_image("photo.png").pixels
    assert 0 < np.abs(difference).mean() < 5
    assert sorted(os.listdir()) == ["again.png", "photo.lci", "photo.png"]


def test_options_reach_the_codec(folder, run, stand_in_codec):
    options = ["--threads", 3, "--device", "cpu", "--tile", 256, "--projection", "erp"]
    options += ["--precision", "bf16"]
    run("encode", "photo.png", "a.lci", *options)
    assert stand_in_codec.calls == [
        {
            "quality": 50.0,
            "model": None,
            "device": "cpu",
            "threads": 3,
            "tile": 256,
            "projection": "erp",
            "precision": "bf16",
            "exact_pixels": False,
        }
    ]


def test_quiet_and_verbose(folder, run):
    assert run("encode", "photo.png", "a.lci", "--quiet") == (0, "", "")
    assert run("decode", "a.lci", "a.png", "--quiet") == (0, "", "")
    assert "analysis 250.0 ms" in run("encode", "photo.png", "b.lci", "-v")[2]
    assert "synthesis 500.0 ms" in run("decode", "a.lci", "b.png", "-v")[2]


def test_transparency_and_metadata_survive(folder, run):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open("photo.png")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save("rgba.png", exif=exif)
    assert run("encode", "rgba.png", "a.lci")[0] == 0
    assert run("decode", "a.lci", "a.webp")[0] == 0
    before, after = load_image("rgba.png"), load_image("a.webp")
    assert np.array_equal(before.alpha, after.alpha)
    assert before.exif == after.exif


def test_warnings_are_shown(folder, run):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save("deep.png")
    code, _, err = run("encode", "deep.png", "a.lci")
    assert code == 0
    assert "deep.png: warning: 16-bit" in err


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_tiny_pictures(folder, run, size):
    Image.new("RGB", size, "teal").save("tiny.png")
    assert run("encode", "tiny.png", "tiny.lci")[0] == 0
    assert run("decode", "tiny.lci", "again.png")[0] == 0
    assert Image.open("again.png").size == size


def test_target_bpp(folder, run):
    code, _, err = run("encode", "photo.png", "a.lci", "--target-bpp", "2")
    assert code == 0
    bpp = 8 * os.path.getsize("a.lci") / (96 * 64)
    assert 1.8 < bpp <= 2
    assert f"{bpp:.4f} bpp" in err
    fails(run("encode", "photo.png", "b.lci", "--target-bpp", "0.01"), "out of reach")
    assert not os.path.exists("b.lci")


def test_target_psnr(folder, run):
    code, _, err = run("encode", "photo.png", "a.lci", "--target-psnr", "32")
    assert code == 0
    run("decode", "a.lci", "a.png")
    error = load_image("a.png").pixels.astype(float) - load_image("photo.png").pixels
    reached = 10 * np.log10(255**2 / np.mean(error**2))
    assert 32 <= reached < 32.6
    assert f"{reached:.2f} dB" in err
    fails(run("encode", "photo.png", "b.lci", "--target-psnr", "90"), "out of reach")


def test_lossless_is_passed_on(folder, run):
    fails(run("encode", "photo.png", "a.lci", "--lossless"), "lossless")


def test_unknown_model(folder, run):
    fails(run("encode", "photo.png", "a.lci", "--model", "missing"), "photo.png", "missing")


def test_the_model_is_named_for_decoding_too(folder, run):
    run("encode", "photo.png", "a.lci", "--model", "stand-in")
    assert run("decode", "a.lci", "a.png", "--model", "stand-in")[0] == 0
    fails(run("decode", "a.lci", "b.png", "--model", "mine"), "a.lci", "mine")
    fails(run("encode", "photo.png", "b.lci", "--model", "mine", "--target-psnr", 30), "mine")


# Several files


@pytest.fixture
def several(folder):
    os.mkdir("in")
    for index, name in enumerate(["b.png", "a.jpg", "c.PNG"]):
        Image.new("RGB", (20 + index, 20), "teal").save(f"in/{name}")
    (folder / "in" / "notes.txt").write_text("not a picture")
    os.mkdir("in/deeper")
    return folder


@pytest.mark.parametrize("inputs", [["in"], ["in/*.*g", "in/c.PNG"], ["in/a.jpg", "in/b.png"]])
def test_folders_globs_and_lists(several, run, inputs):
    assert run("encode", *inputs, "out/deep")[0] == 0
    expected = ["a.lci", "b.lci"] + ["c.lci"] * (len(inputs) == 1 or "c" in inputs[1])
    assert sorted(os.listdir("out/deep")) == expected
    assert run("decode", "out/deep", "again", "--format", "ppm")[0] == 0
    assert sorted(os.listdir("again")) == [name.replace("lci", "ppm") for name in expected]


def test_one_file_into_a_folder(several, run):
    assert run("encode", "photo.png", "in")[0] == 0
    assert run("encode", "photo.png", "new/")[0] == 0
    assert os.path.exists("in/photo.lci") and os.path.exists("new/photo.lci")


def test_a_file_whose_name_is_a_glob(folder, run):
    os.rename("photo.png", "photo[1].png")
    assert run("encode", "photo[1].png", "a.lci")[0] == 0


def test_the_rest_goes_on_after_an_error(several, run):
    code, _, err = run("encode", "in", "in/notes.txt", "in/none.png", "out")
    assert code == 1
    assert sorted(os.listdir("out")) == ["a.lci", "b.lci", "c.lci"]
    assert "pycodec: in/notes.txt: not a picture" in err
    assert "pycodec: in/none.png: cannot be read: no such file" in err
    assert err.splitlines()[-1] == "pycodec: 2 of 5 failed: in/notes.txt, in/none.png"


def test_nothing_found(several, run):
    fails(run("encode", "*.gif", "out"), "*.gif", "no file matches")
    fails(run("encode", "in/deeper", "out"), "in/deeper", "no files")
    assert not os.path.exists("out")


def test_two_inputs_with_one_output(several, run):
    Image.new("RGB", (2, 2)).save("in/a.png")
    fails(run("encode", "in", "out"), "in/a.jpg", "in/a.png", "out/a.lci")
    assert not os.path.exists("out")


def test_several_inputs_need_a_folder(several, run):
    run("encode", "photo.png", "a.lci")
    fails(run("encode", "in", "a.lci"), "a.lci", "not a folder")
    fails(run("encode", "in", "-"), "one picture")


# What must not be destroyed


def test_existing_files_need_force(folder, run):
    (folder / "a.lci").write_bytes(b"precious")
    fails(run("encode", "photo.png", "a.lci"), "a.lci", "--force")
    assert (folder / "a.lci").read_bytes() == b"precious"
    assert run("encode", "photo.png", "a.lci", "--force")[0] == 0
    assert peek((folder / "a.lci").read_bytes()).width == 96
    fails(run("decode", "a.lci", "photo.png"), "photo.png", "--force")


def test_output_equals_input(folder, run):
    run("encode", "photo.png", "a.lci")
    os.link("a.lci", "hard.png")
    os.symlink("a.lci", "soft.png")
    before = (folder / "a.lci").read_bytes()
    for name in ("hard.png", "soft.png"):
        fails(run("decode", "a.lci", name, "--force"), "the same file")
    fails(run("encode", "a.lci", "a.lci", "--force"), "the same file")
    assert (folder / "a.lci").read_bytes() == before


def test_a_forgotten_output_does_not_cost_a_picture(folder, run):
    Image.new("RGB", (2, 2)).save("other.png")
    fails(run("encode", "other.png", "photo.png", "--force"), "photo.png", "writes .lci")
    fails(run("encode", "other.png", "new.png"), "new.png")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_no_half_written_output(folder, run, monkeypatch, failure):
    run("encode", "photo.png", "a.lci")

    def fail(descriptor):
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    for arguments in (("encode", "photo.png", "b.lci"), ("decode", "a.lci", "b.png")):
        code, _, err = run(*arguments)
        if isinstance(failure, KeyboardInterrupt):
            assert (code, err) == (130, "pycodec: interrupted\n")
        else:
            assert code == 1 and "no space left" in err and err.count("\n") == 1
    assert sorted(os.listdir()) == ["a.lci", "photo.png"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing_behind(folder, run, monkeypatch, number, code):
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.kill(os.getpid(), number))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run("encode", "photo.png", "a.lci")[0] == code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert os.listdir() == ["photo.png"]


def test_a_signal_waits_for_modules(tmp_path, monkeypatch):
    """An exception in the import of a module in C++ may abort the process."""
    module = tmp_path / "module_that_is_interrupted.py"
    module.write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(0.2)\n"  # some more signals come meanwhile
        "complete = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    before = signal.signal(signal.SIGTERM, cli._terminate)
    try:
        with pytest.raises(SystemExit, match="143"):
            complete = importlib.import_module(module.stem).complete
            assert complete
            time.sleep(5)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert complete


def encode_with_closed(descriptor: int | None, *arguments: str) -> subprocess.CompletedProcess:
    """Runs ``pycodec encode`` as a shell does that is told ``0<&-``, ``1>&-`` or ``2>&-``."""
    return subprocess.run(
        [sys.executable, "-m", "pycodec", "encode", *arguments],
        preexec_fn=None if descriptor is None else lambda: os.close(descriptor),
        stdin=subprocess.PIPE,
        capture_output=True,
    )


def test_closed_streams(folder):
    expected = encode_with_closed(None, "photo.png", "-").stdout
    done = encode_with_closed(1, "photo.png", "b.lci")
    assert done.returncode == 0 and Path("b.lci").read_bytes() == expected
    done = encode_with_closed(2, "photo.png", "-")  # no message gets into the data
    assert done.returncode == 0 and done.stdout == expected
    for descriptor, arguments in ((0, ("-", "c.lci")), (1, ("photo.png", "-"))):
        done = encode_with_closed(descriptor, *arguments)
        assert done.returncode == 1 and b"put is closed\n" in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_devices(folder, run):
    assert run("encode", "photo.png", "/dev/null")[0] == 0
    fails(run("encode", "photo.png", "/dev/full"), "/dev/full", "no space left")


def test_output_folder_missing(folder, run):
    fails(run("encode", "photo.png", "none/a.lci"), "none/a.lci", "folder does not exist")


# Bad inputs


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [("empty.png", b"", "empty"), ("text.png", b"hello", "not a picture"), ("none.png", None, "")],
)
def test_bad_pictures(folder, run, name, content, word):
    if content is not None:
        (folder / name).write_bytes(content)
    fails(run("encode", name, "a.lci"), name, word)
    assert not os.path.exists("a.lci")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.lci", b"", "empty"),
        ("photo.png", None, "not an .lci file"),
        ("none.lci", None, "no such file"),
    ],
)
def test_bad_files(folder, run, name, content, word):
    if content is not None:
        (folder / name).write_bytes(content)
    fails(run("decode", name, "a.png"), name, word)
    fails(run("info", name), name, word)
    assert not os.path.exists("a.png")


def test_damaged_file(folder, run):
    run("encode", "photo.png", "a.lci")
    data = (folder / "a.lci").read_bytes()
    (folder / "cut.lci").write_bytes(data[:-7])
    fails(run("decode", "cut.lci", "a.png"), "cut.lci", "truncated", "byte")
    assert sorted(os.listdir()) == ["a.lci", "cut.lci", "photo.png"]


def test_too_many_pixels(folder, run):
    fails(run("encode", "photo.png", "a.lci", "--max-pixels", 3000), "photo.png", "limit")
    run("encode", "photo.png", "a.lci")
    fails(run("decode", "a.lci", "a.png", "--max-pixels", 6143), "a.lci", "--max-pixels")
    assert run("decode", "a.lci", "a.png", "--max-pixels", 6144)[0] == 0


def test_unknown_picture_format(folder, run):
    run("encode", "photo.png", "a.lci")
    fails(run("decode", "a.lci", "a.xyz"), "a.xyz", "png")


def test_transparency_that_the_format_cannot_hold(folder, run):
    Image.new("RGBA", (4, 4)).save("rgba.png")
    run("encode", "rgba.png", "a.lci")
    fails(run("decode", "a.lci", "a.jpg"), "a.lci", "transparency")
    assert not os.path.exists("a.jpg")


def test_names_are_printed_on_one_line(folder, run):
    fails(run("encode", "none\n\x1b[31m.png", "a.lci"), "none\\n\\x1b[31m.png")


def test_out_of_memory(folder, run, stand_in_codec, monkeypatch):
    def exhausted(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(stand_in_codec, "encode_picture", exhausted)
    fails(run("encode", "photo.png", "a.lci"), "photo.png", "not enough memory")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["encode"],
        ["encode", "a.png"],
        ["encode", "a.png", "a.lci", "-q", "0.5"],
        ["encode", "a.png", "a.lci", "-q", "nan"],
        ["encode", "a.png", "a.lci", "-q", "ten"],
        ["encode", "a.png", "a.lci", "-q", "5", "--target-bpp", "1"],
        ["encode", "a.png", "a.lci", "--target-bpp", "0"],
        ["encode", "a.png", "a.lci", "--target-psnr", "inf"],
        ["encode", "a.png", "a.lci", "--lossless", "--target-psnr", "30"],
        ["encode", "a.png", "a.lci", "--tile", "100"],
        ["encode", "a.png", "a.lci", "--tile", "32"],
        ["encode", "a.png", "a.lci", "--threads", "0"],
        ["decode", "a.lci", "a.png", "--format", "xyz"],
        ["eval", "in", "--qualities", "1,200"],
    ],
)
def test_wrong_usage(folder, run, arguments):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert "usage: pycodec" in err


def test_help_and_version(run):
    for arguments in (["--help"], ["encode", "--help"], ["--version"]):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert "pycodec" in out


# Pipes


def test_pipes(folder, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Pipe((folder / "photo.png").read_bytes()))
    monkeypatch.setattr(sys, "stdout", encoded := Pipe())
    assert run("encode", "-", "-")[0] == 0
    monkeypatch.setattr(sys, "stdin", Pipe(encoded.buffer.getvalue()))
    monkeypatch.setattr(sys, "stdout", decoded := Pipe())
    assert run("decode", "-", "-", "--format", "ppm")[0] == 0
    assert decoded.buffer.getvalue().startswith(b"P6\n96 64\n255\n")


def test_pipe_in_and_file_out(folder, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Pipe((folder / "photo.png").read_bytes()))
    assert "<stdin> -> a.lci" in run("encode", "-", "a.lci")[2]
    monkeypatch.setattr(sys, "stdin", Pipe(b"garbage"))
    fails(run("encode", "-", "b.lci"), "<stdin>: not a picture")
    fails(run("encode", "-", "out/"), "standard input has no name")


def test_no_binary_data_on_a_terminal(folder, run, monkeypatch):
    monkeypatch.setattr(sys, "stdout", pipe := Pipe(terminal=True))
    code, _, err = run("encode", "photo.png", "-")
    assert code == 1 and "redirect" in err
    assert pipe.buffer.getvalue() == b""


# A command that prints something and is done.
PRINTING = """
import sys, types
import pycodec.training
from pycodec.cli import main
pycodec.training.cli = sys.modules["pycodec.training.cli"] = types.ModuleType("cli")
pycodec.training.cli.add_arguments = lambda parser: None
pycodec.training.cli.run = lambda args: print("text") or 0
sys.exit(main(["train"]))
"""


def run_printing(stdout) -> tuple[int, bytes]:
    result = subprocess.run(
        [sys.executable, "-I", "-c", PRINTING], stdout=stdout, stderr=subprocess.PIPE, check=False
    )
    return result.returncode, result.stderr


def test_reader_that_goes_away():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        assert run_printing(stdout) == (1, b"")


def test_full_standard_output():
    with open("/dev/full", "wb") as stdout:
        assert run_printing(stdout) == (1, b"pycodec: [Errno 28] No space left on device\n")


# info


def test_info(folder, run):
    Image.open("photo.png").convert("LA").save("gray.png", icc_profile=b"")
    run("encode", "gray.png", "gray.lci", "-q", "12.34")
    code, out, err = run("info", "gray.lci")
    assert (code, err) == (0, "")
    for line in (
        "file          gray.lci",
        "codec         photo",
        "model         stand-in",
        "fingerprint   7374616e642d696e",
        "width         96",
        "height        64",
        "colour        gray + alpha",
        "quality       12.34",
        "tiles         1x1",
        f"bytes         {os.path.getsize('gray.lci')}",
    ):
        assert line in out.splitlines()
    assert "  alpha " in out and "  tiles " in out


def test_info_as_json(folder, run):
    run("encode", "photo.png", "a.lci")
    run("encode", "photo.png", "b.lci", "-q", "9")
    code, out, err = run("info", "*.lci", "--json")
    facts = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [entry["quality"] for entry in facts] == [50.0, 9.0]
    for entry in facts:
        assert sum(entry["sections"].values()) == entry["bytes"] == os.path.getsize(entry["file"])


def test_info_with_unknown_weights(folder, run, stand_in_codec):
    run("encode", "photo.png", "a.lci")
    stand_in_codec.fingerprint = b"another!"
    code, out, _ = run("info", "a.lci")
    assert code == 0
    assert "not installed" in out


def test_info_goes_on_after_a_damaged_file(folder, run):
    run("encode", "photo.png", "a.lci")
    (folder / "b.lci").write_bytes(b"damaged")
    code, out, err = run("info", "b.lci", "a.lci")
    assert code == 1
    assert "a.lci" in out
    assert "b.lci: not an .lci file" in err


# eval, demo and train


def test_eval(several, run):
    pytest.importorskip("pytorch_msssim")
    pytest.importorskip("bjontegaard")
    pytest.importorskip("matplotlib")
    code, out, _ = run(
        "eval", "in", "--pictures", 2, "--anchors", "jpeg", "--qualities", "50,10,90", "--out", "o"
    )
    assert code == 0
    assert "pycodec against jpeg" in out
    assert sorted(os.listdir("o")) == ["measurements.csv", "rate_distortion.png", "summary.json"]
    summary = json.loads((several / "o" / "summary.json").read_text())
    assert summary["pictures"] == 2
    assert [point["setting"] for point in summary["curves"]["pycodec"]] == [10, 50, 90]
    assert {"pycodec", "pillow", "torch"} == set(summary["versions"])


def test_eval_with_the_anchors_of_an_earlier_run(several, run, stand_in_codec):
    pytest.importorskip("bjontegaard")
    pytest.importorskip("matplotlib")
    quick = ["--no-ms-ssim", "--qualities", "10,50,90", "--anchors", "jpeg"]
    assert run("eval", "in/a.jpg", "photo.png", *quick, "--out", "o")[0] == 0
    first = json.loads((several / "o" / "summary.json").read_text())
    calls = len(stand_in_codec.calls)
    reuse = [*quick, "--reuse", "o/measurements.csv", "--out", "p"]
    assert run("eval", "in/a.jpg", "photo.png", *reuse)[0] == 0
    second = json.loads((several / "p" / "summary.json").read_text())
    assert second["curves"]["jpeg"] == first["curves"]["jpeg"]
    assert second["bd_rates"] == first["bd_rates"]
    assert len(stand_in_codec.calls) == 2 * calls
    fails(run("eval", "in/b.png", *reuse), "measurements.csv", "no jpeg of b.png")


def test_eval_on_the_sphere(several, run, stand_in_codec):
    pytest.importorskip("bjontegaard")
    pytest.importorskip("matplotlib")
    quick = ["photo.png", "--projection", "erp", "--qualities", "10,50,90"]
    code, out, _ = run("eval", *quick, "--anchors", "photo,jpeg", "--out", "o")
    assert code == 0
    assert "pycodec against photo    viewport_psnr" in out
    summary = json.loads((several / "o" / "summary.json").read_text())
    assert list(summary["curves"]) == ["pycodec", "photo", "jpeg"]
    used = [call["projection"] for call in stand_in_codec.calls]
    assert used == ["erp"] * 4 + ["none"] * 4  # one to warm up
    with open("o/measurements.csv") as file:
        assert "bpp,ws_psnr,s_psnr,viewport_psnr,ws_ssim,encode_seconds" in file.readline()
    reuse = ["--anchors", "jpeg", "--reuse", "o/measurements.csv", "--no-ms-ssim", "--out", "p"]
    assert run("eval", *quick, *reuse)[0] == 0
    assert "ws_ssim" not in run("eval", *quick, *reuse)[1]
    fails(run("eval", "photo.png", "--qualities", "10,50", *reuse), "has no psnr")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["none"], "no such file"),
        (["in", "--anchors", "jpeg,mp3"], "mp3"),
        (["in", "--anchors", "photo"], "photo"),
        (["in", "--psnr-range", "40", "30"], "empty"),
        (["in/a.jpg", "in/deeper/a.jpg"], "same name"),
        (["in", "--model", "missing"], "missing"),
    ],
)
def test_eval_errors(several, run, arguments, word):
    Image.new("RGB", (2, 2)).save("in/deeper/a.jpg")
    fails(run("eval", *arguments, "--no-ms-ssim"), word)


def test_demo(folder, run):
    pytest.importorskip("matplotlib")
    code, out, _ = run("demo", "--out", "show", "--photograph", "chelsea", "-q", "40")
    assert code == 0
    assert "pycodec" in out and "JPEG" in out and "dB" in out
    assert sorted(os.listdir("show")) == [
        "comparison.png",
        "decoded.png",
        "original.png",
        "photo.jpg",
        "photo.lci",
    ]
    assert os.path.getsize("show/photo.jpg") <= os.path.getsize("show/photo.lci")


def test_train_is_passed_on(run, monkeypatch):
    seen = []
    training = types.ModuleType("pycodec.training.cli")
    training.add_arguments = lambda parser: parser.add_argument("--steps", type=int)
    training.run = lambda args: seen.append(args.steps) or 7
    monkeypatch.setitem(sys.modules, "pycodec.training.cli", training)
    monkeypatch.setattr("pycodec.training.cli", training, raising=False)
    assert run("train", "--steps", 5)[0] == 7
    assert seen == [5]


def test_errors_of_commands_end_in_one_line(run, monkeypatch):
    training = types.ModuleType("pycodec.training.cli")
    training.add_arguments = lambda parser: None

    def fail(args):
        raise CodecError("no pictures")

    training.run = fail
    monkeypatch.setitem(sys.modules, "pycodec.training.cli", training)
    monkeypatch.setattr("pycodec.training.cli", training, raising=False)
    fails(run("train"), "no pictures")
