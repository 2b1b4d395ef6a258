"""Every SIMD level codes like scalar code, on 100,000 random streams."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from ..fuzz.run import simd_flags

ROOT = Path(__file__).resolve().parents[2]


def build(compiler: str, processor: str, folder: Path, *options: str) -> Path:
    """Builds simd_levels.cpp and the kernels, each source with the flags that are its own."""
    suffixes = {"x86_64": ("_avx2", "_avx512vnni"), "aarch64": ("_neon",)}[processor]
    sources = [ROOT / "tests/coding/simd_levels.cpp", ROOT / "csrc/cpu/simd_level.cpp"]
    sources.append(ROOT / "csrc/rans/kernels.cpp")
    sources += [ROOT / f"csrc/rans/kernels{suffix}.cpp" for suffix in suffixes]
    objects = []
    for source in sources:
        flags = next((f for s, f in simd_flags().items() if source.stem.endswith(s)), [])
        objects.append(folder / f"{source.stem}.o")
        command = [compiler, "-std=c++17", "-O2", f"-I{ROOT / 'csrc'}", *flags, "-c", source]
        subprocess.run([*command, "-o", objects[-1]], check=True)
    program = folder / "simd_levels"
    subprocess.run([compiler, *options, *objects, "-o", program], check=True)
    return program


def run(*command: object) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def test_levels_of_this_processor(tmp_path):
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    program = build(compiler, platform.machine(), tmp_path)
    said = run(program, 100_000, 1)
    assert said.startswith("100000 streams equal: scalar")


def test_neon_under_emulation(tmp_path):
    compiler = "aarch64-linux-gnu-g++"
    if shutil.which(compiler) is None or shutil.which("qemu-aarch64") is None:
        pytest.skip(f"needs {compiler} and qemu-aarch64")
    program = build(compiler, "aarch64", tmp_path, "-static")
    assert run("qemu-aarch64", program, 5_000, 2) == "5000 streams equal: scalar neon"
