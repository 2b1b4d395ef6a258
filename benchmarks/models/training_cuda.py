"""What does a step of training a lossless network take on a GPU, and what takes it?

Each part of a step by itself, with the GPU waited for before and after it: cutting the crops, the
pass forwards and backwards (a CUDA graph), the optimizer; then whole steps one after the other, as
they are in training, where what the processor queues overlaps with what the GPU does. Pictures are
scikit-image's. The peer is Pillow, which cuts the same crops on one core; nothing to install.

    python benchmarks/models/training_cuda.py [--size tcae] [--batch 32 64 128] [--profile]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from skimage import data
from torch import Tensor

from pycodec.models.lossless_network import SIZES
from pycodec.training.device_crops import DeviceCrops
from pycodec.training.graphs import CapturedPass
from pycodec.training.lossless import Examples, LosslessCrops, LosslessOptions, LosslessTrainer

PICTURES = "astronaut", "chelsea", "coffee"
STEPS = 20  # one after the other


@dataclass(frozen=True)
class Result:
    device: str
    size: str
    batch: int
    crop: int
    pillow_ms: float
    crops_ms: float
    pass_ms: float
    optimizer_ms: float
    step_ms: float
    megapixels_per_second: float
    teraflops: float  # whole kernels, as cuDNN multiplies them; forwards and both gradients
    gigabytes: float  # of memory, at most


def milliseconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Median of calls, each with all that it queues."""
    run()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def pass_milliseconds(trainer: LosslessTrainer, examples: Examples) -> float:
    """A graph of its own, which is gone when the trainer makes its."""
    captured = CapturedPass(trainer._pass, trainer.quantized, examples)
    return milliseconds(lambda: captured(examples))


def profile(step: Callable[[], object]) -> str:
    """What a few steps spend on each kernel."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    by_time = {"sort_by": "self_device_time_total", "row_limit": 30}
    return found.key_averages().table(max_name_column_width=80, **by_time)


def measure(folder: Path, size: str, batch: int, crop: int, profiles: bool) -> Result:
    options = LosslessOptions(size=size, batch=batch, crop=crop, quantize=0, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as out:
        trainer = LosslessTrainer(folder, Path(out), options)
    sampler = LosslessCrops(trainer.pictures, 2 * crop, 1, options)
    crops = DeviceCrops(sampler, batch // 4, "cuda")

    def examples(rgb: Tensor) -> Examples:
        return trainer._examples(rgb[:, :, :crop, :crop].repeat(4, 1, 1, 1))

    run_pass = pass_milliseconds(trainer, examples(next(crops)))
    optimizer = milliseconds(trainer.optimizer.step, 2 * STEPS)
    trainer.optimizer.zero_grad()

    def steps() -> None:
        for _ in range(STEPS):
            trainer._optimize(next(crops))

    step = milliseconds(steps, 3) / STEPS
    if profiles:
        print(profile(lambda: trainer._optimize(next(crops))))
    _, products = trainer.network.multiplications()
    pixels = batch * crop * crop
    return Result(
        torch.cuda.get_device_name(),
        size,
        batch,
        crop,
        milliseconds(lambda: sampler.batch(batch // 4), 3),
        milliseconds(lambda: next(crops)),
        run_pass,
        optimizer,
        step,
        pixels / step / 1e3,
        6 * products * pixels / step / 1e9,
        torch.cuda.max_memory_allocated() / 1e9,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="tcae")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--profile", action="store_true", help="print what each kernel takes")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    torch.backends.cudnn.benchmark = True  # as pycodec train-lossless does
    results = []
    with tempfile.TemporaryDirectory() as name:
        for picture in PICTURES:
            Image.fromarray(getattr(data, picture)()).save(Path(name) / f"{picture}.png")
        for batch in args.batch:
            r = measure(Path(name), args.size, batch, args.crop, args.profile)
            print(
                f"{r.batch:4} crops of {r.crop}: cutting {r.crops_ms:6.2f} ms (Pillow "
                f"{r.pillow_ms:8.2f}), pass {r.pass_ms:7.2f}, optimizer {r.optimizer_ms:6.2f}, "
                f"step {r.step_ms:7.2f}: {r.megapixels_per_second:6.2f} megapixels a second, "
                f"{r.teraflops:5.0f} Tflop/s, {r.gigabytes:5.1f} GB",
                flush=True,
            )
            results.append(r)
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
