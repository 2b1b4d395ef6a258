"""Schedules keep the rule of waves, and none is shorter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec.context.orders import ORDERS, CustomOrder
from pycodec.context.schedule import Layer, Residual, Schedule, find_schedule, order_schedule
from pycodec.errors import InputError

KODAK = (8, 512, 768)
GRAY = (("A", 5), ("B", 5), ("B", 3))
LINEAR = [name for name in ORDERS if name != "checkerboard"]


def network(order, *layers, groups):
    return [Layer.of(order, kind, groups, kernel) for kind, kernel in layers]


@pytest.mark.parametrize(
    ("order", "weights", "waves"),
    [
        ("raster", (0, 3, 1), 768 + 3 * 511),
        ("plane", (9, 3, 1), 768 + 3 * 511 + 9 * 7),
        ("zigzag", (5, 1, 1), 768 + 511 + 5 * 7),
        ("diagonal", (0, 1, 1), 768 + 511),
        ("slope", (1, 1, 1), 8 + 512 + 768 - 2),
        ("channelwise", (1, 0, 0), 8),
        ("checkerboard", (0, 0, 0), 2),
    ],
)
def test_known_schedules(order, weights, waves):
    """5x5 kernels and the 3x3 head of the published gray model, at Kodak's size."""
    schedule = find_schedule(network(order, *GRAY, groups=8), *KODAK)
    assert schedule.weights == weights
    assert schedule.slots(*KODAK) == schedule.count(*KODAK) == waves


def test_numbers_of_the_design():
    plane = find_schedule(network("plane", *GRAY, groups=8), *KODAK)
    slope = find_schedule(network("slope", *GRAY, groups=8), *KODAK)
    raster = find_schedule(network("raster", ("A", 5), groups=1), 192, 32, 48)
    assert (plane.count(*KODAK), slope.count(*KODAK)) == (2364, 1286)
    assert raster == Schedule(0, 3, 1)
    assert raster.count(192, 32, 48) == 141
    assert order_schedule("raster", 192, 32, 48).count(192, 32, 48) == 1536
    assert order_schedule("plane", *KODAK).count(*KODAK) == 8 * 512 * 768


@pytest.mark.parametrize("radius", range(1, 6))
def test_formulas_for_kernels(radius):
    k = 2 * radius + 1
    for order, weights in (
        ("raster", (0, radius + 1, 1)),
        ("plane", ((radius + 1) ** 2, radius + 1, 1)),
        ("zigzag", (2 * radius + 1, 1, 1)),
        ("slope", (1, 1, 1)),
    ):
        layers = network(order, ("A", k), ("B", k), groups=4)
        assert find_schedule(layers, 4, 40, 60).weights == weights


@pytest.mark.parametrize(
    ("layers", "weights"),
    [
        ((("A", 5), ("B", 5), ("B", 5)), (9, 3, 1)),
        ((("A", 3), ("B", 3)), (4, 2, 1)),
        ((("A", 5), ("B", 3)), (9, 3, 1)),
        # A hidden 5x5 may look at its own wave: (-1, +2) is as late as itself in w + 2 h.
        ((("A", 3), ("B", 5)), (6, 2, 1)),
        ((("A", 3), ("B", 7)), (12, 3, 1)),
        ((("A", 5), ("B", 7)), (12, 3, 1)),
        ((("A", 5), ("B", 1)), (9, 3, 1)),
    ],
)
def test_kernels_of_different_sizes(layers, weights):
    assert find_schedule(network("plane", *layers, groups=3), 3, 30, 30).weights == weights


def test_residual_blocks_count_as_their_layers():
    flat = network("plane", ("A", 3), ("B", 7), ("B", 5), groups=2)
    blocks = [flat[0], Residual([flat[1], Residual([flat[2]])])]
    assert find_schedule(blocks, 2, 20, 20) == find_schedule(flat, 2, 20, 20)


def test_one_group_stands_for_all_channels():
    for order in ("raster", "diagonal", "checkerboard"):
        one = find_schedule(network(order, *GRAY, groups=1), 6, 9, 11)
        assert one == find_schedule(network(order, *GRAY, groups=6), 6, 9, 11)


def conditions(layers, channels, height, width):
    """(offset, strict) of every pair of symbols one of which sees the other, pair by pair."""
    found = set()
    for layer in layers:
        kh, kw = layer.mask.shape[2:]
        for c, h, w in np.ndindex(channels, height, width):
            for c2, i, j in np.ndindex(channels, kh, kw):
                h2, w2 = h + i - kh // 2, w + j - kw // 2
                if layer.mask[c, c2, i, j] and 0 <= h2 < height and 0 <= w2 < width:
                    found.add(((c2 - c, h2 - h, w2 - w), layer.kind == "A"))
    return found


def keeps(weights, found):
    """Which rows of weights [n, 3] keep all conditions."""
    good = np.ones(len(weights), bool)
    for offset, strict in found:
        good &= weights @ np.array(offset) <= (-1 if strict else 0)
    return good


@st.composite
def causal_networks(draw):
    """Random masks that some hyperplane orders, with negative weights too, and a small volume."""
    shape = tuple(draw(st.integers(1, 4)) for _ in range(3))
    hidden = np.array([draw(st.integers(-3, 3)) for _ in range(3)])
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers = []
    for kind in draw(st.sampled_from(["A", "AB", "ABB"])):
        kh, kw = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 3, 5]))
        output, input_, i, j = np.indices((shape[0], shape[0], kh, kw))
        time = np.tensordot(hidden, np.stack([input_ - output, i - kh // 2, j - kw // 2]), 1)
        seen = time < 0 if kind == "A" else time <= 0
        layers.append(
            Layer(seen & (rng.random(seen.shape) < draw(st.sampled_from([0.1, 1]))), kind)
        )
    return layers, shape


BOX = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3, indexing="ij"), -1).reshape(-1, 3)


@given(causal_networks())
@settings(max_examples=60)
def test_no_hyperplane_is_shorter(case):
    layers, shape = case
    schedule = find_schedule(layers, *shape)
    found = conditions(layers, *shape)
    assert keeps(np.array([schedule.weights]), found).all()
    assert np.abs(schedule.weights).max() <= 12
    lengths = np.array(shape) - 1
    better = BOX[np.abs(BOX) @ lengths + 1 < schedule.slots(*shape)]
    assert not keeps(better, found).any()


@pytest.mark.parametrize("order", LINEAR)
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("shape", [(3, 7, 9), (1, 8, 6), (4, 1, 7), (2, 6, 1), (3, 2, 2)])
def test_no_schedule_of_any_kind_is_shorter(order, k, shape):
    """The longest chain of symbols each of which sees the one before has as many as the waves."""
    layer = Layer.of(order, "A", shape[0], k)
    steps = order_schedule(order, *shape).waves(*shape)
    depth = np.zeros(shape, int)
    for wave in steps:
        for c, h, w in np.stack(np.unravel_index(wave, shape), 1):
            deepest = 0
            for c2, i, j in np.argwhere(layer.mask[c]):
                h2, w2 = h + i - k // 2, w + j - k // 2
                if 0 <= h2 < shape[1] and 0 <= w2 < shape[2]:
                    deepest = max(deepest, depth[c2, h2, w2])
            depth[c, h, w] = deepest + 1
    assert find_schedule([layer], *shape).count(*shape) == depth.max()


schedules = st.builds(
    Schedule,
    st.integers(-4, 9),
    st.integers(-4, 4),
    st.integers(-2, 3),
    st.sampled_from([((0,),), ((0, 1), (1, 0)), ((0, 3, 1), (2, 0, -5)), ((4,), (0,), (1,))]),
)


@given(schedules, st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_waves(schedule, channels, height, width):
    shape = (channels, height, width)
    by_time = {}
    for number, (c, h, w) in enumerate(np.ndindex(shape)):
        phase = schedule.phase[h % len(schedule.phase)][w % len(schedule.phase[0])]
        time = schedule.alpha * c + schedule.beta * h + schedule.gamma * w + phase
        assert schedule.time(c, h, w) == time
        by_time.setdefault(time, []).append(number)
    waves = schedule.waves(*shape)
    assert [wave.tolist() for wave in waves] == [by_time[time] for time in sorted(by_time)]
    assert len(waves) == schedule.count(*shape) == len(by_time)
    assert schedule.slots(*shape) == max(by_time) - min(by_time) + 1
    numbers = schedule.wave_numbers(*shape)
    assert numbers.shape == shape
    for index, wave in enumerate(waves):
        assert (numbers[waves.coordinates(index)] == index).all()
        assert (numbers.ravel()[wave] == index).all()
    assert waves.positions.dtype == np.int32
    with pytest.raises(IndexError):
        waves[len(waves)]


def test_more_waves_than_16_bits_can_count():
    schedule = order_schedule("plane", 2, 300, 301)
    waves = schedule.waves(2, 300, 301)
    assert len(waves) == 2 * 300 * 301 > 2**16
    assert np.array_equal(waves.positions, np.arange(2 * 300 * 301))
    backwards = Schedule(0, -301, -1).waves(1, 300, 301)
    assert np.array_equal(backwards.positions, np.arange(300 * 301)[::-1])


def test_waves_without_symbols_are_left_out():
    schedule = Schedule(0, 3, 1)
    assert (schedule.slots(1, 4, 2), schedule.count(1, 4, 2)) == (11, 8)
    assert [len(wave) for wave in schedule.waves(1, 4, 2)] == [1] * 8
    # At this width fewer slots are enough.
    assert find_schedule(network("raster", *GRAY, groups=1), 1, 4, 2) == Schedule(0, 2, 1)


def test_sizes_without_neighbours():
    layers = network("plane", *GRAY, groups=3)
    assert find_schedule(layers, 3, 1, 1) == Schedule(1, 0, 0)
    assert find_schedule(layers, 3, 1, 9) == Schedule(3, 0, 1)
    assert find_schedule(network("plane", *GRAY, groups=1), 1, 1, 1) == Schedule(0, 0, 0)
    assert find_schedule(network("channelwise", *GRAY, groups=1), 1, 9, 9).count(1, 9, 9) == 1


def test_large_and_flat_volumes():
    """Sizes at which enumerating all three weights would take forever."""
    layers = network("plane", *GRAY, groups=2)
    assert find_schedule(layers, 2, 2, 100_000) == Schedule(6, 3, 1)
    assert find_schedule(layers, 2, 100_000, 100_000) == Schedule(9, 3, 1)
    assert (
        find_schedule(network("slope", *GRAY, groups=64), 64, 4000, 6000).slots(64, 4000, 6000)
        == 64 + 4000 + 6000 - 2
    )


def test_order_schedules():
    shape = (3, 4, 5)
    rank = {
        "raster": lambda c, h, w: 5 * h + w,
        "plane": lambda c, h, w: 20 * c + 5 * h + w,
        "zigzag": lambda c, h, w: 8 * c + h + w,
        "channelwise": lambda c, h, w: c,
        "diagonal": lambda c, h, w: h + w,
        "slope": lambda c, h, w: c + h + w,
        "checkerboard": lambda c, h, w: (h + w) % 2,
    }
    assert rank.keys() == ORDERS.keys()
    for name, expected in rank.items():
        schedule = order_schedule(name, *shape)
        assert all(schedule.time(*p) == expected(*p) for p in itertools.product(*map(range, shape)))


def test_user_orders_the_other_way():
    """From right to left and bottom up: weights are negative, and waves still count from 0."""
    order = CustomOrder(lambda dc, dh, dw: (dh > 0) | ((dh == 0) & (dw > 0)))
    schedule = find_schedule(network(order, ("A", 5), ("B", 5), groups=1), 1, 6, 8)
    assert schedule == Schedule(0, -3, -1)
    assert schedule.waves(1, 6, 8)[0].tolist() == [47]


def impossible():
    both_sides = CustomOrder(lambda dc, dh, dw: (dh == 0) & (abs(dw) == 1))
    around = CustomOrder(
        lambda dc, dh, dw: (
            ((dh == -1) & (dw == -1)) | ((dh == 0) & (dw == 1)) | ((dh == 1) & (dw == 0))
        )
    )
    raster = Layer.of("raster", "A", 2, 3)
    checkerboard = Layer.of("checkerboard", "A", 1, 3)
    return {
        "itself": [Layer(Layer.of("raster", "B", 2, 3).mask, "A")],
        "wait for each other": network(both_sides, ("A", 3), groups=2),
        "no integer hyperplane puts": network(around, ("A", 3), groups=2),
        r"\[3\] groups": [Layer.of("raster", "A", 3, 3)],
        "at least one layer": [],
        "without a type A layer": [Layer.of("raster", "B", 2, 3)],
        "Layer and Residual": [raster.mask],
        "different phases": [raster, Layer.of("checkerboard", "B", 2, 3)],
        # Without the pattern of activity, even positions see odd ones and the other way round.
        "no schedule": [Layer(checkerboard.mask, "A", phase=checkerboard.phase)],
    }


@pytest.mark.parametrize("message", impossible())
def test_networks_that_cannot_be_decoded(message):
    with pytest.raises(InputError, match=message):
        find_schedule(impossible()[message], 2, 6, 6)


def test_bad_arguments():
    layer = Layer.of("raster", "A", 1, 3)
    for call, message in (
        (lambda: find_schedule([layer], 1, 0, 3), "1x0x3"),
        (lambda: Schedule(0, 1, 1).waves(0, 2, 3), "0x2x3"),
        (lambda: Layer(np.ones((1, 1, 3, 3)), "A"), "bool"),
        (lambda: Layer(np.ones((1, 2, 3, 3), bool), "A"), "bool"),
        (lambda: Layer(np.ones((1, 1, 2, 3), bool), "A"), "odd"),
        (lambda: Layer(layer.mask, "C"), "A or B"),
        (lambda: order_schedule(CustomOrder(layer.mask), 1, 2, 3), "find_schedule"),
    ):
        with pytest.raises(InputError, match=message):
            call()
