"""What does ``accelerate`` make of CompressAI's models?

Times: whole ``compress`` and ``decompress`` of a 768x512 picture, the architectures of quality 3,
the same weights for both, in one run; and the part of it that is not transforms (g_a, h_a, g_s).
The weights are random, but for factors and biases that give streams of a realistic size: what takes
time depends on widths and sizes. CompressAI's are the best of ``--rounds``, ours of twice as many.

Rates, with ``--trained ARCH=CHECKPOINT --pictures FOLDER``: bytes and PSNR of both on trained
weights, those of ``train_compressai.py`` for example. ``--reproducibility``: how many scale indexes
change, and how many pictures decode wrong, when torch adds in another order than at encoding.

Peer: ``pip install compressai``; without it there is nothing to compare.

    python benchmarks/integrations/compressai.py --json benchmarks/results/compressai.json \
        --reproducibility --trained mbt2018=runs/mbt2018.pth.tar --pictures KODAK --calibrate TRAIN
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pycodec import _cpu
from pycodec.integrations.compressai import accelerate, read_pictures

# This file has the package's name, and a script's folder is searched first.
sys.path = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]
import compressai  # noqa: E402
from compressai.models import sensetime  # noqa: E402
from compressai.zoo.image import model_architectures  # noqa: E402

ARCHITECTURES = model_architectures | {
    "cheng2020-anchor-checkerboard": sensetime.Cheng2020AnchorCheckerboard,
    "elic2022-official": sensetime.Elic2022Official,
}
WIDTHS = {
    "mbt2018-mean": (128, 192),
    "mbt2018": (192, 192),
    "cheng2020-anchor": (128,),
    "cheng2020-anchor-checkerboard": (128,),
    "elic2022-official": (192, 320),
}
"""Of quality 3, as compressai.zoo has them; the checkerboard's are the anchor's, ELIC's its own."""


def random_model(architecture: str) -> nn.Module:
    """Latents of a standard deviation of 0.4; scales of 0.35, give or take 0.2."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture](*WIDTHS[architecture]).eval()
    hyper = model.latent_codec.hyper if hasattr(model, "latent_codec") else model
    x = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        for stack, deviation in ((model.g_a, 0.4), (hyper.h_a, 2.0)):
            last = [m for m in stack if isinstance(m, nn.Conv2d)][-1]
            factor = deviation / stack(x).std()
            last.weight.mul_(factor)
            last.bias.mul_(factor)
            x = stack(x)
            if stack is model.g_a:
                y = x
        x = hyper.h_s(torch.round(x))
        if hyper is not model:
            set_groups(model.latent_codec.y, y, x)
        elif hasattr(model, "entropy_parameters"):
            seen = model.context_prediction(torch.round(y))
            set_parameters(model.entropy_parameters, torch.cat([x, seen], 1))
        else:
            set_parameters(model.h_s, torch.round(hyper.h_a(y)))
    model.update()
    return model


def set_parameters(heads: nn.Sequential, x: Tensor) -> None:
    """Scales and means of the sizes above."""
    last = heads[-1]
    last.weight.mul_(0.2 / heads(x).std())
    scales, means = last.bias.chunk(2)
    scales.fill_(0.35)
    means.zero_()


def set_groups(codec: nn.Module, y: Tensor, side: Tensor) -> None:
    """:func:`set_parameters` of all channel groups, one after the other."""
    sizes = getattr(codec, "groups", [y.shape[1]])
    parts = torch.round(y).split(list(sizes), 1)
    for k, own in enumerate(parts):
        child, known = codec, side
        if hasattr(codec, "groups"):
            child = codec.latent_codec[f"y{k}"]
            known = codec._get_ctx_params(k, side, parts)
        set_parameters(child.entropy_parameters, child.merge(child.context_prediction(own), known))


@contextlib.contextmanager
def timed_transforms(model: nn.Module) -> Iterator[list[float]]:
    """The seconds that g_a, h_a and g_s take inside, appended."""
    seconds: list[float] = []
    began: list[float] = []
    hooks = []
    hyper = model.latent_codec.hyper if hasattr(model, "latent_codec") else model
    for stack in (model.g_a, hyper.h_a, model.g_s):
        hooks.append(stack.register_forward_pre_hook(lambda *_: began.append(time.perf_counter())))
        hooks.append(
            stack.register_forward_hook(
                lambda *_: seconds.append(time.perf_counter() - began.pop())
            )
        )
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def best_time(
    model: nn.Module, run: Callable[[], dict], rounds: int
) -> tuple[dict[str, float], dict]:
    """Least whole time, least time without transforms, and the last result."""
    wholes, parts = [], []
    with timed_transforms(model) as transforms:
        for _ in range(rounds):
            transforms.clear()
            start = time.perf_counter()
            result = run()
            whole = time.perf_counter() - start
            wholes.append(whole)
            parts.append(whole - sum(transforms))
    return {"whole": round(min(wholes), 5), "entropy": round(min(parts), 5)}, result


def measure_times(architectures: list[str], x: Tensor, rounds: int) -> list[dict]:
    rows = []
    for architecture in architectures:
        model = random_model(architecture)
        fast = accelerate(model, [x[0]])
        row: dict = {"model": architecture}
        for name, coder, repeats in (("pycodec", fast, 2 * rounds), ("compressai", model, rounds)):
            with torch.no_grad():
                compress, coded = best_time(model, lambda c=coder: c.compress(x), repeats)
                decompress, _ = best_time(
                    model, lambda c=coder, r=coded: c.decompress(**r), repeats
                )
            row[name] = {"compress": compress, "decompress": decompress, "bytes": size_of(coded)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def size_of(coded: dict) -> int:
    return sum(len(stream) for kind in coded["strings"] for stream in kind)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))


def trained_model(architecture: str, checkpoint: Path) -> nn.Module:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    model = ARCHITECTURES[architecture].from_state_dict(state).eval()
    model.update(force=True)
    return model


def measure_rate(
    architecture: str, checkpoint: Path, pictures: list[Tensor], calibrate: list | None
) -> dict:
    """Bytes, bits per pixel and mean PSNR of both codecs, on the same weights."""
    model = trained_model(architecture, checkpoint)
    totals = {}
    for name, coder in (("compressai", model), ("pycodec", accelerate(model, calibrate))):
        sizes, qualities = [], []
        with torch.no_grad():
            for x in pictures:
                coded = coder.compress(x)
                sizes.append(size_of(coded))
                qualities.append(psnr(coder.decompress(**coded)["x_hat"], x))
        pixels = sum(x.shape[2] * x.shape[3] for x in pictures)
        totals[name] = {
            "bytes": sum(sizes),
            "bpp": 8 * sum(sizes) / pixels,
            "psnr": float(np.mean(qualities)),
        }
    widths = sum(p.numel() for p in model.parameters())
    row = {"model": architecture, "parameters": widths, "pictures": len(pictures), **totals}
    row["rate_percent"] = 100 * (totals["pycodec"]["bytes"] / totals["compressai"]["bytes"] - 1)
    row["psnr_db"] = totals["pycodec"]["psnr"] - totals["compressai"]["psnr"]
    print(json.dumps(row), flush=True)
    return row


@contextlib.contextmanager
def arithmetic(threads: int, mkldnn: bool) -> Iterator[None]:
    """Torch's ways to order the additions of a convolution."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.mkldnn.flags(enabled=mkldnn):
            yield
    finally:
        torch.set_num_threads(before)


def measure_reproducibility(model: nn.Module, crops: list[Tensor]) -> list[dict]:
    """Streams of one way of computing, decoded in the other ways; and by pycodec."""
    fast = accelerate(model)
    ways = [(1, True), (2, True), (1, False), (2, False)]
    rows = []
    with torch.no_grad():
        ys = [model.g_a(x) for x in crops]
        zs = [torch.round(model.h_a(y)) for y in ys]

        def indexes() -> Tensor:
            found = []
            for y, z in zip(ys, zs, strict=True):
                seen = model.context_prediction(torch.round(y))
                joined = torch.cat([model.h_s(z), seen], 1)
                scales, _ = model.entropy_parameters(joined).chunk(2, 1)
                found.append(model.gaussian_conditional.build_indexes(scales))
            return torch.cat(found)

        with arithmetic(*ways[0]):
            first = indexes()
            coders = {"compressai": model, "pycodec": fast}
            coded = {name: [coder.compress(x) for x in crops] for name, coder in coders.items()}
            expected = {
                name: [coder.decompress(**c)["x_hat"] for c in coded[name]]
                for name, coder in coders.items()
            }
        for threads, mkldnn in ways:
            with arithmetic(threads, mkldnn):
                row = {
                    "threads": threads,
                    "mkldnn": mkldnn,
                    "pictures": len(crops),
                    "symbols": first.numel(),
                    "indexes_changed": int((indexes() != first).sum()),
                }
                for name, coder in coders.items():
                    decoded = [coder.decompress(**c)["x_hat"] for c in coded[name]]
                    pairs = list(zip(decoded, expected[name], strict=True))
                    # Beyond what another order of additions in g_s does.
                    broken = [float((a - b).abs().max()) > 1e-3 for a, b in pairs]
                    row[f"{name}_wrong"] = sum(broken)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def picture_of(file: Path) -> Tensor:
    """[1, 3, H, W], cut to multiples of 64."""
    x = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None] / 255
    return x[:, :, : x.shape[2] // 64 * 64, : x.shape[3] // 64 * 64]


def photograph() -> Tensor:
    from skimage import data

    x = torch.from_numpy(data.coffee()).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(x, size=(512, 768), mode="bilinear", antialias=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="*", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--reproducibility", action="store_true")
    parser.add_argument("--trained", action="append", default=[], metavar="ARCH=CHECKPOINT")
    parser.add_argument("--pictures", type=Path, help="folder, for the rates")
    parser.add_argument("--set", help="a name for these pictures (default: the folder's)")
    parser.add_argument("--count", type=int, default=24, help="of these pictures")
    parser.add_argument("--calibrate", type=Path, help="folder; made pictures if none is named")
    parser.add_argument("--json", type=Path, help="parts that this run leaves out are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = {}
    if arguments.json and arguments.json.exists():
        report = json.loads(arguments.json.read_text())
    report |= {
        "compressai": compressai.__version__,
        "torch": torch.__version__,
        "threads": arguments.threads,
        "simd_level": _cpu.simd_level(),
    }
    if not arguments.no_times:
        kept = [row for row in report.get("times", []) if row["model"] not in arguments.models]
        measured = measure_times(arguments.models, photograph(), arguments.rounds)
        report["times"] = sorted(kept + measured, key=lambda row: list(WIDTHS).index(row["model"]))
    trained = [item.partition("=")[::2] for item in arguments.trained]
    if trained and arguments.pictures:
        files = sorted(arguments.pictures.iterdir())[: arguments.count]
        pictures = [picture_of(file) for file in files]
        calibrate = arguments.calibrate and read_pictures(arguments.calibrate)
        name = arguments.set or arguments.pictures.resolve().name
        measured = [
            {"set": name, **measure_rate(architecture, Path(checkpoint), pictures, calibrate)}
            for architecture, checkpoint in trained
        ]
        rows = {(row["set"], row["model"]): row for row in report.get("rates", []) + measured}
        report["rates"] = sorted(rows.values(), key=lambda row: list(WIDTHS).index(row["model"]))
    if arguments.reproducibility:
        x = photograph()
        crops = [
            x[:, :, i : i + 256, j : j + 256]
            for i in range(0, 512, 256)
            for j in range(0, 768, 256)
        ]
        report["reproducibility"] = measure_reproducibility(random_model("mbt2018"), crops)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
