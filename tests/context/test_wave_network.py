from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycodec.coding.tables import TableSet
from pycodec.context.orders import ORDERS as CODING_ORDERS
from pycodec.context.orders import mask
from pycodec.context.schedule import Layer, find_schedule
from pycodec.context.wave_network import IntegerLayer, WaveNetwork
from pycodec.errors import CorruptStreamError, InputError

from ..levels import LEVELS, simd_level

TABLES = TableSet.gaussian(np.geomspace(0.15, 6, 32))


def causal_mask(steps, groups: int, kernel: int, strict: bool) -> np.ndarray:
    """All that is earlier in the order, or (unless strict) of the same wave."""
    radius = kernel // 2
    out, seen, row, column = np.indices((groups, groups, kernel, kernel))
    later = steps[0] * (seen - out) + steps[1] * (row - radius) + steps[2] * (column - radius)
    return later < 0 if strict else later <= 0


def few_widths(largest: int, most: int):
    """Of up to ``most`` layers; equal ones are frequent, since a residual needs them."""
    different = st.lists(st.integers(1, largest), min_size=1, max_size=2)
    return different.flatmap(lambda few: st.lists(st.sampled_from(few), max_size=most))


def random_network(rng, steps, groups=3, widths=(5, 8, 5), kernels=(3, 5, 1), **options):
    """Layers of these widths, a residual where widths repeat, and the index layer."""
    layers = []
    in_width = 1
    for number, (width, kernel) in enumerate(zip([*widths, 1], [*kernels, 3], strict=True)):
        last = number == len(widths)
        mask = causal_mask(steps, groups, kernel, strict=number == 0)
        mask &= rng.random(mask.shape) < rng.choice([0.7, 1.0])
        channels = groups * width
        fan_in = max(1, mask.sum() * in_width / groups)
        shift = int(rng.integers(8, 30))
        # Outputs that use their range: accumulators are about 73 sqrt(fan_in) times the inputs.
        gain = 0.4 if last else 20 if number == 0 else 1.5
        unit = gain * 2.0**shift / (73 * np.sqrt(fan_in))
        bias = rng.integers(-2000, 2000, channels) + (16 * 2**shift / unit if last else 0)
        residual = next(
            (n + 1 for n, w in enumerate(widths[: max(0, number - 1)]) if w == width), None
        )
        residual = None if last else residual
        layers.append(
            IntegerLayer(
                input=number,
                weight=rng.integers(
                    -127, 128, (channels, kernel, kernel, groups * in_width)
                ).astype(np.int8),
                mask=mask,
                bias=bias.astype(np.int32),
                multiplier=(unit * rng.uniform(0.5, 1, channels) + 1).astype(np.int32),
                negative_multiplier=(unit * rng.uniform(-1, 1, channels)).astype(np.int32),
                shift=shift,
                residual=residual,
                residual_multiplier=None
                if residual is None
                else rng.integers(-(2**shift), 2**shift, channels).astype(np.int32),
                lower=0 if last else -127,
                upper=TABLES.num_tables - 1 if last else 127,
            )
        )
        in_width = width
    return WaveNetwork(layers, steps, **options)


def random_volume(rng, groups, height, width):
    return np.rint(rng.standard_normal((groups, height, width)) * 2).astype(np.int32)


ORDERS = {
    "slope": (1, 1, 1),
    "plane": (9, 3, 1),
    "raster": (0, 3, 1),
    "diagonal": (0, 1, 1),
    "loose": (2, 5, 2),
}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    order=st.sampled_from(sorted(ORDERS)),
    groups=st.integers(1, 6),
    widths=few_widths(largest=70, most=4),
    height=st.integers(1, 9),
    width=st.integers(1, 40),
    threads=st.integers(1, 3),
)
def test_native_equals_reference(seed, order, groups, widths, height, width, threads):
    rng = np.random.default_rng(seed)
    kernels = rng.choice([1, 3, 5, 7], len(widths))
    network = random_network(rng, ORDERS[order], groups, widths, kernels)
    reference = WaveNetwork(network.layers, network.steps, "reference")
    symbols = random_volume(rng, groups, height, width)
    ordered, indexes = reference.order(symbols)
    streams = set()
    for level in LEVELS:
        with simd_level(level):
            native = network.order(symbols, threads)
            np.testing.assert_array_equal(native[0], ordered)
            np.testing.assert_array_equal(native[1], indexes)
            streams.add(network.encode(symbols, TABLES, threads=threads))
            (stream,) = streams
            decoded = network.decode(stream, TABLES, height, width, threads=threads)
            np.testing.assert_array_equal(decoded, symbols)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    order=st.sampled_from(sorted(ORDERS)),
    groups=st.integers(1, 4),
    widths=few_widths(largest=12, most=3),
    height=st.integers(1, 9),
    width=st.integers(1, 30),
    threads=st.integers(1, 3),
)
def test_a_pass_may_end_in_another_head(seed, order, groups, widths, height, width, threads):
    rng = np.random.default_rng(seed)
    network = random_network(rng, ORDERS[order], groups, widths, rng.choice([1, 3, 5], len(widths)))
    head = network.layers[-1]
    weight = rng.permuted(head.weight, axis=0)
    other = replace(network, layers=[*network.layers[:-1], replace(head, weight=weight)])
    symbols = random_volume(rng, groups, height, width)
    encoding = network.begin(symbols, threads)
    rows = sorted({0, height // 2, height - 1})
    features, sums = encoding.head_input(rows)
    assert features.shape == (len(rows), width, groups * head.in_width)
    scaled = sums.transpose(2, 0, 1).astype(np.int64)
    multiplier = np.where(
        scaled < 0, head.negative_multiplier[:, None, None], head.multiplier[:, None, None]
    )
    index = np.clip((scaled * multiplier + (1 << (head.shift - 1))) >> head.shift, 0, head.upper)
    np.testing.assert_array_equal(index, network.table_indexes(symbols)[:, rows])
    for last in (None, other, replace(other, backend="reference"), network):
        expected = (last or network).order(symbols)
        for a, b in zip(encoding.order(last), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_pass_takes_no_head_of_another_network():
    rng = np.random.default_rng(3)
    network = random_network(rng, ORDERS["slope"])
    encoding = network.begin(random_volume(rng, 3, 5, 6))
    with pytest.raises(InputError, match="another network"):
        encoding.order(random_network(rng, ORDERS["slope"], widths=(5, 5), kernels=(3, 5)))
    with pytest.raises(InputError, match="row"):
        encoding.head_input([5])
    with pytest.raises(InputError, match="no symbols"):
        network.begin(np.zeros((3, 0, 4), np.int32))


@pytest.mark.parametrize("order", ORDERS)
def test_reference_decodes_native_streams(order):
    rng = np.random.default_rng(1)
    network = random_network(rng, ORDERS[order])
    symbols = random_volume(rng, 3, 5, 6)
    stream = network.encode(symbols, TABLES)
    reference = WaveNetwork(network.layers, network.steps, "reference")
    np.testing.assert_array_equal(reference.decode(stream, TABLES, 5, 6), symbols)


def test_indexes_vary_and_depend_on_earlier_symbols():
    """Otherwise the tests above would show little."""
    rng = np.random.default_rng(2)
    network = random_network(rng, ORDERS["slope"])
    symbols = random_volume(rng, 3, 12, 12)
    before = network.table_indexes(symbols)
    assert len(np.unique(before)) > 8
    symbols[0, 0, 0] += 3
    assert (network.table_indexes(symbols) != before).sum() > 3


@pytest.mark.parametrize("name", ["raster", "plane", "zigzag", "channelwise", "diagonal", "slope"])
def test_orders_and_their_schedules(name):
    """The masks of an order pass the engine's check with the steps that the schedule found."""
    order, groups, height, width = CODING_ORDERS[name], 3, 7, 9
    kinds, kernels = ("A", "B", "B"), (3, 5, 3)
    layers = [Layer.of(order, kind, groups, k) for kind, k in zip(kinds, kernels, strict=True)]
    schedule = find_schedule(layers, groups, height, width)
    rng = np.random.default_rng(6)
    random = random_network(rng, (9, 3, 1), groups, (4, 6), (3, 5))
    network = WaveNetwork(
        [
            replace(layer, mask=mask(order, kind, groups, groups, k).numpy())
            for layer, kind, k in zip(random.layers, kinds, kernels, strict=True)
        ],
        tuple(int(step) for step in schedule.weights),
    )
    waves = schedule.waves(groups, height, width)
    coordinates = [np.stack(waves.coordinates(i), axis=-1) for i in range(len(waves))]
    for mine, theirs in zip(network.waves(height, width), coordinates, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    symbols = random_volume(rng, groups, height, width)
    stream = network.encode(symbols, TABLES)
    np.testing.assert_array_equal(network.decode(stream, TABLES, height, width), symbols)


def side_network(rng, steps, groups, kernel, *, phase=None, active=None, **options):
    """Two side tensors; layers of them alone, with masks that see everything; and the symbols."""

    def layer(source, in_width, out_width, layer_mask, **changes):
        channels, size = groups * out_width, layer_mask.shape[2]
        fan_in = max(1, layer_mask.sum() * in_width / groups)
        unit = 2.0**20 / (40 * np.sqrt(fan_in))
        weight = (channels, size, size, groups * in_width)
        of_residual = None
        if "residual" in changes:
            of_residual = rng.integers(0, 1 << 20, channels).astype(np.int32)
        return IntegerLayer(
            **{
                "input": source,
                "weight": rng.integers(-127, 128, weight).astype(np.int8),
                "mask": layer_mask,
                "bias": rng.integers(-2000, 2000, channels).astype(np.int32),
                "multiplier": np.full(channels, unit, np.int32),
                "negative_multiplier": np.full(channels, unit / 4, np.int32),
                "shift": 20,
                "residual_multiplier": of_residual,
                **changes,
            }
        )

    def free(size):
        return np.ones((groups, groups, size, size), bool)

    if phase is None:
        masks = [causal_mask(steps, groups, kernel, strict) for strict in (True, False)]
    else:
        masks = [mask("checkerboard", kind, groups, groups, kernel).numpy() for kind in "AB"]
    first, hidden = masks
    layers = [
        layer(1, 2, 3, free(3)),  # 3: a side layer
        layer(3, 3, 4, free(kernel), residual=2),  # 4: a side layer with a side residual
        layer(0, 1, 4, first, residual=4, active=active),  # 5: symbols
        layer(4, 4, 4, free(3), residual=5),  # 6: sees side only, adds what depends on symbols
        layer(6, 4, 4, hidden),  # 7
        layer(7, 4, 4, hidden & (np.eye(kernel) == 2), residual=6),  # 8: its bias and residual
        layer(
            8,
            4,
            1,
            hidden,
            lower=0,
            upper=TABLES.num_tables - 1,
            bias=np.full(groups, 16 << 6, np.int32),
            multiplier=np.full(groups, 1 << 14, np.int32),
            negative_multiplier=np.full(groups, 1 << 14, np.int32),
        ),
    ]
    if phase is not None:
        options["phase"] = phase
    return WaveNetwork(layers, steps, side_widths=(2, 4), **options)


def random_side(rng, network, height, width):
    return [
        rng.integers(-128, 128, (network.groups * w, height, width)).astype(np.int8)
        for w in network.side_widths
    ]


def assert_codes(network, symbols, side=(), threads=1):
    """Native order, encode and decode are the reference's."""
    reference = replace(network, backend="reference")
    ordered, indexes = reference.order(symbols, side=side)
    _, height, width = symbols.shape
    for level in LEVELS:
        with simd_level(level):
            native = network.order(symbols, threads, side=side)
            np.testing.assert_array_equal(native[0], ordered)
            np.testing.assert_array_equal(native[1], indexes)
            stream = network.encode(symbols, TABLES, side=side, threads=threads)
            decoded = network.decode(stream, TABLES, height, width, side=side, threads=threads)
            np.testing.assert_array_equal(decoded, symbols)
    return indexes


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    order=st.sampled_from([*sorted(ORDERS), "channelwise", "rows", "columns", "checkerboard"]),
    groups=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5]),
    height=st.integers(1, 9),
    width=st.integers(1, 30),
    threads=st.integers(1, 3),
)
def test_side_tensors(seed, order, groups, kernel, height, width, threads):
    """In every order, those whose waves hold several symbols of a row or a column too."""
    rng = np.random.default_rng(seed)
    steps = {"channelwise": (1, 0, 0), "rows": (1, 2, 0), "columns": (0, 0, 1)}
    network = (
        side_network(rng, (0, 0, 0), groups, kernel, **CHECKERBOARD)
        if order == "checkerboard"
        else side_network(rng, {**ORDERS, **steps}[order], groups, kernel)
    )
    symbols = random_volume(rng, groups, height, width)
    assert_codes(network, symbols, random_side(rng, network, height, width), threads)


@pytest.mark.parametrize(
    ("steps", "height", "width", "lines"),
    [
        ((1, 1, 1), 61, 83, 21),
        ((1, 1, 1), 120, 35, 21),
        ((2, 2, 2), 34, 150, 21),
        ((9, 3, 1), 50, 200, 81),
        ((0, 3, 1), 40, 90, 27),
        ((0, 1, 1), 64, 64, 15),
        ((5, 4, 2), 45, 160, 36),
        ((3, 40, 1), 20, 400, 0),  # a line has few positions in the picture
        ((2, 5, 2), 60, 90, 0),  # positions are two rows apart
        ((1, 1, 1), 2, 500, 21),
        ((1, 1, 1), 300, 30, 21),
        ((9, 3, 1), 300, 100, 81),
        ((1, 1, 1), 400, 3, 0),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_lines_of_waves_move_on(steps, height, width, lines, threads):
    """Decoding keeps some lines alone; encoding, which goes over rows, is what it must match."""
    rng = np.random.default_rng(12)
    network = side_network(rng, steps, 3, 5)
    assert network._native.lines_in_memory(height, width) == lines
    symbols, side = random_volume(rng, 3, height, width), random_side(rng, network, height, width)
    stream = network.encode(symbols, TABLES, side=side, threads=threads)
    decoded = network.decode(stream, TABLES, height, width, side=side, threads=threads)
    np.testing.assert_array_equal(decoded, symbols)


CHECKERBOARD = {
    "phase": CODING_ORDERS["checkerboard"].phase,
    "active": CODING_ORDERS["checkerboard"].active("A"),
}


def test_reference_decodes_with_side_tensors():
    rng = np.random.default_rng(10)
    network = side_network(rng, (1, 1, 1), 2, 3)
    symbols, side = random_volume(rng, 2, 4, 5), random_side(rng, network, 4, 5)
    stream = network.encode(symbols, TABLES, side=side)
    reference = replace(network, backend="reference")
    np.testing.assert_array_equal(reference.decode(stream, TABLES, 4, 5, side=side), symbols)


def test_side_tensors_are_seen_and_must_fit():
    rng = np.random.default_rng(11)
    network = side_network(rng, (1, 1, 1), 2, 3)
    symbols, side = random_volume(rng, 2, 6, 7), random_side(rng, network, 6, 7)
    before = network.order(symbols, side=side)[1]
    for changed in ([-side[0] // 2, side[1]], [side[0], -side[1] // 2]):
        assert (network.order(symbols, side=changed)[1] != before).sum() > 10
    stream = network.encode(symbols, TABLES, side=side)
    for wrong in (
        [],
        side[:1],
        [*side, side[0]],
        side[::-1],
        [side[0][:, :5], side[1]],
        [side[0].astype(np.int32), side[1]],
    ):
        for backend in ("native", "reference"):
            same = replace(network, backend=backend)
            with pytest.raises(InputError, match="side"):
                same.encode(symbols, TABLES, side=wrong)
            with pytest.raises(InputError, match="side"):
                same.decode(stream, TABLES, 6, 7, side=wrong)


def test_only_side_layers_may_see_everything():
    rng = np.random.default_rng(12)
    network = side_network(rng, (1, 1, 1), 2, 3)
    for number in (2, 4, 6):  # those whose input depends on symbols
        layers = list(network.layers)
        layers[number] = replace(layers[number], mask=np.ones_like(layers[number].mask))
        with pytest.raises(InputError, match="not decoded"):
            replace(network, layers=layers)
    for widths in ((2,), (2, 5), (0, 4), ()):
        with pytest.raises(InputError):
            replace(network, side_widths=widths)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 3),
    columns=st.integers(1, 4),
    steps=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    groups=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 20),
    threads=st.integers(1, 3),
)
def test_any_phase(seed, rows, columns, steps, groups, height, width, threads):
    """Waves are as the reference makes them; layers see the most that is causal at all places."""
    rng = np.random.default_rng(seed)
    phase = rng.integers(0, 4, (rows, columns))
    active = rng.random((rows, columns)) < 0.7
    kernel = 3
    out, seen, down, right = np.indices((groups, groups, kernel, kernel))
    later = steps[0] * (seen - out) + steps[1] * (down - 1) + steps[2] * (right - 1)
    row, column = np.indices(phase.shape)[:, :, :, None, None, None, None]
    to = phase[(row + down - 1) % rows, (column + right - 1) % columns]
    change = later + to - phase[:, :, None, None, None, None]
    first, hidden = (change[active] < 0).all(0), (change <= 0).all((0, 1))
    random = random_network(rng, (9, 3, 1), groups, (4, 6), (3, 3))
    masks, actives = (first, hidden, hidden), (active, None, None)
    layers = [
        replace(layer, mask=m, active=a)
        for layer, m, a in zip(random.layers, masks, actives, strict=True)
    ]
    network = WaveNetwork(layers, steps, phase=phase)
    assert_codes(network, random_volume(rng, groups, height, width), threads=threads)


def test_checkerboard():
    """Two waves; the second sees the first, the first sees nothing."""
    rng = np.random.default_rng(13)
    order, groups, size = CODING_ORDERS["checkerboard"], 3, (9, 12)
    random = random_network(rng, (9, 3, 1), groups, (4, 6), (5, 3))
    network = WaveNetwork(
        [
            replace(
                layer,
                mask=mask(order, kind, groups, groups, layer.mask.shape[2]).numpy(),
                active=order.active(kind),
            )
            for layer, kind in zip(random.layers, "ABB", strict=True)
        ],
        (0, 0, 0),
        phase=order.phase,
    )
    assert network.num_waves(*size) == 2
    symbols = random_volume(rng, groups, *size)
    indexes = assert_codes(network, symbols, threads=2)
    even = len(network.waves(*size)[0])
    symbols[:, 4, 4] += 3  # even
    changed = assert_codes(network, symbols) != indexes
    assert not changed[:even].any()
    assert changed[even:].sum() > 3
    for layers in (
        [replace(network.layers[0], active=None), *network.layers[1:]],
        [replace(network.layers[0], active=np.ones((1, 2), bool)), *network.layers[1:]],
    ):
        with pytest.raises(InputError):
            replace(network, layers=layers)
    for phase in (np.zeros(2, np.int64), np.full((1, 1), -1), np.zeros((65, 1), np.int64)):
        with pytest.raises(InputError):
            replace(network, phase=phase)


def test_number_of_waves():
    rng = np.random.default_rng(0)
    slope = random_network(rng, (1, 1, 1), groups=8)
    plane = random_network(rng, (9, 3, 1), groups=8)
    raster = random_network(rng, (0, 3, 1), groups=1)
    assert slope.num_waves(512, 768) == 1286
    assert plane.num_waves(512, 768) == 2364
    assert raster.num_waves(32, 48) == 141
    assert slope.num_waves(0, 5) == 0


@pytest.mark.parametrize("size", [(0, 0), (0, 7), (7, 0)])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_no_symbols(size, backend):
    network = random_network(np.random.default_rng(0), (1, 1, 1), backend=backend)
    stream = network.encode(np.empty((3, *size), np.int32), TABLES)
    assert network.decode(stream, TABLES, *size).shape == (3, *size)


def test_far_symbols_are_clamped_in_the_context_only():
    rng = np.random.default_rng(3)
    network = random_network(rng, (1, 1, 1))
    symbols = (random_volume(rng, 3, 6, 6) * 10_000).astype(np.int32)
    stream = network.encode(symbols, TABLES)
    np.testing.assert_array_equal(network.decode(stream, TABLES, 6, 6), symbols)


@pytest.mark.parametrize("threads", [1, 3])
def test_damaged_streams_raise_or_differ(threads):
    rng = np.random.default_rng(4)
    network = random_network(rng, (1, 1, 1))
    symbols = random_volume(rng, 3, 8, 8)
    stream = network.encode(symbols, TABLES)
    raised = 0
    for position in range(0, len(stream)):
        for data in (stream[:position], bytearray(stream)):
            if isinstance(data, bytearray):
                data[position] ^= 0x41
            try:
                decoded = network.decode(data, TABLES, 8, 8, threads=threads)
            except CorruptStreamError:
                raised += 1
            else:
                assert (decoded != symbols).any()
    assert raised > len(stream)


def test_networks_that_look_ahead_are_refused():
    rng = np.random.default_rng(5)
    good = random_network(rng, (1, 1, 1), widths=(4,), kernels=(3,))
    first, head = good.layers
    own = first.mask.copy()
    own[1, 1, 1, 1] = True  # the symbol itself
    ahead = head.mask.copy()
    ahead[0, 0, 1, 2] = True

    for layers in (
        [replace(first, mask=own), head],
        [first, replace(head, mask=ahead)],
        [first, replace(head, input=2)],
        [first, replace(head, residual=5, residual_multiplier=head.bias)],
        [first, replace(head, upper=256)],
        [first, replace(head, lower=-1)],
        [first, replace(head, shift=0)],
        [first, first],
        [first],
        [],
    ):
        with pytest.raises(InputError):
            WaveNetwork(layers, (1, 1, 1))
    for steps in ((1, 1, 0), (-1, 1, 1), (1, 1, 1 << 21)):
        with pytest.raises(InputError):
            WaveNetwork(good.layers, steps)


def test_arguments_that_do_not_fit():
    network = random_network(np.random.default_rng(0), (1, 1, 1))
    for symbols in (np.zeros((2, 4, 4), np.int32), np.zeros((3, 4, 4), np.int64), np.zeros(3)):
        with pytest.raises(InputError, match="symbols"):
            network.encode(symbols, TABLES)
    with pytest.raises(InputError, match="pixels"):
        network.decode(b"", TABLES, -1, 4)
    with pytest.raises(InputError, match="threads"):
        network.decode(b"", TABLES, 4, 4, threads=0)
    with pytest.raises(InputError, match="threads"):
        network.order(np.zeros((3, 4, 4), np.int32), 0)
