"""Builds the GPU kernels' own sources for the host: modules that take addresses of its memory."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[1]


def build(source: Path, bindings: str, folder: Path, *flags: str) -> ModuleType:
    """The module of ``source`` and ``csrc/bindings/<bindings>``; skips where no compiler is."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    library = folder / f"{source.stem}.so"
    includes = (ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"])
    command = [
        *(compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
        *("-pthread", *flags, *(f"-I{i}" for i in includes)),
        *(str(ROOT / "csrc" / "bindings" / bindings), str(source), "-o", str(library)),
    ]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location(source.stem, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
