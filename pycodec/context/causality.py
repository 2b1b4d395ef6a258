"""Does a context network see only what is decoded before? A proof, and a test beside it.

The proof composes the masks of all layers into the set of offsets at which an output of one group
depends on a symbol of another, and compares the waves. It treats the picture as unlimited: at a
border there are fewer paths through the network, never more. The test runs the network with random
integer weights in exact arithmetic, changes the symbols of a wave and all later ones, and looks
whether any output up to that wave has changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pycodec.context.orders import CustomOrder, Order, get_order
from pycodec.context.schedule import (
    Layer,
    Network,
    Residual,
    Schedule,
    check_groups,
    find_schedule,
    flatten,
    network_phase,
    order_schedule,
    periodic,
)
from pycodec.errors import InputError

PERTURBED_SIDE = 16
"""The test by perturbation crops height and width to this: waves do not depend on the size."""

_MODULUS = 251
_MAX_WEIGHT = 15


class CausalityError(InputError):
    """An output of a context network sees a symbol that is not decoded yet."""


@dataclass(frozen=True)
class CausalityReport:
    """What :func:`check_causality` has established.

    Attributes:
        schedule: in which all outputs see earlier waves only.
        dependencies: number of (output group, input group, dh, dw) at which the network looks.
        reach: greatest abs(dh) and abs(dw) among them.
        latest: t of the latest symbol that an output sees, minus its own t: -1 or less; 0 if the
            network sees nothing.
        perturbed_waves: how many waves the test has tried.
    """

    schedule: Schedule
    dependencies: int
    reach: tuple[int, int]
    latest: int
    perturbed_waves: int


def check_causality(
    network: Network,
    schedule: Schedule | Order | str,
    channels: int,
    height: int,
    width: int,
    *,
    perturbations: int = 8,
    seed: int = 0,
) -> CausalityReport:
    """Prove that a network can be decoded in the waves of a schedule.

    That is: no output sees a symbol of its own wave or a later one, through all layers; and no
    layer waits for an activation of a later wave, so each can be computed in the wave of its own
    position.

    Args:
        network: layers in the order in which they run, from symbols to outputs.
        schedule: the waves; or an order, whose own steps (``order_schedule``) they are. A custom
            order has none; for it those of ``find_schedule`` are taken.
        channels, height, width: size of the code volume.
        perturbations: how many waves the test tries (all, if there are fewer); 0 for the proof
            alone.
        seed: of the test.

    Raises:
        CausalityError: an output sees a symbol of its own wave or a later one, or an activation
            waits for a later one.
        InputError: layers do not fit together.
    """
    if not isinstance(schedule, Schedule):
        order = get_order(schedule)
        find = isinstance(order, CustomOrder)
        schedule = (
            find_schedule(network, channels, height, width)
            if find
            else order_schedule(order, channels, height, width)
        )
    seen, lateness = _lateness(network, schedule, channels, height, width)
    wrong = int((lateness >= 0).sum())
    if wrong:
        worst = np.unravel_index(np.argmax(lateness), lateness.shape)
        raise CausalityError(
            f"{wrong} dependencies are not causal, such as {_describe(worst, lateness)}"
        )
    for index, layer in enumerate(flatten(network)):
        _, waits = _lateness([layer], schedule, channels, height, width)
        if waits.max() > 0:
            worst = np.unravel_index(np.argmax(waits), waits.shape)
            raise CausalityError(
                f"layer {index} waits for a later wave, such as {_describe(worst, waits)}"
            )
    leaks: list[tuple[int, int, int]] = []
    tried = 0
    if perturbations:
        height, width = min(height, PERTURBED_SIDE), min(width, PERTURBED_SIDE)
        leaks, tried = perturb(
            network, schedule, channels, height, width, waves=perturbations, seed=seed
        )
    if leaks:
        raise CausalityError(
            f"the output at (c, h, w) = {leaks[0]} changes with a symbol of its wave or a later one"
        )
    *_, dh, dw = np.nonzero(seen)
    reach = [
        int(np.abs(d - seen.shape[axis] // 2).max(initial=0)) for d, axis in ((dh, 4), (dw, 5))
    ]
    return CausalityReport(
        schedule=schedule,
        dependencies=int(seen.any((0, 1)).sum()),
        reach=(reach[0], reach[1]),
        latest=int(lateness.max()) if seen.any() else 0,
        perturbed_waves=tried,
    )


def dependencies(network: Network, height: int, width: int) -> np.ndarray:
    """The symbols that outputs depend on, through all layers.

    Args:
        network: layers in the order in which they run.
        height, width: offsets that do not fit into this size are left out.

    Returns:
        bool [ph, pw, groups, groups, 2 rh + 1, 2 rw + 1]: where the output stands (h mod ph, w mod
        pw: more than one class only for orders with phases), output group, input group, and the
        offset (dh + rh, dw + rw).
    """
    layers = list(flatten(network))
    period = periodic(layers, network_phase(layers))
    radius = [
        min(size - 1, sum(layer.mask.shape[axis] // 2 for layer in layers))
        for size, axis in ((height, 2), (width, 3))
    ]
    groups = len(layers[0].mask) if layers else 1
    seen = np.zeros((*period, groups, groups, 2 * radius[0] + 1, 2 * radius[1] + 1), bool)
    seen[..., np.arange(groups), np.arange(groups), radius[0], radius[1]] = True
    return _compose(network, seen)


def perturb(
    network: Network,
    schedule: Schedule,
    channels: int,
    height: int,
    width: int,
    *,
    waves: int = 8,
    seed: int = 0,
) -> tuple[list[tuple[int, int, int]], int]:
    """Run the network with random integers, and again with the symbols from a wave on changed.

    Sums are exact: weights up to 15 and activations up to 250 stay far below 2**53 in float64.
    Activations are reduced modulo 251 after each layer, which keeps them small and is not linear.

    Returns:
        outputs (c, h, w) that changed though their wave is that one or an earlier one, and the
        number of waves that were tried.
    """
    rng = np.random.default_rng(seed)
    check_groups(list(flatten(network)), channels)
    number = schedule.wave_numbers(channels, height, width)
    last = int(number.max())
    tried = np.sort(rng.permutation(last + 1)[:waves])
    symbols = rng.integers(0, _MODULUS, (channels, height, width))
    # Each symbol becomes another one, whatever it was.
    others = (symbols + rng.integers(1, _MODULUS, (len(tried), *symbols.shape))) % _MODULUS
    changed = np.where(number >= tried[:, None, None, None], others, symbols)
    batch = torch.from_numpy(np.concatenate([symbols[None], changed])).double()
    before, *after = _run(network, batch, channels, rng)
    leaks = {
        tuple(position)
        for wave, output in zip(tried, after, strict=True)
        for position in np.argwhere((output != before).numpy() & (number <= wave)).tolist()
    }
    return sorted(leaks), len(tried)


def _lateness(
    network: Network, schedule: Schedule, channels: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Dependencies, and t of what is seen minus t of the output for each (int64 min if not seen).

    As :func:`dependencies` returns them, but for as many groups as there are.
    """
    joint = check_groups(list(flatten(network)), channels)
    seen = dependencies(network, height, width)
    if joint:
        seen = np.broadcast_to(seen, (*seen.shape[:2], channels, channels, *seen.shape[4:]))
    # Network and schedule may have different periods: go on with their common one.
    phase = np.asarray(schedule.phase, np.int64)
    times = [int(np.lcm(a, b)) // a for a, b in zip(seen.shape[:2], phase.shape, strict=True)]
    seen = np.tile(seen, (*times, 1, 1, 1, 1))
    # A class of positions that the picture is too small to have does not count.
    seen = seen[:height, :width]
    row = np.arange(seen.shape[0]).reshape(-1, 1, 1, 1, 1, 1)
    column = np.arange(seen.shape[1]).reshape(1, -1, 1, 1, 1, 1)
    output = np.arange(channels).reshape(1, 1, -1, 1, 1, 1)
    input_ = np.arange(channels).reshape(1, 1, 1, -1, 1, 1)
    dh = (np.arange(seen.shape[4]) - seen.shape[4] // 2).reshape(1, 1, 1, 1, -1, 1)
    dw = (np.arange(seen.shape[5]) - seen.shape[5] // 2).reshape(1, 1, 1, 1, 1, -1)
    later = schedule.time(input_, row + dh, column + dw) - schedule.time(output, row, column)
    return seen, np.where(seen, later, np.iinfo(np.int64).min)


def _describe(index: Sequence[int], lateness: np.ndarray) -> str:
    row, column, output, input_, i, j = (int(x) for x in index)
    where = f" at h mod {lateness.shape[0]} = {row}, w mod {lateness.shape[1]} = {column}"
    where = where if lateness.shape[:2] != (1, 1) else ""
    offset = i - lateness.shape[4] // 2, j - lateness.shape[5] // 2
    return (
        f"group {output}{where} seeing group {input_} at offset (dh, dw) = {offset}, "
        f"{int(lateness[tuple(index)])} after its own time"
    )


def _compose(network: Network, seen: np.ndarray) -> np.ndarray:
    for part in network:
        if isinstance(part, Residual):
            seen = seen | _compose(part.layers, seen)
        else:
            seen = _through(part, seen)
    return seen


def _through(layer: Layer, seen: np.ndarray) -> np.ndarray:
    """What outputs of a layer depend on, if its inputs depend on ``seen``."""
    rows, columns, groups, _, height, width = seen.shape
    kh, kw = layer.mask.shape[2:]
    result = np.zeros_like(seen)
    for row, column in itertools.product(range(rows), range(columns)):
        if (
            layer.active is not None
            and not (layer.active[row % layer.active.shape[0], column % layer.active.shape[1]])
        ):
            continue
        for i, j in itertools.product(range(kh), range(kw)):
            dh, dw = i - kh // 2, j - kw // 2
            if not layer.mask[:, :, i, j].any() or abs(dh) >= height or abs(dw) >= width:
                continue
            inputs = seen[(row + dh) % rows, (column + dw) % columns]
            # float32 for BLAS; only zero or not matters.
            paths = layer.mask[:, :, i, j].astype(np.float32) @ inputs.reshape(groups, -1)
            reached = (paths > 0).reshape(inputs.shape)
            target = result[row, column]
            target[..., _to(dh, height), _to(dw, width)] |= reached[
                ..., _to(-dh, height), _to(-dw, width)
            ]
    return result


def _to(shift: int, length: int) -> slice:
    """The part of an axis on which values that are moved by ``shift`` come to lie."""
    return slice(max(shift, 0), length + min(shift, 0))


def _run(network: Network, x: Tensor, channels: int, rng: np.random.Generator) -> Tensor:
    """The network with random weights, double [N, channels, H, W], one channel a group."""
    for part in network:
        if isinstance(part, Residual):
            x = torch.remainder(x + _run(part.layers, x, channels, rng), _MODULUS)
            continue
        kh, kw = part.mask.shape[2:]
        mask = np.broadcast_to(part.mask, (channels, channels, kh, kw))
        weight = torch.from_numpy(rng.integers(1, _MAX_WEIGHT + 1, mask.shape) * mask).double()
        total = F.conv2d(x, weight, padding=(kh // 2, kw // 2))
        if part.active is not None:
            rows, columns = part.active.shape
            h, w = np.ogrid[: x.shape[2], : x.shape[3]]
            total = total * torch.from_numpy(part.active[h % rows, w % columns])
        bias = torch.from_numpy(rng.integers(0, _MODULUS, channels)).double()
        x = torch.remainder(total + bias[:, None, None], _MODULUS)
    return x
