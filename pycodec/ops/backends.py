"""Which implementations of the operations this machine can run."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch

from pycodec.errors import InputError
from pycodec.profiling.spans import KERNEL, span

BACKENDS = ("reference", "native", "cuda", "triton")


@functools.cache
def optional_module(name: str) -> ModuleType | None:
    """The module called ``name``, or None where it was not built or lacks what it needs."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def cuda_kernels() -> ModuleType | None:
    """``pycodec._cuda``, or None where it was not built."""
    return optional_module("pycodec._cuda")


def default_backend(device: torch.device) -> str:
    """The fastest backend for tensors on ``device``; ``reference`` runs on every device."""
    if device.type == "cpu":
        return "native"
    if device.type == "cuda":
        if cuda_kernels() is not None:
            return "cuda"
        if optional_module("triton") is not None:
            return "triton"
    return "reference"


def check_backend(name: str) -> None:
    """Raises :class:`InputError` unless ``name`` is one of ``BACKENDS`` and is installed."""
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}; there are {', '.join(BACKENDS)}")
    if name == "cuda" and cuda_kernels() is None:
        raise InputError("pycodec was built without CUDA kernels; reinstall with PYCODEC_CUDA=1")
    if name == "triton" and optional_module("triton") is None:
        raise InputError("the triton backend needs the package triton, which is not installed")


def launch_cuda(name: str, device: torch.device, **arguments: object) -> None:
    """Queues a kernel of ``pycodec._cuda`` on the device's current stream."""
    kernel = getattr(cuda_kernels(), name)
    with torch.cuda.device(device), span(name, KERNEL):
        kernel(**arguments, stream=torch.cuda.current_stream().cuda_stream)
