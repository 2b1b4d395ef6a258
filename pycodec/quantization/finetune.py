"""Fine-tuning of quantized transforms: quantization-aware training, then dynamic widths.

The loss is that of the training, rate + lambda distortion, and a cost of bits (DynaQuant, arXiv
2511.07903): L = R + lambda D + gamma B with B the mean bits of the weights. The entropy model and
its tables stay as they are, so what is trained is how the transforms work around their rounding.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pycodec.quantization.simulation import FIRST_LAYERS, SimulatedTransforms
from pycodec.training.data import CropSampler
from pycodec.training.train import rate_distortion_loss

log = logging.getLogger(__name__)

_SAVE_SECONDS = 120.0


@dataclass(frozen=True)
class FineTuning:
    """Everything that defines a fine-tuning.

    Attributes:
        steps: of Adam; rates rise over the first twentieth and fall to zero over the last half.
        batch, crop: pictures a step and their side in pixels.
        learning_rate: of the network's weights.
        scale_rate: of the logarithms of scales and of the offsets.
        selector_rate: of the selectors.
        bits_cost: gamma, for each bit of the mean width. The rest of the loss is about 1.
        temperature: of the Gumbel-softmax at the start; it falls to a quarter of that.
        clip: largest norm of the gradient.
        seed: of crops, qualities and choices.
    """

    steps: int = 300
    batch: int = 4
    crop: int = 128
    learning_rate: float = 5e-6
    scale_rate: float = 1e-3
    selector_rate: float = 1e-2
    bits_cost: float = 0.01
    temperature: float = 2.0
    clip: float = 20.0
    seed: int = 0

    def factor(self, step: int) -> float:
        """Of the learning rates."""
        rise = (step + 1) / max(1, self.steps // 20)
        return min(1.0, rise, (self.steps - step) / max(1, self.steps // 2))


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


def fine_tune(
    transforms: SimulatedTransforms,
    sampler: CropSampler,
    options: FineTuning,
    report: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train the transforms, their scales and offsets, and the selectors if there are any.

    Args:
        transforms: changed, and their network with them; left in evaluation mode.
        sampler: of training crops of ``options.crop``.
        options: of the run.
        report: called after each step with its number and its loss.
        checkpoint: a file that is written every two minutes and at the end; if it is there, the
            run goes on from it.
    """
    torch.manual_seed(options.seed)
    network = transforms.network
    scales = [p for p in transforms.quantizers.parameters() if p.requires_grad]
    weights = [p for p in network.parameters() if p.requires_grad]
    selectors = list(transforms.selectors.parameters())
    groups = [
        {"params": weights, "lr": options.learning_rate},
        {"params": scales, "lr": options.scale_rate},
    ]
    if selectors:
        groups.append({"params": selectors, "lr": options.selector_rate})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimizer.param_groups]
    everything = [*weights, *scales, *selectors]
    transforms.train()
    first = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        transforms.load_state_dict(state["transforms"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        torch.manual_seed(options.seed + first)
        log.info("resumed %s at step %d", checkpoint, first)
    saved = time.monotonic()
    for step in range(first, options.steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * options.factor(step)
        transforms.temperature = options.temperature * 0.25 ** (step / options.steps)
        x = sampler.batch(options.batch).float().div_(255)
        places = torch.randperm(options.batch) + torch.rand(options.batch)
        quality = 1 + 99 * places / options.batch  # every batch spans the whole range
        result = transforms(x, quality)
        loss = quantization_loss(
            x, result.x_hat, result.bits, quality, result.weight_bits, options.bits_cost
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(everything, options.clip)
        if math.isfinite(norm):  # a rare overflow costs one step, not the run
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if report is not None:
            report(step + 1, loss.item())
        last = step + 1 == options.steps
        if checkpoint is not None and (last or time.monotonic() - saved > _SAVE_SECONDS):
            _save(checkpoint, transforms, optimizer, step + 1)
            saved = time.monotonic()
    transforms.eval()


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
            transforms(picture, torch.tensor([quality]))
            for name, activity in transforms.activity.items():
                seen[name].append(activity)
    for name, selector in transforms.selectors.items():
        selector.calibrate(torch.cat(seen[name]))
