"""Builds the extension modules; everything else about the package is in pyproject.toml.

``pycodec._cpu`` needs a C++17 compiler and pybind11, nothing more. ``pycodec._cuda`` is built too
where nvcc is found, and does not stop the installation if it fails. ``PYCODEC_CUDA`` decides:
``auto`` (the default) as said, ``0`` never, ``1`` always (a failure is then an error).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError, LinkError

ROOT = Path(__file__).parent.resolve()

CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"]

# A source whose name ends so is one SIMD variant of a kernel: it is built with these flags for the
# processors below, left out elsewhere, and entered at run time only where they are supported.
SIMD_FLAGS = {
    "_neon": [],  # a part of every aarch64
    "_avx2": ["-mavx2", "-mfma"],
    # GCC 12 warns of what its own AVX-512 headers leave undefined on purpose (GCC bug 105593).
    "_avx512vnni": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512vnni",
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",
    ],
    "_avx512bf16": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512bf16",
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",
    ],
    "_amx": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512vnni",
        "-mamx-tile",
        "-mamx-int8",
        "-mamx-bf16",
        "-mavx512bf16",
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",
    ],
}

NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",  # PTX, for chips that came later
    "-Xcompiler=-fPIC,-fvisibility=hidden",
]

BUILD_ERRORS = (CompileError, ExecError, LinkError, OSError, subprocess.CalledProcessError)


def simd_suffix(source: str) -> str | None:
    """The suffix that marks ``source`` as a SIMD variant, or None for portable code."""
    return next((s for s in SIMD_FLAGS if Path(source).stem.endswith(s)), None)


def find_nvcc() -> Path | None:
    """nvcc from CUDA_HOME or PATH, or None where there is none or PYCODEC_CUDA forbids it."""
    choice = os.environ.get("PYCODEC_CUDA", "auto")
    if choice not in ("0", "1", "auto"):
        raise SystemExit(f"PYCODEC_CUDA is {choice!r}, but must be 0, 1 or auto")
    if choice == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    if nvcc is None and choice == "1":
        raise SystemExit("PYCODEC_CUDA is 1, but there is no nvcc in CUDA_HOME or on PATH")
    return Path(nvcc) if nvcc else None


def cuda_root(nvcc: Path) -> Path:
    """The toolkit's folder, asked from nvcc itself, since nvcc may be a link or a wrapper."""
    dryrun = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull],
        capture_output=True,
        text=True,
        check=True,
    )
    top = next(line for line in dryrun.stderr.splitlines() if line.startswith("#$ TOP="))
    return Path(top.removeprefix("#$ TOP=").strip())


def relative(paths) -> list[str]:
    """``paths`` sorted and relative to this folder, as setuptools wants them."""
    return sorted(str(p.relative_to(ROOT)) for p in paths)


def extensions() -> list[Extension]:
    csrc = ROOT / "csrc"
    cuda_bindings = set(csrc.glob("bindings/cuda_*.cpp"))
    cpu_bindings = set(csrc.glob("bindings/*.cpp")) - cuda_bindings
    common = {
        "language": "c++",
        "include_dirs": [pybind11.get_include(), str(csrc)],
        "depends": relative([*csrc.rglob("*.hpp"), *csrc.rglob("*.cuh"), ROOT / "setup.py"]),
    }
    cpu_sources = [*csrc.glob("cpu/*.cpp"), *csrc.glob("rans/*.cpp"), *cpu_bindings]
    modules = [Extension("pycodec._cpu", relative(cpu_sources), **common)]
    if find_nvcc():
        cuda_sources = relative([*csrc.glob("cuda/*.cu"), *cuda_bindings])
        optional = os.environ.get("PYCODEC_CUDA") != "1"
        modules.append(Extension("pycodec._cuda", cuda_sources, optional=optional, **common))
    return modules


class BuildKernels(build_ext):
    """Compiles every source with the flags that are its own, several at a time.

    setuptools itself only links: it has one set of flags an extension and does not know nvcc.
    """

    def build_extension(self, ext: Extension) -> None:
        try:
            sources = [s for s in ext.sources if self._wanted(s)]
            nvcc = find_nvcc() if ext.name == "pycodec._cuda" else None
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(lambda s: self._compile(s, ext, nvcc), sources))
            self._link(ext, objects, nvcc)
        except BUILD_ERRORS as error:
            if not ext.optional:
                raise
            self._warn_left_out(ext, error)

    def _wanted(self, source: str) -> bool:
        suffix = simd_suffix(source)
        processors = ("aarch64", "arm64") if suffix == "_neon" else ("x86_64", "amd64")
        return suffix is None or self.plat_name.endswith(processors)

    def _compile(self, source: str, ext: Extension, nvcc: Path | None) -> str:
        """Compiles one file, unless its object is newer than it and every header."""
        target = Path(self.build_temp, ext.name, source).with_suffix(".o")
        inputs = [source, *ext.depends]
        if target.exists() and target.stat().st_mtime > max(os.stat(p).st_mtime for p in inputs):
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".cu"):
            includes = [f"-I{d}" for d in ext.include_dirs]
            self.spawn([str(nvcc), *NVCC_FLAGS, *includes, "-c", source, "-o", str(target)])
            return str(target)
        includes = [*ext.include_dirs]
        if nvcc:
            includes.append(str(cuda_root(nvcc) / "include"))
        flags = CXX_FLAGS + SIMD_FLAGS.get(simd_suffix(source), [])
        (built,) = self.compiler.compile(
            [source],
            output_dir=str(Path(self.build_temp, ext.name)),
            include_dirs=includes,
            extra_postargs=flags,
        )
        return built

    def _link(self, ext: Extension, objects: list[str], nvcc: Path | None) -> None:
        ext.sources, ext.extra_objects = [], objects
        ext.extra_link_args = ["-pthread"]
        if nvcc:
            lib = cuda_root(nvcc) / "lib64"
            # Static: the module imports on machines that have neither a GPU nor a toolkit. Hidden:
            # torch brings a CUDA runtime of its own.
            hidden = "-Wl,--exclude-libs,ALL"
            ext.extra_link_args += [f"-L{lib}", "-lcudart_static", "-lrt", "-ldl", hidden]
        self.force = True  # freshness was decided an object at a time
        super().build_extension(ext)

    def _warn_left_out(self, ext: Extension, error: Exception) -> None:
        line = "*" * 78
        message = f"{ext.name} was NOT built: {error}\nThe CPU build goes on without it."
        self.warn(f"\n{line}\n{message}\nPYCODEC_CUDA=0 skips it, 1 makes this fatal.\n{line}")


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels},
    # The sources live beside the package; the bare name is taken by another published package.
    packages=[*find_packages(include=["pycodec", "pycodec.*"]), "pycodec.triton_kernels"],
    package_dir={"pycodec.triton_kernels": "triton_kernels"},
    package_data={"pycodec.models": ["weights/*/*"], "pycodec.profiling": ["report.html"]},
)
