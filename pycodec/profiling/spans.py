"""Spans: what ran when, in which thread, and how much it did.

Code marks its stages and layers with :func:`span` and :func:`spanned`; the C++ kernels mark
themselves (``csrc/cpu/spans.hpp``). All of that costs next to nothing until a :class:`Recorder`
listens. This module needs no torch and knows none of the code that it watches.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pycodec import _cpu
from pycodec.errors import InputError

STAGE, LAYER, KERNEL, WAVE = "stage", "layer", "kernel", "wave"
_CallableT = TypeVar("_CallableT", bound=Callable)


@dataclass(frozen=True)
class Span:
    """What ran from ``begin`` to ``end``.

    Attributes:
        name: of the stage, layer or kernel.
        kind: one of STAGE, LAYER, KERNEL and WAVE.
        begin, end: nanoseconds of ``time.perf_counter_ns``.
        lane: what it ran in: ``thread 1234``, ``waves``, ``cuda:0``.
        bytes: of inputs, outputs and weights, each once; 0 if unknown.
        operations: arithmetic ones; a product and its addition are two.
        arithmetic: ``int8``, ``int8 tiles`` (AMX), ``int16``, ``bfloat16`` or ``float32``, if
            it is one.
        layer: that it belongs to, if it belongs to one.
        number: of the wave, or the layer of a network without names; -1: none.
    """

    name: str
    kind: str
    begin: int
    end: int
    lane: str
    bytes: int = 0
    operations: int = 0
    arithmetic: str | None = None
    layer: str | None = None
    number: int = -1

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) * 1e-9


class Recorder:
    """Collects the spans of all threads, one recorder at a time.

    Args:
        device: a ``torch.device`` of type cuda, if work is queued there: then every span of this
            process's Python is an NVTX range, too, and has a twin in the device's lane, timed by
            events.

    Raises:
        InputError: another one is recording.
    """

    def __init__(self, device: Any = None) -> None:
        self.spans: list[Span] = []
        self.dropped = 0
        # As they come; made into spans when there is time.
        self._raw: list[tuple[str, str, int, int, int, dict[str, Any]]] = []
        self.clock = _CudaClock(device) if device is not None and device.type == "cuda" else None

    def __enter__(self) -> Recorder:
        global _active
        with _lock:
            if _active is not None:
                raise InputError("a recorder is at work already")
            _active = self
        _cpu.take_spans()
        if self.clock is not None:
            self.clock.start()
        _cpu.record_spans(True)
        return self

    def __exit__(self, *error: object) -> None:
        global _active
        _cpu.record_spans(False)
        _active = None
        self.spans = [
            Span(name, kind, begin, end, _lane(thread), **work)
            for name, kind, begin, end, thread, work in self._raw
        ]
        native, self.dropped = _cpu.take_spans()
        for name, thread, begin, end, size, operations, arithmetic, number, kind in native:
            lane = "waves" if kind == WAVE else _lane(thread)
            self.spans.append(
                Span(name, kind, begin, end, lane, size, operations, arithmetic, None, number)
            )
        if self.clock is not None:
            self.spans += self.clock.finish()
        self.spans = _with_layers(self.spans)

    def add(self, name: str, kind: str, begin: int, end: int, work: dict[str, Any]) -> None:
        """A span of the calling thread; ``work`` are further attributes of :class:`Span`."""
        # Appending to a list is atomic: spans may come from several threads.
        self._raw.append((name, kind, begin, end, threading.get_native_id(), work))


_lock = threading.Lock()
_active: Recorder | None = None
_OFF: AbstractContextManager[None] = nullcontext()


def recorder() -> Recorder | None:
    """The recorder at work, or None."""
    return _active


def span(
    name: str, kind: str = STAGE, work: dict[str, Any] | None = None
) -> AbstractContextManager[None]:
    """A context that is recorded as a span.

    Args:
        work: further attributes of :class:`Span`, read when the context ends.
    """
    return _OFF if _active is None else _recorded(_active, name, kind, {} if work is None else work)


def spanned(name: str, kind: str = STAGE) -> Callable[[_CallableT], _CallableT]:
    """Decorates a function whose calls are spans."""

    def decorate(function: _CallableT) -> _CallableT:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with span(name, kind):
                return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def add_stage(name: str, began: float, ended: float) -> None:
    """Record a stage from and to times of ``time.perf_counter``."""
    if _active is not None:
        _active.add(name, STAGE, round(began * 1e9), round(ended * 1e9), {})


@contextlib.contextmanager
def _recorded(to: Recorder, name: str, kind: str, work: dict[str, Any]) -> Iterator[None]:
    clock = to.clock
    mark = clock.begin(name) if clock is not None else None
    begin = time.perf_counter_ns()
    try:
        yield
    finally:
        end = time.perf_counter_ns()
        if clock is None:
            to.add(name, kind, begin, end, work)
        else:
            # What the processor did is to queue it; the work itself is the device's.
            to.add(name, kind, begin, end, {"layer": work.get("layer")})
            clock.end(name, kind, mark, work)


class _CudaClock:
    """Events and NVTX ranges of one CUDA device."""

    def __init__(self, device: Any) -> None:
        import torch

        self._torch = torch
        self.device = device
        self._pending: list[tuple[str, str, Any, Any, dict[str, Any]]] = []

    def _event(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self.device))
        return event

    def start(self) -> None:
        self._torch.cuda.synchronize(self.device)
        self._first = self._event()
        self._torch.cuda.synchronize(self.device)
        self._began = time.perf_counter_ns()

    def begin(self, name: str) -> Any:
        self._torch.cuda.nvtx.range_push(name)
        return self._event()

    def end(self, name: str, kind: str, mark: Any, work: dict[str, Any]) -> None:
        self._pending.append((name, kind, mark, self._event(), work))
        self._torch.cuda.nvtx.range_pop()

    def finish(self) -> list[Span]:
        """The spans of the device, when it has done them all."""
        self._torch.cuda.synchronize(self.device)
        lane = str(self.device)
        return [
            Span(name, kind, self._at(begin), self._at(end), lane, **work)
            for name, kind, begin, end, work in self._pending
        ]

    def _at(self, event: Any) -> int:
        return self._began + round(self._first.elapsed_time(event) * 1e6)  # milliseconds


def _lane(thread: int) -> str:
    return f"thread {thread}"


def nested(spans: list[Span]) -> Iterator[tuple[Span, list[Span]]]:
    """Each span of one lane with those around it, outermost first; in order of time."""
    around: list[Span] = []
    for item in sorted(spans, key=lambda s: (s.begin, -s.end)):
        while around and around[-1].end < item.end:
            around.pop()
        yield item, list(around)
        around.append(item)


def by_lane(spans: list[Span]) -> dict[str, list[Span]]:
    """Spans of each lane."""
    lanes: dict[str, list[Span]] = {}
    for item in spans:
        lanes.setdefault(item.lane, []).append(item)
    return lanes


def _with_layers(spans: list[Span]) -> list[Span]:
    """Kernels get the layer that they run in."""
    result = []
    for of_lane in by_lane(spans).values():
        for item, around in nested(of_lane):
            if item.layer is None and item.kind == KERNEL:
                layer = next((s.name for s in reversed(around) if s.kind == LAYER), None)
                item = replace(item, layer=layer) if layer is not None else item
            result.append(item)
    return result
