"""From a trained photo network to plans of its integer transforms, for export and for training.

The first step of quantization: pictures go through the float codec, and what its layers see gives
grids and rounded weights (``photo.py``). ``simulation.py`` trains on from there.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pycodec.errors import InputError
from pycodec.models.integer_transforms import PROGRAMS, Convert, Convolve, ReadPixels
from pycodec.models.integer_variants import branch_layers
from pycodec.models.photo import TRANSFORMS
from pycodec.models.photo_network import PhotoNetwork
from pycodec.quantization.calibration import plan_transform, round_weights
from pycodec.quantization.photo import Calibration
from pycodec.quantization.transforms import LayerPlan, TransformPlan
from pycodec.training.data import list_pictures
from pycodec.training.train import read_scaled

MAX_BIAS = float(1 << 30)
"""Of a bias in units of the accumulator."""

Plans = dict[str, dict[int, TransformPlan]]
"""For each transform, for each width, a plan with its :func:`branch_layers` in this width."""


def named_layers(network: PhotoNetwork) -> dict[str, nn.Conv2d]:
    """The convolutions of all transforms in the order of their programs, as ``synthesis.tail``."""
    return {
        f"{transform}.{step.layer}": network.get_submodule(f"{transform}.{step.layer}")
        for transform in TRANSFORMS
        for step in PROGRAMS[transform]
        if isinstance(step, Convolve)
    }


def layers_after_relu(transform: str) -> set[str]:
    """Names within the transform of the layers that read the result of a ReLU."""
    steps = PROGRAMS[transform]
    written = {step.to for step in steps if isinstance(step, Convolve) and step.to_layer}
    return written | {step.layer for step in steps if isinstance(step, Convert) and step.relu}


def layers_of_pixels(transform: str) -> set[str]:
    """Names within the transform of the layers that read pixels as they are."""
    return {step.layer for step in PROGRAMS[transform] if isinstance(step, ReadPixels)}


def calibration_pictures(folder: Path, count: int) -> list[np.ndarray]:
    """Some of a folder's pictures, spread over it: uint8 [H, W, 3].

    Args:
        folder: searched deeply.
        count: at most so many.

    Raises:
        InputError: there is no picture of 64 by 64 pixels or more.
    """
    paths = list_pictures(folder)
    pictures = [read_scaled(path) for path in paths[:: max(1, len(paths) // count)][:count]]
    pictures = [p for p in pictures if min(p.shape[:2]) >= 64]
    if not pictures:
        raise InputError(f"calibration needs pictures of 86 x 86 pixels or more; {folder} has none")
    return pictures


@torch.no_grad()
def plan(
    calibration: Calibration,
    widths: Sequence[int] = (8,),
    method: str = "mse",
    rounded: Sequence[int] | None = None,
    workers: int = 0,
) -> Plans:
    """Plans of all transforms in each of ``widths``.

    Args:
        calibration: of the photo model.
        widths: bits of the weights of :func:`branch_layers`; others have what they need.
        method: of the grids: ``minmax``, ``percentile`` or ``mse``.
        rounded: the widths in which weights are rounded for their inputs, which takes a while; by
            default all.
        workers: processes that round; 0: this one. They are forked, which must come before any use
            of a GPU.
    """
    plans: Plans = {}
    tasks: list[tuple[str, TransformPlan, set[str]]] = []
    rounding = [bits for bits in widths if rounded is None or bits in rounded]
    for name, module in calibration.modules.items():
        branches = set(branch_layers(name))
        observer = calibration.observers[name]
        grids = plan_transform(name, observer, calibration.streams[name], method=method)
        plans[name] = {}
        set_weight_scales(module, grids)
        for bits in widths:
            layers = {
                path: replace(layer, weight_bits=bits) if path in branches else layer
                for path, layer in grids.layers.items()
            }
            plans[name][bits] = TransformPlan(layers, grids.streams)
            set_weight_scales(module, plans[name][bits], branches)
            if bits in rounding:
                tasks.append((name, plans[name][bits], branches))
        if rounding:  # these layers' plans are in those of all widths
            tasks.append((name, grids, grids.layers.keys() - branches))
    _round_all(calibration, tasks, workers)
    return plans


def _round_all(
    calibration: Calibration, tasks: Sequence[tuple[str, TransformPlan, set[str]]], workers: int
) -> None:
    """:func:`round_weights` of transforms, by name, with their plans, for some of their layers."""
    if not workers:
        for name, transform_plan, layers in tasks:
            module, observer = calibration.modules[name], calibration.observers[name]
            round_weights(name, module, observer, transform_plan, layers)
        return
    # What calibration saw is half a gigabyte: forked processes share it.
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, _share, (calibration,)) as pool:
        for (_, transform_plan, _), made in zip(tasks, pool.map(_round, tasks, 1), strict=True):
            for path, (integers, bias) in made.items():
                transform_plan.layers[path].rounded = torch.from_numpy(integers)
                transform_plan.layers[path].bias = torch.from_numpy(bias)


_shared: Calibration | None = None
"""Of a process that rounds."""


def _share(calibration: Calibration) -> None:
    global _shared
    _shared = calibration
    torch.set_num_threads(1)  # the threads of the process that was forked are not here


def _round(
    task: tuple[str, TransformPlan, set[str]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    name, transform_plan, layers = task
    module, observer = _shared.modules[name], _shared.observers[name]
    round_weights(name, module, observer, transform_plan, layers)
    made = {path: transform_plan.layers[path] for path in layers}
    return {path: (layer.rounded.numpy(), layer.bias.numpy()) for path, layer in made.items()}


def middle(picture: np.ndarray, most: int = 256) -> Tensor:
    """The middle of uint8 [H, W, 3], sides multiples of 64: float [1, 3, h, w] in [0, 1].

    Args:
        picture: of 64 by 64 or more.
        most: largest side.
    """
    height, width = (min(most, side // 64 * 64) for side in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    cut = torch.from_numpy(picture[top : top + height, left : left + width].copy())
    return cut.permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def set_weight_scales(
    transform: nn.Module, transform_plan: TransformPlan, layers: Collection[str] | None = None
) -> None:
    """Give layers, or all of them, the weight scales with the least squared error of their weights.

    They are large enough for the biases, too, which count in their units.
    """
    for name, layer in transform_plan.layers.items():
        if layers is not None and name not in layers:
            continue
        convolution = transform.get_submodule(name)
        folded = convolution.weight * layer.input.scale.float().view(1, -1, 1, 1)
        least = convolution.bias.abs() / MAX_BIAS
        layer.weight_scale = best_weight_scale(folded, layer.weight_bits).maximum(least)


def best_weight_scale(folded: Tensor, bits: int) -> Tensor:
    """Scale of each output channel with the least squared error of its weights, ``[Cout]``."""
    flat = folded.flatten(1)
    top = (1 << (bits - 1)) - 1
    peak = flat.abs().amax(1).clamp(min=1e-12) / top
    shares = torch.linspace(1.0, 0.4, 25)
    errors = [
        ((flat / s[:, None]).round().clamp(-top, top) * s[:, None] - flat).square().sum(1)
        for s in (peak * share for share in shares)
    ]
    return peak * shares[torch.stack(errors).argmin(0)]


def by_layer(
    plans: Plans, widths: Mapping[str, Sequence[int]] | Sequence[int]
) -> dict[str, dict[int, LayerPlan]]:
    """Plans of single layers by their name and by width.

    Args:
        plans: with all widths that are asked for.
        widths: of the layers of branches, by their name, ``synthesis.blocks8.0.conv``, or the same
            for all of them.
    """
    chosen: dict[str, dict[int, LayerPlan]] = {}
    for transform, by_width in plans.items():
        for path, layer in next(iter(by_width.values())).layers.items():
            name = f"{transform}.{path}"
            if path in branch_layers(transform):
                had = widths[name] if isinstance(widths, Mapping) else widths
                chosen[name] = {bits: by_width[bits].layers[path] for bits in had}
            else:
                chosen[name] = {layer.weight_bits: layer}
    return chosen


def assemble(plans: Plans, widths: Mapping[str, int]) -> dict[str, TransformPlan]:
    """One plan for each transform, with a width for each layer of its branches, by name."""
    layers = by_layer(plans, {name: (bits,) for name, bits in widths.items()})
    return {
        transform: TransformPlan(
            {
                name.split(".", 1)[1]: replace(next(iter(variants.values())))
                for name, variants in layers.items()
                if name.startswith(f"{transform}.")
            },
            next(iter(by_width.values())).streams,
        )
        for transform, by_width in plans.items()
    }


@torch.no_grad()
def start_rounded(network: PhotoNetwork, chosen: Mapping[str, TransformPlan]) -> None:
    """Give the layers the weights and biases that calibration chose, for training to go on from.

    Args:
        network: changed.
        chosen: plan of each transform; layers whose rounding was not chosen stay as they are.
    """
    for name, layer in named_layers(network).items():
        transform, path = name.split(".", 1)
        layer_plan = chosen[transform].layers[path]
        if layer_plan.rounded is None or layer_plan.weight_scale is None:
            continue
        unit = layer_plan.weight_scale.view(-1, 1, 1, 1) / layer_plan.input.scale.view(1, -1, 1, 1)
        weight = layer_plan.rounded * unit
        if path in layers_of_pixels(transform):
            weight = torch_order(weight)
        layer.weight.copy_(weight)
        if layer_plan.bias is not None:
            layer.bias.copy_(layer_plan.bias)


def torch_order(weight: Tensor) -> Tensor:
    """The inverse of ``unshuffled_weight``: input channels (dy, dx, c) to (c, dy, dx)."""
    o, i, kh, kw = weight.shape
    return weight.view(o, i // 3, 3, kh, kw).transpose(1, 2).reshape(o, i, kh, kw)
