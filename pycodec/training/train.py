"""The training loop of the photo codec."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pycodec.errors import CodecError, InputError
from pycodec.models.photo import read_photo_tensors
from pycodec.models.photo_network import (
    LAMBDA_MAX,
    LAMBDA_MIN,
    PhotoConfig,
    PhotoNetwork,
    quality_lambda,
)
from pycodec.quantization.export import restore_entropy_model
from pycodec.quantization.fake_quant import QuantizedActivation
from pycodec.training.data import (
    CropSampler,
    Sampler,
    list_pictures,
    split_pictures,
    stream,
)
from pycodec.training.finalize import finalize
from pycodec.training.klt_start import start_from_klt

log = logging.getLogger(__name__)

OBSERVE_STEPS = 100
"""Steps before quantization starts during which activation peaks are recorded."""

VALIDATION_QUALITIES = (5.0, 25.0, 50.0, 75.0, 95.0)


@dataclass
class TrainingOptions:
    """Everything that defines a run.

    The learning rate warms up over ``warmup`` steps, stays, and falls linearly to zero over the
    last ``decay`` steps; simulated integer arithmetic is on for the last ``quantize`` steps. So a
    run can be stopped at any checkpoint and resumed with another ``steps``.

    With ``minutes`` the run takes that long, whatever the machine's speed, and of ``steps``,
    ``decay`` and ``quantize`` only the proportions count. With ``average`` the exponential moving
    average of the weights, of that decay a step, is what is validated and exported.
    """

    steps: int = 14_500
    decay: int = 10_500
    quantize: int = 3_500
    warmup: int = 50
    batch: int = 4
    crop: int = 256
    learning_rate: float = 4e-4
    clip: float = 20.0
    seed: int = 0
    bfloat16: bool = True
    save_minutes: float = 5.0
    validate_every: int = 1000
    minutes: float = 0.0
    average: float = 0.0
    device: str = "cpu"
    workers: int = 0


def rate_distortion_loss(
    x: Tensor, x_hat: Tensor, bits: Tensor, quality: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted ``bpp + lambda 255^2 MSE``; returns loss (scalar), bpp ``[B]`` and MSE ``[B]``.

    Loss at the optimum grows about as the square root of lambda; dividing by that makes a percent
    of rate weigh the same at every quality, as the BD-rate does.
    """
    multiplier = quality_lambda(quality)
    bpp = bits / (x.shape[2] * x.shape[3])
    mse = (x_hat - x).square().mean(dim=(1, 2, 3))
    weight = (multiplier / math.sqrt(LAMBDA_MIN * LAMBDA_MAX)).rsqrt()
    return (weight * (bpp + multiplier * 255**2 * mse)).mean(), bpp, mse


def load_weights(network: PhotoNetwork, folder: Path) -> None:
    """Restore the weights of a model folder, which must be of the network's widths.

    Raises:
        CodecError: it is no photo model, or of other widths.
    """
    tensors, _, _ = read_photo_tensors(folder)
    entropy = {k.removeprefix("entropy."): v for k, v in tensors.items() if "entropy." in k}
    transforms = {k: v.float() for k, v in tensors.items() if "entropy." not in k}
    missing, unexpected = network.load_state_dict(transforms, strict=False)
    missing = [name for name in missing if not name.startswith("entropy_model.")]
    if missing or unexpected:
        raise CodecError(f"{folder} is no photo model: {(missing + unexpected)[0]} is amiss")
    restore_entropy_model(network.entropy_model, entropy)


class Trainer:
    """Owns network, optimizers, data and log of one run in ``out``.

    Args:
        folder: training pictures (see ``CropSampler``); one in 50 is held out for validation.
        out: run folder: ``checkpoint.pt``, ``log.csv``, TensorBoard events where it is installed.
        options: of the run; a checkpoint in ``out`` is resumed, with these options.
        start: a training checkpoint whose weights a fresh run starts from.
        config: widths of the network; those of a checkpoint must be the same.

    Raises:
        CodecError: the folder holds no picture, or none that is large enough.
        InputError: PyTorch has no such device.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        options: TrainingOptions,
        start: Path | None = None,
        config: PhotoConfig | None = None,
    ) -> None:
        self.options, self.out, self.device = options, out, checked_device(options.device)
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(options.seed)
        self._find_pictures(folder)
        network = PhotoNetwork(config or PhotoConfig())
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), fused=True
        )
        self._average: list[Tensor] = []
        self.step = 0
        self._observed = 0  # steps in which activation peaks were recorded
        self.seconds = 0.0
        checkpoint = out / "checkpoint.pt"
        resumed = checkpoint.exists()
        if resumed:
            self._resume(checkpoint)
        elif start is not None:
            self._load_weights(start)
        # A resumed run must not see the same crops again.
        sampler = self._sampler(seed=options.seed + 7919 * self.step)
        if not resumed and start is None:
            self._start(sampler)
        if options.average and not self._average:
            self._average = [p.detach().clone() for p in self.network.parameters()]
        self.batches = stream(sampler, options.batch, options.workers)
        self._log = _CsvLog(out / "log.csv")
        self._board = _tensorboard(out)

    def _find_pictures(self, folder: Path) -> None:
        training, held_out = split_pictures(find_pictures(folder))
        self.training = training
        self.held_out = [x for x in map(read_whole, held_out) if x.numel()]

    def _sampler(self, seed: int) -> Sampler:
        return CropSampler(self.training, self.options.crop, seed=seed)

    def _start(self, sampler: Sampler) -> None:
        """First weights of a run that starts from none."""
        count = max(1, 2_000_000 // self.options.crop**2)
        self.network.cpu()
        start_from_klt(self.network, sampler.batch(count).float() / 255)
        self.network.to(self.device)

    def _load_weights(self, path: Path) -> None:
        if path.is_dir():
            load_weights(self.network, path)
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])

    def _resume(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        if self.options.average:
            self._average = [t.to(self.device) for t in state.get("average", [])]
        if state["quantized"]:
            self._enable_quantization(resumed=True)
        torch.manual_seed(self.options.seed + self.step)
        log.info("resumed %s at step %d", path, self.step)

    def save(self, name: str = "checkpoint.pt") -> None:
        """Write a checkpoint atomically."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "quantized": self.network.entropy_model.quantized,
            "options": asdict(self.options),
            "average": self._average,
        }
        temporary = self.out / (name + ".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.out / name)

    def _enable_quantization(self, resumed: bool = False) -> None:
        model = self.network.entropy_model
        scales = {n: p.detach().clone() for n, p in model.named_parameters() if "log_scale" in n}
        model.set_quantization(True)
        if resumed:  # keep the trained scales, not the observed peaks
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in scales:
                        parameter.copy_(scales[name])

    def _prepare_step(self) -> None:
        """Learning rate and quantization for the step about to be made."""
        o, left = self.options, self._left()
        factor = min(1.0, (self.step + 1) / max(1, o.warmup), left / max(1, o.decay))
        for group in self.optimizer.param_groups:
            group["lr"] = o.learning_rate * factor
        if not self.network.entropy_model.quantized:
            if left <= o.quantize and self._observed >= OBSERVE_STEPS:
                self._enable_quantization()
            observing = left <= o.quantize + OBSERVE_STEPS
            self._observed += observing
            self._set_observing(observing)

    def _left(self) -> float:
        """Steps left; with ``minutes``, the share of time that is left, of ``steps``."""
        o = self.options
        if o.minutes:
            return o.steps * max(0.0, 1 - self.seconds / (60 * o.minutes))
        return o.steps - self.step

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the network has the averaged weights, if there are some."""
        own = [p.detach().clone() for p in self.network.parameters()] if self._average else []
        self._set_parameters(self._average)
        try:
            yield
        finally:
            self._set_parameters(own)

    @torch.no_grad()
    def _set_parameters(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.network.parameters(), values, strict=bool(values)):
            parameter.copy_(value)

    def _set_observing(self, observing: bool) -> None:
        for module in self.network.modules():
            if isinstance(module, QuantizedActivation):
                module.observing = observing

    def train_step(self) -> dict[str, float]:
        """One optimizer step; returns what is logged."""
        self._prepare_step()
        self.network.train()
        values = self._backward(next(self.batches))
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip)
        if math.isfinite(norm):  # a rare overflow costs one step, not the run
            self.optimizer.step()
        self.network.zero_grad(set_to_none=True)
        self.step += 1
        if self._average:
            parameters = [p.detach() for p in self.network.parameters()]
            # Early on the average is of all steps so far.
            share = max(1 - self.options.average, 1 / (self.step + 1))
            torch._foreach_lerp_(self._average, parameters, share)
        return values | {"gradient_norm": norm.item()}

    def _backward(self, batch: Any) -> dict[str, float]:
        """Gradients of the loss of what the sampler made; returns what is logged."""
        o = self.options
        x = batch.to(self.device, non_blocking=True).float().div_(255)
        x = x.contiguous(memory_format=torch.channels_last)
        # Stratified qualities: every batch spans the whole range.
        quality = 1 + 99 * (torch.randperm(o.batch) + torch.rand(o.batch)) / o.batch
        quality = quality.to(self.device)
        x_hat, y_bits, z_bits = self.network(x, quality, autocast=o.bfloat16)
        loss, bpp, mse = rate_distortion_loss(x, x_hat, y_bits + z_bits, quality)
        loss.backward()
        return {
            "loss": loss.item(),
            "bpp": bpp.mean().item(),
            "psnr": -10 * mse.detach().log10().mean().item(),
            "hyper_share": (z_bits.sum() / (y_bits + z_bits).sum()).item(),
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss, bpp and PSNR of the held-out pictures, if any, at a few qualities."""
        if not self.held_out:
            return {}
        self.network.eval()
        self._set_observing(False)
        result: dict[str, float] = {}
        losses = []
        for value in VALIDATION_QUALITIES:
            quality = torch.tensor([value], device=self.device)
            rates, psnrs = [], []
            for x in (picture.to(self.device) for picture in self.held_out):
                x_hat, y_bits, z_bits = self.network(x, quality, autocast=self.options.bfloat16)
                loss, bpp, mse = rate_distortion_loss(
                    x, x_hat.clamp(0, 1), y_bits + z_bits, quality
                )
                losses.append(loss.item())
                rates.append(bpp.item())
                psnrs.append(-10 * math.log10(mse.item()))
            result[f"bpp_q{value:g}"] = float(np.mean(rates))
            result[f"psnr_q{value:g}"] = float(np.mean(psnrs))
        return {"validation_loss": float(np.mean(losses)), **result}

    def export(self, folder: Path, report: Callable[[str], None] = log.info) -> Path:
        """Write the model folder; its tables and dead zones are fitted to training pictures."""
        self.batches.close()
        step = max(1, len(self.training) // 48)
        pictures = [read_scaled(path) for path in self.training[::step]]
        with self.averaged():
            finalize(self.network.cpu(), pictures, folder, report)
        self.network.to(self.device)
        return folder

    def run(self, report_every: int = 50) -> None:
        """Train to ``options.steps``; saves on the way, at the end, and on Ctrl-C."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        o, saved = self.options, time.monotonic()
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
        )
        try:
            with Progress(*columns, console=Console(stderr=True)) as progress:
                done = o.steps - self._left()
                task = progress.add_task("train", total=o.steps, completed=done, status="")
                window: list[dict[str, float]] = []
                while self._left() > 0:
                    began = time.monotonic()
                    window.append(self.train_step())
                    if self.step % report_every == 0:
                        mean = {k: float(np.mean([w[k] for w in window])) for k in window[0]}
                        window.clear()
                        self._record(mean)
                        progress.update(
                            task,
                            completed=o.steps - self._left(),
                            status=f"loss {mean['loss']:.3f} {mean['bpp']:.3f} bpp"
                            + (f" {mean['psnr']:.2f} dB" if "psnr" in mean else ""),
                        )
                    if self.step % o.validate_every == 0 or self.step == o.steps:
                        with self.averaged():
                            self._record(self.validate())
                    if time.monotonic() - saved > 60 * o.save_minutes:
                        self.save()
                        saved = time.monotonic()
                    self.seconds += time.monotonic() - began
                if o.minutes:
                    with self.averaged():
                        self._record(self.validate())
        finally:
            self.save()
            self.batches.close()
            self._log.close()
            if self._board is not None:
                self._board.close()

    def _record(self, values: dict[str, float]) -> None:
        values = {k: v for k, v in values.items() if math.isfinite(v)}
        self._log.write(self.step, self.seconds, values)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, self.step)


def find_pictures(folder: Path) -> list[Path]:
    """Of ``list_pictures``.

    Raises:
        CodecError: there are none.
    """
    paths = list_pictures(folder)
    if not paths:
        raise CodecError(f"no pictures under {folder}")
    return paths


class _CsvLog:
    """``step, seconds, name, value`` rows; appended to when a run is resumed."""

    def __init__(self, path: Path) -> None:
        fresh = not path.exists()
        self._file = path.open("a", newline="")
        self._writer = csv.writer(self._file)
        if fresh:
            self._writer.writerow(["step", "seconds", "name", "value"])

    def write(self, step: int, seconds: float, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.writerow([step, f"{seconds:.1f}", name, f"{value:.5g}"])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # as PyTorch says it without CUDA
        raise InputError(f"no training on {name!r}: {str(error).splitlines()[0]}") from error
    return device


def _tensorboard(out: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an extra; the CSV is always there
        return None
    return SummaryWriter(str(out / "tensorboard"))


def read_scaled(path: Path) -> np.ndarray:
    """A picture scaled down by 0.75, which removes the artefacts of its source: uint8 [H, W, 3]."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    size = (round(0.75 * picture.width), round(0.75 * picture.height))
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def read_whole(path: Path) -> Tensor:
    """A held-out picture, cut to multiples of 64, perhaps to nothing: float [1, 3, H, W]."""
    pixels = read_scaled(path)
    height, width = (side // 64 * 64 for side in pixels.shape[:2])
    tensor = torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255
    return tensor.contiguous(memory_format=torch.channels_last)
