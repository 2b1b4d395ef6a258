from __future__ import annotations

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
                residual=None if last else residual,
                residual_multiplier=int(rng.integers(-(2**shift), 2**shift)),
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
    widths=st.lists(st.integers(1, 70), min_size=0, max_size=4),
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


@pytest.mark.parametrize("name", ["raster", "plane", "zigzag", "diagonal", "slope"])
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
            IntegerLayer(**{**layer.__dict__, "mask": mask(order, kind, groups, groups, k).numpy()})
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

    def replace(layer, **changes):
        return IntegerLayer(**{**layer.__dict__, **changes})

    for layers in (
        [replace(first, mask=own), head],
        [first, replace(head, mask=ahead)],
        [first, replace(head, input=2)],
        [first, replace(head, residual=5)],
        [first, replace(head, upper=256)],
        [first, replace(head, lower=-1)],
        [first, replace(head, shift=0)],
        [first, first],
        [first],
        [],
    ):
        with pytest.raises(InputError):
            WaveNetwork(layers, (1, 1, 1))
    for steps in ((1, 1, 0), (-1, 1, 1), (1, 1, 1 << 30)):
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
