"""Spans of what runs in torch: every call of its Python interface, convolutions with their work."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pycodec.profiling import spans

_CONVOLUTIONS = frozenset((torch.conv2d, torch.nn.functional.conv2d))
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class TorchSpans(TorchFunctionMode):
    """Within, each call of torch in this thread is a kernel's span.

    Args:
        modules: their parameters name the layers, ``<key>.<parameter>`` without ``.weight``.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        self._layers = {
            weight.data_ptr(): f"{key}.{name.removesuffix('.weight')}"
            for key, module in modules.items()
            for name, weight in module.named_parameters()
            if name.endswith(".weight")
        }

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recorder = spans.recorder()
        name = getattr(function, "__name__", "")
        if recorder is None or name.startswith("__get") or name in _FREE:
            return function(*args, **(kwargs or {}))
        if recorder.clock is not None:
            return self._on_device(function, name, args, kwargs or {})
        begin = time.perf_counter_ns()
        result = function(*args, **(kwargs or {}))
        end = time.perf_counter_ns()
        work = self._work(function, name, args, result)
        recorder.add(f"torch.{name}", spans.KERNEL, begin, end, **work)
        return result

    def _on_device(self, function: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        work: dict[str, Any] = {}
        with spans.span(f"torch.{name}", spans.KERNEL, work):
            result = function(*args, **kwargs)
            work |= self._work(function, name, args, result)
        return result

    def _work(self, function: Any, name: str, args: tuple, result: Any) -> dict[str, Any]:
        if not isinstance(result, Tensor):
            return {}
        if args and result is args[0] and not name.endswith("_"):
            return {}  # what was asked for was there already
        size = sum(a.nbytes for a in (*args, result) if isinstance(a, Tensor))
        if function not in _CONVOLUTIONS:
            return {"bytes": size}
        weight = args[1]
        return {
            "bytes": size,
            "operations": 2 * result.numel() * math.prod(weight.shape[1:]),
            "arithmetic": _DTYPES.get(weight.dtype),
            "layer": self._layers.get(weight.data_ptr()),
        }


_FREE = frozenset(
    (
        "size",
        "dim",
        "stride",
        "is_contiguous",
        "data_ptr",
        "numel",
        "__len__",
        "item",
        "view",
        "permute",
        "numpy",
        "__bool__",
        "element_size",
        "detach",
        "unsqueeze",
        "is_floating_point",
    )
)
"""What takes no time worth a span: views and questions."""
