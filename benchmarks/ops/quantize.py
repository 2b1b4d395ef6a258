"""Quantization to integers, and back, against PyTorch's own and against memory.

Question: how close do both come to what memory allows? Of four bytes that are read one is written,
or the other way; over the time these bytes are compared with those of PyTorch's copy of the float
tensor (which moves eight bytes a value), measured in turns with it. Tensors are those of the photo
codec on a picture of 768 x 512; memory is kept from call to call. Results are checked against the
reference.

Peers: ``torch.quantize_per_channel`` and ``dequantize``, and the formula in PyTorch's operations
(the reference); nothing to install.

    python benchmarks/ops/quantize.py [--threads 1 2] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from measure import keep_memory, time_side_by_side

from pycodec import _cpu
from pycodec.ops import dequantize, quantize
from pycodec.ops.backends import cuda_kernels

SHAPES = ((1, 128, 192, 64), (1, 64, 96, 192), (1, 32, 48, 320), (1, 512, 768, 3))


def backends_of(device: str) -> tuple[str, ...]:
    """Those to compare, beside the reference."""
    if device == "cpu":
        return ("native",)
    return ("cuda", "triton") if cuda_kernels() is not None else ("triton",)


def waiting(device: str, run: Callable[[], object]) -> Callable[[], object]:
    """The call, ended when its work is."""
    if device == "cpu":
        return run

    def wait() -> None:
        run()
        torch.cuda.synchronize()

    return wait


def measure(shape: tuple[int, ...], device: str, rounds: int, seconds: float) -> list[dict]:
    channels = shape[-1]
    torch.manual_seed(0)
    scale = (0.02 + torch.rand(channels)).to(device)
    zero = torch.randint(-20, 20, (channels,), dtype=torch.int32).to(device)
    x = 40 * torch.randn(shape, device=device) * scale
    q = quantize(x, scale, zero, out_dtype=torch.int8, backend="reference")
    there: dict[str, Callable[[], object]] = {"copy": x.clone}
    back: dict[str, Callable[[], object]] = {"copy": x.clone}
    for name in ("reference", *backends_of(device)):
        there[name] = lambda n=name: quantize(x, scale, zero, out_dtype=torch.int8, backend=n)
        back[name] = lambda n=name: dequantize(q, scale, zero, backend=n)
        assert torch.equal(there[name](), q)
        assert torch.equal(back[name](), dequantize(q, scale, zero, backend="reference"))
    kind = (scale.double(), zero.long(), len(shape) - 1, torch.qint8)
    there["torch.quantize_per_channel"] = lambda: torch.quantize_per_channel(x, *kind)
    theirs = torch.quantize_per_channel(x, *kind)
    back["torch.dequantize"] = theirs.dequantize
    rows = []
    for operation, runs in (("quantize", there), ("dequantize", back)):
        runs = {name: waiting(device, run) for name, run in runs.items()}
        for name, median in time_side_by_side(runs, rounds, seconds).items():
            num_bytes = x.numel() * (8 if name == "copy" else 5)
            row = {
                "operation": operation,
                "shape": list(shape),
                "threads": torch.get_num_threads(),
                "device": device,
                "implementation": name,
                "median_ms": round(1e3 * median, 4),
                "gb_s": round(num_bytes / median / 1e9, 2),
            }
            print(
                f"{operation:>10} {shape!s:>20} {row['threads']:>2} {name:<27}"
                f" {row['median_ms']:9.3f} ms {row['gb_s']:8.1f} GB/s",
                flush=True,
            )
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each operation and shape")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    if options.device == "cpu":
        keep_memory()
    with torch.inference_mode():
        for threads in options.threads if options.device == "cpu" else [torch.get_num_threads()]:
            torch.set_num_threads(threads)
            for shape in SHAPES:
                rows += measure(shape, options.device, options.rounds, options.seconds)
    if options.json:
        name = _cpu.simd_level() if options.device == "cpu" else torch.cuda.get_device_name()
        document = {"torch": torch.__version__, "level": name, "rows": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
