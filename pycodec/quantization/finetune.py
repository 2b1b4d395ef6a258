"""Fine-tuning of quantized transforms: quantization-aware training, then dynamic widths.

The loss is that of the training, rate + lambda distortion, and a cost of bits (DynaQuant, arXiv
2511.07903): L = R + lambda D + gamma B with B the mean bits of the weights. The entropy model and
its tables stay as they are, so what is trained is how the transforms work around their rounding.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pycodec.errors import InputError
from pycodec.quantization.bit_width import WIDTHS
from pycodec.quantization.simulation import FIRST_LAYERS, SimulatedTransforms
from pycodec.training.data import CropSampler, Sampler, stream
from pycodec.training.train import rate_distortion_loss

log = logging.getLogger(__name__)

_WARM_STEPS = 3
"""Before a step is recorded as a CUDA graph: libraries choose their algorithms in the first."""

_AHEAD = 8
"""Steps that may wait on a GPU: a clock is only worth something near the work."""


@dataclass(frozen=True)
class FineTuning:
    """Everything that defines a fine-tuning.

    Attributes:
        steps: of Adam; rates rise over the first twentieth and fall to zero over the last half.
        seconds: end after so much time, rates and temperature following the clock if it is ahead
            of the steps; 0: no limit.
        batch, crop: pictures a step and their side in pixels.
        learning_rate: of the network's weights.
        scale_rate: of the logarithms of scales and of the offsets.
        selector_rate: of the selectors.
        bits_cost: gamma, for each bit of the mean width. The rest of the loss is about 1.
        temperature: of the drawing of widths at the start; it falls to a twentieth of that.
        clip: largest norm of the gradient.
        seed: of crops, qualities and choices.
        graph: on a GPU, record a step once and repeat it (a CUDA graph): launching its five
            thousand small kernels takes longer than most of them run.
        report_every: steps.
        save_seconds: time between checkpoints.
    """

    steps: int = 300
    seconds: float = 0.0
    batch: int = 4
    crop: int = 128
    learning_rate: float = 5e-6
    scale_rate: float = 1e-3
    selector_rate: float = 1e-2
    bits_cost: float = 0.003
    temperature: float = 1.0
    clip: float = 20.0
    seed: int = 0
    graph: bool = False
    report_every: int = 1
    save_seconds: float = 120.0


def rate_factor(progress: float) -> float:
    """Of the learning rates, from the share of a run that is done."""
    return min(1.0, 20 * progress, 2 * (1 - progress))


def quantization_loss(
    x: Tensor, x_hat: Tensor, bits: Tensor, quality: Tensor, weight_bits: Tensor, bits_cost: float
) -> Tensor:
    """``R + lambda D + gamma B``, the first two as :func:`rate_distortion_loss` weights them.

    Args:
        x, x_hat: pictures [B, 3, H, W].
        bits: of their streams, [B].
        quality: [B].
        weight_bits: mean bits of the weights, [B].
        bits_cost: gamma.
    """
    loss, _, _ = rate_distortion_loss(x, x_hat, bits, quality)
    return loss + bits_cost * weight_bits.mean()


class CropPool:
    """Crops that are cut once and lie on the device; batches are drawn from them.

    Args:
        sampler: that cuts them.
        count: of crops.
        device: where they lie, uint8 [count, 3, crop, crop].
        workers: processes that cut them; 0: a thread.
    """

    def __init__(
        self, sampler: CropSampler, count: int, device: str | torch.device, workers: int = 0
    ) -> None:
        size = min(32, count)
        made = stream(sampler, size, workers)
        try:
            batches = [next(made) for _ in range(-(-count // size))]
        finally:
            made.close()
        self.crops = torch.cat(batches)[:count].contiguous().to(device)

    def batch(self, size: int) -> Tensor:
        """``uint8 [size, 3, crop, crop]``, on the device."""
        count, device = len(self.crops), self.crops.device
        return self.crops[torch.randint(count, (size,), device=device)]


class _Step:
    """A step of the optimizer on a batch: eagerly, or as a CUDA graph that is recorded once."""

    def __init__(self, transforms: SimulatedTransforms, options: FineTuning) -> None:
        self.transforms, self.options = transforms, options
        self.device = next(transforms.parameters()).device
        self.groups = [
            (transforms.weights(), options.learning_rate),
            (transforms.scales(), options.scale_rate),
            (list(transforms.selectors.parameters()), options.selector_rate),
        ]
        self.parameters = [p for parameters, _ in self.groups for p in parameters]
        self.optimizer = torch.optim.Adam(
            [
                {"params": parameters, "lr": torch.zeros((), device=self.device)}
                for parameters, _ in self.groups
                if parameters
            ],
            betas=(0.9, 0.99),
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._done = 0
        self._x = self._quality = self._loss = None

    def set_rates(self, factor: float) -> None:
        rates = [rate for parameters, rate in self.groups if parameters]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"].fill_(rate * factor)

    def __call__(self, x: Tensor, quality: Tensor) -> Tensor:
        """Returns the loss; nothing waits for the GPU.

        Args:
            x: uint8 [B, 3, H, W], on the device, of the same shape each time.
            quality: [B].
        """
        self._done += 1
        if self.device.type != "cuda" or not self.options.graph:
            return self._run(x, quality)
        with torch.cuda.device(self.device):
            return self._run_graph(x, quality)

    def _run_graph(self, x: Tensor, quality: Tensor) -> Tensor:
        if self._done <= _WARM_STEPS:
            self._x, self._quality = x.clone(), quality.clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loss = self._run(self._x, self._quality)
            torch.cuda.current_stream().wait_stream(side)
            return loss
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._loss = self._run(self._x, self._quality)
        self._x.copy_(x)
        self._quality.copy_(quality)
        self._graph.replay()
        return self._loss.clone()

    def _run(self, x: Tensor, quality: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        x = x.float().div_(255)
        result = self.transforms(x, quality)
        loss = quantization_loss(
            x, result.x_hat, result.bits, quality, result.weight_bits, self.options.bits_cost
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        # A rare overflow costs one step, not the run. (What GradScaler sets, too.)
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()
        self.optimizer.step()
        return loss.detach()


def fine_tune(
    transforms: SimulatedTransforms,
    sampler: Sampler,
    options: FineTuning,
    report: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> int:
    """Train the transforms, their scales and offsets, and the selectors if there are any.

    Args:
        transforms: changed, and their network with them; left in evaluation mode. All happens on
            the device where they are.
        sampler: of training crops of ``options.crop``; for a GPU a :class:`CropPool`.
        options: of the run.
        report: called after each ``report_every`` steps with their number and their mean loss.
        checkpoint: a file that is written now and then and at the end; if it is there, the run
            goes on from it.

    Returns:
        How many steps were made.
    """
    torch.manual_seed(options.seed)
    step_of = _Step(transforms, options)
    device = step_of.device
    transforms.train()
    first = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        transforms.load_state_dict(state["transforms"])
        step_of.optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        torch.manual_seed(options.seed + first)
        log.info("resumed %s at step %d", checkpoint, first)
    began = saved = time.monotonic()
    total, counted, step = torch.zeros((), device=device), 0, first
    while step < options.steps:
        spent = time.monotonic() - began
        progress = step / options.steps
        if options.seconds:
            progress = max(progress, spent / options.seconds)
            if progress >= 1:
                break
        step_of.set_rates(rate_factor(progress + 0.5 / options.steps))
        transforms.temperature.fill_(options.temperature * 0.05**progress)
        x = sampler.batch(options.batch).to(device)
        places = torch.rand(options.batch, device=device).argsort()
        places = places + torch.rand(options.batch, device=device)
        quality = 1 + 99 * places / options.batch  # every batch spans the whole range
        total += step_of(x, quality)
        counted += 1
        step += 1
        if device.type == "cuda" and step % _AHEAD == 0:
            torch.cuda.synchronize()
        if report is not None and (step % options.report_every == 0 or step == options.steps):
            report(step, total.item() / counted)
            total, counted = torch.zeros_like(total), 0
        if checkpoint is not None and time.monotonic() - saved > options.save_seconds:
            _save(checkpoint, transforms, step_of.optimizer, step)
            saved = time.monotonic()
    if checkpoint is not None:
        _save(checkpoint, transforms, step_of.optimizer, step)
    transforms.eval()
    return step


def _save(
    path: Path, transforms: SimulatedTransforms, optimizer: torch.optim.Optimizer, step: int
) -> None:
    state = {
        "transforms": transforms.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


@torch.no_grad()
def calibrate_selectors(
    transforms: SimulatedTransforms, pictures: Sequence[Tensor], qualities: Sequence[float]
) -> None:
    """Tell the selectors how active the channels usually are, before they are trained."""
    if not transforms.selectors:
        return
    transforms.eval()
    seen: dict[str, list[Tensor]] = {name: [] for name in FIRST_LAYERS}
    for quality in qualities:
        for picture in pictures:
            transforms(picture, torch.full((len(picture),), quality, device=picture.device))
            for name, activity in transforms.activity.items():
                seen[name].append(activity)
    for name, selector in transforms.selectors.items():
        selector.calibrate(torch.cat(seen[name]))


def start_selectors(
    transforms: SimulatedTransforms,
    losses: Mapping[float, Mapping[str, Mapping[int, float]]],
    bits_cost: float,
) -> None:
    """Let training begin with the widths that are worth their bits as far as layers add up.

    A selector that begins at 8 bits everywhere has to find out, by drawing widths of all layers at
    once, what :func:`~pycodec.quantization.report.sensitivity` measures a layer at a time.

    Args:
        transforms: their selectors are changed.
        losses: at some qualities, of ``sensitivity``: per cent, by layer and by width.
        bits_cost: gamma.
    """
    for transform, selector in transforms.selectors.items():
        names = transforms.dynamic_layers(transform)
        costs = {
            quality: torch.tensor(
                [
                    [
                        by_layer[name][width] / 100 + bits_cost * transforms.share(name) * width
                        for width in WIDTHS
                    ]
                    for name in names
                ]
            )
            for quality, by_layer in losses.items()
        }
        selector.start(costs, unit=max(bits_cost, 1e-6) / len(transforms.branches))


def device_of(name: str) -> torch.device:
    """Of a command's option.

    Raises:
        InputError: there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise InputError(f"there is no device {name} here: {error}") from error
    return device
