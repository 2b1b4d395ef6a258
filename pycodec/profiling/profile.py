"""Profiles: the spans of one call, added up, and set against the machine's ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pycodec.profiling import spans
from pycodec.profiling.machine import Ceilings
from pycodec.profiling.spans import KERNEL, LAYER, STAGE, WAVE, Recorder, Span
from pycodec.profiling.torch_spans import TorchSpans

_T = TypeVar("_T")


@dataclass(frozen=True)
class Row:
    """All spans of one kind and name.

    Attributes:
        kind, name: as of :class:`pycodec.profiling.spans.Span`; kernels with a layer are counted
            twice, by kernel and by layer.
        calls: how many.
        seconds: in them.
        own_seconds: in them, but not in spans inside.
        bytes, operations, arithmetic: see :class:`pycodec.profiling.spans.Span`.
        gb_s, gop_s: by ``seconds``; None where nothing is known.
        share_of_copy: of the bandwidth of a copy. What stays in the caches may exceed it.
        share_of_peak: of the ceiling of this arithmetic.
        share_of_roof: of what the roofline allows: of the lower one of the two ceilings.
    """

    kind: str
    name: str
    calls: int
    seconds: float
    own_seconds: float
    bytes: int
    operations: int
    arithmetic: str | None
    gb_s: float | None
    gop_s: float | None
    share_of_copy: float | None
    share_of_peak: float | None
    share_of_roof: float | None


@dataclass(frozen=True)
class Profile:
    """What one call did.

    Attributes:
        title: of the call.
        wall_seconds: of the call, by a clock around it.
        total_seconds: of the outermost spans in the thread that called.
        kernel_seconds: of the kernels in it, or of those of the device.
        spans: all of them, in lanes.
        rows: added up.
        dropped: spans of kernels that found no room.
        ceilings, machine: see :mod:`pycodec.profiling.machine`.
    """

    title: str
    wall_seconds: float
    total_seconds: float
    kernel_seconds: float
    spans: list[Span]
    rows: list[Row]
    dropped: int
    ceilings: Ceilings
    machine: dict[str, Any]


def record(
    run: Callable[[], _T],
    modules: Mapping[str, torch.nn.Module],
    device: torch.device | None = None,
) -> tuple[_T, float, Recorder]:
    """Records one call: its result, its seconds by a clock of its own, and its spans.

    Args:
        run: what to call.
        modules: whose parameters name layers, see :class:`TorchSpans`.
        device: that it runs on.
    """
    recorder = Recorder(device)
    with recorder, TorchSpans(modules):
        began = time.perf_counter()
        result = run()
        if recorder.clock is not None:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    return result, seconds, recorder


def make_profile(
    title: str,
    wall_seconds: float,
    recorder: Recorder,
    ceilings: Ceilings,
    machine: dict[str, Any],
) -> Profile:
    """Adds up what was recorded."""
    lanes = spans.by_lane(recorder.spans)
    caller = _lane_of_stages(lanes)
    total = kernel = 0.0
    for item, around in spans.nested(lanes.get(caller, [])):
        total += 0.0 if around else item.seconds
        # Kernels inside a kernel are a part of it.
        outermost = item.kind == KERNEL and all(s.kind != KERNEL for s in around)
        kernel += item.seconds if outermost else 0.0
    return Profile(
        title,
        wall_seconds,
        total,
        kernel,
        recorder.spans,
        make_rows(recorder.spans, ceilings),
        recorder.dropped,
        ceilings,
        machine,
    )


def _lane_of_stages(lanes: Mapping[str, list[Span]]) -> str:
    """The thread that called: the stages are its."""
    return next(
        (
            name
            for name, of_lane in lanes.items()
            if name.startswith("thread") and any(s.kind == STAGE for s in of_lane)
        ),
        "",
    )


def make_rows(recorded: list[Span], ceilings: Ceilings) -> list[Row]:
    """Rows for stages, layers, kernels and waves; of each kind the longest first."""
    groups: dict[tuple[str, str, str | None], list[tuple[Span, float]]] = {}
    # What is known of a layer is known of its kernels, if these have spans.
    layers = {item.layer for item in recorded if item.kind == KERNEL}
    for of_lane in spans.by_lane(recorded).values():
        for item, own in _own_seconds(of_lane):
            name = item.name
            if item.kind == LAYER and name in layers:
                continue
            if item.number >= 0 and item.kind != WAVE:
                name += f" {item.number}"
            groups.setdefault((item.kind, name, item.arithmetic), []).append((item, own))
            if item.kind == KERNEL and item.layer is not None:
                key = (LAYER, f"{item.layer} ({item.name})", item.arithmetic)
                groups.setdefault(key, []).append((item, own))
    rows = []
    for (kind, name, arithmetic), members in groups.items():
        seconds = sum(item.seconds for item, _ in members)
        size = sum(item.bytes for item, _ in members)
        operations = sum(item.operations for item, _ in members)
        rows.append(
            Row(
                kind,
                name,
                len(members),
                seconds,
                sum(own for _, own in members),
                size,
                operations,
                arithmetic,
                *rates(seconds, size, operations, arithmetic, ceilings),
            )
        )
    order = (STAGE, KERNEL, LAYER, WAVE)
    return sorted(rows, key=lambda row: (order.index(row.kind), -row.seconds))


def rates(
    seconds: float, size: int, operations: int, arithmetic: str | None, ceilings: Ceilings
) -> tuple[float | None, ...]:
    """``gb_s`` to ``share_of_roof`` of :class:`Row`."""
    if seconds <= 0 or not size:
        return (None,) * 5
    gb_s = 1e-9 * size / seconds
    gop_s = 1e-9 * operations / seconds if operations else None
    share_of_copy = gb_s / ceilings.copy_gb_s
    peak = ceilings.gop_s.get(arithmetic or "")
    if gop_s is None or peak is None:
        return gb_s, gop_s, share_of_copy, None, share_of_copy if gop_s is None else None
    roof = ceilings.roof(arithmetic, operations / size)
    return gb_s, gop_s, share_of_copy, gop_s / peak, gop_s / roof


def _own_seconds(of_lane: list[Span]) -> list[tuple[Span, float]]:
    """Each span with its time less that of the spans directly inside."""
    inside: dict[int, float] = {}
    order = list(spans.nested(of_lane))
    for item, around in order:
        if around:
            inside[id(around[-1])] = inside.get(id(around[-1]), 0.0) + item.seconds
    return [(item, item.seconds - inside.get(id(item), 0.0)) for item, _ in order]
