"""Spans of what runs in torch, within a codec's transforms."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from pycodec.profiling import spans

_CONVOLUTIONS = frozenset((torch.conv2d, torch.nn.functional.conv2d))
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# fmt: off
_FREE = frozenset((
    "__bool__", "__get__", "__getitem__", "__len__", "data_ptr", "detach", "dim", "element_size",
    "is_contiguous", "is_floating_point", "numel", "permute", "size", "stride", "unsqueeze", "view",
))
# fmt: on
"""Views and questions: what takes less time than a span."""


class TorchSpans:
    """A context in which every call of torch within some modules is a kernel's span.

    To watch all of torch would cost more than these spans: each look at a shape takes part in it.

    Args:
        modules: by name. Their parameters name layers, ``<name>.<parameter>`` without ``.weight``.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module]) -> None:
        self._modules = modules
        self._layers = {
            weight.data_ptr(): f"{key}.{name.removesuffix('.weight')}"
            for key, module in modules.items()
            for name, weight in module.named_parameters()
            if name.endswith(".weight")
        }
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> TorchSpans:
        for module in self._modules.values():
            mode = _Mode(self._layers)

            def enter(*_: Any, mode: _Mode = mode) -> None:
                mode.__enter__()

            def leave(*_: Any, mode: _Mode = mode) -> None:
                mode.__exit__(None, None, None)

            self._handles += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave, always_call=True),
            ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Mode(TorchFunctionMode):
    def __init__(self, layers: Mapping[int, str]) -> None:
        super().__init__()
        self._layers = layers

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.__name__
        recorder = spans.recorder()
        if recorder is None or name in _FREE:
            return function(*args, **(kwargs or {}))
        if recorder.clock is not None:
            work: dict[str, Any] = {}
            with spans.span(f"torch.{name}", spans.KERNEL, work):
                result = function(*args, **(kwargs or {}))
                work |= self._work(function, name, args, result)
            return result
        begin = time.perf_counter_ns()
        result = function(*args, **(kwargs or {}))
        end = time.perf_counter_ns()
        work = self._work(function, name, args, result)
        recorder.add(f"torch.{name}", spans.KERNEL, begin, end, work)
        return result

    def _work(self, function: Any, name: str, args: tuple, result: Any) -> dict[str, Any]:
        if not isinstance(result, Tensor):
            return {}
        if args and result is args[0] and not name.endswith("_"):
            return {}  # what was asked for was there already
        size = result.nbytes
        for argument in args:
            if isinstance(argument, Tensor):
                size += argument.nbytes
        if function not in _CONVOLUTIONS:
            return {"bytes": size}
        weight = args[1]
        return {
            "bytes": size,
            "operations": 2 * result.numel() * math.prod(weight.shape[1:]),
            "arithmetic": _DTYPES.get(weight.dtype),
            "layer": self._layers.get(weight.data_ptr()),
        }
