"""Draws what README and docs show of ``benchmarks/results``; needs matplotlib (``.[eval]``).

    python benchmarks/plots.py

The curves on Kodak come from ``pycodec eval``, the times of waves from
``benchmarks/context/wave_network.py --plot``; here are the roofline of the kernels and what widths
of weights cost.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
ARITHMETIC = {
    "int8": "#c8641b",
    "int8 tiles": "#2f7d4f",
    "int16": "#8a6d1f",
    "float32": "#3b6fb6",
    "bfloat16": "#7a5aa8",
}
MEMORY = "#2f8f7b"  # kernels that count no operations


def plot_roofline(report: dict, path: Path) -> None:
    """Two panels: kernels under their arithmetic's roof, and those that only move bytes."""
    ceilings, results = report["ceilings"], report["results"]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.4), width_ratios=(3, 2), layout="constrained"
    )
    counted = [r for r in results if r["gop_s"]]
    names: list[str] = []
    x = np.geomspace(4, 1e4, 200)
    for name, peak in ceilings["gop_s"].items():
        if not any(r["arithmetic"] == name for r in counted):
            continue
        left.plot(x, np.minimum(peak, x * ceilings["copy_gb_s"]), color=ARITHMETIC[name], lw=1.5)
        left.text(9e3, 1.06 * peak, f"{name} {peak:.0f} GOP/s", ha="right", va="bottom")
    for result in counted:
        if result["kernel"] not in names:
            names.append(result["kernel"])
        number = names.index(result["kernel"]) + 1
        place = result["operations"] / result["bytes"], result["gop_s"]
        left.scatter(*place, s=150, color=ARITHMETIC[result["arithmetic"]], zorder=3)
        left.text(*place, str(number), color="white", ha="center", va="center_baseline", zorder=4)
    for number, name in enumerate(names, 1):
        left.scatter([], [], s=0, label=f"{number}  {name}")
    left.legend(loc="lower right", frameon=False, handlelength=0, handletextpad=0)
    left.set(xscale="log", yscale="log", xlabel="operations / byte", ylabel="GOP/s", xlim=(4, 1e4))
    left.set_ylim(20, 2 * max(ceilings["gop_s"].values()))
    moved = [r for r in results if not r["gop_s"]]
    best: dict[str, float] = {}
    for result in moved:
        best[result["kernel"]] = max(best.get(result["kernel"], 0.0), result["gb_s"])
    right.barh(list(best), list(best.values()), color=MEMORY)
    right.axvline(ceilings["copy_gb_s"], color="black", lw=1.5)
    right.text(ceilings["copy_gb_s"], -0.9, f"copy {ceilings['copy_gb_s']:.1f} ", ha="right")
    right.invert_yaxis()
    right.set_xlabel("GB/s")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_widths(report: dict, path: Path) -> None:
    """Loss against bits: widths by price, and variants before and after their fine-tuning."""
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for kind, color in (("dynamic", "#c8641b"), ("mixed", "#3b6fb6")):
        points = [(p[kind]["mean_bits"], p[kind]["bd_rate_percent"]) for p in report["prices"]]
        axes.plot(*zip(*points, strict=True), ".-", color=color, label=f"{kind}, by price")
    static = [c for c in report["calibrated"] if c["widths"].startswith("static")]
    points = [(c["mean_bits"], c["bd_rate_percent"]) for c in static]
    axes.plot(*zip(*points, strict=True), "ks", label="static")
    for variant in report["fine_tuned"]:
        before, after = (
            (variant[when]["mean_bits"], variant[when]["bd_rate_percent"])
            for when in ("calibrated", "fine_tuned")
        )
        style = "o" if variant["gradient"] == "modulated" else "x"
        axes.annotate("", after, before, arrowprops={"arrowstyle": "-", "color": "#999999"})
        axes.plot(*after, style, color="#2f7d4f")
    axes.plot([], [], "o", color="#2f7d4f", label="fine-tuned, modulated")
    axes.plot([], [], "x", color="#2f7d4f", label="fine-tuned, straight-through")
    axes.axhline(2, color="#999999", lw=1, ls=":")
    axes.set(xlabel="mean bits of the branches' weights", ylabel="BD-rate, %", yscale="log")
    axes.set_yticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
    axes.set_yticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    results, images = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
    plot_roofline(json.loads((results / "roofline.json").read_text()), images / "roofline.png")
    report = json.loads((results / "quantization_ablation.json").read_text())
    plot_widths(report, images / "quantization_widths.png")


if __name__ == "__main__":
    main()
