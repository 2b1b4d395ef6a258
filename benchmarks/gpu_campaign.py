"""Everything that needs a GPU, by one command: correctness, times, counters, sanitizers.

Runs in slices, for machines that are lent for minutes: each call does as many steps as fit in
``--minutes`` (8.5) and exits with 75 while some are left; the next call with the same ``--out``
goes on. Steps that need a tool which is missing (nvcc, ncu, compute-sanitizer) are left out, and
the results say so. When all are done, or with ``--gather``, one JSON with the machine's name holds
all results, among them the fastest launch of the wave decoder for each network.

    python benchmarks/gpu_campaign.py --out campaign           # until it exits with 0
    python benchmarks/gpu_campaign.py --out campaign --list    # what is done and what is left
    python benchmarks/gpu_campaign.py --out campaign --only "time-*"   # some of it

Compares kernels with the reference (tests), with cuDNN and torch._int_mm (benchmarks/ops), and with
the measured ceilings of the GPU. Nothing needs to be installed beyond ``pip install '.[test]'``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from slices import MORE_LEFT, ROOT, Slices, Step, missing_files

GPU_TESTS = (
    "tests/ops/test_quantize.py",
    "tests/ops/test_quantized_conv2d.py",
    "tests/ops/test_trimmed_conv2d_gpu.py",
    "tests/ops/test_pseudocylindrical_gpu.py",
    "tests/coding/test_rans_cuda.py",
    "tests/context/test_wave_network_cuda.py",
    "tests/integrations/test_compressai_gpu.py",
    "tests/integrations/test_dataset.py",
    "tests/quantization/test_simulation.py",
    "tests/training/test_sphere.py",
    "tests/training/test_device_crops.py",
    "tests/training/test_lossless.py",
)
FIRST_TESTS = ("test-rans_cuda", "test-wave_network_cuda", "test-lossless")
COUNTERS = (
    "gpu__time_duration.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "l1tex__data_bank_conflicts_pipe_lsu.sum",
)
# Of csrc/cuda and triton_kernels, so that PyTorch's own are not counted.
KERNELS = (
    "regex:^(waves|stage|draw|encode|decode|pad|pad_adjoint|mask|resample|copy|(de)?quantize|"
    "trimmed|trimmed_conv2d|quantized_(conv2d|conv2d_mma|trimmed|trimmed_conv2d))_kernel"
)
# PyTorch's memory in pieces of its own, or an overrun is only seen where it leaves a large block;
# where graphs are captured it must be as it is.
IN_PIECES = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
CAPTURING = ("test_simulation.py", "test_sphere.py", "test_lossless.py")
# The checkout is what is built and measured, installed or not.
ENVIRONMENT = (("PYCODEC_CUDA", "1"), ("PYTHONPATH", str(ROOT)))
_PICTURE = (
    "from PIL import Image; from pycodec.profiling.bench import made_picture; "
    "Image.fromarray(made_picture(1920, 1080).pixels).save('{folder}/picture.png')"
)


def tool(name: str):
    """For :attr:`Step.needs`: a program on PATH."""
    return lambda: None if shutil.which(name) else f"there is no {name} on PATH"


def needs_building() -> str | None:
    """For :attr:`Step.needs` of the build: modules of another Python would not do."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if all((ROOT / "pycodec" / f"{name}{suffix}").exists() for name in ("_cpu", "_cuda")):
        return "the checkout is built already"
    return tool("nvcc")()


def link_triton_kernels() -> None:
    """What setup.py does when it installs the package, for a checkout that is not installed."""
    link = ROOT / "pycodec" / "triton_kernels"
    if not link.exists():
        link.symlink_to("../triton_kernels", target_is_directory=True)


def steps() -> list[Step]:
    """All of them, in the order of their worth."""
    python = ("python", "-m")
    pytest = (*python, "pytest", "-q", "-p", "no:cacheprovider")
    found = [
        Step(
            "build",
            ("python", "setup.py", "-q", "build_ext", "--inplace"),
            500,
            needs_building,
        )
    ]
    # What CI runs on the host needs no GPU.
    on_gpu = (*pytest, "-k", "not host and not interpreter")
    tests = [Step(f"test-{Path(path).stem[5:]}", (*on_gpu, path), 240) for path in GPU_TESTS]
    # What the rest stands on, and its times, come first.
    found += [step for step in tests if step.name in FIRST_TESTS]

    def script(name: str, path: str, *options: str, seconds: int = 300) -> Step:
        return Step(name, ("python", f"benchmarks/{path}", *options, "--json", "{json}"), seconds)

    waves = "context/wave_network_cuda.py"
    few = ("--orders", "slope", "plane", "--repeats", "3")
    small, large = ("--sizes", "768x512", *few), ("--sizes", "1920x1080", *few)
    codec = (*python, "pycodec", "bench", "--device", "cuda", "--seconds", "1")
    codec += ("--json", "{json}", "--sizes")
    found += [
        script("time-wave_network-768x512", waves, *small, seconds=60),
        script("time-lossless", "models/lossless_cuda.py", "--runs", "3", seconds=120),
        script("time-training", "models/training_cuda.py", "--profile", seconds=90),
        script("time-wave_layers", "context/wave_layers_cuda.py", seconds=60),
        script("time-rans", "coding/rans_cuda.py", "--symbols", str(1 << 26), seconds=40),
        *(step for step in tests if step.name not in FIRST_TESTS),
        script("time-trimmed_conv2d", "ops/trimmed_conv2d_cuda.py", seconds=40),
        script(
            "time-pseudocylindrical_pad",
            *("ops/pseudocylindrical_pad.py", "--device", "cuda"),
            seconds=40,
        ),
        Step("codec-1080p", (*codec, "1080p", "--precision", "fp32", "bf16", "int8", "mixed"), 45),
        script("time-quantized_conv2d", "ops/quantized_conv2d_cuda.py", seconds=50),
        Step("codec-lossless", (*codec, "768x512", "1080p", "--lossless"), 90),
        script("time-quantize", "ops/quantize.py", "--device", "cuda", seconds=40),
        script("time-wave_network-1080p", waves, *large, seconds=90),
        Step("codec-4k", (*codec, "4k", "--precision", "fp32", "mixed"), 90),
    ]
    file = "{folder}/picture"
    encode = ("encode", f"{file}.png", f"{file}.lci", "--force")
    profile = ("--device", "cuda", "--out")
    found += [
        Step("picture", ("python", "-c", _PICTURE), 60),
        Step("picture-encode", (*python, "pycodec", *encode), 60),
        Step(
            "profile-encode",
            (*python, "pycodec", "profile", "encode", f"{file}.png", *profile, "{folder}/encode"),
            120,
        ),
        Step(
            "profile-decode",
            (*python, "pycodec", "profile", "decode", f"{file}.lci", *profile, "{folder}/decode"),
            120,
        ),
    ]
    counters = ("ncu", "--csv", "--page", "raw", "--kernel-name", KERNELS, "--launch-count", "60")
    counters += ("--metrics", ",".join(COUNTERS))
    short = {
        "quantized_conv2d": ("benchmarks/ops/quantized_conv2d_cuda.py", "--repeats", "1"),
        "trimmed_conv2d": (
            *("benchmarks/ops/trimmed_conv2d_cuda.py", "--repeats", "1"),
            *("--sizes", "768x512"),
        ),
        "pseudocylindrical_pad": (
            *("benchmarks/ops/pseudocylindrical_pad.py", "--device", "cuda"),
            *("--rounds", "1", "--seconds", "0.1"),
        ),
        "rans": (
            *("benchmarks/coding/rans_cuda.py", "--repeats", "1", "--symbols", str(1 << 24)),
            *("--substreams", "100", "1000"),
        ),
        "wave_network": (
            *("benchmarks/context/wave_network_cuda.py", "--repeats", "1"),
            *("--sizes", "192x128", "--networks", "tcae-fast", "--orders", "slope"),
        ),
    }
    found += [
        Step(
            f"ncu-{name}",
            (*counters, "--log-file", f"{{folder}}/ncu-{name}.csv", "python", *command),
            300,
            tool("ncu"),
        )
        for name, command in short.items()
    ]
    for checker in ("memcheck", "racecheck", "synccheck"):
        sanitizer = ("compute-sanitizer", "--tool", checker, "--error-exitcode", "9")
        found += [
            Step(
                f"{checker}-{Path(path).stem[5:]}",
                (*sanitizer, *pytest, path, "-k", "(gpu or cuda) and not host"),
                480,
                tool("compute-sanitizer"),
                () if checker != "memcheck" or path.endswith(CAPTURING) else IN_PIECES,
            )
            for path in GPU_TESTS
        ]
    return [replace(step, environment=ENVIRONMENT + step.environment) for step in found]


def fastest_launches(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the wave decoder, for each network, order and size."""
    best: dict[tuple, dict[str, Any]] = {}
    for name, step in document["steps"].items():
        if not name.startswith("time-wave_network"):
            continue
        for row in step.get("results", ()):
            key = tuple(row[k] for k in ("network", "order", "height", "width"))
            if key not in best or row["decode_seconds"] < best[key]["decode_seconds"]:
                best[key] = row
    chosen = ("network", "order", "height", "width", "method", "threads", "blocks", "us_per_wave")
    return [{name: row[name] for name in chosen} for row in best.values()]


def gather(slices: Slices) -> Path:
    """Writes the results of all steps that are done to one file."""
    import torch

    from pycodec.profiling.machine import describe_machine, machine_name, measure_ceilings

    facts = describe_machine("cuda")
    document = slices.gather(facts)
    document["ceilings"] = measure_ceilings("cuda").to_json()
    document["fastest_launches"] = fastest_launches(document)
    document["gpu_architecture"] = "sm_{}{}".format(*torch.cuda.get_device_capability())
    path = slices.folder / f"{machine_name(facts)}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of state and results")
    parser.add_argument("--minutes", type=float, default=8.5, help="of this call")
    parser.add_argument("--retry", action="store_true", help="repeat what failed")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="some of the steps")
    parser.add_argument("--list", action="store_true", help="show the steps, run nothing")
    parser.add_argument("--gather", action="store_true", help="write what there is, run nothing")
    options = parser.parse_args(argv)
    all_steps = steps()
    if missing := missing_files(all_steps):
        parser.error(f"the repository lacks {', '.join(missing)}")
    slices = Slices(all_steps, options.out.resolve())
    names = [step.name for step in all_steps]
    if options.only:
        names = [name for name in names if any(fnmatch(name, p) for p in options.only)]
        if not names:
            parser.error(f"no step is called {' or '.join(options.only)}")
    if options.list:
        done = slices.outcomes()
        for step in all_steps:
            if step.name not in names:
                continue
            status = done[step.name].status if step.name in done else "to do"
            print(f"{status:<9} {step.name:<32} {' '.join(step.command)}")
        return 0
    import torch

    if not torch.cuda.is_available():
        print("torch sees no GPU: nothing to measure", file=sys.stderr)
        return 1
    link_triton_kernels()
    minutes, retry = options.minutes, options.retry
    finished = options.gather or slices.run(60 * minutes, retry=retry, only=names)
    if not finished:
        left = len(set(names) - set(slices.outcomes()))
        print(f"{left} steps are left: run the same command again")
        return MORE_LEFT
    print(f"written to {gather(slices)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
