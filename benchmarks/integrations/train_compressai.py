"""Trains small models of CompressAI for the rates that ``compressai.py`` beside this file measures.

Random weights say nothing about rates, and CompressAI's own may not be at hand. Trained are, one
after the other, each for its share of ``--seconds``:

* ``cheng2020-anchor``, N = 128 (the architecture of quality 3);
* ``cheng2020-anchor-checkerboard``: the same transforms, frozen; h_s, context and entropy
  parameters go on from those of the anchor, the context from nothing;
* ``mbt2018``, N = M = 128.

Loss: 0.0067 * 255**2 * MSE + bits per pixel, CompressAI's of quality 3, with Adam and a cosine of
the time that has gone by. The transforms run in bfloat16 on a GPU, entropy models in float32.
Convolutions are stored with ten bits a weight, a scale a channel (files of at most 16 MiB):
whoever measures measures these rounded weights, of both codecs.

Needs CompressAI. On a GPU some minutes; on a CPU days.

    python benchmarks/integrations/train_compressai.py --data PICTURES --seconds 150 --out runs
    python benchmarks/integrations/train_compressai.py --unpack runs   # to CompressAI checkpoints
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

# Beside this file is one that has the package's name.
sys.path = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]
from compressai.models import JointAutoregressiveHierarchicalPriors  # noqa: E402
from compressai.models.sensetime import Cheng2020AnchorCheckerboard  # noqa: E402
from compressai.models.waseda import Cheng2020Anchor  # noqa: E402

ANCHOR, CHECKERBOARD, JOINT = "cheng2020-anchor", "cheng2020-anchor-checkerboard", "mbt2018"
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    ANCHOR: lambda: Cheng2020Anchor(128),
    CHECKERBOARD: lambda: Cheng2020AnchorCheckerboard(128),
    JOINT: lambda: JointAutoregressiveHierarchicalPriors(128, 128),
}
SHARES = {ANCHOR: 0.62, CHECKERBOARD: 0.13, JOINT: 0.25}
FILES = {ANCHOR: "anchor.pt", CHECKERBOARD: "others.pt", JOINT: "others.pt"}

LAMBDA = 0.0067
LEARNING_RATE = 4e-4
WARM_UP = 0.04
"""Of a model's time."""

SAVE_SECONDS = 40.0
HELD_OUT_EVERY = 27
"""One picture in so many is not trained on."""

SHARED = ("g_a.", "g_s.", "latent_codec.hyper.h_a.", "latent_codec.hyper.entropy_bottleneck.")
"""Of the checkerboard model: what it has from the anchor."""

DERIVED = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table", "mask", "bound", "target")


# Pictures


def list_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures for training and held-out ones."""
    suffixes = {".jpg", ".png", ".webp"}
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
    held = paths[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    return [p for p in paths if p not in set(held)], held


def load_picture(path: Path) -> Tensor:
    """uint8 [3, H, W]."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


class Crops:
    """Random crops of pictures that lie on the device; a picture's chance is its area."""

    def __init__(self, paths: list[Path], size: int, batch: int, device: torch.device) -> None:
        with ThreadPoolExecutor(8) as pool:
            pictures = list(pool.map(load_picture, paths))
        self.pictures = [p.to(device) for p in pictures if min(p.shape[1:]) >= size]
        areas = np.array([p.shape[1] * p.shape[2] for p in self.pictures], np.float64)
        self.shares = areas / areas.sum()
        self.size, self.batch, self.device = size, batch, device
        self.random = np.random.default_rng(0)

    def __call__(self) -> Tensor:
        """Float [batch, 3, size, size] in 0..1."""
        crops = []
        for index in self.random.choice(len(self.pictures), self.batch, p=self.shares):
            picture = self.pictures[index]
            top, left = (int(self.random.integers(n - self.size + 1)) for n in picture.shape[1:])
            crop = picture[:, top : top + self.size, left : left + self.size]
            crops.append(crop.flip(2) if self.random.random() < 0.5 else crop)
        return torch.stack(crops).float().div_(255).to(memory_format=torch.channels_last)


# Models


def spread(stack: nn.Module, x: Tensor, deviation: float, mean: float = 0.0) -> None:
    """Scale the last convolution: an untrained network's results are all but constant."""
    last = [m for m in stack.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))][-1]
    with torch.no_grad():
        factor = deviation / stack(x).std()
        last.weight.mul_(factor)
        last.bias.mul_(factor)
        last.bias.add_(mean - stack(x).mean())


def start(model: nn.Module, x: Tensor) -> None:
    """Latents, hyperlatents and pictures of a likely size."""
    with torch.no_grad():
        spread(model.g_a, x, 2.0)
        y = model.g_a(x)
        spread(model.h_a, y, 1.5)
        spread(model.g_s, y, 0.2, float(x.mean()))


def start_checkerboard(model: nn.Module, anchor: nn.Module) -> None:
    """What a checkerboard model can take over from the raster model of the same transforms."""
    state = dict(anchor.state_dict())
    own = model.state_dict()
    for name in own:
        source = name.removeprefix("latent_codec.hyper.").removeprefix("latent_codec.y.")
        if name.endswith(DERIVED) or source not in state or source.startswith("context"):
            continue
        value = state[source]
        if source == "entropy_parameters.0.weight":  # [side, context] becomes [context, side]
            value = torch.cat(value.chunk(2, 1)[::-1], 1)
        own[name].copy_(value)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(SHARED))


def run_in_bfloat16(model: nn.Module, device: torch.device) -> None:
    """The transforms; the entropy models stay in float32."""
    for stack in (model.g_a, model.g_s):

        def forward(x: Tensor, run: Callable[[Tensor], Tensor] = stack.forward) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                return run(x).float()

        stack.forward = forward


def bits_per_pixel(likelihoods: dict[str, Tensor], x: Tensor) -> Tensor:
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return sum(torch.log(part).sum() for part in likelihoods.values()) / (-math.log(2) * pixels)


def losses(architecture: str, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss; for the record bits per pixel, and the MSE, NaN where it is not trained for."""
    if architecture == CHECKERBOARD:
        with torch.no_grad():
            y = model.g_a(x)
        rate = bits_per_pixel(model.latent_codec(y)["likelihoods"], x)
        return rate, rate.detach(), rate.new_tensor(math.nan)
    result = model(x)
    rate = bits_per_pixel(result["likelihoods"], x)
    error = nn.functional.mse_loss(result["x_hat"], x)
    return LAMBDA * 255**2 * error + rate, rate.detach(), error.detach()


class Schedule:
    """Learning rate by the clock: a short rise, then a cosine."""

    def __init__(self, seconds: float) -> None:
        self.began, self.seconds, self.factor = time.monotonic(), seconds, 1.0

    @property
    def done(self) -> float:
        """0 to 1."""
        return min(1.0, (time.monotonic() - self.began) / self.seconds)

    @property
    def rate(self) -> float:
        rise = min(1.0, (self.done + 1e-3) / WARM_UP)
        fall = 0.01 + 0.99 * math.cos(self.done * math.pi / 2) ** 2
        return LEARNING_RATE * self.factor * rise * fall


def train(
    architecture: str,
    model: nn.Module,
    crops: Crops,
    end: float,
    save: Callable[[int], None],
) -> int:
    """Train until the clock says ``end``; returns the steps taken."""
    trained = [
        p for n, p in model.named_parameters() if p.requires_grad and not n.endswith("quantiles")
    ]
    model.train()
    losses(architecture, model, crops())[0].backward()  # loads libraries, which takes a while
    schedule = Schedule(max(end - time.monotonic(), 1.0))
    is_cuda = crops.device.type == "cuda"

    def new_optimizer() -> torch.optim.Optimizer:
        return torch.optim.Adam(trained, lr=LEARNING_RATE, fused=is_cuda)

    optimizer = new_optimizer()
    # The weights of two checks ago are known to have given a finite loss since.
    confirmed = pending = [p.detach().clone() for p in trained]
    saved = printed = time.monotonic()
    step = 0
    while schedule.done < 1:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate
        x = crops()
        optimizer.zero_grad(set_to_none=True)
        loss, rate, error = losses(architecture, model, x)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        loss, step = loss.detach(), step + 1
        if step % 20 == 0 or not is_cuda:
            if not math.isfinite(float(loss)):
                print(f"{architecture} step {step}: not finite, going back", flush=True)
                with torch.no_grad():
                    for parameter, value in zip(trained, confirmed, strict=True):
                        parameter.copy_(value)
                pending = confirmed
                optimizer = new_optimizer()
                schedule.factor *= 0.5
                continue
            if step % 200 == 0:
                confirmed, pending = pending, [p.detach().clone() for p in trained]
            now = time.monotonic()
            if now - printed > 5 or not is_cuda:
                printed = now
                print(
                    f"{architecture} step {step} {schedule.done:.0%} loss {float(loss):.4f} "
                    f"bpp {float(rate):.4f} psnr {-10 * math.log10(float(error)):.2f}",
                    flush=True,
                )
            if now - saved > SAVE_SECONDS:
                saved = now
                save(step)
    return step


@torch.no_grad()
def evaluate(
    model: nn.Module, paths: list[Path], device: torch.device, crop: int, end: float
) -> str:
    """Estimated rate and PSNR of held-out pictures, of as many as there is time for."""
    model.eval()
    rates, qualities = [], []
    for path in paths:
        if rates and time.monotonic() > end:
            break
        x = load_picture(path)[None].to(device).float() / 255
        x = x[:, :, : min(crop, x.shape[2]) // 64 * 64, : min(crop, x.shape[3]) // 64 * 64]
        result = model(x)
        rates.append(float(bits_per_pixel(result["likelihoods"], x)))
        error = nn.functional.mse_loss(result["x_hat"].clamp(0, 1), x)
        qualities.append(-10 * math.log10(float(error)))
    return f"{len(rates)} held-out pictures: {np.mean(rates):.4f} bpp, {np.mean(qualities):.3f} dB"


# Files


def pack(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor] | Tensor]:
    """Convolutions to ten bits a weight; everything else as it is."""
    packed: dict[str, dict[str, Tensor] | Tensor] = {}
    for name, value in state.items():
        if name.endswith(DERIVED):
            continue
        value = value.detach().cpu().float()
        if value.dim() != 4:
            packed[name] = value.clone()
            continue
        rows = value.flatten(1)
        scale = (rows.abs().amax(1, keepdim=True) / 511).clamp(min=1e-12)
        integers = (torch.round(rows / scale) + 512).clamp(0, 1023).to(torch.int16).flatten()
        high = nn.functional.pad(integers >> 8, (0, -len(integers) % 4)).view(-1, 4)
        packed[name] = {
            "shape": torch.tensor(value.shape),
            "scale": scale[:, 0],
            "low": (integers & 255).to(torch.uint8),
            "high": (high << torch.tensor([0, 2, 4, 6])).sum(1).to(torch.uint8),
        }
    return packed


def unpack(packed: dict[str, dict[str, Tensor] | Tensor]) -> dict[str, Tensor]:
    state = {}
    for name, value in packed.items():
        if isinstance(value, Tensor):
            state[name] = value
            continue
        shape = value["shape"].tolist()
        high = (value["high"].int()[:, None] >> torch.tensor([0, 2, 4, 6])) & 3
        integers = value["low"].int() + (high.flatten()[: value["low"].numel()] << 8) - 512
        state[name] = (integers.view(shape[0], -1).float() * value["scale"][:, None]).view(shape)
    return state


def write(file: Path, content: dict) -> None:
    temporary = file.with_suffix(".part")
    torch.save(content, temporary)
    temporary.replace(file)


def load_into(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Weights of :func:`unpack`; tables are not made."""
    missing, unexpected = nn.Module.load_state_dict(model, state, strict=False)
    lacking = [n for n in missing if not n.endswith(DERIVED) and not n.startswith(SHARED)]
    assert not unexpected and not lacking, (lacking, unexpected)


def rounded_states(folder: Path) -> Iterator[tuple[str, dict[str, Tensor], int]]:
    """Architecture, whole state and steps of each model in a folder that this program wrote."""
    entries: dict[str, dict] = {}
    for name in sorted(set(FILES.values())):
        if (folder / name).exists():
            entries |= torch.load(folder / name, "cpu", weights_only=True)
    for architecture in BUILDERS:
        if architecture not in entries:
            continue
        state = unpack(entries[architecture]["state"])
        if architecture == CHECKERBOARD:
            anchor = unpack(entries[ANCHOR]["state"])
            for name, value in anchor.items():
                below = name.startswith(("h_a.", "entropy_bottleneck."))
                own = f"latent_codec.hyper.{name}" if below else name
                if own.startswith(SHARED):
                    state[own] = value
        yield architecture, state, entries[architecture]["steps"]


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of pictures, which training needs")
    parser.add_argument("--seconds", type=float, default=150.0, help="of the whole run")
    parser.add_argument("--out", type=Path, help="folder; two files are written")
    parser.add_argument("--resume", type=Path, help="go on from such a folder, or one of its files")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--models", nargs="*", choices=BUILDERS, default=list(BUILDERS), help="in this order"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--smoke", action="store_true", help="every stage, in some 20 s")
    parser.add_argument("--unpack", type=Path, help="write ARCHITECTURE.pth.tar beside such files")
    arguments = parser.parse_args()
    if arguments.unpack:
        for architecture, state, steps in rounded_states(arguments.unpack):
            model = BUILDERS[architecture]()
            load_into(model, state)
            checkpoint = {"step": steps, "state_dict": model.state_dict()}
            torch.save(checkpoint, arguments.unpack / f"{architecture}.pth.tar")
        return
    if arguments.data is None or arguments.out is None:
        parser.error("training needs --data and --out")

    device = torch.device(arguments.device)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    batch, crop, seconds = arguments.batch, arguments.crop, arguments.seconds
    largest = 4096
    if arguments.smoke:
        seconds = min(seconds, 20.0)
        if device.type == "cpu":
            batch, crop, largest = 1, 64, 64
    arguments.out.mkdir(parents=True, exist_ok=True)
    paths, held = list_pictures(arguments.data)
    if arguments.smoke:
        paths, held = paths[::10], held[:2]
    crops = Crops(paths, crop, batch, device)
    print(f"{len(crops.pictures)} pictures after {time.monotonic() - began:.1f} s", flush=True)

    earlier: dict[str, tuple[dict[str, Tensor], int]] = {}
    if arguments.resume:
        folder = arguments.resume if arguments.resume.is_dir() else arguments.resume.parent
        earlier = {name: (state, steps) for name, state, steps in rounded_states(folder)}
    contents: dict[str, dict] = {name: {} for name in FILES.values()}
    models: dict[str, nn.Module] = {}
    end = began + seconds - (2.0 + 0.04 * seconds)  # the rest is for saving and measuring
    for index, architecture in enumerate(arguments.models):
        model = models[architecture] = BUILDERS[architecture]().to(device)
        model = model.to(memory_format=torch.channels_last)
        state, steps_before = earlier.get(architecture, (None, 0))
        if architecture == CHECKERBOARD:
            start_checkerboard(model, models[ANCHOR])
            if state is not None:  # but for the transforms, which may have changed since
                state = {k: v for k, v in state.items() if not k.startswith(SHARED)}
        elif state is None:
            start(model, crops())
        if state is not None:
            load_into(model, state)
        run_in_bfloat16(model, device)

        def save(
            steps: int,
            architecture: str = architecture,
            model: nn.Module = model,
            before: int = steps_before,
        ) -> None:
            ignored = SHARED if architecture == CHECKERBOARD else ()
            if not ignored:
                model.entropy_bottleneck._update_quantiles()
            state = {k: v for k, v in model.state_dict().items() if not k.startswith(ignored)}
            content = contents[FILES[architecture]]
            content[architecture] = {"steps": before + steps, "state": pack(state)}
            write(arguments.out / FILES[architecture], content)

        share = SHARES[architecture] / sum(SHARES[name] for name in arguments.models[index:])
        now = time.monotonic()
        steps = train(architecture, model, crops, now + share * (end - now), save)
        save(steps)
        print(f"{architecture}: {steps} steps, {time.monotonic() - began:.1f} s", flush=True)
    for architecture, state, steps in rounded_states(arguments.out):
        model = BUILDERS[architecture]()
        load_into(model, state)
        found = evaluate(model.to(device), held, device, largest, began + seconds)
        print(architecture, steps, found, flush=True)
    for file in sorted(arguments.out.iterdir()):
        print(file.name, file.stat().st_size, flush=True)
    print(f"done after {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
