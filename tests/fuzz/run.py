"""Fuzzes csrc/rans with libFuzzer, under AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/fuzz/run.py [--runs N] [--seconds S] [--corpus DIR]

Needs clang++ with its sanitizer runtimes (Debian: ``apt-get install clang``). Exits with 0 if no
input failed; otherwise it says where the input is that did, and the program takes that input as its
argument. Inputs that reached new code stay in the corpus, from which the next run starts.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MAX_INPUT = 512

FLAGS = [
    *("-std=c++17", "-O2", "-gline-tables-only", "-pthread", "-Wall", "-Wextra"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    # Of -fsanitize=fuzzer only this: to trace comparisons as well takes half of the time.
    "-fsanitize-coverage=inline-8bit-counters,pc-table",
    "-Wno-unknown-warning-option",  # setup.py's flags are GCC's
]
LINK_FLAGS = ["-fsanitize=fuzzer,address,undefined", "-pthread"]
# Inputs are kept for what they reach in csrc, not for what they reach in the target itself.
COVERED = "src:*\nfun:_ZN7pycodec*\nfun:_ZNK7pycodec*\n"
ENVIRONMENT = {
    # Faster: little freed memory waits, traces of allocations are short, few bytes are filled.
    "ASAN_OPTIONS": "quarantine_size_mb=2:malloc_context_size=2:max_malloc_fill_size=64",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def simd_flags() -> dict[str, list[str]]:
    """``SIMD_FLAGS`` of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "SIMD_FLAGS":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py has no SIMD_FLAGS")


def source_flags(source: Path) -> list[str] | None:
    """Flags of its own for a source; None if it is for other processors."""
    is_arm = platform.machine().lower() in ("aarch64", "arm64")
    for suffix, flags in simd_flags().items():
        if source.stem.endswith(suffix):
            if (suffix == "_neon") != is_arm:
                return None
            return flags if is_arm else [*flags, "-include", str(HERE / "checked_gathers.hpp")]
    return []


def compile_source(source: Path, csrc: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.o"
    covered = f"-fsanitize-coverage-allowlist={folder / 'covered.txt'}"
    command = ["clang++", *FLAGS, covered, *source_flags(source), "-I", str(csrc)]
    subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
    return target


def build(target: str, csrc: Path, folder: Path) -> Path:
    """Compiles a fuzz target; returns the program."""
    if shutil.which("clang++") is None:
        raise SystemExit("fuzzing needs clang++, which is not on PATH (apt-get install clang)")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "covered.txt").write_text(COVERED)
    sources = [
        HERE / f"fuzz_{target}.cpp",
        *(csrc / "cpu" / name for name in ("parallel.cpp", "simd_level.cpp")),
        *sorted(csrc.glob("rans/*.cpp")),
    ]
    wanted = [source for source in sources if source_flags(source) is not None]
    program = folder / f"fuzz_{target}"
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda s: compile_source(s, csrc, folder), wanted))
        command = ["clang++", *LINK_FLAGS, *map(str, objects), "-o", str(program)]
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            "the fuzz target was not built. If the linker misses libclang_rt, install clang's "
            "sanitizer runtimes (Debian: libclang-rt-VERSION-dev)"
        ) from error
    return program


def write_seeds(folder: Path) -> None:
    """Inputs to start from: some of each kind, which the first byte decides."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    for kind in range(8):
        for size in (4, 16, 64, 256, MAX_INPUT):
            content = bytes([kind]) + generator.randbytes(size - 1)
            (folder / f"seed-{kind}-{size}").write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--target",
        choices=("rans", "decode"),
        default="rans",
        help="rans: everything, with many checks; decode: arbitrary bytes only, but fast",
    )
    parser.add_argument("--runs", type=int, default=-1, help="executions (default: no limit)")
    parser.add_argument("--seconds", type=int, default=0, help="time limit (default: none)")
    parser.add_argument("--seed", type=int, default=0, help="of libFuzzer (default: by chance)")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "fuzz", metavar="DIR")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="default: corpus in --build")
    parser.add_argument("--csrc", type=Path, default=ROOT / "csrc", metavar="DIR")
    arguments = parser.parse_args()

    folder = arguments.build.resolve() / arguments.target
    corpus = (arguments.corpus or folder / "corpus").resolve()
    program = build(arguments.target, arguments.csrc.resolve(), folder)
    write_seeds(corpus)
    command = [
        *(str(program), str(corpus), f"-artifact_prefix={folder}/", f"-runs={arguments.runs}"),
        *(f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}"),
        *(f"-max_len={MAX_INPUT}", "-len_control=0", "-timeout=60", "-print_final_stats=1"),
        "-entropic=0",  # keeping statistics of all inputs takes longer than to run one
        # No input may make the coder allocate much.
        *("-malloc_limit_mb=64", "-rss_limit_mb=2048"),
    ]
    result = subprocess.run(command, env={**os.environ, **ENVIRONMENT})
    if result.returncode == 0:
        print("fuzzing: clean")
        return 0
    crashes = [p for p in folder.iterdir() if p.name.startswith(("crash-", "oom-", "timeout-"))]
    newest = max(crashes, key=lambda p: p.stat().st_mtime, default="no input was written")
    print(f"fuzzing: FAILED; reproduce with\n  {program} {newest}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
