"""Builds the GPU kernels' own sources for the host: modules that take addresses of its memory."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[1]
_built: dict[tuple, ModuleType] = {}


def build(source: Path, bindings: str, folder: Path, *flags: str) -> ModuleType:
    """The module of ``source`` and ``csrc/bindings/<bindings>``; skips where no compiler is.

    It is built once, in the first ``folder``, and shared by all tests of a run.
    """
    key = source, bindings, flags
    if key not in _built:
        _built[key] = _build(source, bindings, folder, flags)
    return _built[key]


def _build(source: Path, bindings: str, folder: Path, flags: tuple[str, ...]) -> ModuleType:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    library = folder / f"{source.stem}.so"
    includes = (ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"])
    options = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-pthread", *flags)
    options += tuple(f"-I{i}" for i in includes)

    def compile_object(path: Path) -> Path:
        target = folder / f"{path.stem}.o"
        subprocess.run([compiler, *options, "-c", str(path), "-o", str(target)], check=True)
        return target

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_object, (ROOT / "csrc" / "bindings" / bindings, source)))
    command = [compiler, "-shared", "-pthread", *flags, *map(str, objects), "-o", str(library)]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location(source.stem, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
