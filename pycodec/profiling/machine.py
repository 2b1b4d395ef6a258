"""The machine that numbers were measured on, and what it could do at most."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pycodec import __version__, _cpu

_COPY_BYTES = 1 << 26  # far beyond the caches that a core has for itself
_MATRIX = 1024
_GPU_COPY_BYTES, _GPU_MATRIX = 1 << 30, 8192  # smaller ones leave a large GPU idle


def processor_name() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_machine(device: str | torch.device | None = None) -> dict[str, Any]:
    """Facts about the machine, for files of results: JSON's types only."""
    affinity = getattr(os, "sched_getaffinity", None)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    facts = {
        "processor": processor_name(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "simd_level": _cpu.simd_level(),
        "memory_gib": round(pages / (1 << 30), 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pycodec": __version__,
    }
    device = torch.device(device or "cpu")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / (1 << 30), 1),
            "gpu_processors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return facts


def machine_name(facts: dict[str, Any]) -> str:
    """A file name for results of this machine: ``intel-r-xeon-r-processor-2-cores``."""
    name = facts.get("gpu") or f"{facts['processor']} {facts['cores']} cores"
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


@dataclass(frozen=True)
class Ceilings:
    """What a device reaches at most with ``threads`` threads, measured.

    Attributes:
        copy_gb_s: of a copy of 64 MiB, what is read and what is written.
        gop_s: by arithmetic; a product and its addition are two operations. ``float32`` and
            ``bfloat16`` are a matrix product of torch, ``int8`` is one on a GPU; on a processor
            ``int8``, ``int16``, and ``float32`` if that is more, are multiply-adds on registers
            alone, at the SIMD level in force. What could not be measured is not in it.
        threads: that were used.
    """

    copy_gb_s: float
    gop_s: dict[str, float]
    threads: int

    def roof(self, arithmetic: str | None, intensity: float) -> float | None:
        """GOP/s at most, at so many operations a byte; None where no ceiling is known."""
        if arithmetic not in self.gop_s:
            return None
        return min(self.gop_s[arithmetic], intensity * self.copy_gb_s)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_ceilings(
    device: str | torch.device | None = None, threads: int | None = None
) -> Ceilings:
    """Measures for about a second. The best of several runs counts."""
    device = torch.device(device or "cpu")
    threads = threads or torch.get_num_threads()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            gop_s = {
                name: _matrix_gop_s(device, dtype)
                for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
            }
            if device.type == "cuda":
                gop_s["int8"] = _matrix_gop_s(device, torch.int8)
            else:
                for name in ("float32", "int8", "int8 tiles", "int16"):
                    peak = _cpu.arithmetic_peak(name, threads)
                    if peak is not None:
                        gop_s[name] = max(gop_s.get(name, 0.0), 2e-9 * peak)
            copied = _GPU_COPY_BYTES if device.type == "cuda" else _COPY_BYTES
            source = torch.ones(copied, dtype=torch.uint8, device=device)
            target = torch.empty_like(source)
            seconds = _best_seconds(lambda: target.copy_(source), device)
    finally:
        torch.set_num_threads(before)
    return Ceilings(2e-9 * copied / seconds, gop_s, threads)


def _matrix_gop_s(device: torch.device, dtype: torch.dtype) -> float:
    side = _GPU_MATRIX if device.type == "cuda" else _MATRIX
    a = torch.randint(-100, 101, (side, side), dtype=torch.int8, device=device).to(dtype)
    product = torch._int_mm if dtype == torch.int8 else torch.matmul
    # The second one by columns, as the fastest int8 products want it.
    return 2e-9 * side**3 / _best_seconds(lambda: product(a, a.t()), device)


def _best_seconds(run: Callable[[], object], device: torch.device) -> float:
    times: list[float] = []
    run()
    while len(times) < 5 or (sum(times) < 0.25 and len(times) < 200):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize(device)
            times.append(begin.elapsed_time(end) * 1e-3)
        else:
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    return min(times)
