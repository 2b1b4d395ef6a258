"""Writes README's numbers from ``benchmarks/results``, so that none is typed by hand.

pycodec eval KODAK --out RUN         # then copy measurements.csv and summary.json to
                                     # benchmarks/results/kodak.csv and kodak.json
python benchmarks/models/photo.py --json benchmarks/results/photo.json
python benchmarks/coding/rans.py --json benchmarks/results/rans.json
python benchmarks/models/lossless.py KODAK --json benchmarks/results/lossless.json
python benchmarks/models/lossless.py KODAK --colour --json benchmarks/results/lossless_colour.json
python benchmarks/context/wave_network.py --json benchmarks/results/wave_network.json
python benchmarks/models/sphere.py ERP --json benchmarks/results/sphere.json
python benchmarks/integrations/compressai.py --json benchmarks/results/compressai.json ...
python benchmarks/integrations/compressai_precision.py --json \
    benchmarks/results/compressai_precision.json ...
python benchmarks/models/precision.py KODAK --json benchmarks/results/precision.json
python benchmarks/roofline.py --json benchmarks/results/roofline.json
python benchmarks/profiling/overhead.py --json benchmarks/results/profiler_overhead.json
python benchmarks/plots.py
python benchmarks/update_readme.py

python benchmarks/gpu_campaign.py --out RUN      # nvidia-h200.json, on such a GPU

The roofline, the profiler's overhead and the GPU's numbers go to ``docs/performance.md``.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"
MEASURED, END_OF_MEASURED = "<!-- measured -->", "<!-- end of measured -->"
ON_A_GPU, END_OF_ON_A_GPU = "<!-- on a gpu -->", "<!-- end of on a gpu -->"
CALLS = ("encode", "decode")
NAMES = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jxl": "JPEG XL"}


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def bd_rate_lines(summary: dict) -> list[str]:
    rates = {
        (rate["anchor"], rate["metric"]): rate
        for rate in summary["bd_rates"]
        if rate["codec"] == "pycodec"
    }

    def percent(value: float) -> str:
        return f"{value:+.1f} %".replace("-", "\N{MINUS SIGN}")

    rows = [
        [
            NAMES[anchor],
            percent(rates[anchor, "psnr"]["percent"]),
            percent(rates[anchor, "psnr"]["mean_of_pictures"]),
            percent(rates[anchor, "ms_ssim"]["percent"]),
        ]
        for anchor in NAMES
        if (anchor, "psnr") in rates
    ]
    header = ["BD-rate against", "PSNR, mean curves", "PSNR, mean of pictures", "MS-SSIM"]
    return table(header, rows)


def curve_lines(summary: dict) -> list[str]:
    points = summary["curves"]["pycodec"]
    rows = [
        ["bpp", *[f"{p['bpp']:.3f}" for p in points]],
        ["PSNR, dB", *[f"{p['psnr']:.2f}" for p in points]],
        ["MS-SSIM", *[f"{p['ms_ssim']:.4f}" for p in points]],
    ]
    return table(["quality", *[f"{p['setting']:g}" for p in points]], rows)


def time_lines(rows: list[dict]) -> list[str]:
    row = rows[len(rows) // 2]
    encode = ("analysis", "entropy", "rans", "total")
    decode = ("synthesis", "entropy", "rans", "total")
    return table(
        [f"quality {row['quality']:g}, ms", "transform", "entropy model", "rANS", "whole"],
        [
            ["encode", *[f"{row[f'encode_{stage}_ms']:.1f}" for stage in encode]],
            ["decode", *[f"{row[f'decode_{stage}_ms']:.1f}" for stage in decode]],
        ],
    )


def rans_lines(report: dict) -> list[str]:
    """Each SIMD level with its fastest number of lanes, and the peers, as rates and ratios."""
    results = report["results"]
    peer = next(r for r in results if r["coder"] == "compressai.ans, lists")
    fastest: dict[str, dict] = {}
    for result in results:
        if result["coder"].startswith("pycodec, "):
            level = result["coder"].split(", ")[1]
            best = fastest.get(level)
            if best is None or result["decode_msym_s"] > best["decode_msym_s"]:
                fastest[level] = result
    others = [r for r in results if not r["coder"].startswith("pycodec, ")]
    rows = []
    for result in [*reversed(fastest.values()), *others]:
        rates = [
            f"{result[key]:.0f} ({result[key] / peer[key]:.1f} x)"
            for key in ("encode_msym_s", "decode_msym_s")
        ]
        over = result["over_tables"]
        name = result["coder"].replace("compressai_ans", "pycodec as compressai.ans")
        rows.append([name, *rates, "" if over is None else f"{over:+.4%}".replace("%", " %")])
    return table(["Msym/s", "encode", "decode", "bytes over the tables' entropy"], rows)


def lossless_lines(report: dict, of: str) -> list[str]:
    rows = [
        [
            f"`{name}`" if name.startswith("tcae") else name,
            f"{row['bpp']:.3f}",
            f"{row['encode_seconds']:.3f}",
            f"{row['decode_seconds']:.3f}",
        ]
        for name, row in report["results"].items()
    ]
    return table([f"{of} Kodak, lossless", "bpp", "encode, s", "decode, s"], rows)


def wave_lines(results: list[dict]) -> list[str]:
    """768x512 on the fastest SIMD level: waves and one symbol at a time."""
    names = {
        "waves": "in waves, {threads} threads",
        "single": "one symbol at a time, same kernels, {threads} thread",
        "framework": "one symbol at a time, PyTorch, {threads} threads",
    }
    rows = []
    for result in results:
        fits = result["height"] == 512 and result["simd_level"] in ("avx512vnni", "torch")
        if not fits or result["threads"] != (1 if result["method"] == "single" else 2):
            continue
        encode, decode = result["encode_seconds"], result["decode_seconds"]
        rows.append(
            [
                f"`{result['network']}`, {result['order']}",
                names[result["method"]].format(**result),
                "" if encode is None else f"{encode:.3f}",
                f"{decode:,.3g}" if decode < 100 else f"{decode:,.0f} (extrapolated)",
            ]
        )
    return table(["768x512, 8 planes", "how", "encode, s", "decode, s"], rows)


def sphere_lines(report: dict) -> list[str]:
    rates = report["bd_rates"]
    names = {"photo": "the photo codec", "untuned": "the same with the photo codec's weights"}
    names |= {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}
    columns = [(which, m) for which in ("held_out", "all") for m in ("ws_psnr", "viewport_psnr")]
    rows = [
        [label, *[f"{rates[f'{name}, {m}'][which]:+.1f} %" for which, m in columns]]
        for name, label in names.items()
        if rates[f"{name}, ws_psnr"]["all"] is not None
    ]
    header = ["WS-PSNR", "viewports", "WS-PSNR, all", "viewports, all"]
    return table(["`--projection erp` against", *header], rows)


def compressai_lines(report: dict) -> list[str]:
    """Whole calls, and decoding without transforms: CompressAI, this, and the ratio."""
    rows = []
    for row in report["times"]:
        theirs, ours = row["compressai"], row["pycodec"]
        pairs = [
            (theirs[call][part], ours[call][part])
            for call, part in (
                ("compress", "whole"),
                ("decompress", "whole"),
                ("decompress", "entropy"),
            )
        ]
        cells = [f"{a:.3g} / {b:.3g} ({a / b:.3g} x)" for a, b in pairs]
        rows.append([f"`{row['model']}`", *cells])
    header = ["CompressAI / `accelerate`, s", "compress", "decompress", "its entropy part"]
    return table(header, rows)


def compressai_rate_lines(report: dict) -> list[str]:
    """Bytes and PSNR on trained weights, of CompressAI and of this."""
    rows = [
        [
            f"`{row['model']}`, {row['pictures']} {row['set']}",
            f"{row['compressai']['bytes']} / {row['pycodec']['bytes']}",
            f"{row['rate_percent']:+.3f} %",
            f"{row['compressai']['psnr']:.3f}",
            f"{row['psnr_db']:+.4f}",
        ]
        for row in report["rates"]
    ]
    header = ["weights, pictures", "bytes, CompressAI / `accelerate`", "", "PSNR, dB", ""]
    return table(header, rows)


def sphere_precision(report: dict) -> list[str]:
    """What integers cost and save on the sphere, in words."""
    rates, times = report["held_out"], report["times_ms"]
    width, height = report["size"]
    losses = " and ".join(
        f"`{name}` {rates[name]['bd_rate_percent']:+.2f} %" for name in ("int8", "mixed")
    )
    whole = [
        f"{times[name]['encode']:.0f} + {times[name]['decode']:.0f} ms in `{name}`"
        for name in ("fp32", "bf16", "mixed")
    ]
    return [
        f"On the sphere (WS-PSNR, {rates['pictures']} held-out panoramas) {losses}; encoding and "
        "decoding",
        f"{width}x{height} takes {whole[0]}, {whole[1]}, {whole[2]}",
        "(`python benchmarks/models/precision.py --erp ERP`).",
    ]


def compressai_precision_lines(report: dict) -> list[str]:
    """Times of the transforms in float32 and in integers, with weights of 8 and of 12 bits."""
    rows = []
    for row in report["times_ms"]:
        cells = []
        for stage in ("analysis", "synthesis"):
            fp32, few, most = (row[name][stage] for name in ("fp32", "int8, 8", "int8, 12"))
            cells += [f"{fp32:.0f} / {few:.0f} ({fp32 / few:.1f} x)", f"{fp32 / most:.1f} x"]
        rows.append([f"`{row['model']}`", *cells])
    header = ["float32 / `int8`, ms", "g_a, h_a", "12 bits", "g_s", "12 bits"]
    return table(header, rows)


def compressai_precision_rate(report: dict) -> str:
    """From the least to the most that files and PSNR change on Kodak."""
    rows = [row for row in report["rates"] if row["set"] == "Kodak"]
    sizes = sorted(row["bytes_percent"] for row in rows)
    qualities = sorted(row["psnr_db"] for row in rows)
    return (
        f"{sizes[0]:+.2f} % to {sizes[-1]:+.2f} % of bytes, {qualities[0]:+.4f} to "
        f"{qualities[-1]:+.4f} dB"
    )


def precision_lines(report: dict) -> list[str]:
    """Loss, weights and times of a precision; on the fastest SIMD level, and integers below it."""
    sizes, rates, times = report["bytes"], report["rate_distortion"], report["times_ms"]
    fp32 = next(t for name, t in times.items() if name.startswith("fp32 "))
    rows = []
    for name, found in times.items():
        precision, level = name.split()
        rate = rates.get(precision)
        share = sizes.get(f"{precision}_of_fp32")
        rows.append(
            [
                f"`{precision}`, {level}",
                "" if rate is None else f"{rate['bd_rate_percent']:+.2f} %",
                "1" if precision == "fp32" else "" if share is None else f"{share:.3f}",
                f"{found['encode']:.1f}",
                f"{found['decode']:.1f}",
                f"{sum(map(fp32.get, CALLS)) / sum(map(found.get, CALLS)):.2f} x",
            ]
        )
    if "dynamic" in rates:
        loss, share = rates["dynamic"]["bd_rate_percent"], sizes["dynamic_of_fp32"]
        rows.append(["dynamic widths, not shipped", f"{loss:+.2f} %", f"{share:.3f}", "", "", ""])
    header = ["`--precision`", "BD-rate", "weights", "encode, ms", "decode, ms", "faster"]
    return table(header, rows)


def roofline_lines(report: dict, has_picture: bool) -> list[str]:
    ceilings, machine = report["ceilings"], report["machine"]
    peaks = ", ".join(f"{name} {value:.0f} GOP/s" for name, value in ceilings["gop_s"].items())

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}".replace("%", " %")

    rows, reasons = [], {}
    for r in report["results"]:
        rows.append(
            [
                f"`{r['kernel']}`",
                r["what"],
                f"{r['us'] / 1000:.2f}",
                f"{r['gb_s']:.2f}",
                "" if r["gop_s"] is None else f"{r['gop_s']:.0f}",
                share(r["share_of_peak"]),
                share(r["share_of_copy"]),
                share(r["share_of_roof"]),
            ]
        )
        if r["reason"] is not None:
            reasons[r["kernel"]] = r["reason"]
    header = ["kernel", "works on", "ms", "GB/s", "GOP/s", "of peak", "of copy", "of roof"]
    found = table(header, rows)
    found[1] = found[1].replace("--- | ---:", "--- | ---", 1)  # the second column is text, too
    lines = [
        f"One thread of an {machine['processor']} (`{machine['simd_level']}`), whose ceilings are",
        f"a copy of {ceilings['copy_gb_s']:.1f} GB/s and {peaks}",
        "(`python benchmarks/roofline.py`; one run, nothing else running):",
        "",
        *(["![The kernels under their roofs](images/roofline.png)", ""] if has_picture else []),
        *found,
        "",
    ]
    if reasons:
        lines += ["Below 30 % of the roof, and why:", ""]
        lines += [f"- `{kernel}`: {reason}." for kernel, reason in reasons.items()]
        lines.append("")
    return lines


def overhead_lines(report: dict) -> list[str]:
    rows = [
        [
            r["call"],
            f"{r['ms']:.1f}",
            str(r["spans"]),
            f"{r['on']:+.2%}".replace("%", " %"),
            f"{r['off']:+.4%}".replace("%", " %"),
            f"{r['agreement']:.2%}".replace("%", " %"),
        ]
        for r in report["results"]
    ]
    header = [
        "768x512 in colour",
        "ms",
        "spans",
        "recording adds",
        "not recording adds",
        "spans of the clock",
    ]
    return [
        "What the profiler itself costs on the same machine, with two threads, and the part of the",
        "time by a clock around the call that its outermost spans account for (how that is",
        "measured is in `benchmarks/profiling/overhead.py`):",
        "",
        *table(header, rows),
        "",
    ]


def ladder_lines(report: dict) -> list[str]:
    """Of ``run_all.py``: the photo codec by resolution."""
    results = report["steps"]["bench"]["results"]["results"]
    rows = []
    for size in dict.fromkeys(r["size"] for r in results):
        of_one = {r["direction"]: r for r in results if r["size"] == size}
        cells = []
        for direction in CALLS:
            r = of_one[direction]
            cells += [f"{r['ms_median']:.0f} ({r['ms_p95']:.0f})", f"{r['fps']:.2f}"]
        peak = max(r["peak_memory_mib"] for r in of_one.values())
        rows.append([size, *cells, f"{peak:.0f}"])
    machine = report["machine"]
    return [
        "",
        f"`pycodec bench`, a made picture at quality 50, {machine['cores']} cores of "
        f"{machine['processor']} ({machine['simd_level']}):",
        "",
        *table(["", "encode, ms (p95)", "fps", "decode, ms (p95)", "fps", "peak MiB"], rows),
    ]


def gpu_lines(report: dict) -> list[str]:
    """The steps of the campaign that there are results of."""
    steps = report["steps"]
    waves = steps["time-wave_network-768x512"]["results"]
    rows = []
    for network, order in dict.fromkeys((r["network"], r["order"]) for r in waves):
        of_one = [r for r in waves if (r["network"], r["order"]) == (network, order)]
        least = {
            method: min(
                (r for r in of_one if r["method"] == method),
                key=lambda r: r["decode_seconds"],
                default=None,
            )
            for method in ("persistent", "graph")
        }
        milliseconds = [
            "" if r is None else f"{1e3 * r['decode_seconds']:.0f}" for r in least.values()
        ]
        best = least["persistent"]
        rows.append(
            [
                f"`{network}`, {order}",
                *milliseconds,
                f"{best['us_per_wave']:.0f}",
                f"{best['barrier_us']:.2f}",
                f"{1e3 * best['order_seconds']:.1f}",
            ]
        )
    header = ["768x512", "decode, one kernel, ms", "a CUDA graph a wave, ms"]
    lines = table([*header, "us a wave", "us a barrier", "encode before rANS, ms"], rows)

    trimmed = steps["time-trimmed_conv2d"]["results"]
    backends = ("cuda", "triton", "dense")
    rows = []
    for layer, dtype, width in dict.fromkeys((r["layer"], r["dtype"], r["width"]) for r in trimmed):
        times = {
            r["backend"]: f"{1e3 * r['seconds']:.2f}"
            for r in trimmed
            if (r["layer"], r["dtype"], r["width"]) == (layer, dtype, width)
        }
        if width == 1920:
            rows.append([f"{layer}, {dtype}", *(times[b] for b in backends)])
    header = ["1920x1080, ms", "CUDA", "Triton", "dense (cuDNN; float64 for int8)"]
    lines += ["", *table(header, rows)]

    quantized = steps["time-quantized_conv2d"]["results"]
    names = ("mma", "dp4a", "triton", "cuDNN float16", "cuDNN bfloat16", "_int_mm")
    rows = []
    for layer, types in dict.fromkeys((r["layer"], r["types"]) for r in quantized["results"]):
        of_one = {
            r["implementation"]: r
            for r in quantized["results"]
            if (r["layer"], r["types"], r["picture"]) == (layer, types, "3840x2160")
        }
        times = [f"{of_one[name]['ms']:.3f}" if name in of_one else "" for name in names]
        shares = [f"{100 * of_one['mma'][s]:.0f} %" for s in ("share_of_peak", "share_of_copy")]
        rows.append([f"{layer}, {types}", *times, *shares])
    header = ["3840x2160, ms", *names, "mma, of peak", "of copy"]
    return [*lines, "", *table(header, rows)]


def processor(machine: dict) -> str:
    return f"{machine['processor']} ({machine['simd_level']})"


def replace_between(path: Path, begin: str, end: str, lines: list[str]) -> None:
    text = path.read_text()
    start, stop = text.index(begin), text.index(end)
    path.write_text(text[:start] + "\n".join([begin, *lines, ""]) + text[stop:])


def main() -> None:
    roofline = json.loads((RESULTS / "roofline.json").read_text())
    overhead = json.loads((RESULTS / "profiler_overhead.json").read_text())
    machine = json.loads((RESULTS / "intel-r-xeon-r-processor-2-cores.json").read_text())
    other = json.loads((RESULTS / "amd-epyc-2-cores.json").read_text())
    replace_between(
        ROOT / "docs" / "performance.md",
        MEASURED,
        END_OF_MEASURED,
        [
            *roofline_lines(roofline, has_picture=True),
            *overhead_lines(overhead),
            *ladder_lines(machine),
            "",
            *roofline_lines(other["steps"]["roofline"]["results"], has_picture=False),
            *ladder_lines(other),
        ],
    )
    gpu = json.loads((RESULTS / "nvidia-h200.json").read_text())
    replace_between(ROOT / "docs" / "performance.md", ON_A_GPU, END_OF_ON_A_GPU, gpu_lines(gpu))
    summary = json.loads((RESULTS / "kodak.json").read_text())
    times = json.loads((RESULTS / "photo.json").read_text())
    rans = json.loads((RESULTS / "rans.json").read_text())
    lossless = json.loads((RESULTS / "lossless.json").read_text())
    in_colour = json.loads((RESULTS / "lossless_colour.json").read_text())
    waves = json.loads((RESULTS / "wave_network.json").read_text())
    sphere = json.loads((RESULTS / "sphere.json").read_text())
    precision = json.loads((RESULTS / "precision.json").read_text())
    compressai = json.loads((RESULTS / "compressai.json").read_text())
    in_integers = json.loads((RESULTS / "compressai_precision.json").read_text())
    pictures, held_out = len(sphere["pictures"]), len(sphere["held_out"])
    low, high = summary["psnr_range"]
    lines = [
        f"The {summary['pictures']} Kodak pictures, real files, every byte counted, one model",
        "(`pycodec eval`; negative is fewer bytes at equal quality; JPEG is 4:2:0, optimized and",
        "progressive, WebP method 6, AVIF speed 6, JPEG XL effort 7; PSNR from "
        f"{low:g} to {high:g} dB):",
        "",
        *bd_rate_lines(summary),
        "",
        *curve_lines(summary),
        "",
        "![Rate-distortion curves on Kodak](docs/images/kodak.png)",
        "",
        f"768x512 on {summary['cpus']} cores of an AMD EPYC (Zen 4), model loaded, pixels to",
        "bytes and bytes to pixels, medians (`python benchmarks/models/photo.py`):",
        "",
        *time_lines(times),
        "",
        f"The rANS coder on one core of the same processor, {rans['symbols'] / 1e6:.1f} M symbols",
        "over 64 Gaussian tables of 12 bits (`python benchmarks/coding/rans.py`; ratios are to",
        "`compressai.ans` called with lists made before, its fastest way):",
        "",
        *rans_lines(rans),
        "",
        f"Lossless coding of the {len(lossless['pictures'])} Kodak pictures in gray, mean of whole",
        f"files, {lossless['threads']} threads of an {processor(lossless['machine'])}",
        "(`python benchmarks/models/lossless.py KODAK`):",
        "",
        *lossless_lines(lossless, "gray"),
        "",
        f"In colour (`--colour`), {in_colour['threads']} threads of an "
        f"{processor(in_colour['machine'])}:",
        "",
        *lossless_lines(in_colour, "colour"),
        "",
        f"What waves are worth, on an {processor(waves['machine'])}; the networks of the lossless",
        "codec with random weights, rANS included (`python benchmarks/context/wave_network.py`):",
        "",
        *wave_lines(waves["results"]),
        "",
        f"{held_out} equirectangular pictures, of 1024x512 and 2048x1024, held out when the",
        f"codec was tuned on others, and all {pictures}; whole files, BD-rates from 28 to 40 dB,",
        "means (`python benchmarks/models/sphere.py ERP --json ...`):",
        "",
        *sphere_lines(sphere),
        "",
        "The photo codec's transforms in integers against float32: BD-rate on Kodak from real",
        "files, bytes of weights (four a number in float32), 768x512 at quality 50, least of some",
        f"rounds, {precision['threads']} threads of an Intel Xeon (Sapphire Rapids; `python",
        "benchmarks/models/precision.py KODAK`):",
        "",
        *precision_lines(precision),
        "",
        *sphere_precision(precision["sphere"]),
        "",
        "CompressAI's models through `accelerate` ([docs/integrations.md](docs/integrations.md)),",
        f"768x512, architectures of quality 3 with random weights, {compressai['threads']} threads",
        "of an Intel Xeon (Sapphire Rapids), best times of one run (`python",
        "benchmarks/integrations/compressai.py`):",
        "",
        *compressai_lines(compressai),
        "",
        "Both on the same weights, trained for two minutes on a GPU (`train_compressai.py` beside",
        "it), real streams:",
        "",
        *compressai_rate_lines(compressai),
        "",
        "Their transforms in integers (`pycodec quantize`), 768x512, random weights, of 8 bits or",
        "of 12. On the trained weights above, whose g_a and g_s get 8 bits throughout, they change",
        f"{compressai_precision_rate(in_integers)} on six Kodak",
        "pictures (`python benchmarks/integrations/compressai_precision.py`):",
        "",
        *compressai_precision_lines(in_integers),
    ]
    replace_between(ROOT / "README.md", BEGIN, END, lines)


if __name__ == "__main__":
    main()
