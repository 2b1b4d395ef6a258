"""The checker accepts what decodes and catches what does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pycodec.context.causality import CausalityError, check_causality, dependencies, perturb
from pycodec.context.layers import MaskedConv2d, TrimmedConv2d
from pycodec.context.orders import ORDERS, CustomOrder
from pycodec.context.schedule import Layer, Residual, Schedule, find_schedule, flatten
from pycodec.errors import InputError

SHAPE = (3, 6, 7)


def layers(order, *kinds_and_kernels, groups=3):
    return [Layer.of(order, kind, groups, kernel) for kind, kernel in kinds_and_kernels]


def gray(order, groups=3, first="A"):
    """The published gray model: 5x5, four residual blocks, 3x3."""
    entry, hidden, head = layers(order, (first, 5), ("B", 5), ("B", 3), groups=groups)
    return [entry, hidden, *[Residual([hidden, hidden])] * 4, head]


@pytest.mark.parametrize("order", ORDERS)
def test_published_shape_in_every_order(order):
    network = gray(order)
    schedule = find_schedule(network, *SHAPE)
    report = check_causality(network, schedule, *SHAPE)
    assert report.schedule == schedule
    assert report.latest == -1
    assert report.perturbed_waves > 0
    assert check_causality(network, order, *SHAPE, perturbations=0).latest <= -1


def test_full_size():
    report = check_causality(gray("plane", 8), Schedule(9, 3, 1), 8, 512, 768)
    assert report.reach == (21, 21)
    assert report.perturbed_waves == 8


@pytest.mark.parametrize("order", ORDERS)
def test_type_b_first_is_caught(order):
    schedule = find_schedule(gray(order), *SHAPE)
    wrong = gray(order, first="B")
    with pytest.raises(CausalityError, match="not causal"):
        check_causality(wrong, schedule, *SHAPE, perturbations=0)
    leaks, _ = perturb(wrong, schedule, *SHAPE)
    assert leaks
    assert not perturb(gray(order), schedule, *SHAPE, waves=1000)[0]


@pytest.mark.parametrize("order", ORDERS)
def test_one_wrong_entry_is_caught(order):
    """Any layer, any entry that the order trims and that leads to a symbol of the same wave."""
    network = layers(order, ("A", 3), ("B", 3), ("B", 3))
    schedule = find_schedule(network, *SHAPE)
    rng = np.random.default_rng(0)
    for index in range(3):
        mask = network[index].mask
        trimmed = np.argwhere(~mask)
        for entry in trimmed[rng.permutation(len(trimmed))[:6]] if len(trimmed) else ():
            wrong = mask.copy()
            wrong[tuple(entry)] = True
            layer = network[index]
            damaged = list(network)
            damaged[index] = Layer(wrong, layer.kind, layer.active, layer.phase)
            output, input_, i, j = entry
            offset = np.array([input_ - output, i - 1, j - 1])
            late = offset @ np.array(schedule.weights)
            if order == "checkerboard":
                assert index > 0 or late == 0
            elif late < 0 or (index > 0 and late == 0):
                continue  # trimmed by the order, but no harm to these waves
            with pytest.raises(CausalityError):
                check_causality(damaged, schedule, *SHAPE, perturbations=0)


@pytest.mark.parametrize("weights", [(9, 2, 1), (8, 3, 1), (9, 3, 0), (1, 1, 1), (0, 0, 0)])
def test_wrong_schedule_is_caught(weights):
    network = gray("plane")
    with pytest.raises(CausalityError):
        check_causality(network, Schedule(*weights), *SHAPE, perturbations=0)
    assert perturb(network, Schedule(*weights), *SHAPE, waves=1000)[0]


def test_checkerboard_must_look_away():
    first, hidden = layers("checkerboard", ("A", 3), ("B", 3))
    schedule = find_schedule([first, hidden], *SHAPE)
    looks = Layer(first.mask, "A", None, first.phase)
    with pytest.raises(CausalityError, match="h mod 2 = "):
        check_causality([looks, hidden], schedule, *SHAPE, perturbations=0)
    assert perturb([looks, hidden], schedule, *SHAPE)[0]


def test_an_activation_that_comes_too_late():
    """The output is causal, but its hidden activation belongs to the next wave."""
    far_left = CustomOrder(lambda dc, dh, dw: (dc == 0) & (dh == 0) & (dw == -3))
    right = np.zeros((1, 1, 1, 3), bool)
    right[..., 2] = True
    network = [*layers(far_left, ("A", 7), groups=1), Layer(right, "B")]
    assert not perturb(network, Schedule(0, 0, 1), 1, 4, 9, waves=9)[0]
    with pytest.raises(CausalityError, match="layer 1 waits for a later wave"):
        check_causality(network, Schedule(0, 0, 1), 1, 4, 9)


def test_residual_blocks_keep_their_input():
    """A shortcut around a layer that sees nothing still passes dependencies on."""
    nothing = Layer(np.zeros((1, 1, 3, 3), bool), "B")
    symbol = Layer(np.ones((1, 1, 1, 1), bool), "B")
    assert not dependencies([symbol, nothing], 5, 5).any()
    assert dependencies([symbol, Residual([nothing])], 5, 5).sum() == 1
    with pytest.raises(CausalityError):
        check_causality([symbol, Residual([nothing])], Schedule(1, 1, 1), 1, 5, 5)
    report = check_causality([symbol, nothing], Schedule(1, 1, 1), 1, 5, 5)
    assert (report.dependencies, report.latest) == (0, 0)


def paths(network, period, groups, radius):
    """Dependencies found by walking every path from every output, in an unlimited picture."""

    def step(part, nodes):
        if isinstance(part, Residual):
            inner = nodes
            for layer in reversed(part.layers):
                inner = step(layer, inner)
            return nodes | inner
        reached = set()
        kh, kw = part.mask.shape[2:]
        for g, h, w in nodes:
            if part.active is None or part.active[h % period, w % period]:
                for g2, i, j in np.argwhere(part.mask[g]):
                    reached.add((int(g2), h + int(i) - kh // 2, w + int(j) - kw // 2))
        return reached

    seen = np.zeros((period, period, groups, groups, 2 * radius + 1, 2 * radius + 1), bool)
    for row, column, g in np.ndindex(period, period, groups):
        nodes = {(g, row, column)}
        for part in reversed(network):
            nodes = step(part, nodes)
        for g2, h, w in nodes:
            seen[row, column, g, g2, h - row + radius, w - column + radius] = True
    return seen


@given(st.data())
@settings(max_examples=40)
def test_dependencies_are_the_paths_through_the_network(data):
    groups = data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    chess = data.draw(st.booleans())

    def layer():
        mask = rng.random((groups, groups, *rng.choice([1, 3], 2))) < 0.3
        active = rng.random((2, 2)) < 0.6 if chess and rng.random() < 0.5 else None
        return Layer(mask, "B", active)

    network = [layer(), Residual([layer(), layer()]), layer()]
    period = 2 if any(part.active is not None for part in flatten(network)) else 1
    actual = dependencies(network, 100, 100)
    expected = paths(network, period, groups, 4)
    rh, rw = actual.shape[4] // 2, actual.shape[5] // 2
    assert expected.sum() == expected[..., 4 - rh : 5 + rh, 4 - rw : 5 + rw].sum()
    assert np.array_equal(actual, expected[..., 4 - rh : 5 + rh, 4 - rw : 5 + rw])


@given(st.data())
@settings(max_examples=40)
def test_proof_and_test_agree(data):
    """On random masks and waves; the proof may be stricter, but only at a border."""
    order = data.draw(st.sampled_from(sorted(ORDERS)))
    kernels = data.draw(st.lists(st.sampled_from([1, 3]), min_size=1, max_size=3))
    kinds = data.draw(st.lists(st.sampled_from("AB"), min_size=len(kernels), max_size=len(kernels)))
    network = layers(order, *zip(kinds, kernels, strict=True), groups=2)
    schedule = data.draw(
        st.builds(Schedule, st.integers(0, 3), st.integers(0, 2), st.integers(0, 2))
    )
    leaks, tried = perturb(network, schedule, 2, 7, 7, waves=1000)
    assert tried == schedule.count(2, 7, 7)
    try:
        check_causality(network, schedule, 2, 7, 7, perturbations=0)
    except CausalityError as error:
        # Radii sum to 3: the centre of the picture sees all there is to see.
        assert leaks or "waits" in str(error)
    else:
        assert not leaks


def test_modules_describe_themselves():
    """Networks of the package's layers, run as they are: what is later does not matter."""
    for order in ("plane", "slope", "checkerboard"):
        model = nn.Sequential(
            TrimmedConv2d(3, 12, 5, order=order, kind="A", groups_in=3),
            nn.PReLU(),
            TrimmedConv2d(12, 6, 3, order=order, kind="B", groups_in=3),
        ).double()
        network = [model[0].layer, model[2].layer]
        schedule = find_schedule(network, *SHAPE)
        check_causality(network, schedule, *SHAPE)
        number = torch.from_numpy(schedule.wave_numbers(*SHAPE))
        torch.manual_seed(0)
        symbols = torch.randn(1, *SHAPE, dtype=torch.float64)
        before = model(symbols)
        for wave in range(0, int(number.max()) + 1, 3):
            changed = torch.where(number >= wave, torch.randn_like(symbols), symbols)
            same = (number <= wave).repeat_interleave(2, 0)[None]
            torch.testing.assert_close(model(changed)[same], before[same], rtol=0, atol=1e-12)
    masked = MaskedConv2d(192, 384, 5)
    report = check_causality([masked.layer], "raster", 192, 32, 48, perturbations=0)
    assert (report.dependencies, report.reach) == (12 * 192 * 192, (2, 2))


def test_bad_arguments():
    network = layers("plane", ("A", 3))
    with pytest.raises(InputError, match=r"\[3\] groups"):
        check_causality(network, "plane", 4, 5, 5)
    with pytest.raises(InputError, match="unknown order"):
        check_causality(network, "spiral", 3, 5, 5)
    custom = CustomOrder(network[0].mask)
    assert check_causality(layers(custom, ("A", 3), ("B", 3)), custom, *SHAPE).latest == -1
