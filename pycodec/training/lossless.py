"""Training of the lossless codec's networks: ``pycodec train-lossless DIR --size SIZE``."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pycodec.context.schedule import find_schedule
from pycodec.errors import InputError
from pycodec.models.lossless import (
    PLANES,
    SIDES,
    Component,
    load_lossless_model,
    save_lossless_model,
    to_components,
)
from pycodec.models.lossless_network import (
    SIZES,
    LosslessConfig,
    LosslessNetwork,
    bit_planes,
    bits_per_pixel,
    grow,
)
from pycodec.models.mirroring import want_mirror
from pycodec.models.model_folder import CONFIG_FILE, read_description
from pycodec.quantization.context import (
    QuantizedNetwork,
    bit_tables,
    export_network,
    restore_network,
)
from pycodec.training.data import CropSampler, Stream, list_pictures, split_pictures, stream
from pycodec.training.device_crops import DeviceCrops
from pycodec.training.graphs import CapturedPass
from pycodec.training.soap import Soap

CHECKPOINT = "checkpoint.pt"
ROUNDED = "rounded.pt"
VALIDATION_CROP, VALIDATION_BATCHES = 192, 6
_SCHEDULE_SIZE = PLANES, 4096, 4096  # large enough for the weights that any picture would get
_NETWORK = "config", "quantized", "average"  # what a checkpoint has to have of a network,
_WHOLE = *_NETWORK, "weights", "optimizer", "step", "seconds"  # and to be resumed
ROUNDING_CROPS = 48
"""Of as many pictures the scales of activations and the rounding of weights see something."""
SCALE_RATE = 0.1
"""Learning rate of the logarithms of activations' scales, times that of weights."""
FILTERS = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.HAMMING,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
"""Crops are scaled by one of them."""
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class LosslessOptions:
    """Of a :class:`LosslessTrainer`.

    Attributes:
        size: of ``SIZES``.
        order: ``plane`` or ``slope``.
        chroma: train the network of red and blue instead of that of gray.
        steps: optimizer steps.
        quantize: last steps, in which integer arithmetic is simulated; 0: the trained weights are
            rounded at the end. Those that bits are multiplied by are rounded in all steps.
        minutes: train for so long, as where a machine is lent, however many steps that makes; of
            ``quantize`` and ``steps`` the ratio counts. 0: go by steps.
        batch: crops a step, a multiple of 4.
        crop: their side in pixels.
        learning_rate: of SOAP, at its highest.
        warmup: first steps, over which the rate rises.
        seed: of all random choices.
        save_minutes: time between checkpoints.
        validate_every: steps.
        device: where it trains, as torch names it.
    """

    size: str = "tcae-fast"
    order: str = "slope"
    chroma: bool = False
    steps: int = 10000
    quantize: int = 1500
    minutes: float = 0.0
    batch: int = 16
    crop: int = 64
    learning_rate: float = 3e-2
    warmup: int = 200
    seed: int = 1
    save_minutes: float = 3.0
    validate_every: int = 250
    device: str = "cpu"


class Examples(NamedTuple):
    """Bits [N, 8, H, W] and side input [N, 16, H, W] of crops, 0 or 1 in float32."""

    bits: Tensor
    side: Tensor | None

    def tensors(self) -> list[Tensor]:
        return [tensor for tensor in self if tensor is not None]


class LosslessTrainer:
    """Trains one network, float32 parameters under bfloat16 autocast, SOAP, averaged weights.

    Args:
        folder: of pictures; one in 25 is for validation.
        out: run folder; a checkpoint in it is resumed.
        options: see :class:`LosslessOptions`.
        start: run or model folder to begin from: of the same network, or of a smaller one.
        report: gets a line at each validation.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        options: LosslessOptions,
        *,
        start: Path | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        if options.batch % 4 or options.batch < 4:
            raise InputError(f"the batch must be a multiple of 4, not {options.batch}")
        if options.size not in SIZES:
            raise InputError(f"size must be one of {', '.join(SIZES)}, not {options.size!r}")
        if options.steps < 1:
            raise InputError(f"there must be a step at least, not {options.steps}")
        if options.crop < 1:
            raise InputError(f"crops must have a pixel at least, not {options.crop}")
        torch.manual_seed(options.seed)
        self.options, self.out, self.report = options, out, report
        self.pictures, held = split_pictures(list_pictures(folder), 25)
        self.config = replace(
            SIZES[options.size], order=options.order, side=SIDES if options.chroma else 0
        )
        self.network = LosslessNetwork(self.config)
        self.network.start_from_differences()
        self.quantized = QuantizedNetwork(self.network)
        self.quantized.rounds_first = True
        self.step = 0
        self.began = time.monotonic()  # earlier by what a resumed run has had
        out.mkdir(parents=True, exist_ok=True)
        if start is not None:
            grow(self.network, load_network(start, options.chroma))
        self.quantized.to(options.device)
        self.average = {k: v.clone() for k, v in self.quantized.state_dict().items()}
        groups = [
            {"params": list(self.network.parameters()), "factor": 1.0},
            {"params": list(self.quantized.log_scales), "factor": SCALE_RATE},
        ]
        self.optimizer = Soap(groups, options.learning_rate, groups=PLANES)
        self._captured: CapturedPass | None = None
        if (out / CHECKPOINT).exists():
            self._load(out / CHECKPOINT)
        sampler = LosslessCrops(held or self.pictures, VALIDATION_CROP, 5, options)
        self.validation = [self._examples(sampler.batch(4)) for _ in range(VALIDATION_BATCHES)]

    def run(self) -> None:
        """Train to the end; Ctrl-C leaves a checkpoint behind."""
        o = self.options
        # Four crops of a larger one: reading and scaling pictures costs as much as the training.
        sampler = LosslessCrops(self.pictures, 2 * o.crop, o.seed + self.step, o)
        size = o.batch // 4
        crops = DeviceCrops(sampler, size, o.device) if self._on_gpu else stream(sampler, size)
        saved = time.monotonic()
        mean = None
        try:
            while (progress := self.progress()) < 1:
                left = (1 - progress) * o.steps
                if not self.quantized.enabled and left < o.quantize + 1e-6:
                    self.quantized.calibrate(*self._various(crops))
                    self._captured = None
                    self._restart_average()
                loss = self._optimize(next(crops))  # a tensor: reading it would wait for the GPU
                mean = loss if mean is None else mean + 0.02 * (loss - mean)
                if self.step % o.validate_every == 0:
                    self._report(mean)
                if time.monotonic() - saved > 60 * o.save_minutes:
                    self._save()
                    saved = time.monotonic()
            if mean is not None and self.step % o.validate_every:
                self._report(mean)
            if not self.quantized.enabled:
                self._round(*self._various(crops))
        finally:
            crops.close()
            self._save()

    def progress(self) -> float:
        """How much of the training is done: 1 at its end, or later."""
        if not self.options.minutes:
            return self.step / self.options.steps
        return (time.monotonic() - self.began) / (60 * self.options.minutes)

    def _report(self, training: Tensor) -> None:
        self.report(
            f"step {self.step}: training {training.item():.4f}, validation {self.validate():.4f} "
            f"bpp, {time.monotonic() - self.began:.0f} s"
        )

    def _optimize(self, crops: Tensor) -> Tensor:
        o = self.options
        rate = min(1.0, (self.step + 1) / max(1, o.warmup))
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress()))
        for group in self.optimizer.param_groups:
            group["lr"] = o.learning_rate * rate * group["factor"]
        half = o.crop
        quarters = [crops[:, :, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
        examples = self._examples(torch.cat(quarters))
        self.optimizer.zero_grad()
        if self._on_gpu:
            if self._captured is None:
                self._captured = CapturedPass(self._pass, self.quantized, examples)
            loss = self._captured(examples)["loss"]
        else:
            loss, _ = self._pass(examples)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.quantized.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(0.998, self.step / (self.step + 10))
        now = self.quantized.state_dict()
        torch._foreach_lerp_([self.average[name] for name in now], list(now.values()), 1 - keep)
        return loss.detach().clone()  # a graph writes the next one to the same place

    @property
    def _on_gpu(self) -> bool:
        return torch.device(self.options.device).type == "cuda"

    def _pass(self, examples: Examples) -> tuple[Tensor, dict[str, Tensor]]:
        bits, side = examples
        with torch.autocast(bits.device.type, dtype=torch.bfloat16):
            logits = self.quantized(bits, side)
        loss = bits_per_pixel(logits, bits)
        return loss, {"loss": loss.detach()}

    def _various(self, crops: Stream) -> Examples:
        """Examples of many pictures."""
        side = self.options.crop
        batches = -(-ROUNDING_CROPS // (self.options.batch // 4))
        various = torch.cat([next(crops) for _ in range(batches)])
        return self._examples(various[:, :, :side, :side])

    def _round(self, *examples: Tensor | None) -> None:
        """Write the integer network of the averaged weights; the run may still go on in floats."""
        now = copy.deepcopy(self.quantized.state_dict())
        self.quantized.load_state_dict(self.average)
        self.quantized.round_first()
        self.quantized.calibrate(*examples)
        self.quantized.round_weights(*examples)
        rounded = copy.deepcopy(self.quantized.state_dict())
        loss = self._loss_of(rounded)
        self.quantized.enabled, self.quantized.rounds_first = False, True
        self.quantized.load_state_dict(now)
        state = {
            "config": self.config.to_dict(),
            "step": self.step,
            "quantized": True,
            "average": rounded,
        }
        _write(state, self.out / ROUNDED)
        self.report(f"rounded: validation {loss:.4f} bpp")

    def _restart_average(self) -> None:
        """The averaged weights go on being trained, now with their scales."""
        for name, value in self.quantized.state_dict().items():
            self.average[name].copy_(value)

    def _examples(self, rgb: Tensor) -> Examples:
        """Bits and side input of uint8 [N, 3, H, W]."""
        device = self.options.device
        layout = torch.channels_last
        if not self.options.chroma:
            bits = bit_planes(to_gray(rgb.to(device)))
            return Examples(bits.to(torch.float32, memory_format=layout), None)
        components = to_components(rgb.permute(0, 2, 3, 1).cpu().numpy())
        planes = [bit_planes(torch.from_numpy(c).to(device)) for c in components]
        unknown = torch.zeros_like(planes[0])
        bits = torch.cat(planes[1:])
        side = torch.cat(
            [torch.stack([planes[0], unknown], 2), torch.stack([planes[0], planes[1]], 2)]
        )
        return Examples(
            *(x.to(torch.float32, memory_format=layout) for x in (bits, side.flatten(1, 2)))
        )

    def validate(self) -> float:
        """Bits a pixel of the averaged network on crops of the held-out pictures."""
        return self._loss_of(self.average)

    @torch.no_grad()
    def _loss_of(self, weights: dict[str, Tensor]) -> float:
        now = copy.deepcopy(self.quantized.state_dict())
        self.quantized.load_state_dict(weights)
        losses = [bits_per_pixel(self.quantized(b, s), b).item() for b, s in self.validation]
        self.quantized.load_state_dict(now)
        return sum(losses) / len(losses)

    def _save(self) -> None:
        state = {
            "config": self.config.to_dict(),
            "options": asdict(self.options),
            "step": self.step,
            "seconds": time.monotonic() - self.began,
            "quantized": self.quantized.enabled,
            "rounds_first": self.quantized.rounds_first,
            "weights": self.quantized.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        _write(state, self.out / CHECKPOINT)

    def _load(self, path: Path) -> None:
        state = _read(path, *_WHOLE, device=self.options.device)
        if LosslessConfig(**state["config"]) != self.config:
            raise InputError(f"{path} is of another network")
        _restore(self.quantized, state["weights"], path)
        self.quantized.enabled = state["quantized"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]
        self.began -= state["seconds"]


def _write(state: dict, path: Path) -> None:
    """All of it or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _read(path: Path, *keys: str, device: str = "cpu") -> dict:
    """What :func:`_write` has written, which must have these keys.

    Raises:
        InputError: there is no such file, or another one.
    """
    try:
        state = torch.load(path, weights_only=True, map_location=device)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # on damaged files torch raises whatever it stumbles on
        raise InputError(f"{path}: damaged, or no checkpoint of train-lossless") from error
    missing = set(keys) - (state.keys() if isinstance(state, dict) else set())
    if missing:
        raise InputError(f"{path}: a checkpoint without {', '.join(sorted(missing))}")
    return state


def _restore(quantized: QuantizedNetwork, state: dict[str, Tensor], path: Path) -> None:
    try:
        quantized.load_state_dict(state)
    except RuntimeError as error:  # whose message is a line for each tensor
        raise InputError(f"{path}: its tensors are those of another version's network") from error


class LosslessCrops(CropSampler):
    """Crops of all kinds, sharp and soft, clean and noisy; mirrored as the encoder would.

    A network that sees one kind only, such as pictures scaled down by a Lanczos filter, codes that
    kind better than the photographs that it will meet.

    Args:
        pictures: files.
        crop: side in pixels.
        seed: of the random stream.
        options: of whose order and component the mirroring is.
    """

    def __init__(
        self, pictures: list[Path], crop: int, seed: int, options: LosslessOptions
    ) -> None:
        super().__init__(pictures, crop, 1.25, 0.5, seed, filters=FILTERS, noise=3.0)
        self.options = options

    def finish(self, rgb: Tensor) -> Tensor:
        if self.options.order != "slope":
            return rgb
        first = rgb[:, 1] if self.options.chroma else to_gray(rgb)
        return torch.where(want_mirror(first).view(-1, 1, 1, 1), rgb.flip(3), rgb)


def to_gray(rgb: Tensor) -> Tensor:
    """Y = 0.299 R + 0.587 G + 0.114 B, truncated: uint8 [N, H, W] of uint8 [N, 3, H, W]."""
    return (rgb.double() * _luma(rgb.device)).sum(1).floor().to(torch.uint8)


@functools.cache
def _luma(device: torch.device) -> Tensor:
    """Kept, as a copy to a GPU waits for all that is queued there."""
    return torch.tensor(_LUMA, dtype=torch.float64, device=device)[:, None, None]


def load_network(source: Path, chroma: bool = False) -> LosslessNetwork:
    """The averaged float network of a run, or that of a model folder.

    Args:
        source: run folder, checkpoint, or model folder.
        chroma: take that network of a model, if it has one.

    Raises:
        InputError: there is no network.
    """
    if not (source / CONFIG_FILE).is_file():
        return load_quantized(source).network
    config = read_description(source)["config"]
    if "gray" not in config:
        raise InputError(f"{source}: the model does not say what its networks are")
    codec = load_lossless_model(source)
    name, integers = "gray", codec.gray
    if chroma and codec.chroma is not None:
        name, integers = "chroma", codec.chroma
    network = LosslessNetwork(LosslessConfig(**config[name]))
    restore_network(network, integers.layers)
    return network


def load_quantized(checkpoint: Path) -> QuantizedNetwork:
    """The averaged network of a run with its scales.

    Raises:
        InputError: there is no checkpoint, or it is damaged.
    """
    path = checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint
    state = _read(path, *_NETWORK)
    quantized = QuantizedNetwork(LosslessNetwork(LosslessConfig(**state["config"])))
    _restore(quantized, state["average"], path)
    if state.get("rounds_first"):
        quantized.round_first()
    quantized.enabled = state["quantized"]
    return quantized


def to_component(quantized: QuantizedNetwork) -> Component:
    """Integer layers with the schedule of their masks."""
    network = quantized.network
    schedule = find_schedule(network.masks(), *_SCHEDULE_SIZE)
    return Component(export_network(quantized), tuple(schedule.weights))


def export_model(folder: Path, gray: Path, chroma: Path | None = None) -> None:
    """Write a model folder of two networks.

    Args:
        folder: where to.
        gray, chroma: where the networks are: a run, or a model folder whose network is taken over.

    Raises:
        InputError: a run has not been quantized yet, or is for the other kind of network; or a
            model does not have the network.
    """
    sources = {"gray": gray, "chroma": chroma}
    found = {name: _exported(path, name) for name, path in sources.items() if path is not None}
    components = (found[name][0] if name in found else None for name in sources)
    config = {name: description for name, (_, description) in found.items()}
    save_lossless_model(folder, *components, bit_tables(), config)


def _exported(source: Path, name: str) -> tuple[Component, dict]:
    """The integer network of a run or a model, and what it was made from."""
    if (source / CONFIG_FILE).is_file():
        network = getattr(load_lossless_model(source), name)
        if network is None:
            raise InputError(f"{source}: the model has no network of {name} pictures")
        config = read_description(source)["config"].get(name, {})
        return Component(list(network.layers), tuple(network.steps)), config
    quantized = load_quantized(source)
    if not quantized.enabled and (source / ROUNDED).exists():
        files = source / CHECKPOINT, source / ROUNDED
        if len({_read(file, "step")["step"] for file in files}) > 1:
            raise InputError(f"{source}: the network was trained on after it had been quantized")
        quantized = load_quantized(source / ROUNDED)
    if not quantized.enabled:
        raise InputError(f"{source}: the network has not been quantized yet")
    if (quantized.network.config.side == SIDES) != (name == "chroma"):
        raise InputError(f"{source}: this is no network of {name} pictures")
    return to_component(quantized), quantized.network.config.to_dict()
