"""Compiles every GPU kernel for sm_80 and sm_90, without a GPU: ``python .ci/compile_kernels.py``.

The CUDA sources go through nvcc, warnings and spilled registers being errors, and the Triton
kernels, in each of the variants that their files list, through Triton's compiler. Exits with 1 if
any does not compile.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import pycodec.triton_kernels

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90)
WARP_SIZE = 32
MAY_SPILL = ("pseudocylindrical.cu",)  # the float64 adjoint, a register


def compile_cuda(source: Path, architecture: int) -> str | None:
    """Compiles one source to a cubin; returns what nvcc said if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("nvcc", "-std=c++17", "-O3", "-cubin", f"-arch=sm_{architecture}"),
            *("-Werror", "all-warnings", "-I", str(ROOT / "csrc")),
            *(() if source.name in MAY_SPILL else ("-Xptxas", "--warn-on-spills")),
            *(str(source), "-o", str(Path(folder, "kernel.cubin"))),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
    return None if result.returncode == 0 else result.stderr


def check_cuda() -> Iterator[tuple[str, str | None]]:
    """Yields (what was compiled, its error or None)."""
    if shutil.which("nvcc") is None:
        yield "CUDA", "there is no nvcc on PATH"
        return
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    if not sources:
        yield "CUDA", "there is no source in csrc/cuda"
    jobs = [(source, architecture) for source in sources for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = pool.map(lambda job: compile_cuda(*job), jobs)
        for (source, architecture), error in zip(jobs, errors, strict=True):
            yield f"CUDA {source.name} sm_{architecture}", error


def check_triton() -> Iterator[tuple[str, str | None]]:
    """Yields (what was compiled, its error or None)."""
    package = pycodec.triton_kernels
    names = [m.name for m in pkgutil.iter_modules(package.__path__, package.__name__ + ".")]
    if not names:
        yield "Triton", "there is no module in triton_kernels"
    for name in names:
        module = importlib.import_module(name)
        for i, (kernel, signature, constants, options) in enumerate(module.compile_variants()):
            for architecture in ARCHITECTURES:
                what = f"Triton {name.rpartition('.')[2]} variant {i} sm_{architecture}"
                target = GPUTarget("cuda", architecture, WARP_SIZE)
                try:
                    source = ASTSource(kernel, signature, constants)
                    built = triton.compile(source, target=target, options=options)
                    yield what, None if built.asm.get("cubin") else "no cubin came out"
                except Exception as error:  # whatever a compiler raises is what we report
                    yield what, f"{type(error).__name__}: {error}"


def main() -> int:
    compiled = failed = 0
    for check in (check_cuda, check_triton):
        for what, error in check():
            print(f"{'ok    ' if error is None else 'FAILED'} {what}", flush=True)
            if error is None:
                compiled += 1
            else:
                failed += 1
                print(error, file=sys.stderr)
    print(f"{compiled} kernels compiled, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
