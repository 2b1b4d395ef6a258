"""Runs every benchmark of this folder on this machine and gathers their results in one file.

Runs in slices, each call up to ``--minutes``; the next call with the same ``--out`` goes on from
there and exits with 0 when all are done, with 75 while some are left. What is gathered goes to
``benchmarks/results/MACHINE.json``, named after the processor; benchmarks that write no JSON are in
it with what they print. Those that need pictures are left out unless a folder is given. Then
``benchmarks/plots.py`` draws what README shows and ``benchmarks/update_readme.py`` writes it.

Each benchmark says itself what it compares with and how to install that; what is not installed is
left out of the comparison. All of the peers of processors:

    pip install compressai constriction torchac imagecodecs matplotlib bjontegaard pytorch-msssim

    python benchmarks/run_all.py --out runs/benchmarks [--kodak DIR] [--erp DIR]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slices import MORE_LEFT, ROOT, Slices, Step, missing_files

RESULTS = ROOT / "benchmarks" / "results"


HELPERS = ("slices", "measure", "run_all", "gpu_campaign", "update_readme", "plots")
"""What in this folder measures nothing itself."""


def package(name: str):
    """For :attr:`Step.needs`: a peer without which there is nothing to compare."""
    found = importlib.util.find_spec(name) is not None
    return lambda: None if found else f"needs the package {name}: pip install {name}"


def bfloat16() -> str | None:
    """For :attr:`Step.needs`."""
    from pycodec import _cpu

    return None if _cpu.runs_bfloat16() else "needs a processor with AVX-512 BF16 or AMX"


def folder_given(path: Path | None, option: str):
    """For :attr:`Step.needs`."""
    return lambda: None if path is not None else f"needs pictures: give {option}"


def steps(kodak: Path | None = None, erp: Path | None = None) -> list[Step]:
    """All benchmarks, the short ones first."""

    def script(path: str, *options: str, seconds: int = 600, name: str | None = None) -> Step:
        name = name or Path(path).stem
        command = ("python", f"benchmarks/{path}", *options)
        return Step(name, command, seconds)

    def with_json(path: str, *options: str, **more) -> Step:
        return script(path, *options, "--json", "{json}", **more)

    bench = ("python", "-m", "pycodec", "bench", "--json", "{json}")
    lossless = ("models/lossless.py", str(kodak or "KODAK"))
    sphere = ("models/sphere.py", str(erp or "ERP"))
    found = [
        with_json("profiling/overhead.py", name="profiler_overhead"),
        with_json("roofline.py"),
        with_json("models/photo.py"),
        with_json("models/mirroring.py"),
        with_json("coding/rans.py"),
        script("integrations/dataset.py"),
        with_json("ops/quantize.py"),
        script("ops/quantized_conv2d.py"),
        script("ops/quantized_trimmed_conv2d.py"),
        with_json("ops/masked_conv2d.py"),
        with_json("ops/trimmed_conv2d.py", seconds=1200),
        replace(with_json("ops/trimmed_training.py"), needs=bfloat16),
        with_json("ops/pseudocylindrical_pad.py"),
        Step("bench", bench, 900),
        Step("bench_lossless", (*bench, "--lossless"), 1800),
        with_json("context/wave_network.py", seconds=3600),
        replace(with_json("integrations/compressai.py", seconds=3600), needs=package("compressai")),
    ]
    for name, path, folder, option in (
        ("lossless", lossless, kodak, "--kodak"),
        ("lossless_colour", (*lossless, "--colour"), kodak, "--kodak"),
        ("sphere", sphere, erp, "--erp"),
    ):
        step = with_json(*path, seconds=3600, name=name)
        found.append(replace(step, needs=folder_given(folder, option)))
    return found


def not_run(all_steps: Sequence[Step]) -> list[str]:
    """Benchmarks of processors that none of the steps names: the results say so."""
    named = {argument for step in all_steps for argument in step.command}
    paths = sorted((ROOT / "benchmarks").rglob("*.py"))
    return [
        str(path.relative_to(ROOT))
        for path in paths
        if path.stem not in HELPERS
        and not path.stem.endswith("_cuda")
        and str(path.relative_to(ROOT)) not in named
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of state and results")
    parser.add_argument("--minutes", type=float, default=60, help="of this call (default: 60)")
    parser.add_argument("--kodak", type=Path, help="folder of the Kodak pictures")
    parser.add_argument("--erp", type=Path, help="folder of equirectangular pictures")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the benchmarks")
    parser.add_argument("--retry", action="store_true", help="repeat what failed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where MACHINE.json goes")
    options = parser.parse_args(argv)
    all_steps = steps(*(p and p.resolve() for p in (options.kodak, options.erp)))
    if missing := missing_files(all_steps):
        parser.error(f"the repository lacks {', '.join(missing)}")
    left_out = not_run(all_steps)
    if options.only:
        unknown = set(options.only) - {step.name for step in all_steps}
        if unknown:
            names = ", ".join(step.name for step in all_steps)
            parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {names}")
    slices = Slices(all_steps, options.out.resolve())
    finished = slices.run(60 * options.minutes, retry=options.retry, only=options.only)

    from pycodec.profiling.machine import describe_machine, machine_name

    facts = describe_machine()
    path = options.results / f"{machine_name(facts)}.json"
    document = slices.gather(facts) | {"not_run": left_out}
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {path}" + ("" if finished else "; some are left: run this again"))
    return 0 if finished else MORE_LEFT


if __name__ == "__main__":
    sys.exit(main())
