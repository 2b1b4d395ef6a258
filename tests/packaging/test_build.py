"""setup.py: the CPU build never depends on CUDA, and SIMD code stays where it may run."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools  # noqa: F401  (provides distutils where Python no longer does)

# isort: split
from distutils.core import run_setup

from ..fuzz.run import simd_flags

ROOT = Path(__file__).resolve().parents[2]
SIMD_SOURCES = sorted(
    p for name in ("*_avx*.cpp", "*_amx.cpp") for p in (ROOT / "csrc").rglob(name)
)

BROKEN_NVCC = """#!/bin/sh
if [ "$1" = --dryrun ]; then echo "#$ TOP=$(dirname "$0")/.." >&2; exit 0; fi
echo "unsupported GNU version" >&2
exit 1
"""


@pytest.fixture
def read_setup(monkeypatch):
    """Reads setup.py, without building, under the given environment variables."""
    monkeypatch.chdir(ROOT)

    def read(**environment):
        for name in ("PYCODEC_CUDA", "CUDA_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        return run_setup("setup.py", stop_after="init")

    return read


@pytest.fixture
def broken_cuda_home(tmp_path):
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(BROKEN_NVCC)
    nvcc.chmod(0o755)
    return tmp_path / "cuda"


def build_cuda(distribution, folder):
    """Builds ``pycodec._cuda`` into ``folder``, of what nvcc compiles; the rest takes a minute."""
    (module,) = (e for e in distribution.ext_modules if e.name == "pycodec._cuda")
    module.sources = [source for source in module.sources if source.endswith(".cu")]
    distribution.ext_modules = [module]
    command = distribution.get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()


def module_names(distribution):
    return [e.name for e in distribution.ext_modules]


def test_cuda_can_be_left_out(read_setup, broken_cuda_home):
    distribution = read_setup(PYCODEC_CUDA="0", CUDA_HOME=broken_cuda_home)
    assert module_names(distribution) == ["pycodec._cpu"]


def test_no_nvcc_no_cuda(read_setup, tmp_path):
    assert module_names(read_setup(CUDA_HOME=tmp_path)) == ["pycodec._cpu"]


def test_failing_cuda_build_warns_and_goes_on(read_setup, broken_cuda_home, tmp_path, caplog):
    distribution = read_setup(CUDA_HOME=broken_cuda_home)
    assert module_names(distribution) == ["pycodec._cpu", "pycodec._cuda"]
    build_cuda(distribution, tmp_path / "build")
    assert "pycodec._cuda was NOT built" in caplog.text
    assert not list((tmp_path / "build").rglob("*.so"))


def test_required_cuda_build_fails_loudly(read_setup, broken_cuda_home, tmp_path):
    distribution = read_setup(PYCODEC_CUDA="1", CUDA_HOME=broken_cuda_home)
    with pytest.raises(Exception, match="nvcc"):
        build_cuda(distribution, tmp_path / "build")


@pytest.mark.parametrize("choice", ["1", "yes"])
def test_bad_choice_stops_the_build(tmp_path, choice):
    environment = {**os.environ, "PYCODEC_CUDA": choice, "CUDA_HOME": str(tmp_path)}
    command = [sys.executable, "setup.py", "--name"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("PYCODEC_CUDA")


@pytest.mark.parametrize("machine, wanted", [("linux-x86_64", True), ("linux-aarch64", False)])
def test_simd_variants_are_for_x86_64(read_setup, machine, wanted):
    command = read_setup(PYCODEC_CUDA="0").get_command_obj("build_ext")
    command.plat_name = machine
    assert SIMD_SOURCES
    assert all(command._wanted(str(source)) == wanted for source in SIMD_SOURCES)
    assert command._wanted("csrc/cpu/quantized_conv2d.cpp")


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not shutil.which("c++"),
    reason="needs a compiler for x86-64",
)
@pytest.mark.parametrize("source", SIMD_SOURCES, ids=lambda s: s.stem)
def test_simd_variants_share_no_inline_functions(source, tmp_path):
    """The linker keeps one copy of a weak function, perhaps the one an old processor cannot run."""
    flags = next(f for suffix, f in simd_flags().items() if source.stem.endswith(suffix))
    target = tmp_path / "variant.o"
    # Without optimization, so that nothing hides by being inlined.
    command = ["c++", "-std=c++17", "-O0", "-fPIC", *flags, f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, "-c", source, "-o", target], check=True)
    symbols = subprocess.run(["nm", "-C", target], check=True, capture_output=True, text=True)
    weak = [line for line in symbols.stdout.splitlines() if line[17:18] in "VvWwu"]
    assert not weak
