"""Campaigns that run in slices: what is done stays done, and every command names what exists."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def slices(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("slices")


@pytest.fixture
def campaign(slices):
    return importlib.import_module("gpu_campaign")


def appending(slices, name: str, file: Path, more: str = "", **options):
    """A step that adds its name to a file."""
    code = f"open({str(file)!r}, 'a').write('{name} '); {more}"
    return slices.Step(name, ("python", "-c", code), **options)


def test_every_step_runs_once(slices, tmp_path):
    file = tmp_path / "ran"
    steps = [appending(slices, name, file) for name in "abc"]
    assert slices.Slices(steps, tmp_path / "out").run(600)
    assert file.read_text() == "a b c "
    assert slices.Slices(steps, tmp_path / "out").run(600)
    assert file.read_text() == "a b c "


def test_slices_end_in_time_and_go_on(slices, tmp_path):
    file = tmp_path / "ran"
    steps = [appending(slices, name, file, seconds=50) for name in "abc"]
    # Each may take 50 s, so that only the first one, which starts in any case, fits.
    for expected in ("a ", "a b ", "a b c "):
        finished = slices.Slices(steps, tmp_path / "out").run(49)
        assert file.read_text() == expected
        assert finished == (expected == "a b c ")


def test_what_does_not_fit_is_passed_over(slices, tmp_path):
    file = tmp_path / "ran"
    limits = {"a": 50, "b": 500, "c": 50}
    steps = [appending(slices, name, file, seconds=limits[name]) for name in limits]
    assert not slices.Slices(steps, tmp_path / "out").run(100)
    assert file.read_text() == "a c "
    assert slices.Slices(steps, tmp_path / "out").run(100)  # the first one starts in any case
    assert file.read_text() == "a c b "


def test_an_interrupted_slice_goes_on(slices, tmp_path, monkeypatch):
    file = tmp_path / "ran"
    steps = [appending(slices, name, file) for name in "abc"]
    first = slices.Slices(steps, tmp_path / "out")
    real, seen = first._run, []

    def interrupted(step):
        seen.append(step.name)
        if step.name == "b":
            raise KeyboardInterrupt
        return real(step)

    monkeypatch.setattr(first, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.run(600)
    assert seen == ["a", "b"]
    assert slices.Slices(steps, tmp_path / "out").run(600)
    assert file.read_text() == "a b c "


def test_failures_are_kept_and_repeated_on_demand(slices, tmp_path):
    file = tmp_path / "ran"
    steps = [
        appending(slices, "good", file),
        appending(slices, "bad", file, "print('what went wrong'); raise SystemExit(3)"),
        slices.Step("missing", ("no-such-program",)),
        slices.Step("absent", ("python", "-c", "1"), needs=lambda: "there is no such tool"),
    ]
    run = slices.Slices(steps, tmp_path / "out")
    assert run.run(600)
    outcomes = run.outcomes()
    assert {name: o.status for name, o in outcomes.items()} == {
        "good": "ok",
        "bad": "failed",
        "missing": "failed",
        "absent": "left out",
    }
    assert outcomes["bad"].reason == "exit code 3: what went wrong"
    assert outcomes["absent"].reason == "there is no such tool"
    assert run.run(600, retry=True)
    assert file.read_text() == "good bad bad "


def test_a_step_that_takes_too_long_is_stopped_with_its_children(slices, tmp_path):
    file = tmp_path / "child"
    code = (
        "import subprocess, sys, time; child = subprocess.Popen("
        "[sys.executable, '-c', 'import time; time.sleep(300)']); "
        f"open({str(file)!r}, 'w').write(str(child.pid)); time.sleep(300)"
    )
    run = slices.Slices([slices.Step("long", ("python", "-c", code), seconds=3)], tmp_path / "out")
    assert run.run(600)
    assert run.outcomes()["long"].status == "timeout"
    child = int(file.read_text())
    end = time.monotonic() + 20
    while time.monotonic() < end and _is_running(child):
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_changed_command_runs_again(slices, tmp_path):
    file = tmp_path / "ran"
    out = tmp_path / "out"
    assert slices.Slices([appending(slices, "a", file)], out).run(600)
    changed = appending(slices, "a", file, "print(1)")
    assert slices.Slices([changed], out).run(600)
    assert file.read_text() == "a a "


def test_results_are_gathered(slices, tmp_path):
    out = tmp_path / "out"
    code = "import json, sys; json.dump([1, 2], open(sys.argv[1], 'w'))"
    steps = [
        slices.Step("makes", ("python", "-c", code, "{json}")),
        slices.Step("prints", ("python", "-c", "print('no file')", "/home/someone/pictures")),
        slices.Step("later", ("python", "-c", "1"), seconds=500),
    ]
    run = slices.Slices(steps, out)
    assert not run.run(400)
    document = run.gather({"gpu": "made"})
    assert document["steps"]["prints"]["command"][-1] == "pictures"  # no folders of this machine
    assert document["machine"] == {"gpu": "made"}
    assert document["complete"] is False
    assert document["steps"]["makes"]["results"] == [1, 2]
    assert document["steps"]["prints"]["output"] == ["no file"]
    json.dumps(document)
    with pytest.raises(ValueError, match="same name"):
        slices.Slices([steps[0], steps[0]], out)


def test_the_campaign_names_files_and_options_that_exist(slices, campaign):
    steps = campaign.steps()
    assert slices.missing_files(steps) == []
    gone = slices.Step("x", ("python", "benchmarks/no_such.py", "tests/none.py::test"))
    assert slices.missing_files([gone]) == ["benchmarks/no_such.py", "tests/none.py::test"]
    assert all(step.seconds < 8.5 * 60 for step in steps)
    # Every file of tests that needs a GPU is in it.
    tests = BENCHMARKS.parent / "tests"
    need = {
        str(path.relative_to(tests.parent))
        for path in tests.rglob("test_*.py")
        if path != Path(__file__) and "torch.cuda.is_available()" in path.read_text()
    }
    assert need <= set(campaign.GPU_TESTS)


@pytest.mark.parametrize("command", ("gpu_campaign", "run_all"))
def test_scripts_know_the_options_that_they_are_given(slices, command):
    for step in importlib.import_module(command).steps():
        scripts = [i for i, a in enumerate(step.command) if a.startswith("benchmarks/")]
        if not scripts:
            continue
        script = step.command[scripts[0]]
        source = (BENCHMARKS.parent / script).read_text()
        for option in step.command[scripts[0] + 1 :]:
            if option.startswith("--"):
                assert f'"{option}"' in source, f"{script} has no {option}"


def test_every_benchmark_names_its_peer(slices, campaign):
    run_all = importlib.import_module("run_all")
    steps = (*run_all.steps(), *campaign.steps())
    for script in {a for step in steps for a in step.command if a.startswith("benchmarks/")}:
        text = ast.get_docstring(ast.parse((BENCHMARKS.parent / script).read_text()))
        assert re.search(r"[Pp]eer", text) and "install" in text, script


def test_what_is_not_run_is_said(slices):
    run_all = importlib.import_module("run_all")
    steps = run_all.steps()
    assert "benchmarks/coding/rans.py" not in run_all.not_run(steps)
    others = [step for step in steps if step.name != "rans"]
    assert "benchmarks/coding/rans.py" in run_all.not_run(others)
    # Helpers, and what needs a GPU, are no benchmarks of processors.
    assert not [p for p in run_all.not_run([]) if p.endswith(("_cuda.py", "slices.py"))]


def test_benchmarks_are_gathered(slices, tmp_path, monkeypatch, capsys):
    run_all = importlib.import_module("run_all")
    made = [slices.Step(name, ("python", "-c", f"print('{name}')"), seconds=9) for name in "ab"]
    monkeypatch.setattr(run_all, "steps", lambda kodak, erp: made)
    arguments = ["--out", str(tmp_path / "out"), "--results", str(tmp_path)]
    assert run_all.main([*arguments, "--only", "a"]) == 0
    assert run_all.main([*arguments, "--only", "b"]) == 0
    (path,) = tmp_path.glob("*.json")
    document = json.loads(path.read_text())
    assert [step["output"] for step in document["steps"].values()] == [["a"], ["b"]]
    assert document["machine"]["processor"]
    assert "benchmarks/coding/rans.py" in document["not_run"]  # these steps are made ones
    with pytest.raises(SystemExit):
        run_all.main([*arguments, "--only", "c"])


def test_the_campaign_wants_a_gpu(campaign, tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert campaign.main(["--out", str(tmp_path / "out")]) == 1
    assert "no GPU" in capsys.readouterr().err
    assert campaign.main(["--out", str(tmp_path / "out"), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(campaign.steps())
    assert all(line.startswith("to do") for line in lines)


def test_the_campaign_from_slice_to_slice(slices, campaign, tmp_path, monkeypatch):
    import torch

    from pycodec.profiling import machine

    row = {"network": "n", "order": "o", "height": 1, "width": 2, "method": "graph", "threads": 3}
    rows = [row | {"blocks": b, "decode_seconds": t, "us_per_wave": 9} for b, t in ((1, 5), (2, 4))]
    code = f"import json, sys; json.dump({rows}, open(sys.argv[1], 'w'))"
    made = [
        slices.Step("time-wave_network-1", ("python", "-c", code, "{json}"), seconds=30),
        slices.Step("test-x", ("python", "-c", "1"), seconds=30),
    ]
    monkeypatch.setattr(campaign, "steps", lambda: made)
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    (tmp_path / "pycodec").mkdir()
    (tmp_path / "triton_kernels").mkdir()
    (tmp_path / "triton_kernels" / "__init__.py").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(machine, "describe_machine", lambda device: {"gpu": "Made GPU 1"})
    monkeypatch.setattr(
        machine, "measure_ceilings", lambda device: machine.Ceilings(1.0, {"int8": 2.0}, 1)
    )
    arguments = ["--out", str(tmp_path), "--minutes", "0.1"]
    assert campaign.main(arguments) == slices.MORE_LEFT
    assert (tmp_path / "pycodec" / "triton_kernels" / "__init__.py").exists()
    assert campaign.main([*arguments, "--only", "time-*"]) == 0  # it is done
    with pytest.raises(SystemExit):
        campaign.main([*arguments, "--only", "tests"])
    assert not (tmp_path / "test-x.log").exists()
    assert campaign.main(arguments) == 0
    document = json.loads((tmp_path / "made-gpu-1.json").read_text())
    assert document["complete"] is True
    assert [launch["blocks"] for launch in document["fastest_launches"]] == [2]
    assert document["ceilings"]["gop_s"] == {"int8": 2.0}
