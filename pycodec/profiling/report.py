"""What a profile is shown as: a table, a trace for Perfetto, a page for browsers."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from typing import Any

from pycodec.profiling import spans
from pycodec.profiling.profile import Profile, Row

_DATA = "/*DATA*/"
_KINDS = (spans.STAGE, spans.LAYER, spans.KERNEL, spans.WAVE)
_COLUMNS = (
    *("kind", "name", "calls", "ms", "own ms", "MB", "MOP", "GB/s", "GOP/s"),
    *("of copy", "of peak", "of roof"),
)


def facts(profile: Profile) -> list[tuple[str, str]]:
    """What a reader should know first: (what, how much)."""
    wall = profile.wall_seconds
    lines = [
        ("wall clock", f"{wall * 1e3:.2f} ms"),
        ("in stages", f"{profile.total_seconds * 1e3:.2f} ms, {profile.total_seconds / wall:.1%}"),
        (
            "in kernels",
            f"{profile.kernel_seconds * 1e3:.2f} ms, {profile.kernel_seconds / wall:.1%}",
        ),
        ("copy", f"{profile.ceilings.copy_gb_s:.1f} GB/s"),
    ]
    lines += [(name, f"{peak:.0f} GOP/s") for name, peak in profile.ceilings.gop_s.items()]
    if profile.dropped:
        lines.append(("spans dropped, for lack of room", str(profile.dropped)))
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    return (
        row.kind,
        row.name,
        str(row.calls),
        number(row.seconds * 1e3, 3),
        number(row.own_seconds * 1e3, 3),
        number(row.bytes * 1e-6 if row.bytes else None, 2),
        number(row.operations * 1e-6 if row.operations else None, 1),
        number(row.gb_s, 2),
        number(row.gop_s, 1),
        share(row.share_of_copy),
        share(row.share_of_peak),
        share(row.share_of_roof),
    )


def to_table(profile: Profile) -> str:
    """The rows as text, with facts above them."""
    rows = [_COLUMNS, *map(_cells, profile.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [profile.title, *(f"{what + ':':<34} {value}" for what, value in facts(profile)), ""]
    for row in rows:
        cells = [
            f"{cell:<{width}}" if i < 2 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def to_trace(profile: Profile) -> str:
    """Chrome's trace format, which https://ui.perfetto.dev opens; times in microseconds."""
    began = _began(profile)
    events: list[dict[str, Any]] = []
    for number, (lane, of_lane) in enumerate(sorted(spans.by_lane(profile.spans).items())):
        of_this = {"pid": 0, "tid": number}
        events.append({"ph": "M", "name": "thread_name", **of_this, "args": {"name": lane}})
        events += [
            {
                "ph": "X",
                "name": item.name,
                "cat": item.kind,
                **of_this,
                "ts": (item.begin - began) / 1000,
                "dur": (item.end - item.begin) / 1000,
                "args": {
                    key: value
                    for key in ("bytes", "operations", "arithmetic", "layer", "number")
                    if (value := getattr(item, key)) not in (None, 0, -1)
                },
            }
            for item in of_lane
        ]
    return json.dumps(
        {"traceEvents": events, "displayTimeUnit": "ms", "otherData": profile.machine}
    )


def to_html(profile: Profile) -> str:
    """A page that needs no other file and no network."""
    began = _began(profile)
    names: dict[tuple[str, str], int] = {}
    lanes = []
    for lane, of_lane in sorted(spans.by_lane(profile.spans).items()):
        items = []
        for item, around in spans.nested(of_lane):
            name = f"{item.layer} ({item.name})" if item.layer else item.name
            if item.number >= 0:
                name += f" {item.number}"
            key = names.setdefault((name, item.kind), len(names))
            items.append([key, item.begin - began, item.end - began, len(around)])
        lanes.append({"name": lane, "spans": items})
    data = {
        "title": profile.title,
        "machine_text": ", ".join(f"{key} {value}" for key, value in profile.machine.items()),
        "facts": facts(profile),
        "ceilings": profile.ceilings.to_json(),
        "rows": [asdict(row) for row in profile.rows],
        "names": [[name, _KINDS.index(kind)] for name, kind in names],
        "lanes": lanes,
        "length_ns": max((item.end for item in profile.spans), default=began + 1) - began,
    }
    # Inside a script element "</" would end it.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = (resources.files("pycodec.profiling") / "report.html").read_text("utf-8")
    return template.replace(_DATA, text)


def _began(profile: Profile) -> int:
    return min((item.begin for item in profile.spans), default=0)
