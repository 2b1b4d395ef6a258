"""Plots, drawn without a display."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from pycodec.evaluation.extras import require
from pycodec.evaluation.metrics import PLANE_METRICS, Metric
from pycodec.images import atomic_write

_MAX_BPP = 2.0
_COLOURS = {
    "pycodec": "#c1121f",
    "photo": "#9d4edd",
    "jpeg": "#6c757d",
    "webp": "#2a9d8f",
    "avif": "#1d4e89",
    "jxl": "#f4a261",
}


def _new_figure(**options: Any) -> Any:
    # Not through pyplot, which keeps global state and may look for a display.
    return require("matplotlib.figure", "eval").Figure(layout="constrained", **options)


def _save(figure: Any, path: str | os.PathLike) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    atomic_write(path, file.getvalue())


def plot_rate_distortion(
    summary: dict[str, Any],
    path: str | os.PathLike,
    metrics: Sequence[Metric] = PLANE_METRICS,
) -> None:
    """Write the mean curves of :func:`pycodec.evaluation.evaluate.summarize` as a PNG file.

    What was measured of ``metrics``, similarities in dB, over bits a pixel.
    """
    curves = summary["curves"]
    points = [point for curve in curves.values() for point in curve]
    panels = [
        (m.decibels, f"{m.label}, dB: −10 log10(1 − s)" if m.similarity else m.label)  # noqa: RUF001
        for m in metrics
        if m is metrics[0] or any(point[m.decibels] is not None for point in points)
    ]
    rows = -(-len(panels) // 2)
    columns = -(-len(panels) // rows)
    figure = _new_figure(figsize=(6.5 * columns, 5 * rows))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (metric, label) in zip(grid, panels, strict=False):
        for codec, curve in curves.items():
            points = sorted((p["bpp"], p[metric]) for p in curve if p[metric] is not None)
            ours = codec == "pycodec"
            axes.plot(
                [rate for rate, _ in points],
                [quality for _, quality in points],
                marker="o",
                markersize=4,
                linewidth=2.2 if ours else 1.3,
                zorder=3 if ours else 2,
                color=_COLOURS.get(codec),
                label=codec,
            )
        axes.set_xlabel("bits a pixel (whole file)")
        axes.set_ylabel(label)
        # The anchors run on to rates that no one compares at.
        shown = [p[metric] for c in curves.values() for p in c if p["bpp"] <= _MAX_BPP]
        shown = [quality for quality in shown if quality is not None]
        if shown:
            axes.set_xlim(0, _MAX_BPP)
            axes.set_ylim(min(shown) - 1, max(shown) + 1)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Mean of {summary['pictures']} pictures")
    _save(figure, path)


def plot_side_by_side(
    panels: list[tuple[str, np.ndarray]], detail: tuple[slice, slice], path: str | os.PathLike
) -> None:
    """Write pictures next to each other, a detail of each below, as a PNG file.

    Args:
        panels: (title, pixels uint8 [H, W] or [H, W, 3]), all of one size.
        detail: rows and columns of the detail.
        path: where to.
    """
    height, width = panels[0][1].shape[:2]
    column = 5.0
    detail_ratio = (detail[0].stop - detail[0].start) / (detail[1].stop - detail[1].start)
    ratios = [height / width, detail_ratio]
    figure = _new_figure(figsize=(column * len(panels), column * sum(ratios) + 0.7))
    grid = figure.subplots(2, len(panels), squeeze=False, height_ratios=ratios)
    for (whole, close), (title, pixels) in zip(grid.T, panels, strict=True):
        colours = {"cmap": "gray", "vmin": 0, "vmax": 255} if pixels.ndim == 2 else {}
        whole.imshow(pixels, **colours)
        whole.set_title(title)
        close.imshow(pixels[detail], interpolation="nearest", **colours)
        whole.axis("off")
        close.axis("off")
    _save(figure, path)
